"""Comparison of every engine's losses with those of `full`, on two tiny models of a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

import interp
from tests.helpers.tiny_models import mixed_trajectories

OTHERS = ("nnsight", "transformer_lens")
"""Engines over other libraries."""

IN_EXPERTS = ("coef", "value", "key", "router", "router_weights")
"""Sites of mixtures of experts that these refuse."""


@dataclass(frozen=True)
class Comparison:
    """Difference between an engine and `full`.

    Attributes:
        error: the largest difference of a loss, as a share of loss(V, U).
        refused: the sentences with which sites are refused; under "" that of the whole class.
    """

    error: float = 0.0
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return a cell of a table."""
        if "" in self.refused:
            return "–"
        error = f"{self.error:.0e}" if self.error else "0"
        sites = ", ".join(f"`{site}`" for site in self.refused)
        return f"{error}, without {sites}" if sites else error


def sweep(
    models: Sequence[interp.LanguageModel],
    engine: str,
    sites: Sequence[str],
    answers: Sequence[interp.Trajectory],
) -> pd.DataFrame:
    """Sweep windows of three layers with an engine; rows are named by site, layer and question."""
    recovery = interp.sweep(
        *models, list(answers), sites=list(sites), window=3, engine=engine, progress=False
    )
    return recovery.losses.set_index(["site", "layer", "query_id"]).sort_index()


def measure_difference(full: pd.DataFrame, other: pd.DataFrame) -> float:
    """Measure the largest difference of a restored loss, as a share of loss(V, U)."""
    full = full.loc[other.index]
    assert full["loss_restored"].isna().equals(other["loss_restored"].isna())
    difference = (full["loss_restored"] - other["loss_restored"]).abs()
    return float(np.nanmax((difference / full["loss_unlearned"]).to_numpy()))


def compare(
    models: Sequence[interp.LanguageModel], engine: str, sites: Sequence[str], full: pd.DataFrame
) -> Comparison:
    """Compare an engine over another library with `full`, at every site that it does not refuse.

    Raises:
        Exception: it neither restores a site nor refuses it in a sentence.
    """
    answers = mixed_trajectories(3)
    if models[0].anatomy.has_mixtures:
        sites = [name for name in sites if not set(_split(name)) & set(IN_EXPERTS)]
    try:
        return Comparison(measure_difference(full, sweep(models, engine, sites, answers)))
    except ValueError as error:
        if "does not run this" in str(error) or "gives other logits" in str(error):
            return Comparison(refused={"": str(error)})
    errors, refused = [], {}
    for site in sites:
        try:
            errors.append(measure_difference(full, sweep(models, engine, [site], answers)))
        except ValueError as error:
            refused[site] = str(error)
    if not errors:
        return Comparison(refused={"": next(iter(refused.values()))})
    return Comparison(max(errors), refused)


def _split(name: str) -> list[str]:
    """Split "coef@3[0,1]" or "coef+attn" into names of sites."""
    return [part.partition("@")[0] for part in name.split("+")]
