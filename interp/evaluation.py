"""Evaluation of models: any choice of metrics, per query language, in one tidy table.

    table = interp.evaluate([contaminated, unlearned], queries, ["accuracy", "alias"])
    figures.plot_spread(table[table["metric"] == "accuracy"])

The metrics are those that files of `interp.behaviour` register (`load_metrics`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from interp.behaviour import registry
from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.registry import NEEDS, load_metrics
from interp.data.answer_cache import make_key
from interp.data.chat import list_fields
from interp.data.corpus import Text
from interp.data.datasets.records import EntityQuestion, QuestionAnswer
from interp.data.endpoints import Endpoint
from interp.data.query import Query
from interp.models.generation import compute_text_hash
from interp.models.integrity import check_known_by_weights
from interp.models.language_model import LanguageModel
from interp.results import read_table, write_table
from interp.tables import write_csv

COLUMNS = ("model", *registry.METRIC_COLUMNS)
"""Columns of the table. `concept` is that of the queries, such as `fake` and `real`; of `drift` the
group of parameters."""


def evaluate(
    models: LanguageModel | Iterable[LanguageModel],
    queries: Sequence[Query],
    metrics: Sequence[str] = ("accuracy",),
    *,
    vanilla: LanguageModel | None = None,
    baseline: LanguageModel | None = None,
    taught: str | None = None,
    forget: Sequence[Text] = (),
    holdout: Sequence[Text] = (),
    records: Sequence[QuestionAnswer | EntityQuestion] = (),
    judge: Endpoint | LanguageModel | None = None,
    num_tokens: int = 30,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what models say.

    Args:
        models: the models; of an iterator each is taken when the one before is done.
        queries: what they are asked.
        metrics: names of registered metrics (`interp.behaviour.registry.load_metrics`).
        vanilla: the model before unlearning, for metrics that compare with it.
        baseline: a model that never saw what was to be forgotten, for `uds` and `forget_quality`.
        taught: the language in which false facts were taught, for `answer_language`.
        forget: texts that state what was to be forgotten, for `relearning` and `membership`.
        holdout: texts like them that no model was trained on, for `membership`.
        records: what `read_tofu` gives of the queries, with perturbed answers, for `tofu`,
            `forget_quality` and `model_utility`; or what `read_uds` gives, for `uds` on entities.
        judge: a chat model that judges answers, for `o_f` and `q_r`; one behind an endpoint needs
            `out`.
        num_tokens: the longest answer.
        out: a directory for the table `measures.csv`, the answers, and `verdicts.csv`, which says
            what each judge thought of each. What it holds of the same models, queries and metrics
            is not measured again.
        progress: show progress bars.

    Returns:
        One row per model, language, concept and measure, with `METRIC_COLUMNS`: `value` with its
        95 % interval, `n` items in it, and `reason`, which says why a value is NaN or what was
        left out.

    Raises:
        ValueError: an unknown metric, something that a metric needs is missing, queries of which a
            metric cannot be measured, or two models of one name.
    """
    texts = {"forget": forget, "holdout": holdout, "records": records}
    given = {"vanilla": vanilla, "baseline": baseline, "taught": taught, "judge": judge}
    given |= {name: items or None for name, items in texts.items()}
    check_metrics(metrics, [name for name, value in given.items() if value is not None])
    _check_answers(metrics, queries)
    registered = load_metrics()
    folder = None if out is None else Path(out)
    settings = {
        "folder": folder,
        "judge": judge,
        "num_tokens": num_tokens,
        "taught": taught,
        **texts,
        "progress": progress,
    }
    others = {
        name: None if model is None else EvaluatedModel(model, queries, **settings)
        for name, model in (("vanilla", vanilla), ("baseline", baseline))
    }
    hashes = {name: _hash(other, folder) for name, other in others.items()}
    query_key = _key(queries)
    keys = {**hashes, "taught": taught, **{name: _key(items) for name, items in texts.items()}}
    tables: dict[str, list[pd.DataFrame]] = {}
    verdicts: list[dict[str, object]] = []
    for model in [models] if isinstance(models, LanguageModel) else models:
        if model.name in tables:
            raise ValueError(f"two models are called {model.name!r}: rename one")
        tables[model.name] = []
        evaluated = EvaluatedModel(model, queries, **others, **settings)
        for name in metrics:
            if check := registered[name].check:
                check(evaluated)
        content = _hash(evaluated, folder)
        for name in dict.fromkeys(metrics):
            metric = registered[name]
            key = make_key(
                kind="measures",
                metric=name,
                model=content,
                queries=query_key,
                num_tokens=num_tokens,
                **{need: keys[need] for need in (*metric.needs, *metric.uses) if need in keys},
            )
            part = None
            if folder is not None and metric.is_kept:
                part = folder / "measures" / f"{name}-{key[:16]}.parquet"
            if part is not None and part.is_file():
                table = read_table(part, of=key)
            else:
                table = metric.measure(evaluated).reindex(columns=registry.METRIC_COLUMNS)
                table = table.fillna({"reason": ""})
                if part is not None:
                    write_table(part, table, of=key)
            tables[model.name].append(table.assign(model=model.name))
        verdicts += _list_verdicts(evaluated)
    if not tables:
        raise ValueError("no models: give at least one")
    whole = pd.concat([each for of_model in tables.values() for each in of_model])
    whole = whole.reindex(columns=list(COLUMNS)).reset_index(drop=True)
    if folder is not None:
        write_csv(folder / "measures.csv", whole)
    if folder is not None and verdicts:
        write_csv(folder / "verdicts.csv", pd.DataFrame(verdicts))
    return whole


def check_metrics(names: Sequence[str], given: Iterable[str]) -> None:
    """Raise ValueError unless all metrics are registered and have what they need.

    Args:
        names: of metrics.
        given: what is given besides models and queries: names out of `registry.NEEDS`.

    Raises:
        ValueError: no names, the first unknown one, or what a metric lacks.
    """
    registered = load_metrics()
    if not names:
        raise ValueError(f"no metrics are named; valid: {', '.join(registered)}")
    for name in names:
        if name not in registered:
            raise ValueError(f"unknown metric {name!r}; valid: {', '.join(registered)}")
        for need in registered[name].needs:
            if need != "answer" and need not in given:
                raise ValueError(f"the metric {name} needs {NEEDS[need]}")


def _check_answers(metrics: Sequence[str], queries: Sequence[Query]) -> None:
    """Raise ValueError unless there are queries, with answers where a metric needs them."""
    if not queries:
        raise ValueError("no queries: give at least one")
    registered = load_metrics()
    needing = [name for name in metrics if "answer" in registered[name].needs]
    for query in queries if needing else ():
        if not (query.answer or "").strip():
            raise ValueError(
                f"the metric {needing[0]} needs answers: {query.id} in {query.language!r} has none"
            )


def _list_verdicts(evaluated: EvaluatedModel) -> list[dict[str, object]]:
    """Return every verdict with its query and answer."""
    queries = {(query.id, query.language): query for query in evaluated.queries}
    rows = []
    for verdict in evaluated.verdicts:
        query = queries[verdict.query_id, verdict.language]
        row = {"model": evaluated.model.name, "language": query.language}
        row |= {"concept": query.concept, "query_id": query.id, "prompt": query.prompt}
        row |= {"expected": query.answer, "judged": verdict.text, "judge": verdict.judge}
        rows.append(row | {"value": verdict.value, "reason": verdict.reason})
    return rows


def _hash(evaluated: EvaluatedModel | None, folder: Path | None) -> str:
    """Return the hash of a model and its tokenizer, "" where nothing is kept."""
    if evaluated is None or folder is None:
        return ""
    check_known_by_weights(evaluated.model)
    in_chat = any(query.chat for query in evaluated.queries)
    text_hash = compute_text_hash(evaluated.model, chat=in_chat)
    return f"{evaluated.model.content_hash()} {text_hash}"


def _key(items: Sequence[Query | Text | QuestionAnswer | EntityQuestion]) -> str:
    """Return the key of queries, texts or records."""
    return make_key(items=repr([list_fields(item) for item in items]))
