"""Settings of the dissection of fine-tuning unlearning (Hong et al. 2024), and their presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from interp.unlearning import METHODS, MemitConfig, TrainingConfig


def is_trained(method: str) -> bool:
    """Return whether a method trains, which MEMIT does not."""
    return not method.startswith("memit")


TRAINED = ("dpo", "gd", "npo", "npo_kl", "ga")

EDITED = ("memit_empty", "memit_entropy")

DISTANCE = 1e-4
"""Learning rate times steps, about how far AdamW moves a weight: alike for all methods at strength
1, where Gemma-3-270M forgets by `gd` and still answers other questions."""

LIMITS = (
    "KRS says which of the vanilla model's parts bring its answers back, not that the "
    "unlearned model still holds them: capitals are knowledge of pretraining, and no model "
    "that never knew them stands beside. Of a model that lost what was to be kept, a score "
    "measures the repair of the damage: read what it answers."
)
"""What the study's numbers do not say."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings: concepts, methods, strengths and measurements.

    Attributes:
        model: V, as `interp.load` takes it.
        concepts: groups of built-in facts, such as `capital/Europe`.
        file: a file of the authors' concepts instead.
        num_concepts: of the file, the first ones.
        num_candidates: facts of a group that V is asked, of which those it knows are unlearned.
        num_questions: about each concept, at most.
        num_unrelated: unrelated questions per language.
        languages: BCP-47 codes of the query languages; a file has English alone.
        methods: settings at strength 1, by name.
        preferred: what `dpo` prefers, see `interp.unlearning.preferred_answers`.
        strengths: multiples of what `trained_by` and `edited_by` name.
        trained_by: `learning_rate` or `num_steps`, of methods that train.
        edited_by: a setting of MEMIT; `regularisation` is divided by the strength.
        swept: the strength whose models are swept and whose weights are compared.
        sites: of the sweep; the controls tell what restorations of the same kind bring back.
        window: layers restored together.
        num_tokens: T, tokens per answer.
        keep_models: keep weights when all is measured. Without them a run of the same settings
            trains nothing anew either.
        seed: of every choice.
    """

    model: str = "gemma-3-270m"
    concepts: tuple[str, ...] = ("capital/Europe", "capital/Asia")
    file: str = ""
    num_concepts: int = 10
    num_candidates: int = 40
    num_questions: int = 10
    num_unrelated: int = 20
    languages: tuple[str, ...] = ("en", "de", "zh")
    methods: Mapping[str, TrainingConfig | MemitConfig] = field(default_factory=dict)
    preferred: str = "refusal"
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)
    trained_by: str = "learning_rate"
    edited_by: str = "strength"
    swept: float = 1.0
    sites: tuple[str, ...] = ("coef", "attn", "coef+attn", "value", "key", "attn_weights")
    window: int = 5
    num_tokens: int = 30
    keep_models: bool = False
    seed: int = 0


def spread_over_steps(name: str, num_steps: int, batch_size: int = 16) -> TrainingConfig:
    """Return a method's usual settings in so many steps that it moves a weight by `DISTANCE`."""
    usual = METHODS[name].config
    assert isinstance(usual, TrainingConfig)
    return replace(
        usual,
        num_steps=num_steps,
        learning_rate=DISTANCE / num_steps,
        batch_size=batch_size,
        evaluate_every=0,
    )


def make_published_settings(name: str, learning_rate: float) -> TrainingConfig:
    """Return a method's settings by the authors: ten epochs of the paragraphs, batches of 32.

    DEFINITIONS has α = 1.5 for `gd` from the paper's code.
    """
    return TrainingConfig(
        objective=name,
        settings={"alpha": 1.5} if name == "gd" else {},
        learning_rate=learning_rate,
        weight_decay=0.01,
        warmup_steps=6,
        num_steps=60,
        batch_size=32,
        accumulation=8,
        gradient_checkpointing=True,
    )


PRESETS: Mapping[str, Config] = {
    "quick": Config(
        concepts=("capital/Europe",),
        num_candidates=16,
        num_questions=6,
        num_unrelated=8,
        languages=("en", "de"),
        methods={name: spread_over_steps(name, 5, batch_size=8) for name in ("gd", "npo")}
        | {"memit_empty": METHODS["memit_empty"].config},
        strengths=(0.5, 1.0),
        num_tokens=10,
    ),
    "full": Config(
        concepts=("capital/Europe", "capital/Asia", "capital/Africa"),
        num_unrelated=16,
        methods={name: spread_over_steps(name, 8) for name in TRAINED}
        | {name: METHODS[name].config for name in EDITED},
        num_tokens=20,
    ),
    "paper": Config(
        model="meta-llama/Llama-2-7b-chat-hf",
        file="llama2-7b_concepts_test_30tokens_answers.json",
        num_unrelated=50,
        languages=("en",),
        methods={
            name: make_published_settings(name, 2e-5 if name in ("ga", "gd") else 5e-5)
            for name in TRAINED
        }
        | {
            "memit_empty": MemitConfig(objective="empty"),
            "memit_entropy": MemitConfig(objective="entropy"),
        },
        preferred="other",
        sites=(*Config.sites, "mlp_out", "resid"),
        keep_models=True,
    ),
}


def scale_settings(
    settings: TrainingConfig | MemitConfig,
    strength: float,
    *,
    trained_by: str = "learning_rate",
    edited_by: str = "strength",
    seed: int = 0,
) -> TrainingConfig | MemitConfig:
    """Return a method's settings at a strength.

    Args:
        settings: those at strength 1.
        strength: what the setting named below is multiplied by.
        trained_by: `learning_rate` or `num_steps`, where the method trains.
        edited_by: of MEMIT, `strength`, `clamp`, or `regularisation`, which is divided instead.
        seed: of training.
    """
    name = edited_by if isinstance(settings, MemitConfig) else trained_by
    factor = 1 / strength if name == "regularisation" else strength
    value = getattr(settings, name) * factor
    changed = {name: max(1, round(value)) if name == "num_steps" else value}
    if isinstance(settings, TrainingConfig):
        changed["seed"] = seed
    return replace(settings, **changed)
