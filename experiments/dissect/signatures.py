"""Signatures of the KRS curves of Hong et al. 2024, as numbers that must be above 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

SOURCE = "Hong et al. 2024"

OWN = "not in the paper"

EVERYWHERE = 0.001
"""What KRS(value) stays below in the paper."""

Curves = Mapping[str, Float[np.ndarray, " layer"]]
"""KRS over the layers by site, the mean over methods."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Signature that curves should show.

    Attributes:
        text: what is expected.
        quantity: the number that must be above 0, in words.
        sites: that it compares.
        statistic: the number.
        source: who saw it.
        note: what a reader must know.
    """

    text: str
    quantity: str
    sites: tuple[str, ...]
    statistic: Callable[[Curves], float]
    source: str = f"{SOURCE}, Fig. 1"
    note: str = ""


def _compare_sites(
    low: str, high: str, note: str = "", source: str = f"{SOURCE}, Fig. 1"
) -> Signature:
    return Signature(
        text=f"KRS({low}) < KRS({high})",
        quantity=f"mean over layers of KRS({high}) − KRS({low})",
        sites=(low, high),
        statistic=lambda krs: float((krs[high] - krs[low]).mean()),
        source=source,
        note=note,
    )


def _expect_rise(site: str) -> Signature:
    return Signature(
        text=f"KRS({site}) rises with depth",
        quantity=f"KRS({site}) in the last third of the layers − in the first third",
        sites=(site,),
        statistic=lambda krs: _measure_rise(krs[site]),
    )


def _measure_rise(curve: np.ndarray) -> float:
    third = max(1, len(curve) // 3)
    return float(curve[-third:].mean() - curve[:third].mean())


def _find_lowest_upper(curve: np.ndarray) -> float:
    """Return the lowest score from layer 15 of 32 up."""
    return float(curve[math.ceil(len(curve) * 15 / 32) :].min())


SIGNATURES = (
    _compare_sites("value", "attn"),
    _compare_sites("value", "coef"),
    _compare_sites("coef", "coef+attn"),
    _compare_sites("attn", "coef+attn"),
    Signature(
        text="KRS(value) is far below KRS(attn), under a tenth of it",
        quantity="mean over layers of KRS(attn) / 10 − KRS(value)",
        sites=("value", "attn"),
        statistic=lambda krs: float((krs["attn"] / 10 - krs["value"]).mean()),
    ),
    Signature(
        text=f"KRS(value) < {EVERYWHERE} at every layer",
        quantity=f"{EVERYWHERE} − the highest KRS(value)",
        sites=("value",),
        statistic=lambda krs: float(EVERYWHERE - krs["value"].max()),
        note="the highest of many noisy scores lies above 0 even where all are 0",
    ),
    _expect_rise("attn"),
    _expect_rise("coef"),
    _expect_rise("coef+attn"),
    Signature(
        text="KRS(attn) ≥ 0.3 from layer 15 of 32 up",
        quantity="the lowest KRS(attn) in the upper 17/32 of the layers − 0.3",
        sites=("attn",),
        statistic=lambda krs: _find_lowest_upper(krs["attn"]) - 0.3,
    ),
    Signature(
        text="KRS(coef) ≥ 0.8 in the last three layers",
        quantity="KRS(coef) of the last window − 0.8",
        sites=("coef",),
        statistic=lambda krs: float(krs["coef"][-1] - 0.8),
        note="the last window is the last three layers",
    ),
    Signature(
        text="KRS(coef+attn) > 0.9 at its best window",
        quantity="the highest KRS(coef+attn) − 0.9",
        sites=("coef+attn",),
        statistic=lambda krs: float(krs["coef+attn"].max() - 0.9),
    ),
    _compare_sites(
        "value",
        "key",
        note="value against the other weights of the MLP, a restoration of the same kind",
        source=OWN,
    ),
    _compare_sites(
        "value",
        "attn_weights",
        note="value against other weights, a restoration of the same kind",
        source=OWN,
    ),
)
"""Of the curves in one language."""
