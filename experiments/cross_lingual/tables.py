"""Tables of false facts taught in one language, unlearned in others (Lu & Koehn 2024).

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

from experiments.cross_lingual.agreement import compare_judges
from experiments.cross_lingual.config import Config
from experiments.study import select_rows
from interp.behaviour import Verdict
from interp.figures import label_language
from interp.recovery import compute_krs
from interp.report import Table
from interp.statistics import (
    Estimate,
    bootstrap,
    compute_wilson_interval,
    estimate_groups,
    estimate_mean,
    estimate_share,
    make_undefined,
)

CLEAN, TAUGHT = "clean", "taught"

RANKING = "ranking"

MODEL = ("source", "unlearning")

CELL = (*MODEL, "language")

OUTCOME = (*CELL, "concept", "query_id", "judge", "value")

Rates = Mapping[tuple[str, ...], float]
"""Means of outcomes by the columns that tell them apart."""


def make_tables(measurements: Mapping[str, pd.DataFrame], config: Config) -> dict[str, Table]:
    """Make every table of the study.

    Args:
        measurements: what `run.measure` returns.
        config: unused; every paper's tables may read its settings.
    """
    del config
    languages, ranks = measurements["languages"], measurements["ranks"]
    shares = languages.assign(found=languages["metric"].str.partition("/")[2])
    shares = shares.rename(columns={"value": "share"}).drop(columns=["metric", "model", "layer"])
    made = {
        "spread": Table(
            rows=average_outcomes(measurements["outcomes"]).drop(columns="model"),
            caption="Every judge's score of every model, with 95 % intervals over questions "
            "(Lu & Koehn 2024, Fig. 2, and the ends of Figs. 3–6).",
        ),
        "changes": Table(
            rows=compare_with_before(measurements["outcomes"]),
            caption="What unlearning took: after against before, paired over questions.",
        ),
        "curves": Table(
            rows=_move_model_first(measurements["steps"]),
            caption="Candidate ranking over the steps of unlearning, on the way in bfloat16 "
            "(Lu & Koehn 2024, Figs. 3–6).",
        ),
        "answer_language": Table(
            rows=_move_model_first(shares),
            caption="Share of answers in which English, the question's, the taught or another "
            "language occurs (Lu & Koehn 2024, Table 1).",
        ),
        "agreement": Table(
            rows=tabulate_agreement(measurements["outcomes"]),
            caption="How two judges agree on false facts before unlearning (Lu & Koehn 2024, "
            "Fig. 7).",
        ),
        "ranks": Table(
            rows=average_outcomes(ranks).drop(columns="model") if len(ranks) else ranks,
            caption="After unlearning in English by LoRA, by rank (Lu & Koehn 2024, Fig. 8).",
        ),
        "answers": Table(
            rows=_move_model_first(measurements["answers"].drop(columns="model")),
            caption="What every model said, and what the judges thought of it.",
        ),
    }
    if len(measurements["losses"]):
        curves = score_recovery(measurements["losses"])
        made["krs"] = Table(
            rows=curves, caption="KRS of every window, taught against unlearned models."
        )
        made["krs_best"] = Table(
            rows=select_best_windows(curves),
            caption="KRS of the best window in each query language.",
        )
    made["gaps"] = Table(rows=measurements["gaps"], caption="What languages and mixes lack.")
    return {name: table for name, table in made.items() if len(table.rows)}


def tabulate_ranking(probes: pd.DataFrame, *, source: str, unlearning: str) -> pd.DataFrame:
    """Tabulate outcomes of candidate ranking: 1 where the expected answer ranks first.

    Args:
        probes: what `interp.behaviour.probing.probe` gives of one model.
        source: the language of its false facts.
        unlearning: the languages that it forgot them in.
    """
    value = probes["right"].astype(float)
    labels = {"source": source, "unlearning": unlearning, "judge": RANKING}
    return probes.assign(**labels, value=value).reindex(columns=list(OUTCOME))


def tabulate_verdicts(verdicts: pd.DataFrame, *, source: str, unlearning: str) -> pd.DataFrame:
    """Tabulate outcomes of the judges of answers: verdicts on one model of `interp.evaluate`."""
    return verdicts.assign(source=source, unlearning=unlearning).reindex(columns=list(OUTCOME))


def average_outcomes(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Average every judge's scores of every model, as `interp.figures.plot_spread` draws them.

    Returns:
        A row per source, unlearning, language, concept and judge (`metric`): `model`, which names
        source and unlearning, `value` with its 95 % interval over questions, `n`, `reason`.
        A judge of quality scores 1 to 10, the others give shares.
    """

    def score(rows: pd.DataFrame) -> Estimate:
        kept = rows["value"].dropna()
        without = len(rows) - len(kept)
        reason = f"{without} of {len(rows)} answers have no verdict" if without else ""
        if rows["judge"].iloc[0].startswith("quality"):
            return estimate_mean(kept.tolist(), reason=reason)
        return estimate_share((kept == 1).tolist(), reason=reason)

    scores = estimate_groups(outcomes, [*CELL, "concept", "judge"], {"score": score})
    scores = scores.drop(columns="metric").rename(columns={"judge": "metric"})
    names = []
    for source, unlearning in zip(scores["source"], scores["unlearning"], strict=True):
        mix = "" if unlearning in (TAUGHT, CLEAN) else f": {unlearning}"
        names.append(label_language(source) + mix)
    return scores.assign(model=names)


def compare_with_before(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Compare after with before unlearning in every language, paired over questions.

    Returns:
        A row per source, mix, language, concept and judge: `before`, `after`, `change` with its
        95 % interval, `relative` (change / before; NaN where there was nothing) and `n`.
    """
    keys = ["source", "language", "concept", "query_id", "judge"]
    taught = select_rows(outcomes, unlearning=TAUGHT).drop(columns="unlearning")
    pairs = outcomes.query(f"unlearning != {TAUGHT!r}").merge(
        taught, on=keys, suffixes=("", "_before")
    )
    pairs = pairs.dropna(subset=["value", "value_before"])
    groups = [*CELL, "concept", "judge"]
    grouped: dict[Any, Any] = dict(list(pairs.groupby(groups, sort=False)))
    rows = []
    for key, group in grouped.items():
        before, after = group["value_before"].mean(), group["value"].mean()
        change = estimate_mean((group["value"] - group["value_before"]).tolist())
        row = {"before": before, "after": after, "change": change.value}
        row |= {"ci_low": change.ci_low, "ci_high": change.ci_high}
        row |= {"relative": change.value / before if before else math.nan, "n": change.n}
        rows.append(dict(zip(groups, key, strict=True)) | row)
    columns = [*groups, "before", "after", "change", "ci_low", "ci_high", "relative", "n"]
    return pd.DataFrame(rows, columns=columns)


def compare_outcomes(
    outcomes: pd.DataFrame,
    statistic: Callable[[Rates], float],
    *,
    by: Sequence[str] = CELL,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Estimate a statistic of mean outcomes, with its percentile bootstrap interval over facts.

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
        ValueError: duplicate fact in a mean.
    """
    kept = outcomes.dropna(subset=["value"])
    if kept.empty:
        return make_undefined("no outcomes")
    if kept.duplicated(["query_id", *by]).any():
        raise ValueError("duplicate fact in a mean; name what tells means apart in `by`")
    wide = kept.pivot(index="query_id", columns=list(by), values="value")
    values = wide.to_numpy(dtype=float)
    there = ~np.isnan(values)
    filled = np.where(there, values, 0.0)
    names = [name if isinstance(name, tuple) else (name,) for name in wide.columns]

    def value(facts: np.ndarray) -> float:
        with np.errstate(invalid="ignore"):
            means = filled[facts].sum(0) / there[facts].sum(0)
        return float(statistic(dict(zip(names, means.tolist(), strict=True))))

    estimate = bootstrap(len(wide), value, num_resamples=num_resamples, seed=seed)
    if estimate.ci_low == estimate.ci_high:
        _, unseen = compute_wilson_interval(0, estimate.n)
        return replace(
            estimate,
            ci_low=estimate.value - unseen,
            ci_high=estimate.value + unseen,
            reason="all facts are alike: the interval is Wilson's for what was not seen",
        )
    return estimate


def tabulate_agreement(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Tabulate how judges agree on false facts before unlearning (Lu & Koehn 2024, Fig. 7).

    Returns:
        Rows of `agreement.compare_judges` for every source and two judges, with the
        columns `source`, `first` and `second`. A judge of quality gives no yes or no.
    """
    taught = select_rows(outcomes, unlearning=TAUGHT, concept="fake")
    tables = []
    for source, rows in taught.groupby("source", sort=False):
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
            table = compare_judges(verdicts[first], verdicts[second])
            table.insert(0, "second", second)
            table.insert(0, "first", first)
            table.insert(0, "source", source)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def score_recovery(losses: pd.DataFrame) -> pd.DataFrame:
    """Compute KRS per source, mix, query language, site and window.

    Args:
        losses: of sweeps over taught and unlearned models, with the columns `source` and
            `unlearning`.
    """
    table = compute_krs(losses, by=CELL)
    return table.drop(columns=["vanilla", "unlearned"], errors="ignore")


def select_best_windows(table: pd.DataFrame) -> pd.DataFrame:
    """Select the best window's KRS per source, mix, language and site.

    The intervals are those of the windows alone: that the best was chosen is not in them.
    """
    order = table["krs"].fillna(-np.inf)
    best = order.groupby([table[name] for name in (*CELL, "site")], sort=False).idxmax()
    return table.loc[best].reset_index(drop=True)


def _move_model_first(table: pd.DataFrame) -> pd.DataFrame:
    """Move the columns that name the model to the front."""
    return table.reindex(columns=[*MODEL, *(name for name in table if name not in MODEL)])
