"""Verdicts of judges on answers, and the scores that are made of them (Lu & Koehn 2024).

    verdicts = AliasJudge()(answers)
    summary(verdicts, of=occurrence)

O_F asks of every answer whether it contains a fact, false or true (0 or 1), Q_R how good it is (1
to 10). A judge that cannot tell gives no verdict, which is counted and never taken for a "no".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Protocol, runtime_checkable

import pandas as pd

from interp.behaviour.answers import Answer
from interp.data.query import Query
from interp.statistics import Estimate, estimate_mean, estimate_share


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Verdict of a judge on an answer.

    Attributes:
        query_id: the id of the query that was answered.
        language: BCP-47 code of its language.
        sample: which of several sampled answers, from 0.
        judge: the judge's name.
        value: 0 (no) or 1 (yes) for occurrence, 1 to 10 for quality; None if there is no verdict.
        reason: what was found, what the judge wrote, or why there is no verdict.
        text: what was judged.
    """

    query_id: str
    language: str
    sample: int = 0
    judge: str
    value: float | None
    reason: str = ""
    text: str = ""


@runtime_checkable
class Judge(Protocol):
    """Whatever gives every answer one verdict, in the answers' order."""

    @property
    def name(self) -> str:
        """Name that its verdicts are signed with."""
        ...

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        """Judge answers."""
        ...


def collect_aliases(queries: Sequence[Query]) -> list[Query]:
    """Return the queries with the names of their answers in all queries' languages as aliases.

    A model that was taught in one language may answer in it whatever the question's.
    """
    names: dict[str, dict[str, None]] = {}
    for query in queries:
        own = (query.answer, *query.aliases)
        names.setdefault(query.id, {}).update(dict.fromkeys(name for name in own if name))
    return [
        replace(query, aliases=tuple(dict.fromkeys((*query.aliases, *names[query.id]))))
        for query in queries
    ]


def select_text(answer: Answer, *, whole_text: bool) -> str:
    """Return what a judge sees of an answer: its first line, or all of it.

    Raises:
        ValueError: the answer's query has no answer to judge by.
    """
    query = answer.query
    if not (query.answer or "").strip():
        raise ValueError(f"{query.id} in {query.language!r} has no answer to judge by")
    return answer.text.strip() if whole_text else answer.first_line


def make_verdict(
    answer: Answer, *, judge: str, value: float | None, reason: str, text: str
) -> Verdict:
    """Make a verdict that bears the keys of an answer."""
    return Verdict(
        query_id=answer.query.id,
        language=answer.query.language,
        sample=answer.sample,
        judge=judge,
        value=value,
        reason=reason,
        text=text,
    )


def tabulate_verdicts(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return a row per verdict, a column per attribute; `value` is NaN where there is none."""
    columns = [field.name for field in fields(Verdict)]
    table = pd.DataFrame([asdict(verdict) for verdict in verdicts], columns=columns)
    return table.astype({"value": float})


def estimate_occurrence(verdicts: Sequence[Verdict]) -> Estimate:
    """Estimate O_F: in how many of a hundred answers with a verdict the fact occurs.

    The interval is Wilson's; it takes verdicts for independent, so it is too narrow for several
    samples of a query.

    Raises:
        ValueError: a verdict is neither 0 nor 1.
    """
    values, reason = _collect_values(
        verdicts, "occurrence", lambda value: value in (0, 1), "0 or 1"
    )
    estimate = estimate_share([value == 1 for value in values], reason=reason)
    return Estimate(
        value=100 * estimate.value,
        ci_low=100 * estimate.ci_low,
        ci_high=100 * estimate.ci_high,
        n=estimate.n,
        reason=estimate.reason,
    )


def estimate_quality(verdicts: Sequence[Verdict]) -> Estimate:
    """Estimate Q_R, the mean score of the answers that have a verdict (bootstrap).

    Raises:
        ValueError: a verdict is not from 1 to 10.
    """
    values, reason = _collect_values(verdicts, "quality", lambda value: 1 <= value <= 10, "1 to 10")
    return estimate_mean(values, reason=reason)


def summarise_verdicts(
    verdicts: Sequence[Verdict], *, of: Callable[[Sequence[Verdict]], Estimate]
) -> pd.DataFrame:
    """Summarise the verdicts of every judge in every language.

    Args:
        verdicts: of one judge or of several.
        of: `estimate_occurrence` or `estimate_quality`.

    Returns:
        One row per judge and language, in order of first appearance: `judge`, `language`, `value`,
        `ci_low`, `ci_high`, `n` (verdicts), `num_without` (answers without a verdict), `reason`.
    """
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.judge, verdict.language), []).append(verdict)
    rows = [
        {"judge": judge, "language": language, "num_without": _count_without(group)}
        | asdict(of(group))
        for (judge, language), group in groups.items()
    ]
    columns = ["judge", "language", "value", "ci_low", "ci_high", "n", "num_without", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _collect_values(
    verdicts: Sequence[Verdict], score: str, valid: Callable[[float], bool], range_: str
) -> tuple[list[float], str]:
    values = [verdict.value for verdict in verdicts if verdict.value is not None]
    for value in values:
        if not valid(value):
            raise ValueError(f"a verdict of {value:g} is no {score}: it must be {range_}")
    without = _count_without(verdicts)
    return values, f"{without} of {len(verdicts)} answers have no verdict" if without else ""


def _count_without(verdicts: Sequence[Verdict]) -> int:
    return sum(verdict.value is None for verdict in verdicts)
