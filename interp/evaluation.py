"""What models still say: any choice of metrics, per query language, in one tidy table.

    table = interp.evaluate([contaminated, unlearned], queries, ["accuracy", "alias"])
    figures.spread(table[table["metric"] == "accuracy"])

The metrics are those of `interp.behaviour.metrics`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from interp.behaviour import metrics as registry
from interp.behaviour.metrics import METRICS
from interp.behaviour.subject import Subject
from interp.data.cache import key_of
from interp.data.corpus import Text
from interp.data.endpoints import Endpoint
from interp.data.query import Query
from interp.files import write_atomically
from interp.models.language_model import LanguageModel
from interp.results import read_table, write_table

COLUMNS = ("model", *registry.COLUMNS)
"""Columns of the table. `concept` is that of the queries, such as `fake` and `real`; of `drift` the
group of parameters."""


_NEEDS = {
    "vanilla": "the vanilla model",
    "baseline": "a baseline model",
    "taught": "the language that was taught",
    "forget": "texts to forget",
    "judge": "a chat model that judges",
}


def evaluate(
    models: LanguageModel | Iterable[LanguageModel],
    queries: Sequence[Query],
    metrics: Sequence[str] = ("accuracy",),
    *,
    vanilla: LanguageModel | None = None,
    baseline: LanguageModel | None = None,
    taught: str | None = None,
    forget: Sequence[Text] = (),
    judge: Endpoint | LanguageModel | None = None,
    num_tokens: int = 30,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what models say.

    Args:
        models: the models; of an iterator each is taken when the one before is done.
        queries: what they are asked.
        metrics: names out of `METRICS`.
        vanilla: the model before unlearning, for metrics that compare with it.
        baseline: a model that never saw what was to be forgotten, for `uds`.
        taught: the language in which false facts were taught, for `answer_language`.
        forget: texts that state what was to be forgotten, for `relearning`.
        judge: a chat model that judges answers, for `o_f` and `q_r`; one behind an endpoint needs
            `out`.
        num_tokens: the longest answer.
        out: a directory for the table `measures.csv`, the answers, and `verdicts.csv`, which says
            what each judge thought of each. What it holds of the same models, queries and metrics
            is not measured again.
        progress: show progress bars.

    Returns:
        One row per model, language, concept and measure, with `COLUMNS`: `value` with its 95 %
        interval, `n` items in it, and `reason`, which says why a value is NaN or what was left out.

    Raises:
        ValueError: no such metric, queries or models that a metric needs are missing, or two
            models of one name.
    """
    given = {"vanilla": vanilla, "baseline": baseline, "taught": taught, "judge": judge}
    given["forget"] = forget or None
    check_metrics(metrics, [name for name, value in given.items() if value is not None])
    _check_answers(metrics, queries)
    folder = None if out is None else Path(out)
    settings = {
        "folder": folder,
        "judge": judge,
        "num_tokens": num_tokens,
        "taught": taught,
        "forget": forget,
        "progress": progress,
    }
    others = {
        name: None if model is None else Subject(model, queries, **settings)
        for name, model in (("vanilla", vanilla), ("baseline", baseline))
    }
    hashes = {name: _hash(subject, folder) for name, subject in others.items()}
    asked = _written(queries)
    also = {**hashes, "taught": taught, "forget": _written(forget)}
    tables: dict[str, list[pd.DataFrame]] = {}
    judged: list[dict[str, object]] = []
    for model in [models] if isinstance(models, LanguageModel) else models:
        if model.name in tables:
            raise ValueError(f"two models are called {model.name!r}: rename one")
        tables[model.name] = []
        subject = Subject(model, queries, **others, **settings)
        content = _hash(subject, folder)
        for name in dict.fromkeys(metrics):
            metric = METRICS[name]
            key = key_of(
                kind="measures",
                metric=name,
                model=content,
                queries=asked,
                num_tokens=num_tokens,
                **{need: also[need] for need in metric.needs if need in also},
            )
            part = None
            if folder is not None and metric.is_kept:
                part = folder / "measures" / f"{name}-{key[:16]}.parquet"
            if part is not None and part.is_file():
                table = read_table(part, of=key)
            else:
                table = metric.measure(subject).reindex(columns=registry.COLUMNS)
                table = table.fillna({"reason": ""})
                if part is not None:
                    write_table(part, table, of=key)
            tables[model.name].append(table.assign(model=model.name))
        judged += _judged(subject)
    if not tables:
        raise ValueError("no models: give at least one")
    whole = pd.concat([each for of_model in tables.values() for each in of_model])
    whole = whole.reindex(columns=list(COLUMNS)).reset_index(drop=True)
    if folder is not None:
        write_atomically(folder / "measures.csv", lambda at: whole.to_csv(at, index=False))
    if folder is not None and judged:
        verdicts = pd.DataFrame(judged)
        write_atomically(folder / "verdicts.csv", lambda at: verdicts.to_csv(at, index=False))
    return whole


def check_metrics(names: Sequence[str], given: Iterable[str]) -> None:
    """Refuse metrics that there are not, or that need other models.

    Args:
        names: of metrics.
        given: what is given beside the models: `vanilla`, `baseline`, `taught`, `forget`, `judge`.

    Raises:
        ValueError: the first bad name, or the model that is missing.
    """
    if not names:
        raise ValueError(f"no metrics are named; valid: {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}; valid: {', '.join(METRICS)}")
        for need in METRICS[name].needs:
            if need != "answer" and need not in given:
                raise ValueError(f"the metric {name} needs {_NEEDS[need]}")


def _check_answers(metrics: Sequence[str], queries: Sequence[Query]) -> None:
    if not queries:
        raise ValueError("no queries: give at least one")
    needing = [name for name in metrics if "answer" in METRICS[name].needs]
    for query in queries if needing else ():
        if not query.answer:
            raise ValueError(
                f"the metric {needing[0]} needs answers: {query.id} in {query.language!r} has none"
            )


def _judged(subject: Subject) -> list[dict[str, object]]:
    """Every verdict beside what was asked and said."""
    asked = {(query.id, query.language): query for query in subject.queries}
    rows = []
    for verdict in subject.verdicts:
        query = asked[verdict.query_id, verdict.language]
        about = {"model": subject.model.name, "language": query.language}
        about |= {"concept": query.concept, "query_id": query.id, "prompt": query.prompt}
        about |= {"expected": query.answer, "judged": verdict.text, "judge": verdict.judge}
        rows.append(about | {"value": verdict.value, "reason": verdict.reason})
    return rows


def _hash(subject: Subject | None, folder: Path | None) -> str:
    return "" if subject is None or folder is None else subject.model.content_hash()


def _written(items: Sequence[Query] | Sequence[Text]) -> str:
    return key_of(items=repr([asdict(item) for item in items]))
