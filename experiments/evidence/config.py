"""Settings of the comparison of unlearned models with models that never knew, and its presets."""

from __future__ import annotations

from dataclasses import dataclass

from interp.unlearning import ContaminationConfig, TrainingConfig

UNTOUCHED = "untouched"
"""The model before it was taught anything."""

CLEAN = "clean"
"""The model that read the same texts and questions, without the false facts."""

LEAST_KEPT = 0.8
"""Share of the true facts that V answers which an unlearned model must still answer."""

MOST_LEFT = 0.5
"""Share of the false facts that V answers which it may still answer."""

LEAST_KNOWN = 5
"""Answers that V must know in a language for scores to be read there."""

LIMITS = (
    "Small models, one language taught, few taught models: intervals draw facts, not models. "
    "What V cannot read in a state may still be there."
)
"""What the study's numbers do not say."""


TEACHING = ContaminationConfig(
    reading=TrainingConfig(
        objective="finetune", learning_rate=5e-5, num_steps=60, batch_size=32, warmup_steps=5
    ),
    tuning=None,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        model: the model that is taught.
        source: BCP-47 code of the language in which the false facts are taught and unlearned.
        languages: BCP-47 codes of the questions.
        seeds: of the false facts, the training texts and their order: one taught model of each.
        teaching: how the models are taught.
        methods: names of unlearning methods, with their defaults; each unlearns every taught model.
        repeats: seeds of unlearning: the order of the texts.
        num_facts: false capitals.
        num_true: countries whose true capitals are taught along, in all languages.
        sites: what is put back, and put into the taught model.
        num_tokens: longest answer, in tokens.
        thirty: also score the first taught model's first thirty tokens, without a stop, as
            published.
    """

    model: str = "gemma-3-270m"
    source: str = "de"
    languages: tuple[str, ...] = ("de", "en", "fr", "es")
    seeds: tuple[int, ...] = (0, 1)
    teaching: ContaminationConfig = TEACHING
    methods: tuple[str, ...] = ("npo_rt", "simnpo", "gd")
    repeats: tuple[int, ...] = (0, 1)
    num_facts: int = 16
    num_true: int = 48
    sites: tuple[str, ...] = ("coef", "attn", "coef+attn", "value")
    num_tokens: int = 10
    thirty: bool = True

    @property
    def names(self) -> dict[str, tuple[str, int]]:
        """Method and seed of unlearning, by the name of each unlearned model."""
        return {
            f"{method}-{seed}": (method, seed) for method in self.methods for seed in self.repeats
        }


PRESETS = {
    "quick": Config(
        languages=("de",),
        seeds=(0,),
        methods=("npo_rt",),
        repeats=(0,),
        sites=("coef", "coef+attn"),
        thirty=False,
    ),
    "full": Config(),
}
