"""Which claims of Neplenbroek et al. 2025 are seen: in English, elsewhere, and at what price.

A model that is called `VANILLA` in the tables of `interp.study.transfer.scores` is held against
those that were trained by each method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from interp.behaviour.measure import Measure, undefined
from interp.behaviour.transfer import reductions, transfer
from interp.study.contrasts import contrast
from interp.study.study import Finding
from interp.study.transfer.scores import (
    BEHAVIOUR,
    CONSISTENCY,
    DIVERSITY,
    NLL,
    Rates,
    paired,
    rates_of,
)
from interp.study.transfer.tasks import METHODS, SOURCE

VANILLA = "vanilla"

NAMES: Mapping[str, str] = {"finetune": "fine-tuning", "dpo": "DPO"}

_PAPER = "Neplenbroek et al. 2025"
_ABSTRACT = f"{_PAPER}, abstract"
_FULLEST = "coef+attn"

_PRICES: Mapping[str, tuple[str, str, int]] = {
    CONSISTENCY: ("language consistency", "share of continuations in the prompt's language", 1),
    DIVERSITY: ("diversity", "distinct-2 of a continuation", 1),
    NLL: ("fluency", "log-perplexity of held-out texts", -1),
}
"""Of each measure: what it is of, its unit, and whether less of it (1) or more (-1) is a price."""


def reduction_table(items: pd.DataFrame, method: str, *, neutral: float = 0.0) -> pd.DataFrame:
    """How much of the behaviour a method took away in each language, and what may predict that.

    Args:
        items: what `transfer_scores.items` gives, of `VANILLA` and the method.
        method: the model's name in the table.
        neutral: the rate of a model without the behaviour; rates are counted from it.

    Returns:
        As `interp.behaviour.transfer.reductions`, with `reduction_low` and `reduction_high`, the
        95 % interval over items.
    """
    rows = []
    whole = rates_of(items, BEHAVIOUR)
    for code in _languages(items):
        before, after = whole[VANILLA, code], whole[method, code]
        found = paired(items, BEHAVIOUR, _reduction(method, code, neutral))
        row = {"language": code, "before": before - neutral, "after": after - neutral}
        rows.append(row | {"reduction_low": found.ci_low, "reduction_high": found.ci_high})
    return reductions(pd.DataFrame(rows), unlearned_in=[SOURCE])


def findings(
    items: pd.DataFrame,
    reduced: Mapping[str, pd.DataFrame],
    losses: pd.DataFrame,
    *,
    note: str = "",
) -> list[Finding]:
    """Every claim with its number.

    Args:
        items: what `transfer_scores.items` gives.
        reduced: `reduction_table` of each method.
        losses: of a sweep over the methods' models, with the column `method`.
        note: what differs from the paper, in all findings.
    """
    others = [code for code in _languages(items) if code != SOURCE]
    found = []
    for method in METHODS:
        name = NAMES[method]
        for where, codes in (("English", [SOURCE]), ("other languages", others)):
            found.append(
                Finding(
                    signature=f"{name} in English takes the behaviour away in {where}",
                    source=_ABSTRACT,
                    quantity="fall of the rate of the behaviour"
                    + (", mean over languages" if where != "English" else ""),
                    measure=paired(items, BEHAVIOUR, _fall(method, codes)),
                    note=note,
                )
            )
        correlation, about = _correlation(reduced[method], note)
        found.append(
            Finding(
                signature=f"after {name} the reduction goes with the share of pretraining data",
                source=_ABSTRACT,
                quantity="Spearman's ρ of reduction and share of web pages, over languages",
                measure=correlation,
                note=about,
            )
        )
        for measure, (ability, unit, sign) in _PRICES.items():
            found.append(
                Finding(
                    signature=f"{name} costs {ability} in other languages",
                    source=_ABSTRACT,
                    quantity=f"{'fall' if sign > 0 else 'rise'} of the {unit}, mean over languages",
                    measure=paired(items, measure, _fall(method, others, sign)),
                    note=note,
                )
            )
    for measure, (ability, unit, sign) in _PRICES.items():
        found.append(
            Finding(
                signature=f"fine-tuning costs more {ability} in other languages than DPO",
                source=f"asked here; the abstract of {_PAPER} has the price without the order",
                quantity=f"{'fall' if sign > 0 else 'rise'} of the {unit} by fine-tuning, less that"
                " by DPO",
                measure=paired(items, measure, _costlier(others, sign)),
                note=note,
            )
        )
    return [*found, *(_recovery(losses, method, note) for method in METHODS)]


def _reduction(method: str, code: str, neutral: float) -> Callable[[Rates], float]:
    def of(rates: Rates) -> float:
        before = rates[VANILLA, code] - neutral
        return (rates[VANILLA, code] - rates[method, code]) / before if before else np.nan

    return of


def _fall(method: str, codes: Sequence[str], sign: int = 1) -> Callable[[Rates], float]:
    def of(rates: Rates) -> float:
        there = [code for code in codes if _there(rates, code, VANILLA, method)]
        falls = [rates[VANILLA, code] - rates[method, code] for code in there]
        return sign * float(np.mean(falls)) if falls else np.nan

    return of


def _costlier(codes: Sequence[str], sign: int) -> Callable[[Rates], float]:
    def of(rates: Rates) -> float:
        there = [code for code in codes if _there(rates, code, *METHODS)]
        more = [rates["dpo", code] - rates["finetune", code] for code in there]
        return sign * float(np.mean(more)) if more else np.nan

    return of


def _there(rates: Rates, code: str, *models: str) -> bool:
    """Whether all of these models have a rate in a language."""
    return not any(np.isnan(rates.get((model, code), np.nan)) for model in models)


def _correlation(table: pd.DataFrame, note: str) -> tuple[Measure, str]:
    """Spearman's ρ over the other languages, and the note with its p-value."""
    row = transfer(table).set_index("predictor").loc["web_share"]
    found = Measure(
        value=float(row["value"]),
        ci_low=float(row["ci_low"]),
        ci_high=float(row["ci_high"]),
        n=int(row["n"]),
        reason=row["reason"],
    )
    p_value = f"n are languages, permutation p = {row['p_value']:.2g}"
    return found, "; ".join([p_value, *filter(None, [note])])


def _recovery(losses: pd.DataFrame, method: str, note: str) -> Finding:
    own = losses.query(f"method == {method!r}") if len(losses) else losses
    measure = undefined("no sweep of these sites")
    if len(own) and {_FULLEST, "value"} <= {*own["site"]}:
        measure = contrast(own, lambda krs: np.nanmax(krs[_FULLEST]) - np.nanmax(krs["value"]))
    return Finding(
        signature=f"after {NAMES[method]}, coefficients with attention states bring the vanilla "
        "answers back, value vectors do not",
        source="Hong et al. 2024, Fig. 1",
        quantity=f"largest KRS({_FULLEST}) less largest KRS(value), questions of all languages",
        measure=measure,
        note=note,
    )


def _languages(items: pd.DataFrame) -> list[str]:
    """In the order of the table."""
    return list(dict.fromkeys(items.loc[items["measure"] == BEHAVIOUR, "language"]))
