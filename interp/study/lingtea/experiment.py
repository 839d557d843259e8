"""Choi, Min & Choo 2024, step by step: materials, the models that forget them, measurements.

`experiments/lingtea.py` runs this. `interp.study.lingtea.report` makes the study of what it gives.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from interp.behaviour.answers import generate
from interp.data.datasets import read_bmlama, read_flores
from interp.data.query import Query
from interp.launch import sweep
from interp.models.language_model import LanguageModel
from interp.study.lingtea.data import (
    Material,
    built_in_facts,
    built_in_sentences,
    divided,
    from_files,
    queries_of_records,
)
from interp.study.lingtea.findings import BEFORE, LINGTEA, SEQUENTIAL, fixed, monolingual
from interp.study.lingtea.runs import Plan, curve, unlearned
from interp.study.lingtea.scores import scored
from interp.unlearning.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is run.

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
        methods: objectives that are compared, see `interp.unlearning.catalogue.METHODS`.
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


def materials_of(config: Config) -> list[Material]:
    """The materials, each with forget sets of all its sizes.

    Raises:
        ValueError: a file or a built-in set that lacks something, a language of its own among them.
    """
    if not set(config.extras) <= set(config.languages) <= {"facts", "sentences"}:
        raise ValueError(
            f"the materials {', '.join({*config.languages, *config.extras})} must be facts or "
            "sentences, with languages for each"
        )
    for name in config.extras:
        if config.only not in config.languages[name]:
            raise ValueError(
                f"{config.only!r} is none of the languages of the {name}: "
                f"{', '.join(config.languages[name])}"
            )
    return [
        _material(config, name, size)
        for name in config.languages
        for size in (config.size, *(config.sizes if name in config.extras else ()))
    ]


def plans_of(config: Config, material: Material) -> list[Plan]:
    """The models that are made of a material."""
    if material.size != config.size:
        return [Plan(name=name, objective=name) for name in config.size_methods]
    plans = [Plan(name=name, objective=name) for name in config.methods]
    if material.name not in config.extras:
        return plans
    for kappa in config.kappas:
        settings = {"kappa": kappa}
        plans.append(Plan(name=fixed(kappa), objective="lingtea_fixed", settings=settings))
    steps = config.steps_per_language
    return [
        *plans,
        Plan(name=SEQUENTIAL, objective="lingtea", steps_per_language=steps),
        Plan(name=monolingual(config.only), objective="lingtea", languages=(config.only,)),
    ]


def run(
    vanilla: LanguageModel, material: Material, config: Config, out: Path, *, progress: bool = True
) -> dict[str, pd.DataFrame]:
    """Make the models of a material, and measure them; what `out` holds is not done again.

    Returns:
        Tables, each with the columns `material` and `size`: `scores` (see `lingtea_scores.scored`,
        with the column `model`), `runs` (a row per model: its method, steps and why it stopped),
        and, where the size is the study's: `losses` of the sweep and `answers` (with the column
        `method`), and `curves` (see `runs.curve`).
    """
    training = replace(config.training, learning_rate=config.learning_rates[material.name])
    main = material.size == config.size
    folder = out / "scores"
    tables: dict[str, list[pd.DataFrame]] = {
        "scores": [scored(vanilla, material, folder, progress=progress).assign(model=BEFORE)]
    }
    asked = _asked(material, config)
    if main:
        tables["answers"] = [_answers(vanilla, BEFORE, asked, config, out)]
    plans = plans_of(config, material)
    paths, made = {}, []
    for number, plan in enumerate(plans, start=1):
        if progress:
            about = f"{material.size} {material.name}, model {number} of {len(plans)}: {plan.name}"
            print(about, file=sys.stderr, flush=True)
        path = out / "models" / f"{material.name}-{material.size}-{plan.name}"
        trained = unlearned(
            vanilla, material, plan, training, level=config.level, out=path, progress=progress
        )
        paths[plan.name] = str(path)
        about = {"model": plan.name, "method": plan.objective, "steps": len(trained.history)}
        made.append(about | {"reason": trained.reason})
        table = scored(trained.model, material, folder, progress=progress)
        tables["scores"].append(table.assign(model=plan.name))
        if SEQUENTIAL in [each.name for each in plans] and plan.name in (LINGTEA, SEQUENTIAL):
            steps = curve(vanilla, material, plan, training, trained)
            tables.setdefault("curves", []).append(steps)
        if main and plan.name in config.methods:
            tables["answers"].append(_answers(trained.model, plan.name, asked, config, out))
    tables["runs"] = [pd.DataFrame(made)]
    if main:
        methods = {paths[name]: name for name in config.methods}
        recovery = sweep(
            vanilla,
            list(methods),
            asked,
            sites=config.sites,
            num_tokens=config.num_tokens,
            out=out / f"sweep-{material.name}",
            progress=progress,
        )
        losses = recovery.losses
        named = [methods[path] for path in losses["unlearned"]]
        tables["losses"] = [losses.assign(method=named)]
    about = {"material": material.name, "size": material.size}
    return {name: pd.concat(parts).assign(**about) for name, parts in tables.items()}


def _material(config: Config, name: str, size: int) -> Material:
    languages = config.languages[name]
    files, read, make = {
        "facts": (config.fact_files, read_bmlama, built_in_facts),
        "sentences": (config.sentence_files, read_flores, built_in_sentences),
    }[name]
    if files:
        return from_files(name, read, files, languages=languages, size=size)
    pool = make(languages, config.relations)
    counts = {"num_retain": config.num_retain, "num_test": config.num_test}
    return divided(name, pool, size=size, **counts)


def _asked(material: Material, config: Config) -> list[Query]:
    """The forgotten entries that are swept, language by language."""
    ids = list(dict.fromkeys(record.id for record in material.forget))[: config.num_queries]
    records = [record for record in material.forget if record.id in ids]
    found = queries_of_records(records, "forget")
    return sorted(found, key=lambda query: material.languages.index(query.language))


def _answers(
    model: LanguageModel, name: str, asked: Sequence[Query], config: Config, out: Path
) -> pd.DataFrame:
    found = generate(
        model, asked, num_tokens=config.num_tokens, cache=out / "answers.jsonl", progress=False
    )
    rows = [
        {"method": name, "language": item.query.language, "query_id": item.query.id}
        | {"prompt": item.query.prompt, "expected": item.query.answer, "answer": item.text}
        for item in found
    ]
    return pd.DataFrame(rows)
