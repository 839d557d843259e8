"""Forgetting the same facts and sentences in many languages (Choi, Min & Choo 2024).

    python -m experiments.lingtea.run quick --out runs/lingtea-quick

1. GA, GD, NPO, LingTea and LingTea's released code forget until memorization accuracy on the forget
   set is down to the same share of what it was.
2. MA, PPL and PA per language measure what is left of that, and of a test part that no training
   saw; a sweep measures where the knowledge sits.
3. LingTea is also run with fixed κ, in one language after the other, in one language alone, and on
   forget sets of other sizes.

`quick` takes about six minutes on two cores, `full` an hour. `paper` needs a GPU and the paper's
data, in the files that `fact_files` and `sentence_files` name. What is in the directory is not done
again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import tyro

import interp
from experiments.lingtea.config import BEFORE, LIMITS, LINGTEA, PRESETS, SEQUENTIAL, Config
from experiments.lingtea.data import (
    Material,
    convert_to_queries,
    convert_to_texts,
    make_materials,
    select_queries,
)
from experiments.lingtea.figures import make_figures
from experiments.lingtea.findings import make_findings
from experiments.lingtea.tables import make_tables
from experiments.lingtea.training import plan_models, trace_forgetting, unlearn_material
from experiments.runner import run_preset, start_command
from experiments.study import Study
from interp import LanguageModel, Query, sweep
from interp.behaviour import generate, measure_memorization, probe
from interp.data import ClozeFact, make_key
from interp.models import compute_text_hash
from interp.results import read_table, write_table


def main(
    preset: tyro.conf.Positional[str] = "quick",
    *,
    out: Path | None = None,
    model: str | None = None,
) -> None:
    """Forget facts and sentences in many languages by each method, and see what is left.

    Args:
        preset: quick (minutes, two cores), full (an hour) or paper (a GPU, the paper's data).
        out: the study's directory; runs/lingtea-PRESET by default.
        model: the model that forgets, instead of the preset's.
    """
    run_preset("lingtea", run, PRESETS, preset, out, model=model)


def run(config: Config, out: Path, *, progress: bool = True) -> Study:
    """Make and measure every model, and make the study of them.

    Args:
        config: the settings.
        out: the run directory; what it holds is not made again.
        progress: show progress on standard error.

    Raises:
        ValueError: settings or data that do not fit.
    """
    measurements = measure(config, out, progress=progress)
    tables = make_tables(measurements, config)
    return Study(
        name="lingtea",
        title="Forgetting in many languages (Choi, Min & Choo 2024)",
        limits=LIMITS,
        config=asdict(config),
        tables=tables,
        figures=make_figures(measurements, tables, config),
        findings=make_findings(measurements, tables, config),
        seed=config.training.seed,
    )


def measure(config: Config, out: Path, *, progress: bool = True) -> dict[str, pd.DataFrame]:
    """Make and measure the models of every material.

    Args:
        config: the settings.
        out: the run directory; what it holds is not made again.
        progress: show progress on standard error.

    Returns:
        The tables of `measure_material`, of all materials.

    Raises:
        ValueError: settings or data that do not fit.
    """
    # Faults of the data are found before anything is trained.
    materials = make_materials(config)
    vanilla = interp.load(config.model)
    parts = [
        measure_material(vanilla, material, config, out, progress=progress)
        for material in materials
    ]
    names = list(dict.fromkeys(name for part in parts for name in part))
    return {name: pd.concat([part[name] for part in parts if name in part]) for name in names}


def measure_material(
    vanilla: LanguageModel, material: Material, config: Config, out: Path, *, progress: bool = True
) -> dict[str, pd.DataFrame]:
    """Make the models of a material, and measure them; what `out` holds is not done again.

    Returns:
        Tables, each with the columns `material` and `size`: `scores` (see `score_entries`,
        with the column `model`), `runs` (a row per model: its method, steps and why it stopped),
        and, where the size is the study's: `losses` of the sweep and `answers` (with the column
        `method`), and `curves` (see `trace_forgetting`).
    """
    training = replace(config.training, learning_rate=config.learning_rates[material.name])
    main = material.size == config.size
    folder = out / "scores"
    tables: dict[str, list[pd.DataFrame]] = {
        "scores": [score_entries(vanilla, material, folder, progress=progress).assign(model=BEFORE)]
    }
    queries = select_queries(material, config)
    if main:
        tables["answers"] = [_generate_answers(vanilla, BEFORE, queries, config, out)]
    plans = plan_models(config, material)
    paths, made = {}, []
    for number, plan in enumerate(plans, start=1):
        if progress:
            about = f"{material.size} {material.name}, model {number} of {len(plans)}: {plan.name}"
            print(about, file=sys.stderr, flush=True)
        path = out / "models" / f"{material.name}-{material.size}-{plan.name}"
        trained = unlearn_material(
            vanilla, material, plan, training, level=config.level, out=path, progress=progress
        )
        paths[plan.name] = str(path)
        about = {"model": plan.name, "method": plan.objective, "steps": len(trained.history)}
        made.append(about | {"reason": trained.reason})
        table = score_entries(trained.model, material, folder, progress=progress)
        tables["scores"].append(table.assign(model=plan.name))
        if SEQUENTIAL in [each.name for each in plans] and plan.name in (LINGTEA, SEQUENTIAL):
            steps = trace_forgetting(vanilla, material, plan, training, trained)
            tables.setdefault("curves", []).append(steps)
        if main and plan.name in config.methods:
            tables["answers"].append(
                _generate_answers(trained.model, plan.name, queries, config, out)
            )
    tables["runs"] = [pd.DataFrame(made)]
    if main:
        methods = {paths[name]: name for name in config.methods}
        recovery = sweep(
            vanilla,
            list(methods),
            queries,
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


MEASURED = ("forget", "test")
"""The parts that are measured."""


def score_entries(
    model: LanguageModel, material: Material, folder: Path, *, progress: bool = True
) -> pd.DataFrame:
    """Score how well a model knows each entry in each language.

    Args:
        model: the model.
        material: what it is asked for; its parts `MEASURED`.
        folder: where tables are kept; what is there of the same model and texts is read.
        progress: show progress bars.

    Returns:
        One row per part (`concept`), language and entry (`text_id`), with the columns of
        `interp.behaviour.memorization`; of facts also `right`, whether the right candidate ranks
        first, and `num_candidates`.
    """
    records = {part: getattr(material, part) for part in MEASURED}
    key = make_key(
        kind="lingtea",
        model=model.content_hash(),
        text=compute_text_hash(model),
        records=repr(records),
    )
    path = folder / f"{key[:16]}.parquet"
    if path.is_file():
        return read_table(path, of=key)
    tables = []
    for part, of_part in records.items():
        table = measure_memorization(model, convert_to_texts(of_part, part), progress=progress)
        if isinstance(of_part[0], ClozeFact):
            options = [record.candidates for record in of_part if isinstance(record, ClozeFact)]
            queries = convert_to_queries(of_part, part)
            probed = probe(model, queries, candidates=options, progress=progress)
            table["right"], table["num_candidates"] = probed["right"], probed["num_candidates"]
        tables.append(table)
    whole = pd.concat(tables, ignore_index=True)
    write_table(path, whole, of=key)
    return whole


def _generate_answers(
    model: LanguageModel, name: str, queries: Sequence[Query], config: Config, out: Path
) -> pd.DataFrame:
    answers = generate(
        model, queries, num_tokens=config.num_tokens, cache=out / "answers.jsonl", progress=False
    )
    rows = [
        {"method": name, "language": item.query.language, "query_id": item.query.id}
        | {"prompt": item.query.prompt, "expected": item.query.answer, "answer": item.text}
        for item in answers
    ]
    return pd.DataFrame(rows)


if __name__ == "__main__":
    start_command("lingtea", main)
