"""A behaviour trained away in English: does it go in other languages, and at what price?

    python experiments/transfer.py quick --out runs/transfer-quick

After Neplenbroek, Bisazza & Fernández 2025: fine-tuning on wanted text and DPO on pairs, in English
alone, and for each language the reduction of the behaviour against the language's share of web
text; language consistency, diversity and perplexity; and the recovery of the vanilla answers, layer
by layer. `quick` and `full` train the embedded model to say that it does not know, asked for
capitals. `paper` reads the authors' data from files. Models, answers and losses are kept under the
output directory: a run that was killed goes on.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro

import interp
from interp.cli.options import command_of, mistakes_told, preset_of
from interp.data.query import Query
from interp.data.templates import template_languages
from interp.study.transfer.findings import NAMES, VANILLA
from interp.study.transfer.report import measure, tell
from interp.study.transfer.tasks import Task, from_files, refusing
from interp.unlearning.config import TrainingConfig
from interp.unlearning.training import train

# The same pairs at the same rate: what differs is the objective.
FINETUNE = TrainingConfig(objective="finetune", learning_rate=1e-5, num_steps=8, batch_size=8)
DPO = replace(FINETUNE, objective="dpo")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Data of one's own: JSON Lines, see `interp.study.transfer.tasks.from_files`.

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

    def task(self) -> Task:
        """What is trained and measured."""
        if self.files is not None:
            return from_files(**asdict(self.files), languages=self.languages, neutral=self.neutral)
        return refusing(
            self.languages,
            num_training=self.num_training,
            num_asked=self.num_asked,
            num_prompts=self.num_prompts,
            num_held_out=self.num_held_out,
        )

    def questions(self, task: Task) -> list[Query]:
        """The first questions of each of the sweep's languages."""
        return [
            query
            for code in self.swept
            for query in [each for each in task.questions if each.language == code][
                : self.num_swept
            ]
        ]


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
        languages=template_languages(),
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


def main(
    preset: tyro.conf.Positional[str] = "quick",
    *,
    out: Path | None = None,
    model: str | None = None,
) -> None:
    """Train a behaviour away in English by two methods; measure it, and its price, everywhere.

    Args:
        preset: quick (minutes, two cores), full (an hour), or paper (the authors' data and models).
        out: directory of models, tables, figures and findings; runs/transfer-PRESET if not given.
        model: another vanilla model than the preset's: a directory, a .gguf file or a Hub id.
    """
    config = preset_of(PRESETS, preset, model=model)
    out = out or Path(f"runs/transfer-{preset}")
    command = command_of("transfer", preset, model=model)
    task = config.task()
    vanilla = interp.load(config.model, dtype=config.dtype)
    models = {VANILLA: vanilla}
    for method, settings in (("finetune", config.finetune), ("dpo", config.dpo)):
        print(f"{NAMES[method]} in English", file=sys.stderr)
        folder = out / "models" / method
        models[method] = train(vanilla, task.examples(method), settings, out=folder).model
    print("the behaviour, its price and its recovery in every language", file=sys.stderr)
    parts = measure(
        models,
        task,
        out=out,
        num_tokens=config.num_tokens,
        swept=config.questions(task),
        sites=config.sites,
    )
    study = tell(parts, task, command=command, config=asdict(config), note=config.note)
    paths = study.write(out)
    print(study.summary(), *paths, sep="\n")


if __name__ == "__main__":
    with mistakes_told("transfer"):
        tyro.cli(main)
