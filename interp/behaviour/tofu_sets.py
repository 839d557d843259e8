"""Sets of TOFU's questions, told from their files' names, and what metrics need of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.rouge import make_rouge_scorer
from interp.data.datasets.records import QuestionAnswer

Kind = Literal["forget", "retain", "choices"]
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "forget": "forget",
        "retain": "retain",
        "real_authors": "choices",
        "world_facts": "choices",
    }
)
"""Kind of each of TOFU's sets, by what the names of its files begin with."""


def find_set(record_id: str) -> str:
    """Return which of TOFU's sets a record of `read_tofu` is of, told from its file's name.

    Raises:
        ValueError: a file that is not named like one of TOFU's.
    """
    file = record_id.partition(":")[0].removeprefix("tofu-")
    name = next((name for name in KINDS if file.startswith(name)), None)
    if name is None:
        raise ValueError(
            f"{record_id!r} is of no set of TOFU; valid beginnings of file names: "
            f"{', '.join(KINDS)}"
        )
    return name


def find_records(evaluated: EvaluatedModel) -> list[tuple[str, QuestionAnswer]]:
    """Find the set and the record of every query.

    Raises:
        ValueError: a query without a record, or of no set of TOFU.
    """
    records = {
        (record.id, record.language): record
        for record in evaluated.records
        if isinstance(record, QuestionAnswer)
    }
    for query in evaluated.queries:
        if (query.id, query.language) not in records:
            raise ValueError(f"{query.id} in {query.language!r} has no record of read_tofu")
    return [(find_set(q.id), records[q.id, q.language]) for q in evaluated.queries]


def check_records(evaluated: EvaluatedModel) -> set[str]:
    """Refuse questions of no set of TOFU or without a record; return the sets that they are of."""
    make_rouge_scorer()
    return {name for name, _ in find_records(evaluated)}


def check_utility(evaluated: EvaluatedModel) -> None:
    """Refuse questions of the forget set alone."""
    if check_records(evaluated) == {"forget"}:
        raise ValueError("the metric model_utility needs questions that are not of the forget set")


def check_forget_set(evaluated: EvaluatedModel) -> None:
    """Refuse to go on without questions of the forget set."""
    if "forget" not in check_records(evaluated):
        raise ValueError("the metric forget_quality needs questions of the forget set")
