"""Findings: claims of Choi, Min & Choo 2024 as numbers that must be above 0.

MA and PA are means over languages unless said otherwise; intervals draw facts or sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.lingtea.config import (
    BEFORE,
    LINGTEA,
    SEQUENTIAL,
    Config,
    name_fixed,
    name_monolingual,
)
from experiments.lingtea.tables import ResampledScores, compare_models, select_curves, select_scores
from experiments.lingtea.training import FORGET_MA
from experiments.study import Finding, select_rows
from interp.report import Table
from interp.statistics import (
    Estimate,
    bootstrap,
    make_undefined,
)

BASELINES = ("ga", "gd", "npo")

SOURCE = "Choi et al. 2024"


def make_findings(
    measurements: Mapping[str, pd.DataFrame], tables: Mapping[str, Table], config: Config
) -> list[Finding]:
    """Judge every claim, on each material.

    Args:
        measurements: what `run.measure` returns.
        tables: unused; every paper's findings may read its tables.
        config: the settings.
    """
    del tables
    runs = select_rows(measurements["runs"], size=[config.size])
    return judge_materials(
        select_scores(measurements, config),
        select_curves(measurements),
        reasons={
            str(name): dict(zip(rows["model"], rows["reason"], strict=True))
            for name, rows in runs.groupby("material", sort=False)
        },
        kappas=config.kappas,
        only=config.only,
        level=config.level,
        note=config.note,
    )


def judge_materials(
    scores: Mapping[str, pd.DataFrame],
    curves: Mapping[str, pd.DataFrame],
    *,
    reasons: Mapping[str, Mapping[str, str]],
    kappas: Sequence[float],
    only: str,
    level: float,
    note: str,
) -> list[Finding]:
    """Judge each claim on each material.

    Args:
        scores: by material, tables of `score_entries` with a column `model`.
        curves: by material, tables of `trace_forgetting` of LingTea in languages drawn anew and
            in one after the other.
        reasons: by material and model, why training stopped.
        kappas: the fixed κ that were tried.
        only: the language of the monolingual run.
        level: the share of accuracy at which training stopped.
        note: how all of it differs from the paper.
    """
    findings = []
    for name, table in scores.items():
        each = _MaterialFindings(name, table, reasons.get(name, {}), note)
        findings += [*_judge_forgetting(each), *_judge_retaining(each), *_judge_kappa(each, kappas)]
        findings += [_judge_cost(each, curves.get(name), level), *_judge_one_language(each, only)]
    return findings


class _MaterialFindings:
    """Maker of findings about one material."""

    def __init__(
        self, material: str, scores: pd.DataFrame, reasons: Mapping[str, str], note: str
    ) -> None:
        self.material, self.scores, self.note = material, scores, note
        self.reasons = reasons
        self.models = set(scores["model"])

    def compare(
        self,
        signature: str,
        quantity: str,
        statistic: Callable[[ResampledScores], float],
        *,
        needs: Sequence[str],
        parts: Sequence[str],
        note: str = "",
    ) -> Finding:
        """Make a finding that a comparison decides; not measured where a model was not made."""
        missing = [name for name in (BEFORE, *needs) if name not in self.models]
        if missing:
            measure = make_undefined(f"no model {missing[0]} was made of the {self.material}")
        else:
            measure = compare_models(self.scores, statistic, parts=parts)
        return self.make(signature, quantity, measure, note, *self.explain_stops(needs))

    def make(self, signature: str, quantity: str, measure: Estimate, *notes: str) -> Finding:
        """Make a finding about the material."""
        return Finding(
            signature=f"{self.material}: {signature}",
            source=SOURCE,
            quantity=quantity,
            measure=measure,
            note="; ".join(part for part in (*notes, self.note) if part),
        )

    def explain_stops(self, models: Sequence[str]) -> list[str]:
        """List why models stopped that did not stop at the share where all were to stop."""
        reasons = {name: self.reasons.get(name, "") for name in models}
        return [
            f"{name}: {reason}"
            for name, reason in reasons.items()
            if reason and not reason.startswith(f"{FORGET_MA} reached")
        ]

    def describe_left(self, *models: str) -> str:
        """Describe how much of the forget set models still know, for a note."""
        there = [name for name in (BEFORE, *models) if name in self.models]
        drawn = ResampledScores(self.scores)
        known = [f"{name} {100 * drawn.ma(name, 'forget').mean():.0f} %" for name in there]
        return f"MA left on the forget set: {', '.join(known)}"


def _judge_forgetting(each: _MaterialFindings) -> list[Finding]:
    findings = [
        each.compare(
            "LingTea forgets in every language",
            "MA on forget, before − after, in the language where it fell least",
            lambda drawn: float((drawn.ma(BEFORE, "forget") - drawn.ma(LINGTEA, "forget")).min()),
            needs=[LINGTEA],
            parts=["forget"],
        )
    ]
    if "right" in each.scores:
        findings.append(
            each.compare(
                "LingTea lowers probing accuracy on what it forgets",
                "PA on forget, before − after",
                lambda drawn: float(
                    (drawn.pa(BEFORE, "forget") - drawn.pa(LINGTEA, "forget")).mean()
                ),
                needs=[LINGTEA],
                parts=["forget"],
            )
        )
    return findings


def _judge_retaining(each: _MaterialFindings) -> list[Finding]:
    return [
        each.compare(
            f"LingTea retains more than {name.upper()}",
            f"MA on test, LingTea − {name.upper()}",
            lambda drawn, name=name: float(
                (drawn.ma(LINGTEA, "test") - drawn.ma(name, "test")).mean()
            ),
            needs=[LINGTEA, name],
            parts=["test"],
            note=each.describe_left(LINGTEA, name),
        )
        for name in BASELINES
    ]


def _judge_kappa(each: _MaterialFindings, kappas: Sequence[float]) -> list[Finding]:
    def kept(drawn: ResampledScores, model: str) -> float:
        return float((drawn.ma(model, "test") - drawn.ma(model, "forget")).mean())

    return [
        each.compare(
            f"the adaptive κ is better than κ = {kappa:g}",
            f"MA on test − MA on forget, adaptive − κ = {kappa:g}",
            lambda drawn, name=name: kept(drawn, LINGTEA) - kept(drawn, name),
            needs=[LINGTEA, name],
            parts=["forget", "test"],
            note=each.describe_left(LINGTEA, name),
        )
        for kappa, name in ((kappa, name_fixed(kappa)) for kappa in kappas)
    ]


def _judge_cost(each: _MaterialFindings, curves: pd.DataFrame | None, level: float) -> Finding:
    measure = make_undefined(f"no model {SEQUENTIAL} was made of the {each.material}")
    if curves is not None:
        measure = compare_cost(curves, SEQUENTIAL, LINGTEA, level=level)
    return each.make(
        "languages drawn anew forget at less cost than one after the other",
        f"sequences trained until MA on forget is {level:.0%} of that before, sequential / random "
        "− 1",
        measure,
        "measured between steps on the way, in bfloat16",
        *each.explain_stops([LINGTEA, SEQUENTIAL]),
    )


def _judge_one_language(each: _MaterialFindings, only: str) -> list[Finding]:
    name = name_monolingual(only)
    languages = list(dict.fromkeys(each.scores["language"]))
    here = languages.index(only)
    others = [place for place, code in enumerate(languages) if code != only]

    def left(drawn: ResampledScores, model: str) -> float:
        return float(drawn.ma(model, "forget")[others].mean())

    def fall(drawn: ResampledScores, places: list[int]) -> float:
        before, after = (drawn.ma(model, "forget")[places].mean() for model in (BEFORE, name))
        return float(1 - after / before) if before else float("nan")

    return [
        each.compare(
            f"unlearning in {only} alone forgets less in the other languages than in {only}",
            f"the share of MA on forget that is lost, in {only} − in the others",
            lambda drawn: fall(drawn, [here]) - fall(drawn, others),
            needs=[name],
            parts=["forget"],
        ),
        each.compare(
            f"unlearning in {only} alone leaves more in the other languages than LingTea in all",
            f"MA on forget outside {only}, {only} alone − LingTea",
            lambda drawn: left(drawn, name) - left(drawn, LINGTEA),
            needs=[name, LINGTEA],
            parts=["forget"],
        ),
    ]


def compare_cost(curves: pd.DataFrame, slow: str, fast: str, *, level: float) -> Estimate:
    """Compare the sequences that two runs train until they forgot as much, as a share.

    A run forgot as much when its accuracy on the forget set, the mean over languages, is at most
    `level` times that before. If the slow run never did, its whole length stands for it: the ratio
    is at least that.

    Args:
        curves: tables of `experiments.lingtea.training.trace_forgetting`.
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
        return make_undefined(f"{fast} did not come down to {level:.0%} of its accuracy before")
    reason = ""
    if np.isnan(until(slow, everything)):
        reason = f"{slow} did not come down to {level:.0%}: a lower bound"
    return bootstrap(len(everything), ratio, reason=reason)
