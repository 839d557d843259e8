"""Agreement of two judges, or a judge and people: Cohen's kappa, and how many verdicts differ.

    agreement(AliasJudge()(answers), read_labels("labels.csv"))

Kappa (Cohen 1960) is 1 - D/E: D is how far the two verdicts on an answer lie apart on average, E
how far they would if each judge gave its verdicts to answers at random. Apart is 0 or 1, or with
quadratic weights (Cohen 1968) the squared difference of two scores. The number of verdicts that
differ is what Lu & Koehn 2024 report of two judges (Fig. 7).
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from interp.behaviour import Verdict
from interp.statistics import Estimate, bootstrap, make_undefined

WEIGHTS = (None, "quadratic")

OVERALL = "all"
"""Name that `compare_judges` gives the row of all languages together."""


def compute_kappa(
    first: Sequence[float], second: Sequence[float], *, weights: str | None = None
) -> Estimate:
    """Compute Cohen's kappa of two judges' verdicts on the same answers.

    Args:
        first: one judge's verdicts.
        second: the other's, in the same order.
        weights: None, where verdicts agree or do not, or `quadratic`.

    Returns:
        Kappa with its bootstrap interval over answers; resamples in which it is undefined are left
        out. NaN where both judges gave one and the same verdict to everything, or there is none.

    Raises:
        ValueError: the numbers of verdicts differ, a verdict is NaN, or unknown weights.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} verdicts cannot be compared with {len(second)}")
    if weights not in WEIGHTS:
        raise ValueError(f"unknown weights {weights!r}; valid: {', '.join(map(repr, WEIGHTS))}")
    if any(math.isnan(value) for value in (*first, *second)):
        raise ValueError("a verdict is NaN; leave the answers without a verdict out")
    given = np.array([first, second], dtype=float)
    classes, numbers = np.unique(given, return_inverse=True)
    left, right = numbers.reshape(given.shape)
    apart = classes[:, None] - classes[None, :]
    apart = (apart != 0).astype(float) if weights is None else apart**2

    def statistic(items: np.ndarray) -> float:
        shares = [
            np.bincount(side[items], minlength=len(classes)) / len(items) for side in (left, right)
        ]
        expected = shares[0] @ apart @ shares[1]
        return float(1 - apart[left[items], right[items]].mean() / expected) if expected else np.nan

    if len(first) and len(classes) == 1:
        reason = f"all {len(first)} verdicts of both judges are {classes[0]:g}"
        return replace(make_undefined(reason), n=len(first))
    return bootstrap(len(first), statistic)


def compare_judges(
    first: Sequence[Verdict], second: Sequence[Verdict], *, weights: str | None = None
) -> pd.DataFrame:
    """Compare two judges on the answers that both have a verdict on.

    Args:
        first: one judge's verdicts.
        second: another's, or people's (`read_labels`).
        weights: of kappa, see there.

    Returns:
        One row per language, in order of first appearance, and one of `OVERALL`: `language`,
        `kappa`, `ci_low`, `ci_high`, `num_pairs`, `num_different` (pairs whose verdicts differ),
        `mean_difference` (mean absolute difference of the two verdicts; NaN of no pairs) and
        `reason`: why kappa is NaN, or how many answers were left out as one judge says nothing.

    Raises:
        ValueError: two verdicts of one judge on the same answer, or unknown weights.
    """
    one, other = _index_by_answer(first), _index_by_answer(second)
    keys = list(dict.fromkeys((*one, *other)))
    rows = []
    for language in (*dict.fromkeys(key[1] for key in keys), OVERALL):
        shared = [key for key in keys if language in (key[1], OVERALL)]
        pairs = [(one.get(key), other.get(key)) for key in shared]
        both = np.array([pair for pair in pairs if None not in pair], dtype=float).reshape(-1, 2)
        estimate = compute_kappa(both[:, 0].tolist(), both[:, 1].tolist(), weights=weights)
        reason = estimate.reason if len(both) else "no answers that both judges have a verdict on"
        if left_out := len(shared) - len(both):
            gap = f"{left_out} of {len(shared)} answers have no verdict of both judges"
            reason = f"{reason}; {gap}" if reason else gap
        differences = np.abs(both[:, 0] - both[:, 1])
        rows.append(
            {
                "language": language,
                "kappa": estimate.value,
                "ci_low": estimate.ci_low,
                "ci_high": estimate.ci_high,
                "num_pairs": len(both),
                "num_different": int((differences > 0).sum()),
                "mean_difference": float(differences.mean()) if len(both) else math.nan,
                "reason": reason,
            }
        )
    return pd.DataFrame(rows)


def read_labels(path: str | os.PathLike[str], *, judge: str = "people") -> list[Verdict]:
    """Read people's verdicts from a CSV file with the columns query_id, language, value and, if
    need be, sample (0 without it).

    An empty value is no verdict. Other columns are passed over.

    Args:
        path: the file, UTF-8 with a header.
        judge: the name that the verdicts are signed with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a value or sample is not a number or a line lacks its
            query (the line is named), or it is no CSV file in UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no labels {str(path)!r}; give the path of a CSV file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            columns = rows.fieldnames or ()
            labels = [(f"{path}, line {rows.line_num}", row) for row in rows]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8 ({error})") from None
    for column in ("query_id", "language", "value"):
        if column not in columns:
            raise ValueError(
                f"{path} has no column {column!r}; needed are query_id, language and value"
            )
    for where, row in labels:
        if not (row["query_id"] and row["language"]):
            raise ValueError(f"{where}: no query_id or no language")
    return [
        Verdict(
            query_id=row["query_id"],
            language=row["language"],
            sample=_parse_sample(row.get("sample") or "0", where),
            judge=judge,
            value=_parse_number(row["value"], where) if (row["value"] or "").strip() else None,
        )
        for where, row in labels
    ]


def _parse_sample(written: str, where: str) -> int:
    number = _parse_number(written, where)
    if number < 0 or number != int(number):
        raise ValueError(f"{where}: the sample {written[:20]!r} is not a whole number from 0")
    return int(number)


def _parse_number(written: str, where: str) -> float:
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {written[:40]!r} is not a number")
    return number


def _index_by_answer(verdicts: Sequence[Verdict]) -> dict[tuple[str, str, int], float | None]:
    values: dict[tuple[str, str, int], float | None] = {}
    for verdict in verdicts:
        key = (verdict.query_id, verdict.language, verdict.sample)
        if key in values:
            raise ValueError(
                f"{verdict.judge!r} has two verdicts on {verdict.query_id} in "
                f"{verdict.language!r}, sample {verdict.sample}: compare those of one model"
            )
        values[key] = verdict.value
    return values
