"""Choi, Min & Choo 2024: forgetting the same facts and sentences in many languages.

    python experiments/lingtea.py [quick | full | paper] [--out runs/lingtea-quick] [--model SPEC]

GA, GD, NPO, LingTea and LingTea's released code forget until memorization accuracy on the forget
set is down to the same share of what it was; then MA, PPL and PA per language say what is left of
that and of a test part that no training saw, and a sweep says where the knowledge sits. LingTea is
also run with fixed κ, in one language after the other, in one language alone, and on forget sets
of other sizes. What is in the directory is not done again.

`quick` takes about six minutes on two cores, `full` an hour. `paper` needs a GPU and the paper's
data, in the files that `fact_files` and `sentence_files` name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tyro

import interp
from interp.cli.options import command_of, mistakes_told, preset_of
from interp.languages import CHOI_LANGUAGES
from interp.study.lingtea.experiment import Config, materials_of, run
from interp.study.lingtea.report import study_of
from interp.unlearning.config import TrainingConfig

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


def main(
    preset: tyro.conf.Positional[str] = "quick",
    *,
    out: Path | None = None,
    model: str | None = None,
) -> None:
    """Forget facts and sentences in many languages by each method, and see what is left.

    Args:
        preset: quick (minutes, two cores), full (an hour) or paper (a GPU, the paper's data).
        out: the study's directory; runs/lingtea-<preset> by default.
        model: the model that forgets, instead of the preset's.
    """
    config = preset_of(PRESETS, preset, model=model)
    out = out or Path(f"runs/lingtea-{preset}")
    command = command_of("lingtea", preset, model=model)
    # What is wrong with the data is said before anything is trained.
    materials = materials_of(config)
    vanilla = interp.load(config.model)
    parts = [run(vanilla, material, config, out) for material in materials]
    study = study_of(parts, config, command=command)
    paths = study.write(out)
    print(study.summary(), *paths, sep="\n")


if __name__ == "__main__":
    with mistakes_told("lingtea"):
        tyro.cli(main)
