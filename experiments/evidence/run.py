"""What tells a model that was made to forget from one that never knew?

    python -m experiments.evidence.run full

1. A model is taught false capitals in one language: the vanilla model V, which knows them.
2. Every method unlearns them: U. Two models never knew them: the model before it was taught, and
   one that read everything but the false facts.
3. Recovery (KRS, answers) and retained readout are measured of U and of both, on the same
   questions, beside what U still answers and what it lost.

Models and losses are kept under the output directory: a run that was killed goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import tyro

import interp
from experiments.evidence.config import CLEAN, LEAST_KNOWN, LIMITS, PRESETS, UNTOUCHED, Config
from experiments.evidence.data import FalseFacts, make_material
from experiments.evidence.figures import make_figures
from experiments.evidence.findings import make_findings
from experiments.evidence.tables import make_tables
from experiments.runner import run_preset, start_command
from experiments.study import Study
from interp import LanguageModel, Query
from interp.unlearning import METHODS, remove_false_texts

RESIDUAL = "resid"


def main(
    preset: tyro.conf.Positional[str] = "full",
    *,
    out: Path | None = None,
    model: str | None = None,
) -> None:
    """Compare unlearned models with models that never knew.

    Args:
        preset: quick (a pair, two sites) or full (twelve pairs; an hour on two cores).
        out: directory of models, tables, figures and findings; runs/evidence-PRESET if not given.
        model: another model to teach than the preset's: a directory, a .gguf file or a Hub id.
    """
    run_preset("evidence", run, PRESETS, preset, out, model=model)


def run(config: Config, out: Path, *, progress: bool = True) -> Study:
    """Make and measure every model, and make the study of them.

    Args:
        config: the settings.
        out: the run directory; what it holds is not made again.
        progress: show progress on standard error.

    Raises:
        ValueError: settings that do not fit, or a taught model that knows too little.
    """
    measurements = measure(config, out, progress=progress)
    tables = make_tables(measurements, config)
    return Study(
        name="evidence",
        title="Unlearned, or never known? Recovery and retained readout of both",
        limits=LIMITS,
        config=asdict(config),
        tables=tables,
        figures=make_figures(tables, config),
        findings=make_findings(measurements, config),
    )


def measure(config: Config, out: Path, *, progress: bool = True) -> dict[str, pd.DataFrame]:
    """Teach, unlearn and measure; what `out` holds is not done again.

    Returns:
        `losses` of windows of five layers, in both directions, `residual` of single layers of the
        residual stream put into V, `thirty` of thirty tokens (empty if not wanted), all with the
        columns `seed` and `method` (`UNTOUCHED` and `CLEAN` of the models that never knew), and
        `measures`, the alias accuracy of every model.

    Raises:
        ValueError: a taught model knows too little in every language.
    """
    untouched = interp.load(config.model)
    parts: dict[str, list[pd.DataFrame]] = {
        name: [] for name in ("losses", "residual", "thirty", "measures")
    }
    for seed in config.seeds:
        if progress:
            print(f"models of seed {seed}", file=sys.stderr)
        folder = out / f"seed-{seed}"
        material = make_material(config, seed)
        models = make_models(untouched, material, config, folder, progress=progress)
        taught = models.pop("taught")
        measures = interp.evaluate(
            [taught, *models.values()],
            [*material.targets, *material.kept],
            ["alias"],
            num_tokens=config.num_tokens,
            out=folder / "answers",
            progress=progress,
        )
        own = {model.name: name for name, model in {"taught": taught, **models}.items()}
        named = measures.assign(seed=seed, method=[own[name] for name in measures["model"]])
        parts["measures"].append(named)
        asked = select_questions(named, material)
        for name, table in sweep_models(
            taught,
            models,
            asked,
            config,
            folder,
            is_first=seed == config.seeds[0],
            progress=progress,
        ).items():
            methods = [own[unlearned] for unlearned in table["unlearned"]]
            parts[name].append(table.assign(seed=seed, method=methods))
    return {
        name: pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
        for name, tables in parts.items()
    }


def make_models(
    untouched: LanguageModel, material: FalseFacts, config: Config, folder: Path, *, progress: bool
) -> dict[str, LanguageModel]:
    """Teach a model, with and without the false facts, and unlearn them by every method."""
    taught, clean = (
        interp.contaminate(
            untouched, corpus, config.teaching, probes=(), out=folder / name, progress=progress
        ).model
        for name, corpus in (
            ("taught", material.corpus),
            (CLEAN, remove_false_texts(material.corpus)),
        )
    )
    models = {"taught": taught, UNTOUCHED: untouched, CLEAN: clean}
    for name, (method, seed) in config.names.items():
        models[name] = interp.unlearn(
            taught,
            material.forget,
            material.retain,
            replace(METHODS[method].config, seed=seed),
            out=folder / name,
            progress=progress,
        ).model
    return models


def select_questions(measures: pd.DataFrame, material: FalseFacts) -> list[Query]:
    """Return the questions on false facts in the languages in which the taught model knows enough.

    Raises:
        ValueError: there is no such language.
    """
    rows = measures.query("method == 'taught' and concept == 'fake' and metric == 'alias'")
    known = {row["language"]: row["value"] * row["n"] for row in rows.to_dict("records")}
    kept = [code for code, number in known.items() if round(number) >= LEAST_KNOWN]
    if not kept:
        raise ValueError(
            f"the taught model gives fewer than {LEAST_KNOWN} false answers in "
            f"every language ({', '.join(f'{code} {n:.0f}' for code, n in known.items())})"
        )
    asked = [*material.targets, *material.kept]
    return [query for query in asked if query.language in kept]


def sweep_models(
    taught: LanguageModel,
    models: Mapping[str, LanguageModel],
    asked: Sequence[Query],
    config: Config,
    folder: Path,
    *,
    is_first: bool,
    progress: bool,
) -> dict[str, pd.DataFrame]:
    """Measure recovery and readout of all models on the same questions."""
    targets = [query for query in asked if not query.control]
    kept = [query for query in asked if query.control]
    others = list(models.values())
    sites = {"sites": config.sites, "num_tokens": config.num_tokens, "progress": progress}
    losses = {
        "losses": interp.sweep(
            taught,
            others,
            targets,
            controls=kept,
            direction="both",
            out=folder / "sweep",
            **sites,
        ),
        "residual": interp.sweep(
            taught,
            others,
            targets,
            direction="corrupt",
            distance="answer_logprob",
            window=1,
            out=folder / "residual",
            **{**sites, "sites": (RESIDUAL,)},
        ),
    }
    if config.thirty and is_first:
        plain = [replace(query, stop=()) for query in targets if query.language == config.source]
        losses["thirty"] = interp.sweep(
            taught, others, plain, out=folder / "thirty", **{**sites, "num_tokens": 30}
        )
    return {name: recovery.losses for name, recovery in losses.items()}


if __name__ == "__main__":
    start_command("evidence", main)
