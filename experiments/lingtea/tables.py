"""Tables of forgetting in many languages: MA, PPL, PA, KRS, cost and sizes.

An entry is a fact or a sentence in all its languages: those are not independent, so intervals draw
entries, never their translations. Scores of a language are pooled over its tokens (MA), and the
mean over languages weighs each alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from experiments.lingtea.config import BEFORE, LINGTEA, SEQUENTIAL, Config
from experiments.study import select_rows
from interp.behaviour import estimate_memorization as memorization_measures
from interp.recovery import compute_krs
from interp.report import Table
from interp.statistics import (
    Estimate,
    bootstrap,
    compute_percentile_interval,
    draw_counts,
    estimate_groups,
    estimate_share,
)


def make_tables(measurements: Mapping[str, pd.DataFrame], config: Config) -> dict[str, Table]:
    """Make every table of the study.

    Args:
        measurements: what `run.measure` returns.
        config: the settings.
    """
    scores = measurements["scores"]
    krs = compute_krs(measurements["losses"], by=("material", "method", "language"))
    tables = {
        "measures": Table(
            rows=_tabulate_measures(scores),
            caption="MA, PPL and PA per model and language, with 95 % intervals over entries: "
            "what is left of the forget set and of the test part.",
        ),
        "runs": Table(
            rows=measurements["runs"],
            caption="The models that were made, and where training stopped.",
        ),
        "krs": Table(
            rows=krs.drop(columns="unlearned", errors="ignore"),
            caption="KRS per material, method, query language, site and layer.",
        ),
        "answers": Table(
            rows=measurements["answers"], caption="Greedy answers to what was to be forgotten."
        ),
    }
    for name, rows in select_curves(measurements).items():
        tables[f"cost-{name}"] = Table(
            rows=_tabulate_cost(rows),
            caption=f"What training cost and what was left of the {name}, languages drawn anew "
            "for every sequence and one after the other.",
        )
    for name in select_scores(measurements, config):
        rows = _tabulate_sizes(scores.query("material == @name"), config)
        if not rows.empty:
            tables[f"sizes-{name}"] = Table(
                rows=rows, caption=f"MA over the number of {name} to forget, mean over languages."
            )
    return tables


def select_scores(
    measurements: Mapping[str, pd.DataFrame], config: Config
) -> dict[str, pd.DataFrame]:
    """Return the scores of the study's forget set by material."""
    scores = select_rows(measurements["scores"], size=[config.size])
    return {str(name): drop_empty(rows) for name, rows in scores.groupby("material", sort=False)}


def select_curves(measurements: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the rows of `trace_forgetting` by material; empty where none was traced."""
    if "curves" not in measurements:
        return {}
    groups = measurements["curves"].groupby("material", sort=False)
    return {str(name): rows for name, rows in groups}


def drop_empty(scores: pd.DataFrame) -> pd.DataFrame:
    """Drop columns that only the other material has: sentences have no candidates."""
    return scores.dropna(axis="columns", how="all").reset_index(drop=True)


def _tabulate_measures(scores: pd.DataFrame) -> pd.DataFrame:
    groups: dict[Any, Any] = dict(list(scores.groupby(["material", "size"], sort=False)))
    tables = [
        summarise_scores(drop_empty(rows)).assign(material=material, size=size)
        for (material, size), rows in groups.items()
    ]
    whole = pd.concat(tables, ignore_index=True)
    others = [name for name in whole if name not in ("material", "size")]
    return whole.reindex(columns=["material", "size", *others])


def _tabulate_cost(curves: pd.DataFrame) -> pd.DataFrame:
    """Tabulate cost and MA on the forget set, the mean over languages, per evaluation."""
    rows = average_cost(curves, {LINGTEA: "random", SEQUENTIAL: "sequential"})
    costs = curves.drop_duplicates(["run", "step"])[
        ["run", "step", "sequences", "tokens", "seconds"]
    ].reset_index(drop=True)
    measured = rows[["value", "ci_low", "ci_high", "n"]].reset_index(drop=True)
    return pd.concat([costs, measured], axis="columns")


def _tabulate_sizes(scores: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Tabulate MA over the size of the forget set; empty where there is one size."""
    if len(set(scores["size"])) < 2:
        return pd.DataFrame()
    records = []
    for size, rows in scores.groupby("size"):
        for model in (BEFORE, *config.size_methods):
            for part in ("forget", "test"):

                def mean(drawn: ResampledScores, model: str = model, part: str = part) -> float:
                    return float(drawn.ma(model, part).mean())

                measure = asdict(compare_models(rows, mean, parts=[part]))
                records.append({"facet": part, "line": model, "x": size} | measure)
    return pd.DataFrame(records)


def summarise_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Summarise MA, PPL and, of facts, PA, with 95 % intervals over entries.

    Args:
        scores: tables of `score_entries`, with a column `model` that tells them apart.

    Returns:
        As `interp.evaluate` has it: `model`, `language`, `concept`, `metric`, `value`, `ci_low`,
        `ci_high`, `n`, `reason`. The metrics are `memorization_accuracy`, `perplexity` and
        `accuracy`.
    """
    by = ["model", "language", "concept"]
    tables = [memorization_measures(scores, by=by).query("metric != 'extraction_strength'")]
    if "right" in scores:

        def right(rows: pd.DataFrame) -> Estimate:
            chance = (1 / rows["num_candidates"]).mean()
            return estimate_share(rows["right"].tolist(), reason=f"chance is {chance:.3g}")

        tables.append(estimate_groups(scores, by, {"accuracy": right}))
    return pd.concat(tables, ignore_index=True)


class ResampledScores:
    """Scores of all models on entries as they were drawn."""

    def __init__(self, scores: pd.DataFrame) -> None:
        self.languages = list(dict.fromkeys(scores["language"]))
        self.ids = {
            part: list(dict.fromkeys(rows["text_id"])) for part, rows in scores.groupby("concept")
        }
        self._tables: dict[tuple[str, str, str], np.ndarray] = {}
        columns = [name for name in ("num_right", "num_tokens", "right") if name in scores]
        groups: dict[Any, Any] = dict(list(scores.groupby(["model", "concept"])))
        for (model, part), rows in groups.items():
            for column in columns:
                wide = rows.pivot(index="language", columns="text_id", values=column)
                table = wide.loc[self.languages, self.ids[part]].to_numpy(dtype=float)
                self._tables[model, part, column] = table
        self.weights = {part: np.ones(len(ids)) for part, ids in self.ids.items()}

    def ma(self, model: str, part: str) -> Float[np.ndarray, " language"]:
        """Return memorization accuracy per language."""
        right, tokens = (self._tables[model, part, name] for name in ("num_right", "num_tokens"))
        return (right @ self.weights[part]) / (tokens @ self.weights[part])

    def pa(self, model: str, part: str) -> Float[np.ndarray, " language"]:
        """Return probing accuracy per language."""
        weights = self.weights[part]
        return (self._tables[model, part, "right"] @ weights) / weights.sum()


def compare_models(
    scores: pd.DataFrame,
    statistic: Callable[[ResampledScores], float],
    *,
    parts: Sequence[str],
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Compare models, with the percentile bootstrap interval over entries.

    Args:
        scores: tables of `score_entries`, with a column `model`.
        statistic: what is compared, as one number.
        parts: the parts that it uses; their entries are drawn, each part for itself.
        num_resamples: bootstrap resamples.
        seed: of the resamples.

    Returns:
        `n` is the number of entries in those parts.
    """
    drawn = ResampledScores(scores)
    value = float(statistic(drawn))
    entries = np.repeat(parts, [len(drawn.ids[part]) for part in parts])
    resamples = []
    for counts in draw_counts(entries, num_resamples=num_resamples, seed=seed):
        drawn.weights |= {part: counts[entries == part] for part in parts}
        resamples.append(float(statistic(drawn)))
    low, high = compute_percentile_interval(resamples)
    return Estimate(value=value, ci_low=low, ci_high=high, n=len(entries))


def average_cost(curves: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Average over languages what is left of the forget set, per sequences trained.

    Args:
        curves: tables of `trace_forgetting`.
        names: what each run's line is called.

    Returns:
        The rows that `plot_bands` draws, with intervals over entries.
    """
    records = []
    groups: dict[Any, Any] = dict(list(curves.groupby(["run", "sequences"], sort=False)))
    for (run, sequences), rows in groups.items():
        right, tokens = (
            rows.pivot(index="language", columns="text_id", values=name).to_numpy(dtype=float)
            for name in ("num_right", "num_tokens")
        )

        def known(items: Any, right: Any = right, tokens: Any = tokens) -> float:
            return float((right[:, items].sum(-1) / tokens[:, items].sum(-1)).mean())

        measure = asdict(bootstrap(right.shape[1], known))
        records.append({"facet": "forget set", "line": names[run], "x": sequences} | measure)
    return pd.DataFrame(records)
