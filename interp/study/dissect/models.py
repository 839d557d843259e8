"""One model of a dissection: unlearned, asked, swept, compared, and then no longer needed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

import interp
from interp.behaviour.answers import generate
from interp.behaviour.drift import drift
from interp.behaviour.overlap import sentence_overlap
from interp.data.cache import key_of
from interp.files import write_folder_atomically
from interp.models.language_model import LanguageModel
from interp.study.dissect.behaviour import TARGET, UNRELATED
from interp.study.dissect.concepts import EDIT, Concept
from interp.unlearning.config import TrainingConfig
from interp.unlearning.edits import MemitConfig
from interp.unlearning.methods import UNLEARNING


def measured(
    vanilla: LanguageModel,
    concept: Concept,
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
    """The tables of one model, which is made unless they are there.

    Args:
        vanilla: V.
        concept: what is unlearned.
        method: by its name.
        settings: of the method.
        out: directory of all models: `models/NAME`, `sweeps/CONCEPT`, `measures` (answers of all
            models, and what `evaluate` keeps) and `measured/NAME-…` with the tables.
        name: of the model.
        preferred: see `interp.unlearning.preferred`.
        num_tokens: the longest answer.
        sites: what is restored; a model without is neither swept nor compared.
        window: layers restored together.
        keep_model: keep the weights when the tables are written.
        progress: show progress bars.

    Returns:
        `models` (the last step), `answers` (rows of `sentence_overlap`, with `prompt` and
        `expected`) and `measures` (of `evaluate`), whose concept is `target` or `unrelated`; with
        sites, `losses` and `drift`.

    Raises:
        ValueError: settings or texts that do not fit, or `out` holds other runs.
    """
    asked = [
        replace(query, concept=kind)
        for kind, queries in ((TARGET, concept.targets), (UNRELATED, concept.unrelated))
        for query in queries
    ]
    key = key_of(
        vanilla=vanilla.content_hash(),
        of=repr((method, settings, preferred, concept, num_tokens, tuple(sites), window)),
    )
    directory, stored = out / "models" / name, out / "measured" / f"{name}-{key[:8]}"
    if not stored.is_dir():
        form = EDIT if isinstance(settings, MemitConfig) else UNLEARNING[method].form
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
        said = [
            generate(model, asked, num_tokens=num_tokens, cache=cache, progress=progress)
            for model in (vanilla, run.model)
        ]
        tables = {
            "models": run.history.tail(1).assign(num_steps=len(run.history), reason=run.reason),
            "answers": sentence_overlap(*said).assign(
                prompt=[query.prompt for query in asked],
                expected=[query.answer for query in asked],
            ),
            "measures": interp.evaluate(
                run.model,
                asked,
                ["overlap", "alias"] if all(query.answer for query in asked) else ["overlap"],
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
            tables["drift"] = drift(vanilla, run.model, progress=progress)

        def write(folder: Path) -> None:
            for label, table in tables.items():
                table.to_parquet(folder / f"{label}.parquet", index=False)

        write_folder_atomically(stored, write)
    if not keep_model:
        shutil.rmtree(directory, ignore_errors=True)
    return {path.stem: pd.read_parquet(path) for path in sorted(stored.glob("*.parquet"))}


def at_strength(
    settings: TrainingConfig | MemitConfig,
    strength: float,
    *,
    trained_by: str = "learning_rate",
    edited_by: str = "regularisation",
    seed: int = 0,
) -> TrainingConfig | MemitConfig:
    """A method's settings at a strength.

    Args:
        settings: those at strength 1.
        strength: what the setting named below is multiplied by.
        trained_by: `learning_rate` or `num_steps`, where the method trains.
        edited_by: of MEMIT, `clamp`, or `regularisation`, which is divided instead.
        seed: of training.
    """
    name = edited_by if isinstance(settings, MemitConfig) else trained_by
    factor = 1 / strength if name == "regularisation" else strength
    value = getattr(settings, name) * factor
    changed = {name: max(1, round(value)) if name == "num_steps" else value}
    if isinstance(settings, TrainingConfig):
        changed["seed"] = seed
    return replace(settings, **changed)
