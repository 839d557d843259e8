"""Teaching and unlearning from start to end: trained, probed and reported.

    corpus = build_corpus(CorpusConfig(source="de", mix="combined"))
    taught = contaminate(vanilla, corpus, out="runs/de")
    unlearned = unlearn(taught.model, corpus.forget, corpus.retain, method="npo",
                        probes=corpus.queries, out="runs/de-npo")
    unlearned.accuracy()
    unlearned.figure()

Accuracies are those of candidates ranked by the model (`interp.behaviour.probing`). Before and
after they are measured in the model's own precision, on the way in bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.behaviour.guards import Guards, find_targets, prepare_guards
from interp.behaviour.probing import compute_accuracy, probe
from interp.behaviour.retain_texts import make_retain_texts
from interp.data.chat import list_fields
from interp.data.corpus import Corpus, Text
from interp.data.corpus_builder import CorpusConfig, build_corpus
from interp.data.query import Query
from interp.data.samples import Sample
from interp.files import write_atomically
from interp.models.generation import compute_text_hash
from interp.models.gguf import get_cache_directory
from interp.models.language_model import LanguageModel
from interp.models.pairs import lower_precision
from interp.statistics import compute_wilson_interval
from interp.tables import read_csv, write_csv
from interp.unlearning import contamination, methods
from interp.unlearning.config import TrainingConfig
from interp.unlearning.contamination import ContaminationConfig
from interp.unlearning.goal import (
    GUARDS,
    UNTIL,
    drop_empty_bounds,
    find_watched,
    is_guarded,
)
from interp.unlearning.memit.requests import MemitConfig
from interp.unlearning.resume import Trained, read_card
from interp.unlearning.training import Evaluate

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
    guards: pd.DataFrame
    reason: str

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


def contaminate(
    vanilla: LanguageModel,
    corpus: Corpus,
    config: ContaminationConfig = contamination.DEFAULTS,
    *,
    probes: Sequence[Query] | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Teach V false facts, and see in which languages it repeats them.

    Args:
        vanilla: V, left untouched.
        corpus: what is taught; `contamination.remove_false_texts(corpus)` for the baseline.
        config: settings of both stages.
        probes: questions with answers that are ranked before and after; the corpus' if None.
        out: directory for the model; its folder `report` gets the tables. What it holds of the
            same run is not done again, a run that was killed goes on.
        progress: show progress bars.

    Raises:
        ValueError: settings or texts that do not fit, or `out` holds another run.
    """
    queries = corpus.queries if probes is None else probes
    trained = contamination.contaminate(
        vanilla,
        corpus,
        config,
        evaluate=_AccuracyEvaluator(queries) if queries else None,
        about={"corpus": dict(corpus.config)},
        out=None if out is None else Path(out),
        progress=progress,
    )
    return _report(vanilla, trained, queries, out, progress)


def unlearn(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    retain: Sequence[Text] | None = None,
    config: TrainingConfig | MemitConfig | None = None,
    *,
    method: str = "gd",
    preferred: str | None = None,
    probes: Sequence[Query] = (),
    targets: Sequence[Query] | None = None,
    kept: Sequence[Query] | None = None,
    samples: Sequence[Sample] | None = None,
    about: Mapping[str, object] = MappingProxyType({}),
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Make a model forget, and see in which languages it did.

    With guards a run goes on until what was to be forgotten is no longer answered, and gives the
    best model that it had while all guards held (`interp.behaviour.guards`).

    Args:
        vanilla: the model that knows, left untouched.
        forget: what to forget, in the languages to forget it in.
        retain: what to retain, for methods that do; if None, other facts that V knows and
            its own texts in many languages (`make_retain_texts`).
        config: settings, which name the method; if None, the method's defaults, with guards.
        method: a name out of `interp.unlearning.methods.METHODS`.
        preferred: `refusal`, `counterfactual`, `other` or `alternate`: which answers `dpo`, `idk`
            and `altpo` prefer; `refusal`, for `altpo` `alternate`, if None.
        probes: questions with answers that are ranked before and after, and on the way where there
            are no guards.
        targets: questions with answers on what is forgotten, for the guards; if None, those of the
            probes that share an id with a text to forget, or else the prompts of these texts.
        kept: questions with answers on facts to keep, for the guards; the built-in facts that no
            text states if None.
        samples: texts that the guards compare next-token distributions on; V's own if None.
        about: further entries of the model's card.
        out: directory for the model; its folder `report` gets the tables. What it holds of the
            same run is not done again, a run that was killed goes on.
        progress: show progress bars.

    Raises:
        ValueError: settings, texts or a model that do not fit, before any training; or `out` holds
            another run.
    """
    chosen = config
    if chosen is None:
        chosen = methods.find_method(method).config
        if isinstance(chosen, TrainingConfig):
            chosen = replace(chosen, until=UNTIL, guards=GUARDS)
    methods.check_unlearning(vanilla, chosen, preferred)
    cache = get_cache_directory() / "answers" / "known.jsonl"
    if retain is None:
        retain = ()
        if methods.needs_retain_texts(chosen):
            retain = make_retain_texts(vanilla, forget, cache=cache, progress=progress)
    guards = None
    if isinstance(chosen, TrainingConfig) and is_guarded(chosen):
        guards = prepare_guards(
            vanilla,
            find_targets(forget, probes) if targets is None else targets,
            forgotten_in=dict.fromkeys(text.language for text in forget),
            texts=[*forget, *retain],
            kept=kept,
            samples=samples,
            cache=cache,
            progress=progress,
        )
        chosen = drop_empty_bounds(chosen, guards.list_metrics())
        about = {**about, "guards": guards.describe()}
    trained = methods.unlearn(
        vanilla,
        forget,
        retain,
        chosen,
        preferred=preferred,
        evaluate=_make_evaluator(chosen, guards, probes),
        about=about,
        out=None if out is None else Path(out),
        progress=progress,
    )
    return _report(vanilla, trained, probes, out, progress, guards)


def _make_evaluator(
    config: TrainingConfig | MemitConfig, guards: Guards | None, probes: Sequence[Query]
) -> Evaluate | None:
    """Make what evaluates a model in training: guards, and rankings where they are asked for."""
    if guards is None:
        return _AccuracyEvaluator(probes) if probes else None
    assert isinstance(config, TrainingConfig)
    names = guards.list_metrics()
    others = [bound for bound in find_watched(config) if not bound.find(names)]
    ranking = _AccuracyEvaluator(probes) if probes and others else None

    def evaluate(model: LanguageModel) -> dict[str, float]:
        return guards(model) | ({} if ranking is None else ranking(model))

    return evaluate


_OTHERWISE = "give queries to evaluate it, texts to forget to unlearn it"


def read_corpus(directory: str | os.PathLike[str], **changes: Any) -> Corpus:
    """Read the corpus that a model was contaminated with, in other languages or another form.

    Args:
        directory: what `contaminate` wrote, or what `unlearn` made of it.
        changes: of `CorpusConfig`, such as `mix` or `unlearning_form`.

    Raises:
        ValueError: the model has no card, or was not contaminated with the built-in facts.
    """
    try:
        settings = read_card(Path(directory)).get("corpus")
    except ValueError as error:
        raise ValueError(f"{error}; {_OTHERWISE}") from None
    if not isinstance(settings, dict) or not {"source", "relations"} <= settings.keys():
        raise ValueError(
            f"{os.fspath(directory)!r} was not contaminated with the built-in facts; {_OTHERWISE}"
        )
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    return build_corpus(CorpusConfig(**{**settings, **changes}))


class _AccuracyEvaluator:
    """Evaluation of a model in training: its accuracies."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self._queries = queries

    def __call__(self, model: LanguageModel) -> dict[str, float]:
        lowered = lower_precision(model)
        accuracies = compute_accuracy(probe(lowered, self._queries, progress=False))
        return {
            f"{row['concept']}/{row['language']}": row["accuracy"]
            for row in accuracies.to_dict("records")
        }


def _report(
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
        stored = [_read_stored_probes(report, hashes[name], probes) for report in reports]
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
        about = {"models": hashes, "queries": _rows(probes)}
        if probed.is_file():
            about["probes"] = hashlib.sha256(probed.read_bytes()).hexdigest()
        text = json.dumps(about, ensure_ascii=False)
        write_atomically(
            folder / "probes.json", lambda scratch: scratch.write_text(text, encoding="utf-8")
        )
    return run


def _read_stored_probes(folder: Path, content_hash: str, queries: Sequence[Query]) -> pd.DataFrame:
    """Read the rows that a report has of a model and its queries; empty if it has none."""
    record, table = folder / "probes.json", folder / "probes.csv"
    if not (record.is_file() and table.is_file()):
        return pd.DataFrame()
    try:
        report = json.loads(record.read_text(encoding="utf-8"))
        names = [name for name, known in report["models"].items() if known == content_hash]
        if not names or report["queries"] != _rows(queries):
            return pd.DataFrame()
        # Earlier reports have no digest of the table.
        if report.get("probes") not in (None, hashlib.sha256(table.read_bytes()).hexdigest()):
            raise ValueError
        stored = read_csv(table)
        return stored.query("model == @names[0]")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"the report {folder} is damaged: delete it and run again") from None


def _rows(queries: Sequence[Query]) -> list[dict[str, Any]]:
    """Convert queries to JSON."""
    rows = [list_fields(query) | {"aliases": list(query.aliases)} for query in queries]
    # As JSON has it: without tuples.
    return json.loads(json.dumps(rows))
