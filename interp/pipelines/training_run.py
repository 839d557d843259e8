"""Training run: a model that was taught or unlearned, and what it answers before and after."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.behaviour.guards import Guards
from interp.behaviour.probing import compute_accuracy, probe
from interp.data.chat import list_fields
from interp.data.query import Query
from interp.files import write_atomically
from interp.models.generation import compute_text_hash
from interp.models.language_model import LanguageModel
from interp.statistics import compute_wilson_interval
from interp.tables import read_csv, write_csv
from interp.unlearning.resume import Trained

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BEFORE, AFTER = "before", "after"

REPORT = "report"
"""Folder in a model's directory that holds tables and figures of how it was made."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRun:
    """Result of teaching or unlearning: the model, and its answers before, on the way and after.

    Attributes:
        model: what was made.
        history: a row per training step, see `Trained`, with accuracies on the way in columns such
            as `fake/de`; of MEMIT one row, the means over its edits.
        probes: what `probe` gives, with a column `model` that says `before` or `after`; empty
            without queries.
        edits: of MEMIT, a row per fact and language, see `interp.unlearning.memit`.
        guards: what free answers and V's own texts say of the model, see `Guards.tabulate`; empty
            without guards.
        reason: why training ended.
    """

    model: LanguageModel
    history: pd.DataFrame
    probes: pd.DataFrame
    edits: pd.DataFrame
    reason: str
    guards: pd.DataFrame = field(default_factory=pd.DataFrame)

    def accuracy(self) -> pd.DataFrame:
        """Compute probing accuracy with intervals and chance, per language, concept and step.

        See `interp.behaviour.probing.compute_accuracy`; before all of it is step 0.
        """
        if self.probes.empty:
            return pd.DataFrame()
        last = len(self.history)
        ends = compute_accuracy(self.probes, by=("model", "language", "concept"))
        ends.insert(0, "step", [0 if name == BEFORE else last for name in ends["model"]])
        rows = ends.drop(columns="model").to_dict("records")
        for end in [row for row in rows if row["step"] == 0]:
            column = f"{end['concept']}/{end['language']}"
            if column in self.history:
                for step, value in enumerate(self.history[column], start=1):
                    if pd.notna(value) and step < last:
                        low, high = compute_wilson_interval(
                            round(value * end["num_queries"]), end["num_queries"]
                        )
                        new = {"step": step, "accuracy": value, "ci_low": low, "ci_high": high}
                        rows.append(end | new)
        return pd.DataFrame(rows).sort_values("step", kind="stable", ignore_index=True)

    def table(self) -> pd.DataFrame:
        """Tabulate accuracies in per cent, a row per concept and language, a column per step.

        Before and after have their 95 % intervals.
        """
        accuracies = self.accuracy()
        if accuracies.empty:
            return accuracies
        last = len(self.history)
        names = {0: BEFORE, last: AFTER}
        cells: dict[tuple[str, str], dict[str, str]] = {}
        for row in accuracies.to_dict("records"):
            text = f"{100 * row['accuracy']:.0f}"
            if row["step"] in names:
                text += f" ({100 * row['ci_low']:.0f}–{100 * row['ci_high']:.0f})"
            column = names.get(row["step"], f"step {row['step']:g}")
            cells.setdefault((row["concept"], row["language"]), {})[column] = text
        order = list(dict.fromkeys(concept for concept, _ in cells))
        rows = sorted(cells, key=lambda cell: order.index(cell[0]))
        index = pd.MultiIndex.from_tuples(rows, names=["concept", "language"])
        return pd.DataFrame([cells[row] for row in rows], index=index)

    def figure(self, *, title: str | None = None) -> Figure:
        """Plot losses and accuracies over the steps. See `figures.plot_training`."""
        from interp import figures

        steps = self.history.assign(step=range(1, len(self.history) + 1))
        return figures.plot_training(steps, self.accuracy(), title=title)


def report(
    vanilla: LanguageModel,
    trained: Trained,
    probes: Sequence[Query],
    out: str | os.PathLike[str] | None,
    progress: bool,
    guards: Guards | None = None,
) -> TrainingRun:
    """Probe both models, unless a report has it, and write the report."""
    folder = None if out is None else Path(out) / REPORT
    # A model that was made here may have been asked the same when it was made.
    reports = [Path(vanilla.name) / REPORT, *([folder] if folder else [])]
    hashes: dict[str, str] = {}
    tables = []
    for name, model in ((BEFORE, vanilla), (AFTER, trained.model)) if probes else ():
        text_hash = compute_text_hash(model, chat=any(query.chat for query in probes))
        hashes[name] = f"{model.content_hash()} {text_hash}"
        stored = [read_stored_probes(report, hashes[name], probes) for report in reports]
        known = next((table for table in stored if not table.empty), None)
        rows = probe(model, probes, progress=progress) if known is None else known
        tables.append(rows.assign(model=name))
    run = TrainingRun(
        model=trained.model,
        history=pd.DataFrame(trained.history),
        probes=pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(),
        edits=pd.DataFrame(trained.edits),
        guards=pd.DataFrame() if guards is None else guards.tabulate(trained.model),
        reason=trained.reason,
    )
    if folder is not None:
        folder.mkdir(exist_ok=True)
        tables = {
            "history": run.history,
            "edits": run.edits,
            "probes": run.probes,
            "accuracy": run.accuracy(),
            "guards": run.guards,
        }
        for name, rows in tables.items():
            if not rows.empty:
                write_csv(folder / f"{name}.csv", rows)
        probed = folder / "probes.csv"
        about = {"models": hashes, "queries": list_rows(probes)}
        if probed.is_file():
            about["probes"] = hashlib.sha256(probed.read_bytes()).hexdigest()
        text = json.dumps(about, ensure_ascii=False)
        write_atomically(
            folder / "probes.json", lambda scratch: scratch.write_text(text, encoding="utf-8")
        )
    return run


def read_stored_probes(folder: Path, content_hash: str, queries: Sequence[Query]) -> pd.DataFrame:
    """Read the rows that a report has of a model and its queries; empty if it has none."""
    record, table = folder / "probes.json", folder / "probes.csv"
    if not (record.is_file() and table.is_file()):
        return pd.DataFrame()
    try:
        report = json.loads(record.read_text(encoding="utf-8"))
        names = [name for name, known in report["models"].items() if known == content_hash]
        if not names or report["queries"] != list_rows(queries):
            return pd.DataFrame()
        # Earlier reports have no digest of the table.
        if report.get("probes") not in (None, hashlib.sha256(table.read_bytes()).hexdigest()):
            raise ValueError
        stored = read_csv(table)
        return stored.query("model == @names[0]")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"the report {folder} is damaged: delete it and run again") from None


def list_rows(queries: Sequence[Query]) -> list[dict[str, Any]]:
    """Convert queries to JSON."""
    rows = [list_fields(query) | {"aliases": list(query.aliases)} for query in queries]
    # As JSON has it: without tuples.
    return json.loads(json.dumps(rows))
