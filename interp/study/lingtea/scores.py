"""What models still know of a material, entry by entry, and comparisons paired over entries.

An entry is a fact or a sentence in all its languages: those are not independent, so intervals draw
entries, never their translations. Scores of a language are pooled over its tokens (MA), and the
mean over languages weighs each alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.behaviour.measure import (
    Measure,
    draw_counts,
    measured,
    percentiles,
    resampled,
    share,
    undefined,
)
from interp.behaviour.memorization import measures as memorization_measures
from interp.behaviour.memorization import memorization
from interp.behaviour.probing import probe
from interp.data.cache import key_of
from interp.data.datasets import ClozeFact
from interp.models.language_model import LanguageModel
from interp.results import read_table, write_table
from interp.study.lingtea.data import Material, queries_of_records, texts_of_records

MEASURED = ("forget", "test")
"""The parts that are measured."""


def scored(
    model: LanguageModel, material: Material, folder: Path, *, progress: bool = True
) -> pd.DataFrame:
    """How well a model knows each entry in each language.

    Args:
        model: the model.
        material: what it is asked for; its parts `MEASURED`.
        folder: where tables are kept; what is there of the same model and texts is read.
        progress: show progress bars.

    Returns:
        One row per part (`concept`), language and entry (`text_id`), with the columns of
        `interp.behaviour.memorization`; of facts also `right`, whether the right candidate ranks
        first, and `num_candidates`.
    """
    records = {part: getattr(material, part) for part in MEASURED}
    key = key_of(kind="lingtea", model=model.content_hash(), records=repr(records))
    path = folder / f"{key[:16]}.parquet"
    if path.is_file():
        return read_table(path, of=key)
    tables = []
    for part, of_part in records.items():
        table = memorization(model, texts_of_records(of_part, part), progress=progress)
        if isinstance(of_part[0], ClozeFact):
            options = [record.candidates for record in of_part if isinstance(record, ClozeFact)]
            asked = queries_of_records(of_part, part)
            probed = probe(model, asked, candidates=options, progress=progress)
            table["right"], table["num_candidates"] = probed["right"], probed["num_candidates"]
        tables.append(table)
    whole = pd.concat(tables, ignore_index=True)
    write_table(path, whole, of=key)
    return whole


def measures(scores: pd.DataFrame) -> pd.DataFrame:
    """MA, PPL and, of facts, PA, with 95 % intervals over entries.

    Args:
        scores: tables of `scored`, with a column `model` that tells them apart.

    Returns:
        As `interp.evaluate` has it: `model`, `language`, `concept`, `metric`, `value`, `ci_low`,
        `ci_high`, `n`, `reason`. The metrics are `memorization_accuracy`, `perplexity` and
        `accuracy`.
    """
    by = ["model", "language", "concept"]
    found = [memorization_measures(scores, by=by).query("metric != 'extraction_strength'")]
    if "right" in scores:

        def right(rows: pd.DataFrame) -> Measure:
            chance = (1 / rows["num_candidates"]).mean()
            return share(rows["right"].tolist(), reason=f"chance is {chance:.3g}")

        found.append(measured(scores, by, {"accuracy": right}))
    return pd.concat(found, ignore_index=True)


class Drawn:
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
        """Memorization accuracy per language."""
        right, tokens = (self._tables[model, part, name] for name in ("num_right", "num_tokens"))
        return (right @ self.weights[part]) / (tokens @ self.weights[part])

    def pa(self, model: str, part: str) -> Float[np.ndarray, " language"]:
        """Probing accuracy per language."""
        weights = self.weights[part]
        return (self._tables[model, part, "right"] @ weights) / weights.sum()


def compared(
    scores: pd.DataFrame,
    statistic: Callable[[Drawn], float],
    *,
    parts: Sequence[str],
    num_resamples: int = 1000,
    seed: int = 0,
) -> Measure:
    """A comparison of models, with its percentile bootstrap interval over entries.

    Args:
        scores: tables of `scored`, with a column `model`.
        statistic: what is compared, as one number.
        parts: the parts that it uses; their entries are drawn, each part for itself.
        num_resamples: bootstrap resamples.
        seed: of the resamples.

    Returns:
        `n` is the number of entries in those parts.
    """
    drawn = Drawn(scores)
    value = float(statistic(drawn))
    entries = np.repeat(parts, [len(drawn.ids[part]) for part in parts])
    found = []
    for counts in draw_counts(entries, num_resamples=num_resamples, seed=seed):
        drawn.weights |= {part: counts[entries == part] for part in parts}
        found.append(float(statistic(drawn)))
    low, high = percentiles(found)
    return Measure(value=value, ci_low=low, ci_high=high, n=len(entries))


def cost_ratio(curves: pd.DataFrame, slow: str, fast: str, *, level: float) -> Measure:
    """How many more sequences one run trains than another until it forgot as much, as a share.

    A run forgot as much when its accuracy on the forget set, the mean over languages, is at most
    `level` times that before. If the slow run never did, its whole length stands for it: the ratio
    is at least that.

    Args:
        curves: tables of `interp.study.lingtea.runs.curve`.
        slow: the run that is expected to cost more.
        fast: the other.
        level: share of the accuracy before.

    Returns:
        sequences(slow) / sequences(fast) − 1, with the interval over entries; undefined where the
        fast run did not forget as much.
    """
    costs, right, tokens = {}, {}, {}
    for run in (slow, fast):
        rows = curves.query("run == @run")
        wide = rows.pivot(index=["step", "language"], columns="text_id", values="num_right")
        evaluations = rows.drop_duplicates("step").sort_values("step")
        costs[run] = evaluations["sequences"].to_numpy()
        right[run] = wide.to_numpy(dtype=float).reshape(len(evaluations), -1, wide.shape[1])
        first = rows.query("step == 0")
        tokens[run] = first.pivot(
            index="language", columns="text_id", values="num_tokens"
        ).to_numpy()

    def until(run: str, items: np.ndarray) -> float:
        known = right[run][:, :, items].sum(-1) / tokens[run][:, items].sum(-1)
        known = known.mean(-1)
        (reached,) = np.nonzero(known[1:] <= level * known[0])
        return float(costs[run][1 + reached[0]]) if len(reached) else np.nan

    def ratio(items: np.ndarray) -> float:
        longest = float(costs[slow][-1])
        cost = until(slow, items)
        return (longest if np.isnan(cost) else cost) / until(fast, items) - 1

    everything = np.arange(right[fast].shape[-1])
    if np.isnan(until(fast, everything)):
        return undefined(f"{fast} did not come down to {level:.0%} of its accuracy before")
    reason = ""
    if np.isnan(until(slow, everything)):
        reason = f"{slow} did not come down to {level:.0%}: a lower bound"
    return resampled(len(everything), ratio, reason=reason)
