"""Findings: claims of Neplenbroek et al. 2025 in English, elsewhere, and on the price.

A model that is called `VANILLA` in the tables of items is held against those that were trained by
each method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.study import Finding
from experiments.transfer.config import NAMES, VANILLA, Config
from experiments.transfer.correlates import correlate_reductions
from experiments.transfer.data import METHODS, SOURCE
from experiments.transfer.tables import (
    BEHAVIOUR,
    CONSISTENCY,
    DIVERSITY,
    NLL,
    Rates,
    compare_rates,
    list_languages,
    select_reductions,
)
from interp.recovery import contrast
from interp.report import Table
from interp.statistics import Estimate, make_undefined

_PAPER = "Neplenbroek et al. 2025"

_ABSTRACT = f"{_PAPER}, abstract"

_FULLEST = "coef+attn"

_PRICES: Mapping[str, tuple[str, str, int]] = {
    CONSISTENCY: ("language consistency", "share of continuations in the prompt's language", 1),
    DIVERSITY: ("diversity", "distinct-2 of a continuation", 1),
    NLL: ("fluency", "log-perplexity of held-out texts", -1),
}
"""Of each measure: what it is of, its unit, and whether less of it (1) or more (-1) is a price."""


def make_findings(
    measurements: Mapping[str, pd.DataFrame], tables: Mapping[str, Table], config: Config
) -> list[Finding]:
    """Judge every claim.

    Args:
        measurements: what `run.measure` returns.
        tables: what `make_tables` returns.
        config: the settings.
    """
    return judge_claims(
        measurements["items"],
        select_reductions(tables),
        measurements["losses"],
        note=config.note,
    )


def judge_claims(
    items: pd.DataFrame,
    reduced: Mapping[str, pd.DataFrame],
    losses: pd.DataFrame,
    *,
    note: str = "",
) -> list[Finding]:
    """Judge every claim on items, reductions and losses.

    Args:
        items: what `measure_items` gives.
        reduced: `tabulate_reduction` of each method.
        losses: of a sweep over the methods' models, with the column `method`.
        note: what differs from the paper, in all findings.
    """
    others = [code for code in list_languages(items) if code != SOURCE]
    findings = []
    for method in METHODS:
        name = NAMES[method]
        for where, codes in (("English", [SOURCE]), ("other languages", others)):
            findings.append(
                Finding(
                    signature=f"{name} in English takes the behaviour away in {where}",
                    source=_ABSTRACT,
                    quantity="fall of the rate of the behaviour"
                    + (", mean over languages" if where != "English" else ""),
                    measure=compare_rates(items, BEHAVIOUR, _measure_fall(method, codes)),
                    note=note,
                )
            )
        correlation, about = _correlate(reduced[method], note)
        findings.append(
            Finding(
                signature=f"after {name} the reduction goes with the share of pretraining data",
                source=_ABSTRACT,
                quantity="Spearman's ρ of reduction and share of web pages, over languages",
                measure=correlation,
                note=about,
            )
        )
        for measure, (ability, unit, sign) in _PRICES.items():
            findings.append(
                Finding(
                    signature=f"{name} costs {ability} in other languages",
                    source=_ABSTRACT,
                    quantity=f"{'fall' if sign > 0 else 'rise'} of the {unit}, mean over languages",
                    measure=compare_rates(items, measure, _measure_fall(method, others, sign)),
                    note=note,
                )
            )
    for measure, (ability, unit, sign) in _PRICES.items():
        findings.append(
            Finding(
                signature=f"fine-tuning costs more {ability} in other languages than DPO",
                source=f"asked here; the abstract of {_PAPER} has the price without the order",
                quantity=f"{'fall' if sign > 0 else 'rise'} of the {unit} by fine-tuning, less that"
                " by DPO",
                measure=compare_rates(items, measure, _compare_prices(others, sign)),
                note=note,
            )
        )
    return [*findings, *(_judge_recovery(losses, method, note) for method in METHODS)]


def _measure_fall(method: str, codes: Sequence[str], sign: int = 1) -> Callable[[Rates], float]:
    def of(rates: Rates) -> float:
        there = [code for code in codes if _has_rates(rates, code, VANILLA, method)]
        falls = [rates[VANILLA, code] - rates[method, code] for code in there]
        return sign * float(np.mean(falls)) if falls else np.nan

    return of


def _compare_prices(codes: Sequence[str], sign: int) -> Callable[[Rates], float]:
    def of(rates: Rates) -> float:
        there = [code for code in codes if _has_rates(rates, code, *METHODS)]
        more = [rates["dpo", code] - rates["finetune", code] for code in there]
        return sign * float(np.mean(more)) if more else np.nan

    return of


def _has_rates(rates: Rates, code: str, *models: str) -> bool:
    """Return whether all of these models have a rate in a language."""
    return not any(np.isnan(rates.get((model, code), np.nan)) for model in models)


def _correlate(table: pd.DataFrame, note: str) -> tuple[Estimate, str]:
    """Return Spearman's ρ over the other languages, and the note with its p-value."""
    row = correlate_reductions(table).set_index("predictor").loc["web_share"]
    estimate = Estimate(
        value=float(row["value"]),
        ci_low=float(row["ci_low"]),
        ci_high=float(row["ci_high"]),
        n=int(row["n"]),
        reason=row["reason"],
    )
    p_value = f"n are languages, permutation p = {row['p_value']:.2g}"
    return estimate, "; ".join([p_value, *filter(None, [note])])


def _judge_recovery(losses: pd.DataFrame, method: str, note: str) -> Finding:
    own = losses.query(f"method == {method!r}") if len(losses) else losses
    measure = make_undefined("no sweep of these sites")
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
