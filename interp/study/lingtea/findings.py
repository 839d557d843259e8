"""Choi, Min & Choo 2024's claims as numbers that must be above 0.

MA and PA are means over languages unless said otherwise; intervals draw facts or sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from interp.behaviour.measure import Measure, undefined
from interp.study.lingtea.runs import FORGET_MA
from interp.study.lingtea.scores import Drawn, compared, cost_ratio
from interp.study.study import Finding

BEFORE, LINGTEA, SEQUENTIAL = "before", "lingtea", "sequential"
"""Names of models: V, LingTea, and LingTea in one language after the other."""

BASELINES = ("ga", "gd", "npo")

SOURCE = "Choi et al. 2024"


def monolingual(language: str) -> str:
    """The name of LingTea in one language alone."""
    return f"only-{language}"


def fixed(kappa: float) -> str:
    """The name of LingTea with a fixed κ."""
    return f"kappa-{kappa:g}"


def findings(
    scores: Mapping[str, pd.DataFrame],
    curves: Mapping[str, pd.DataFrame],
    *,
    reasons: Mapping[str, Mapping[str, str]],
    kappas: Sequence[float],
    only: str,
    level: float,
    note: str,
) -> list[Finding]:
    """Whether each claim was seen, on each material.

    Args:
        scores: by material, tables of `lingtea_scores.scored` with a column `model`.
        curves: by material, tables of `runs.curve` of LingTea in languages drawn anew and
            in one after the other.
        reasons: by material and model, why training stopped.
        kappas: the fixed κ that were tried.
        only: the language of the monolingual run.
        level: the share of accuracy at which training stopped.
        note: how all of it differs from the paper.
    """
    found = []
    for name, table in scores.items():
        each = _Findings(name, table, reasons.get(name, {}), note)
        found += [*_forgetting(each), *_retaining(each), *_kappa(each, kappas)]
        found += [_cost(each, curves.get(name), level), *_one_language(each, only)]
    return found


class _Findings:
    """Makes findings about one material."""

    def __init__(
        self, material: str, scores: pd.DataFrame, reasons: Mapping[str, str], note: str
    ) -> None:
        self.material, self.scores, self.note = material, scores, note
        self.reasons = reasons
        self.models = set(scores["model"])

    def of(
        self,
        signature: str,
        quantity: str,
        statistic: Callable[[Drawn], float],
        *,
        needs: Sequence[str],
        parts: Sequence[str],
        note: str = "",
    ) -> Finding:
        """A finding that a comparison decides; not measured where a model was not made."""
        missing = [name for name in (BEFORE, *needs) if name not in self.models]
        if missing:
            measure = undefined(f"no model {missing[0]} was made of the {self.material}")
        else:
            measure = compared(self.scores, statistic, parts=parts)
        return self.made(signature, quantity, measure, note, *self.elsewhere(needs))

    def made(self, signature: str, quantity: str, measure: Measure, *notes: str) -> Finding:
        """A finding about the material."""
        return Finding(
            signature=f"{self.material}: {signature}",
            source=SOURCE,
            quantity=quantity,
            measure=measure,
            note="; ".join(part for part in (*notes, self.note) if part),
        )

    def elsewhere(self, models: Sequence[str]) -> list[str]:
        """Of models that did not stop at the share where all were to stop, why they stopped."""
        found = {name: self.reasons.get(name, "") for name in models}
        return [
            f"{name}: {reason}"
            for name, reason in found.items()
            if reason and not reason.startswith(f"{FORGET_MA} reached")
        ]

    def left(self, *models: str) -> str:
        """How much of the forget set models still know, for a note."""
        there = [name for name in (BEFORE, *models) if name in self.models]
        drawn = Drawn(self.scores)
        known = [f"{name} {100 * drawn.ma(name, 'forget').mean():.0f} %" for name in there]
        return f"MA left on the forget set: {', '.join(known)}"


def _forgetting(each: _Findings) -> list[Finding]:
    found = [
        each.of(
            "LingTea forgets in every language",
            "MA on forget, before − after, in the language where it fell least",
            lambda drawn: float((drawn.ma(BEFORE, "forget") - drawn.ma(LINGTEA, "forget")).min()),
            needs=[LINGTEA],
            parts=["forget"],
        )
    ]
    if "right" in each.scores:
        found.append(
            each.of(
                "LingTea lowers probing accuracy on what it forgets",
                "PA on forget, before − after",
                lambda drawn: float(
                    (drawn.pa(BEFORE, "forget") - drawn.pa(LINGTEA, "forget")).mean()
                ),
                needs=[LINGTEA],
                parts=["forget"],
            )
        )
    return found


def _retaining(each: _Findings) -> list[Finding]:
    return [
        each.of(
            f"LingTea retains more than {name.upper()}",
            f"MA on test, LingTea − {name.upper()}",
            lambda drawn, name=name: float(
                (drawn.ma(LINGTEA, "test") - drawn.ma(name, "test")).mean()
            ),
            needs=[LINGTEA, name],
            parts=["test"],
            note=each.left(LINGTEA, name),
        )
        for name in BASELINES
    ]


def _kappa(each: _Findings, kappas: Sequence[float]) -> list[Finding]:
    def kept(drawn: Drawn, model: str) -> float:
        return float((drawn.ma(model, "test") - drawn.ma(model, "forget")).mean())

    return [
        each.of(
            f"the adaptive κ is better than κ = {kappa:g}",
            f"MA on test − MA on forget, adaptive − κ = {kappa:g}",
            lambda drawn, name=name: kept(drawn, LINGTEA) - kept(drawn, name),
            needs=[LINGTEA, name],
            parts=["forget", "test"],
            note=each.left(LINGTEA, name),
        )
        for kappa, name in ((kappa, fixed(kappa)) for kappa in kappas)
    ]


def _cost(each: _Findings, curves: pd.DataFrame | None, level: float) -> Finding:
    measure = undefined(f"no model {SEQUENTIAL} was made of the {each.material}")
    if curves is not None:
        measure = cost_ratio(curves, SEQUENTIAL, LINGTEA, level=level)
    return each.made(
        "languages drawn anew forget at less cost than one after the other",
        f"sequences trained until MA on forget is {level:.0%} of that before, sequential / random "
        "− 1",
        measure,
        "measured between steps on the way, in bfloat16",
        *each.elsewhere([LINGTEA, SEQUENTIAL]),
    )


def _one_language(each: _Findings, only: str) -> list[Finding]:
    name = monolingual(only)
    languages = list(dict.fromkeys(each.scores["language"]))
    here = languages.index(only)
    others = [place for place, code in enumerate(languages) if code != only]

    def left(drawn: Drawn, model: str) -> float:
        return float(drawn.ma(model, "forget")[others].mean())

    def fall(drawn: Drawn, places: list[int]) -> float:
        before, after = (drawn.ma(model, "forget")[places].mean() for model in (BEFORE, name))
        return float(1 - after / before) if before else float("nan")

    return [
        each.of(
            f"unlearning in {only} alone forgets less in the other languages than in {only}",
            f"the share of MA on forget that is lost, in {only} − in the others",
            lambda drawn: fall(drawn, [here]) - fall(drawn, others),
            needs=[name],
            parts=["forget"],
        ),
        each.of(
            f"unlearning in {only} alone leaves more in the other languages than LingTea in all",
            f"MA on forget outside {only}, {only} alone − LingTea",
            lambda drawn: left(drawn, name) - left(drawn, LINGTEA),
            needs=[name, LINGTEA],
            parts=["forget"],
        ),
    ]
