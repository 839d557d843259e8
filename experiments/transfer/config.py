"""Settings of training a behaviour away in English (Neplenbroek et al. 2025), and their presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from interp.data import list_template_languages
from interp.unlearning import TrainingConfig

VANILLA = "vanilla"

NAMES: Mapping[str, str] = {"finetune": "fine-tuning", "dpo": "DPO"}

# The same pairs at the same rate: what differs is the objective.
FINETUNE = TrainingConfig(objective="finetune", learning_rate=1e-5, num_steps=8, batch_size=8)

DPO = replace(FINETUNE, objective="dpo")

LIMITS = (
    "KRS says which of the vanilla model's parts bring its answers back, not that the trained "
    "model still holds them: no model that never had the behaviour stands beside, and facts "
    "to keep were not asked."
)
"""What the study's numbers do not say."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Data of one's own: JSON Lines, see `experiments.transfer.data.read_task`.

    Attributes:
        training: English pairs of prompt, chosen and rejected (BiasDPO).
        curated: English texts for fine-tuning (PANDA, the perturbed versions).
        asked: pairs in many languages (CrowS-Pairs: the less and the more stereotypical sentence).
        prompts: queries to continue (Tatoeba).
        held_out: texts for perplexity.
    """

    training: Path = Path("data/transfer/training.jsonl")
    curated: Path = Path("data/transfer/curated.jsonl")
    asked: Path = Path("data/transfer/asked.jsonl")
    prompts: Path = Path("data/transfer/prompts.jsonl")
    held_out: Path = Path("data/transfer/held_out.jsonl")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        model: the vanilla model.
        dtype: its precision.
        languages: BCP-47 codes of all that is measured.
        finetune: settings of fine-tuning.
        dpo: settings of DPO.
        files: data of one's own; built-in questions on capitals if None.
        neutral: the rate of the behaviour in a model without it, see `Task`.
        num_training: countries to train on.
        num_asked: countries to ask for.
        num_prompts: texts to continue, per language.
        num_held_out: held-out texts, per language.
        num_tokens: longest continuation and longest answer T of the sweep.
        swept: BCP-47 codes of the sweep's query languages.
        num_swept: questions of the sweep, per language.
        sites: what the sweep restores.
        note: what differs from the paper.
    """

    model: str = "gemma-3-270m"
    dtype: str = "float32"
    languages: tuple[str, ...] = ("en", "de", "fr", "es", "ru", "zh", "ar", "hi", "sw", "hy", "ur")
    finetune: TrainingConfig = FINETUNE
    dpo: TrainingConfig = DPO
    files: Files | None = None
    neutral: float = 0.0
    num_training: int = 40
    num_asked: int = 16
    num_prompts: int = 8
    num_held_out: int = 6
    num_tokens: int = 10
    swept: tuple[str, ...] = ("en", "de", "zh")
    num_swept: int = 6
    sites: tuple[str, ...] = ("coef", "attn", "coef+attn", "value")
    note: str = "refusals in place of bias and toxicity, one small model"


# QLoRA in the released code: rank 64, alpha 16, all linear maps, here without 4 bits and dropout;
# DPO there by RMSprop. 94,966 texts of PANDA once in batches of 4, BiasDPO's 1,145 pairs 20 times.
_ADAPTERS = TrainingConfig(
    parameters="lora",
    lora_rank=64,
    lora_alpha=16,
    warmup_steps=150,
    gradient_checkpointing=True,
    batch_size=4,
)

PRESETS = {
    "quick": Config(),
    "full": Config(
        languages=list_template_languages(),
        num_asked=32,
        num_prompts=20,
        num_held_out=20,
        num_tokens=20,
        swept=("en", "de", "fr", "ru", "zh", "ar", "hi", "sw", "hy"),
        num_swept=8,
        sites=("coef", "attn", "coef+attn", "value", "key", "attn_weights"),
    ),
    "paper": Config(
        model="google/gemma-2-9b-it",
        dtype="bfloat16",
        languages=("en", "ar", "ca", "zh", "it", "fr", "es", "de"),
        finetune=replace(
            _ADAPTERS,
            objective="finetune",
            learning_rate=3e-4,
            weight_decay=0.001,
            num_steps=23_742,
        ),
        dpo=replace(
            _ADAPTERS,
            objective="dpo",
            learning_rate=1e-5,
            weight_decay=0.05,
            max_grad_norm=10.0,
            num_steps=5_440,
        ),
        files=Files(),
        neutral=0.5,
        num_tokens=100,
        swept=("en", "de", "zh"),
        num_swept=50,
        note="one of the paper's seven models; CrowS-Pairs without Maltese",
    ),
}
