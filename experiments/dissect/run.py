"""Dissecting fine-tuning unlearning (Hong et al. 2024), per query language.

    python -m experiments.dissect.run quick --out runs/dissect-quick

1. Concepts that the model knows are unlearned in English, each by itself, by several methods at
   several strengths.
2. Answers of each model are compared with the vanilla model's, on target and on unrelated questions
   (Fig. 2).
3. KRS of the models at one strength is swept over sites, layers and query languages (Fig. 1), and
   their weights are compared with the vanilla ones.

A second run of the same command does only what is missing.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import tyro

import interp
from experiments.dissect.config import LIMITS, PRESETS, Config, is_trained, scale_settings
from experiments.dissect.data import (
    EDIT,
    FORMS,
    TARGET,
    UNRELATED,
    ForgetConcept,
    build_fact_concepts,
    read_file_concepts,
)
from experiments.dissect.figures import make_figures
from experiments.dissect.findings import make_findings
from experiments.dissect.tables import make_tables, tabulate_concepts
from experiments.runner import run_preset, start_command
from experiments.study import Study
from interp import LanguageModel
from interp.behaviour import generate, measure_drift, score_sentences
from interp.data import make_key
from interp.files import list_files, write_folder_atomically
from interp.models import compute_text_hash
from interp.unlearning import METHODS, MemitConfig, TrainingConfig


def main(
    preset: tyro.conf.Positional[str] = "quick",
    *,
    out: Path | None = None,
    model: str | None = None,
    file: str | None = None,
) -> None:
    """Unlearn concepts, restore, and print which signatures of the paper were seen.

    Args:
        preset: quick (minutes on two cores), full (about an hour), or paper (Llama-2-7B-chat and
            the authors' file of concepts in the working directory, for GPUs).
        out: directory of all that is made; runs/dissect-PRESET by default.
        model: another vanilla model, such as allenai/OLMo-7B-hf, the paper's second.
        file: another file of the authors' concepts, such as OLMo's.
    """
    run_preset("dissect", run, PRESETS, preset, out, model=model, file=file)


def run(config: Config, out: Path, *, progress: bool = True) -> Study:
    """Make and measure every model, and make the study of them.

    Args:
        config: what is dissected.
        out: directory of models, sweeps and measures; what it holds is not made again.
        progress: show progress on standard error.

    Raises:
        ValueError: settings or data that do not fit.
    """
    measurements = measure(config, out, progress=progress)
    tables = make_tables(measurements, config)
    return Study(
        name="dissect",
        title=f"Dissecting fine-tuning unlearning, {config.model.rpartition('/')[2]}",
        limits=LIMITS,
        config=asdict(config),
        tables=tables,
        figures=make_figures(measurements, tables, config),
        findings=make_findings(measurements, tables, config),
        seed=config.seed,
    )


def measure(config: Config, out: Path, *, progress: bool = True) -> dict[str, pd.DataFrame]:
    """Make and measure every model.

    Args:
        config: what is dissected.
        out: directory of models, sweeps and measures; what it holds is not made again.
        progress: show progress on standard error.

    Returns:
        `concepts`, a row each; and the tables of `measure_model`, of all models, with the columns
        `concept`, `method` and `strength`: `models`, `answers`, `measures`, `losses`, `drift`.

    Raises:
        ValueError: settings or data that do not fit.
    """
    if config.swept not in config.strengths:
        raise ValueError(f"swept is {config.swept:g}, which is not among the strengths")
    if not any(map(is_trained, config.methods)):
        names = ", ".join(name for name in METHODS if is_trained(name))
        raise ValueError(f"methods has none that trains; those that do: {names}")
    vanilla = interp.load(config.model)
    if config.file:
        concepts = read_file_concepts(
            config.file,
            num_concepts=config.num_concepts,
            num_questions=config.num_questions,
            num_unrelated=config.num_unrelated,
        )
    else:
        concepts = build_fact_concepts(
            vanilla,
            config.concepts,
            languages=config.languages,
            num_questions=config.num_questions,
            num_unrelated=config.num_unrelated,
            num_candidates=config.num_candidates,
            num_tokens=config.num_tokens,
            seed=config.seed,
            cache=out / "measures" / "answers.jsonl",
            progress=progress,
        )
    parts: dict[str, list[pd.DataFrame]] = {}
    models = list(_list_models(config, concepts))
    for number, (concept, method, strength) in enumerate(models, start=1):
        if progress:
            label = f"{concept.name}, {method} at strength {strength:g}"
            print(f"[{number}/{len(models)}] {label}", file=sys.stderr, flush=True)
        about = {"concept": concept.name, "method": method, "strength": strength}
        tables = measure_model(
            vanilla,
            concept,
            method,
            scale_settings(
                config.methods[method],
                strength,
                trained_by=config.trained_by,
                edited_by=config.edited_by,
                seed=config.seed,
            ),
            out=out,
            name=f"{concept.name.replace('/', '-')}-{method}-{strength:g}",
            preferred=config.preferred,
            num_tokens=config.num_tokens,
            sites=config.sites if strength == config.swept else (),
            window=config.window,
            keep_model=config.keep_models,
            progress=progress,
        )
        for name, table in tables.items():
            if name != "losses":
                # Questions are of a kind, and the model is what has the concept: its path says
                # nothing more.
                table = table.rename(columns={"concept": "questions"})
                table = table.drop(columns="model", errors="ignore")
            parts.setdefault(name, []).append(table.assign(**about))
    whole = {name: pd.concat(several, ignore_index=True) for name, several in parts.items()}
    return {"concepts": tabulate_concepts(concepts), **whole}


def measure_model(
    vanilla: LanguageModel,
    concept: ForgetConcept,
    method: str,
    settings: TrainingConfig | MemitConfig,
    *,
    out: Path,
    name: str,
    preferred: str = "refusal",
    num_tokens: int = 30,
    sites: Sequence[str] = (),
    window: int = 5,
    keep_model: bool = False,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Measure one model, which is made unless its tables are there.

    Args:
        vanilla: V.
        concept: what is unlearned.
        method: by its name.
        settings: of the method.
        out: directory of all models: `models/NAME`, `sweeps/CONCEPT`, `measures` (answers of all
            models, and what `interp.evaluate` keeps) and `measured/NAME-…` with the tables.
        name: of the model.
        preferred: see `interp.unlearning.choose_preferred_answers`.
        num_tokens: the longest answer.
        sites: what is restored; a model without is neither swept nor compared.
        window: layers restored together.
        keep_model: keep the weights when the tables are written.
        progress: show progress bars.

    Returns:
        `models` (the last step), `answers` (rows of `score_sentences`, with `prompt` and
        `expected`) and `measures` (of `interp.evaluate`), whose concept is `target` or
        `unrelated`; with sites, `losses` and `drift`.

    Raises:
        ValueError: settings or texts that do not fit, or `out` holds other runs.
    """
    questions = [
        replace(query, concept=kind)
        for kind, queries in ((TARGET, concept.targets), (UNRELATED, concept.unrelated))
        for query in queries
    ]
    key = make_key(
        vanilla=vanilla.content_hash(),
        text=compute_text_hash(vanilla),
        # Stored measurements are found by this text, in which a concept has its old class name.
        of=repr((method, settings, preferred, concept, num_tokens, tuple(sites), window)).replace(
            "ForgetConcept(", "Concept("
        ),
    )
    directory, stored = out / "models" / name, out / "measured" / f"{name}-{key[:8]}"
    if not stored.is_dir():
        form = EDIT if isinstance(settings, MemitConfig) else FORMS[METHODS[method].form]
        run = interp.unlearn(
            vanilla,
            concept.forget[form],
            concept.retain[form],
            settings,
            preferred=preferred,
            about={"concept": concept.name},
            out=directory,
            progress=progress,
        )
        cache = out / "measures" / "answers.jsonl"
        answers = [
            generate(model, questions, num_tokens=num_tokens, cache=cache, progress=progress)
            for model in (vanilla, run.model)
        ]
        tables = {
            "models": run.history.tail(1).assign(num_steps=len(run.history), reason=run.reason),
            "answers": score_sentences(*answers).assign(
                prompt=[query.prompt for query in questions],
                expected=[query.answer for query in questions],
            ),
            "measures": interp.evaluate(
                run.model,
                questions,
                ["overlap", "alias"] if all(query.answer for query in questions) else ["overlap"],
                vanilla=vanilla,
                num_tokens=num_tokens,
                out=out / "measures",
                progress=progress,
            ),
        }
        if sites:
            recovery = interp.sweep(
                vanilla,
                run.model,
                concept.targets,
                sites=sites,
                window=window,
                num_tokens=num_tokens,
                out=out / "sweeps" / re.sub(r"\W+", "-", concept.name),
                progress=progress,
            )
            tables["losses"] = recovery.losses
            tables["drift"] = measure_drift(vanilla, run.model, progress=progress)

        def write(folder: Path) -> None:
            for label, table in tables.items():
                table.to_parquet(folder / f"{label}.parquet", index=False)

        write_folder_atomically(stored, write)
    if not keep_model:
        shutil.rmtree(directory, ignore_errors=True)
    return {path.stem: pd.read_parquet(path) for path in list_files(stored, "*.parquet")}


def _list_models(
    config: Config, concepts: list[ForgetConcept]
) -> Iterator[tuple[ForgetConcept, str, float]]:
    for concept in concepts:
        for method in config.methods:
            for strength in config.strengths:
                yield concept, method, strength


if __name__ == "__main__":
    start_command("dissect", main)
