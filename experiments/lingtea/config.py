"""Settings of forgetting in many languages (Choi, Min & Choo 2024), and their presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from interp.languages import CHOI_LANGUAGES
from interp.unlearning import TrainingConfig

BEFORE, LINGTEA, SEQUENTIAL = "before", "lingtea", "sequential"
"""Names of models: V, LingTea, and LingTea in one language after the other."""


def name_monolingual(language: str) -> str:
    """Return the name of LingTea in one language alone."""
    return f"only-{language}"


def name_fixed(kappa: float) -> str:
    """Return the name of LingTea with a fixed κ."""
    return f"kappa-{kappa:g}"


LIMITS = (
    "KRS says which of the vanilla model's parts bring its answers back, not that the "
    "unlearned model still holds them: no model that never knew stands beside. Where "
    "perplexity on held-out text rose by orders of magnitude, a rate of forgetting is that of "
    "a broken model."
)
"""What the study's numbers do not say."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        model: V: a name, a directory or a Hub id.
        languages: BCP-47 codes by material; the materials are `facts` and `sentences`.
        fact_files: a BMLAMA-53 file for each of `forget`, `retain` and `test`, `{size}` standing
            for the size of the forget set; built-in facts if empty.
        sentence_files: FLORES-200 files likewise; statements of built-in facts if empty.
        relations: relations of the built-in facts; a built-in sentence states one of each.
        size: facts or sentences to forget.
        num_retain: those to retain in training, where they are built in.
        num_test: those of the test part, where they are built in.
        methods: objectives that are compared, see `interp.unlearning.registry.METHODS`.
        extras: materials on which κ, the order of languages, one language and sizes are studied.
        kappas: fixed κ.
        only: the language of the monolingual run.
        steps_per_language: steps in each language where one comes after the other.
        sizes: further sizes of the forget set.
        size_methods: objectives that forget these.
        learning_rates: AdamW's, by material.
        training: what all trainings share.
        level: share of memorization accuracy on the forget set at which training stops.
        num_queries: forgotten entries that are swept and answered.
        num_tokens: longest answer, in tokens.
        sites: what is restored.
        note: how this differs from the paper.
    """

    model: str
    languages: Mapping[str, tuple[str, ...]]
    fact_files: Mapping[str, str] = field(default_factory=dict)
    sentence_files: Mapping[str, str] = field(default_factory=dict)
    relations: tuple[str, ...] = ("capital", "currency")
    size: int
    num_retain: int = 12
    num_test: int = 12
    methods: tuple[str, ...] = ("ga", "gd", "npo", "lingtea", "lingtea_code")
    extras: tuple[str, ...]
    kappas: tuple[float, ...] = (0.0, 0.5, 1.0)
    only: str = "en"
    steps_per_language: int
    sizes: tuple[int, ...] = ()
    size_methods: tuple[str, ...] = ("gd", "lingtea")
    learning_rates: Mapping[str, float]
    training: TrainingConfig
    level: float = 0.25
    num_queries: int
    num_tokens: int = 30
    sites: tuple[str, ...] = ("coef", "attn", "coef+attn", "value")
    note: str


_SMALL = (
    "Gemma-3-270M with LoRA and built-in facts about countries (the sentences state them), where "
    "the paper has XGLM-564M and BLOOM, all weights, BMLAMA-53 and FLORES-200"
)

_ADAPTER = TrainingConfig(
    parameters="lora", lora_rank=32, num_steps=10, batch_size=12, evaluate_every=2
)

_LANGUAGES = ("en", "es", "zh", "ar", "fr", "vi")

_FILES = {
    "forget": "data/{name}/forget-{{size}}.jsonl",
    "retain": "data/{name}/retain-{{size}}.jsonl",
    "test": "data/{name}/test.jsonl",
}

PRESETS = {
    "quick": Config(
        model="gemma-3-270m",
        languages={"facts": ("en", "es", "zh"), "sentences": ("en", "es")},
        size=12,
        extras=("facts",),
        steps_per_language=2,
        learning_rates={"facts": 2e-4, "sentences": 2e-4},
        training=_ADAPTER,
        num_queries=4,
        num_tokens=10,
        note=_SMALL,
    ),
    "full": Config(
        model="gemma-3-270m",
        languages={"facts": _LANGUAGES, "sentences": _LANGUAGES[:4]},
        size=32,
        num_retain=32,
        num_test=32,
        extras=("facts",),
        sizes=(64, 128),
        steps_per_language=6,
        learning_rates={"facts": 2e-4, "sentences": 2e-4},
        training=replace(_ADAPTER, num_steps=24, batch_size=16, evaluate_every=3),
        num_queries=6,
        num_tokens=20,
        note=_SMALL,
    ),
    "paper": Config(
        model="facebook/xglm-564M",
        languages={"facts": CHOI_LANGUAGES, "sentences": CHOI_LANGUAGES[:10]},
        fact_files={part: path.format(name="bmlama53") for part, path in _FILES.items()},
        sentence_files={part: path.format(name="flores") for part, path in _FILES.items()},
        size=32,
        extras=("facts", "sentences"),
        sizes=(64, 96, 128),
        size_methods=("ga", "gd", "npo", "lingtea", "lingtea_code"),
        steps_per_language=20,
        learning_rates={"facts": 1e-4, "sentences": 5e-4},
        training=TrainingConfig(num_steps=200, batch_size=32, evaluate_every=4),
        num_queries=10,
        note="all methods stop at the same share of MA on the forget set, a point of our own",
    ),
}
"""`paper` runs BLOOM with `--model bigscience/bloom-560m`."""
