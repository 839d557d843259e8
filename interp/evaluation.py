"""What models still say: any choice of metrics, per query language, in one tidy table.

    table = interp.evaluate([contaminated, unlearned], queries, ["accuracy", "alias", "perplexity"])
    figures.spread(table[table["metric"] == "accuracy"])

A metric is a function from a `Subject`, which makes once what several metrics need. To add one, add
an entry to `METRICS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import pandas as pd

from interp.behaviour.answers import Answer, generate
from interp.behaviour.measure import Measure, share
from interp.behaviour.probing import probe
from interp.data.cache import key_of
from interp.data.query import Query
from interp.files import write_atomically
from interp.models.language_model import LanguageModel

COLUMNS = ("model", "language", "concept", "metric", "value", "ci_low", "ci_high", "n", "reason")
"""Columns of the table. `concept` is that of the queries, such as `fake` and `real`."""

T = TypeVar("T")


class Subject:
    """A model that is evaluated.

    Attributes:
        model: the model.
        queries: what it is asked.
        vanilla: the model before, where there is one.
        baseline: a model that never saw what was to be forgotten, where there is one.
        num_tokens: the longest answer.
        progress: whether progress bars are shown.
    """

    def __init__(
        self,
        model: LanguageModel,
        queries: Sequence[Query],
        *,
        vanilla: Subject | None = None,
        baseline: Subject | None = None,
        num_tokens: int = 30,
        cache: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        self.model, self.queries = model, tuple(queries)
        self.vanilla, self.baseline = vanilla, baseline
        self.num_tokens, self.progress = num_tokens, progress
        self._cache = cache

    @cached_property
    def answers(self) -> list[Answer]:
        """Greedy answers, one per query."""
        return generate(
            self.model,
            self.queries,
            num_tokens=self.num_tokens,
            cache=self._cache,
            progress=self.progress,
        )

    def groups(self, items: Sequence[T]) -> dict[tuple[str, str], list[T]]:
        """Something per query, by language and concept, in order of first appearance."""
        found: dict[tuple[str, str], list[T]] = {}
        for query, item in zip(self.queries, items, strict=True):
            found.setdefault((query.language, query.concept), []).append(item)
        return found


Row = tuple[str, str, str, Measure]
"""A language, a concept, the name of what is measured, and its value."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric by name.

    Attributes:
        measure: what it says of a model.
        about: what it is, in one sentence.
        needs: of `answer` (queries with answers), `vanilla` and `baseline`.
    """

    measure: Callable[[Subject], Iterable[Row]]
    about: str
    needs: tuple[str, ...] = ()


def _accuracy(subject: Subject) -> Iterator[Row]:
    table = probe(subject.model, subject.queries, progress=subject.progress)
    for (language, concept), group in subject.groups(table.to_dict("records")).items():
        chance = sum(1 / row["num_candidates"] for row in group) / len(group)
        right = share([row["right"] for row in group], reason=f"chance is {chance:.3g}")
        yield language, concept, "accuracy", right


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric(
            measure=_accuracy,
            about="probing accuracy: how often the right one of all candidate answers is ranked "
            "first",
            needs=("answer",),
        ),
    }
)
"""All metrics by name."""


def evaluate(
    models: LanguageModel | Iterable[LanguageModel],
    queries: Sequence[Query],
    metrics: Sequence[str] = ("accuracy",),
    *,
    vanilla: LanguageModel | None = None,
    baseline: LanguageModel | None = None,
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
        num_tokens: the longest answer.
        out: a directory for the table `measures.csv` and the answers. What it holds of the same
            models, queries and metrics is not measured again.
        progress: show progress bars.

    Returns:
        One row per model, language, concept and measure, with `COLUMNS`: `value` with its 95 %
        interval, `n` items in it, and `reason`, which says why a value is NaN or what was left out.

    Raises:
        ValueError: no such metric, queries or models that a metric needs are missing, or two
            models of one name.
    """
    given = [name for name, model in (("vanilla", vanilla), ("baseline", baseline)) if model]
    check_metrics(metrics, given)
    _check_answers(metrics, queries)
    folder = None if out is None else Path(out)
    settings = {
        "cache": None if folder is None else folder / "answers.jsonl",
        "num_tokens": num_tokens,
        "progress": progress,
    }
    others = {
        name: None if model is None else Subject(model, queries, **settings)
        for name, model in (("vanilla", vanilla), ("baseline", baseline))
    }
    hashes = {name: _hash(subject, folder) for name, subject in others.items()}
    tables: dict[str, list[pd.DataFrame]] = {}
    for model in [models] if isinstance(models, LanguageModel) else models:
        if model.name in tables:
            raise ValueError(f"two models are called {model.name!r}: rename one")
        tables[model.name] = []
        subject = Subject(model, queries, **others, **settings)
        content = _hash(subject, folder)
        for name in dict.fromkeys(metrics):
            metric = METRICS[name]
            needed = {other: hashes[other] for other in hashes if other in metric.needs}
            key = key_of(
                kind="measures",
                metric=name,
                model=content,
                queries=_written(queries),
                num_tokens=num_tokens,
                **needed,
            )
            part = None if folder is None else folder / "measures" / f"{name}-{key[:16]}.csv"
            if part is not None and part.is_file():
                table = pd.read_csv(part, keep_default_na=False, na_values=[""])
                table = table.fillna({"language": "", "concept": "", "reason": ""})
            else:
                table = _table(metric.measure(subject))
                if part is not None:
                    write_atomically(part, lambda at, rows=table: rows.to_csv(at, index=False))
            tables[model.name].append(table.assign(model=model.name))
    if not tables:
        raise ValueError("no models: give at least one")
    whole = pd.concat([each for of_model in tables.values() for each in of_model])
    whole = whole.reindex(columns=list(COLUMNS)).reset_index(drop=True)
    if folder is not None:
        write_atomically(folder / "measures.csv", lambda at: whole.to_csv(at, index=False))
    return whole


def check_metrics(names: Sequence[str], models: Iterable[str]) -> None:
    """Refuse metrics that there are not, or that need other models.

    Args:
        names: of metrics.
        models: what is given beside the models: `vanilla`, `baseline`.

    Raises:
        ValueError: the first bad name, or the model that is missing.
    """
    if not names:
        raise ValueError(f"no metrics are named; valid: {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}; valid: {', '.join(METRICS)}")
        for need in METRICS[name].needs:
            if need != "answer" and need not in models:
                raise ValueError(f"the metric {name} needs the {need} model")


def _check_answers(metrics: Sequence[str], queries: Sequence[Query]) -> None:
    if not queries:
        raise ValueError("no queries: give at least one")
    needing = [name for name in metrics if "answer" in METRICS[name].needs]
    for query in queries if needing else ():
        if not query.answer:
            raise ValueError(
                f"the metric {needing[0]} needs answers: {query.id} in {query.language!r} has none"
            )


def _table(rows: Iterable[Row]) -> pd.DataFrame:
    found = [
        {"language": language, "concept": concept, "metric": name, **asdict(measure)}
        for language, concept, name, measure in rows
    ]
    return pd.DataFrame(found, columns=list(COLUMNS[1:]))


def _hash(subject: Subject | None, folder: Path | None) -> str:
    return "" if subject is None or folder is None else subject.model.content_hash()


def _written(queries: Sequence[Query]) -> str:
    return key_of(queries=repr([asdict(query) for query in queries]))
