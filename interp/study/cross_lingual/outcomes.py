"""Tables of false facts that were taught in one language and unlearned in others (Lu & Koehn 2024).

An outcome is what one judge found in what one model says to one question. Its columns, `OUTCOME`:
`source`, the language of the false facts; `unlearning`, the languages to forget in (`TAUGHT`:
before that; of the baseline without false facts both are `CLEAN`); the question's `language`,
`concept` (`fake` or `real`) and `query_id`; `judge`; `value`, NaN where the judge cannot tell.
Candidates ranked by the model are a judge like the others, `RANKING`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from interp.behaviour.agreement import agreement
from interp.behaviour.judges import Verdict
from interp.behaviour.measure import Measure, mean, measured, resampled, share, undefined, wilson
from interp.data.corpus import mix_languages
from interp.figures.facets import language_label
from interp.recovery.krs import krs_table
from interp.study.rows import where

CLEAN, TAUGHT = "clean", "taught"
RANKING = "ranking"
MODEL = ("source", "unlearning")
CELL = (*MODEL, "language")
OUTCOME = (*CELL, "concept", "query_id", "judge", "value")

Rates = Mapping[tuple[str, ...], float]
"""Means of outcomes by the columns that tell them apart."""


def mixes_of(mixes: Sequence[str], source: str) -> tuple[list[str], pd.DataFrame]:
    """The mixes to forget in that a source language has, none twice under two names.

    Returns:
        The mixes, and a row for each that is left out: `unlearning`, `part`, `language`, `reason`.
    """
    kept: dict[tuple[str, ...], str] = {}
    left_out = []
    for mix in mixes:
        try:
            codes = mix_languages(mix, source)
            reason = f"the same languages as {kept[codes]}" if codes in kept else ""
        except ValueError as error:
            codes, reason = (), str(error)
        if reason:
            row = {"unlearning": mix, "part": "mix", "language": source, "reason": reason}
            left_out.append(row)
        else:
            kept[codes] = mix
    return list(kept.values()), pd.DataFrame(left_out)


def ranked(probes: pd.DataFrame, *, source: str, unlearning: str) -> pd.DataFrame:
    """Outcomes of candidate ranking: 1 where the expected answer ranks first.

    Args:
        probes: what `interp.behaviour.probing.probe` gives of one model.
        source: the language of its false facts.
        unlearning: the languages that it forgot them in.
    """
    value = probes["right"].astype(float)
    labels = {"source": source, "unlearning": unlearning, "judge": RANKING}
    return probes.assign(**labels, value=value).reindex(columns=list(OUTCOME))


def judged(verdicts: pd.DataFrame, *, source: str, unlearning: str) -> pd.DataFrame:
    """Outcomes of the judges of answers: the verdicts on one model of `interp.evaluate`."""
    return verdicts.assign(source=source, unlearning=unlearning).reindex(columns=list(OUTCOME))


def cells(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Every judge's score of every model, as `interp.figures.spread` draws them.

    Returns:
        A row per source, unlearning, language, concept and judge (`metric`): `model`, which names
        source and unlearning, `value` with its 95 % interval over questions, `n`, `reason`.
        A judge of quality scores 1 to 10, the others give shares.
    """

    def score(rows: pd.DataFrame) -> Measure:
        kept = rows["value"].dropna()
        without = len(rows) - len(kept)
        reason = f"{without} of {len(rows)} answers have no verdict" if without else ""
        if rows["judge"].iloc[0].startswith("quality"):
            return mean(kept.tolist(), reason=reason)
        return share((kept == 1).tolist(), reason=reason)

    found = measured(outcomes, [*CELL, "concept", "judge"], {"score": score})
    found = found.drop(columns="metric").rename(columns={"judge": "metric"})
    names = []
    for source, unlearning in zip(found["source"], found["unlearning"], strict=True):
        mix = "" if unlearning in (TAUGHT, CLEAN) else f": {unlearning}"
        names.append(language_label(source) + mix)
    return found.assign(model=names)


def changes(outcomes: pd.DataFrame) -> pd.DataFrame:
    """What unlearning took, in every language: after against before, paired over questions.

    Returns:
        A row per source, mix, language, concept and judge: `before`, `after`, `change` with its
        95 % interval, `relative` (change / before; NaN where there was nothing) and `n`.
    """
    keys = ["source", "language", "concept", "query_id", "judge"]
    taught = where(outcomes, unlearning=TAUGHT).drop(columns="unlearning")
    pairs = outcomes.query(f"unlearning != {TAUGHT!r}").merge(
        taught, on=keys, suffixes=("", "_before")
    )
    pairs = pairs.dropna(subset=["value", "value_before"])
    groups = [*CELL, "concept", "judge"]
    grouped: dict[Any, Any] = dict(list(pairs.groupby(groups, sort=False)))
    rows = []
    for key, group in grouped.items():
        before, after = group["value_before"].mean(), group["value"].mean()
        change = mean((group["value"] - group["value_before"]).tolist())
        row = {"before": before, "after": after, "change": change.value}
        row |= {"ci_low": change.ci_low, "ci_high": change.ci_high}
        row |= {"relative": change.value / before if before else math.nan, "n": change.n}
        rows.append(dict(zip(groups, key, strict=True)) | row)
    columns = [*groups, "before", "after", "change", "ci_low", "ci_high", "relative", "n"]
    return pd.DataFrame(rows, columns=columns)


def compared(
    outcomes: pd.DataFrame,
    statistic: Callable[[Rates], float],
    *,
    by: Sequence[str] = CELL,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Measure:
    """A statistic of mean outcomes, with its percentile bootstrap interval over facts.

    A fact that is asked of several models in several languages is drawn with all of it, so that
    neither languages nor models pass for further evidence. Where every resample gives the same,
    because all facts are alike, facts unlike them may be out there unseen: the interval is then as
    wide as Wilson's for a share of which nothing was seen.

    Args:
        outcomes: at most one per fact (`query_id`) and combination of `by`.
        statistic: of the means by the values of `by`.
        by: columns that tell means apart.
        num_resamples: bootstrap resamples.
        seed: of the resamples.

    Returns:
        `n` is the number of facts.

    Raises:
        ValueError: a fact stands twice in a mean.
    """
    kept = outcomes.dropna(subset=["value"])
    if kept.empty:
        return undefined("no outcomes")
    if kept.duplicated(["query_id", *by]).any():
        raise ValueError("a fact stands twice in a mean: name what tells them apart in `by`")
    wide = kept.pivot(index="query_id", columns=list(by), values="value")
    values = wide.to_numpy(dtype=float)
    there = ~np.isnan(values)
    filled = np.where(there, values, 0.0)
    names = [name if isinstance(name, tuple) else (name,) for name in wide.columns]

    def value(facts: np.ndarray) -> float:
        with np.errstate(invalid="ignore"):
            means = filled[facts].sum(0) / there[facts].sum(0)
        return float(statistic(dict(zip(names, means.tolist(), strict=True))))

    found = resampled(len(wide), value, num_resamples=num_resamples, seed=seed)
    if found.ci_low == found.ci_high:
        _, unseen = wilson(0, found.n)
        return replace(
            found,
            ci_low=found.value - unseen,
            ci_high=found.value + unseen,
            reason="all facts are alike: the interval is Wilson's for what was not seen",
        )
    return found


def agreements(outcomes: pd.DataFrame) -> pd.DataFrame:
    """How the judges agree on the false facts before unlearning (Lu & Koehn 2024, Fig. 7).

    Returns:
        The rows of `interp.behaviour.agreement.agreement` for every source and two judges, in the
        columns `source`, `first` and `second`. A judge of quality gives no yes or no.
    """
    asked = where(outcomes, unlearning=TAUGHT, concept="fake")
    tables = []
    for source, rows in asked.groupby("source", sort=False):
        verdicts: dict[str, list[Verdict]] = {}
        for row in rows.to_dict("records"):
            value = float(row["value"])
            verdict = Verdict(
                query_id=row["query_id"],
                language=row["language"],
                judge=row["judge"],
                value=None if math.isnan(value) else value,
            )
            verdicts.setdefault(verdict.judge, []).append(verdict)
        judges = [name for name in verdicts if not name.startswith("quality")]
        for first, second in combinations(judges, 2):
            table = agreement(verdicts[first], verdicts[second])
            table.insert(0, "second", second)
            table.insert(0, "first", first)
            table.insert(0, "source", source)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def scores(losses: pd.DataFrame) -> pd.DataFrame:
    """Recovery scores per source, mix, query language, site and window.

    Args:
        losses: of sweeps over taught and unlearned models, with the columns `source` and
            `unlearning`.
    """
    table = krs_table(losses, by=CELL)
    return table.drop(columns=["vanilla", "unlearned"], errors="ignore")


def best_windows(table: pd.DataFrame) -> pd.DataFrame:
    """Of recovery scores, those of the best window per source, mix, language and site.

    The intervals are those of the windows alone: that the best was chosen is not in them.
    """
    order = table["krs"].fillna(-np.inf)
    best = order.groupby([table[name] for name in (*CELL, "site")], sort=False).idxmax()
    return table.loc[best].reset_index(drop=True)
