"""Findings: does a score tell an unlearned model from one that never knew?

Means over the pairs whose unlearned model passes (it forgot, and kept the rest), in the language
that was taught. The interval draws facts, the same in all pairs, as every taught model learned
something false of the same countries; it says nothing of other methods, settings or models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float

from experiments.evidence.config import CLEAN, UNTOUCHED, Config
from experiments.evidence.tables import tabulate_models
from experiments.study import Finding
from interp.statistics import Estimate, compute_percentile_interval, draw_counts, make_undefined

WORDS: Mapping[str, str] = {
    UNTOUCHED: "the model before it was taught",
    CLEAN: "a model trained alike without the false facts",
}

_NUM_RESAMPLES = 1000


Weights = Float[np.ndarray, " fact"]


@dataclass(frozen=True)
class ComparedPair:
    """What was measured of an unlearned model and of one that never knew, by fact and layer.

    Attributes:
        own: the unlearned model's values, by name.
        never: those of the other.
        layers: the centres of the windows.
        used: 0 for facts of which nothing is scored, as V's answer is empty; all are used if None.
    """

    own: Mapping[str, Float[np.ndarray, "fact layer"]]
    never: Mapping[str, Float[np.ndarray, "fact layer"]]
    layers: Sequence[int]
    used: Float[np.ndarray, " fact"] | None = None

    def weigh(self, weights: Weights) -> Weights:
        """Leave out facts of which nothing is scored."""
        return weights if self.used is None else weights * self.used


Statistic = Callable[[ComparedPair, Weights], float]


def make_findings(measurements: Mapping[str, pd.DataFrame], config: Config) -> list[Finding]:
    """Judge whether each score tells the two apart.

    Args:
        measurements: what `run.measure` returns.
        config: the settings.
    """
    findings = []
    chosen = find_passing(measurements, config)
    losses, residual = measurements["losses"], measurements["residual"]
    num_layers = int(residual["layer"].to_numpy(int).max()) + 1

    def judge(
        signature: str,
        source: str,
        quantity: str,
        pairs: Sequence[ComparedPair],
        statistic: Statistic,
    ) -> None:
        findings.append(
            Finding(
                signature=signature,
                source=source,
                quantity=quantity,
                measure=average_pairs(pairs, statistic),
                note=describe_range(pairs, statistic),
            )
        )

    for never in (CLEAN, UNTOUCHED):
        for site in config.sites:
            judge(
                f"KRS({site}) is higher than that of {WORDS[never]}",
                "this project",
                "KRS − KRS of the other, each at its best window",
                pair_up(losses, config, chosen, never, site, "restore"),
                compare_krs,
            )
        site = config.sites[-1] if "coef+attn" not in config.sites else "coef+attn"
        judge(
            f"more answers come back by {site} than in {WORDS[never]}",
            "this project",
            "share of answers − that of the other, each at its best window",
            pair_up(losses, config, chosen, never, site, "restore"),
            compare_answers,
        )
        pairs = pair_up(residual, config, chosen, never, "resid", "corrupt")
        for layer in (num_layers // 2 - 1, num_layers * 3 // 4, num_layers - 1):
            judge(
                f"V reads more of the answer after layer {layer} than in {WORDS[never]}",
                "after UDS (Lee, Kim & Jo 2026)",
                "1 − erased: the share of the other's fall that is missing",
                pairs,
                partial(compare_readout, layer=layer),
            )
    return findings


def find_passing(measurements: Mapping[str, pd.DataFrame], config: Config) -> list[tuple[int, str]]:
    """Find the unlearned models, by seed and name, that forgot and kept the rest."""
    models = tabulate_models(measurements["measures"], measurements["losses"])
    rows = models.loc[models["passes"] & (models["language"] == config.source)]
    named = zip(rows["seed"], rows["method"], strict=True)
    return [(seed, name) for seed, name in named if name in config.names]


def pair_up(
    losses: pd.DataFrame,
    config: Config,
    passing: Sequence[tuple[int, str]],
    never: str,
    site: str,
    direction: str,
) -> list[ComparedPair]:
    """Pair unlearned models with one that never knew, on the facts in the language taught."""
    chosen = losses.loc[
        (losses["site"] == site)
        & (losses["direction"] == direction)
        & (losses["language"] == config.source)
    ]
    if "control" in chosen:
        chosen = chosen.loc[~chosen["control"].fillna(value=False).astype(bool)]
    pairs = []
    for seed in config.seeds:
        of_seed = chosen.loc[chosen["seed"] == seed]
        tables = {name: _spread(rows) for name, rows in of_seed.groupby("method")}
        layers = sorted(set(of_seed["layer"]))
        for method in [name for of, name in passing if of == seed]:
            both = (tables[method], tables[never])
            missing = np.any([np.isnan(of[name]).any(axis=1) for of in both for name in of], axis=0)
            own, other = (
                {name: np.where(missing[:, None], 0.0, of[name]) for name in of} for of in both
            )
            pairs.append(
                ComparedPair(own=own, never=other, layers=layers, used=(~missing).astype(float))
            )
    return pairs


def average_pairs(pairs: Sequence[ComparedPair], statistic: Statistic) -> Estimate:
    """Average a statistic over pairs, with a bootstrap interval over facts."""
    if not pairs:
        return make_undefined("no unlearned model forgot and kept the rest")
    num_facts = len(pairs[0].own["loss_restored"])

    def average(weights: Weights) -> float:
        return float(np.mean([statistic(pair, weights) for pair in pairs]))

    value = average(np.ones(num_facts))
    if np.isnan(value):
        return make_undefined("a score is not defined")
    draws = draw_counts(np.zeros(num_facts), num_resamples=_NUM_RESAMPLES, seed=0)
    low, high = compute_percentile_interval([average(weights) for weights in draws])
    return Estimate(value=value, ci_low=low, ci_high=high, n=num_facts)


def describe_range(pairs: Sequence[ComparedPair], statistic: Statistic) -> str:
    """Say between what the pairs lie."""
    if not pairs:
        return ""
    values = [statistic(pair, np.ones(len(pair.own["loss_restored"]))) for pair in pairs]
    return f"{len(pairs)} pairs, {min(values):.2f} to {max(values):.2f}"


def compare_krs(pair: ComparedPair, weights: Weights) -> float:
    """KRS of the unlearned model, less that of the other, each at its best window."""
    weights = pair.weigh(weights)
    own, never = (
        1 - (weights @ of["loss_restored"]) / (weights @ of["loss_unlearned"])
        for of in (pair.own, pair.never)
    )
    return float(own.max() - never.max())


def compare_answers(pair: ComparedPair, weights: Weights) -> float:
    """Share of answers that come back, less that of the other, each at its best window."""
    weights = pair.weigh(weights)
    own, never = (
        (weights @ of["answered_restored"]) / weights.sum() for of in (pair.own, pair.never)
    )
    return float(own.max() - never.max())


def compare_readout(pair: ComparedPair, weights: Weights, layer: int) -> float:
    """Share of the fall that a model that never knew costs, which the unlearned one does not."""
    place, weights = pair.layers.index(layer), pair.weigh(weights)
    own, never = (weights @ of["loss_restored"][:, place] for of in (pair.own, pair.never))
    return float(1 - own / never)


def _spread(rows: pd.DataFrame) -> dict[str, Float[np.ndarray, "fact layer"]]:
    """Spread the values of a model over facts and layers, both in order."""
    return {
        name: rows.pivot(index="query_id", columns="layer", values=name)
        .sort_index()
        .to_numpy(float)
        for name in ("loss_restored", "loss_unlearned", "answered_restored")
    }
