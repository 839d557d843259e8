"""Findings of the dissection: signatures of Hong et al. 2024 in KRS, answers and weights.

Methods that train are looked at together, as in the paper: of each the KRS, the ratio of means over
the questions of all concepts, then the mean over methods. MEMIT edits value vectors in closed form
and is told apart. Answers are compared by sentence BLEU with V's, 100 for V itself: it falls
together on target and unrelated questions where a model is trained (Fig. 2). All intervals are over
questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from experiments.dissect.config import Config, is_trained
from experiments.dissect.data import TARGET
from experiments.dissect.signatures import OWN, SIGNATURES, SOURCE
from experiments.study import Finding, select_rows
from interp.data import REAL_LANGUAGE
from interp.recovery import contrast
from interp.report import Table
from interp.statistics import (
    Estimate,
    compute_percentile_interval,
    draw_counts,
    make_undefined,
)


def make_findings(
    measurements: Mapping[str, pd.DataFrame], tables: Mapping[str, Table], config: Config
) -> list[Finding]:
    """Judge every signature in English, the order of sites in all languages, and the drift.

    Args:
        measurements: what `run.measure` returns.
        tables: unused; every paper's findings may read its tables.
        config: what was dissected.
    """
    del tables
    return [
        *find_signatures(measurements, config, REAL_LANGUAGE),
        *compare_languages(measurements["losses"]),
        *judge_drift(measurements["drift"]),
    ]


def find_signatures(
    measurements: Mapping[str, pd.DataFrame], config: Config, language: str
) -> list[Finding]:
    """Judge the signatures of KRS curves and of answers in one query language."""
    count = len(measurements["concepts"])
    note = (
        f"{config.model.rpartition('/')[2]}, {count} concept{'s' if count > 1 else ''}, "
        f"T = {config.num_tokens}, strength {config.swept:g}"
    )
    return [
        *judge_curves(measurements["losses"], language, note=note),
        *judge_behaviour(measurements["answers"], language, note=f"{note}, sentence BLEU"),
    ]


def select_trained(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of methods that train."""
    return select_rows(table, method={name for name in table["method"] if is_trained(name)})


def has_both_kinds(table: pd.DataFrame) -> bool:
    """Return whether a table has methods that train and MEMIT."""
    return len({is_trained(method) for method in table["method"]}) == 2


def judge_curves(losses: pd.DataFrame, language: str, *, note: str = "") -> list[Finding]:
    """Judge every signature of the KRS curves in one query language.

    Args:
        losses: of a sweep, with the column `method`.
        language: BCP-47 code.
        note: what differs from the paper's setting.
    """
    rows = select_rows(select_trained(losses), language=language)
    there = set(rows["site"])
    findings = []
    for signature in SIGNATURES:
        lacking = [site for site in signature.sites if site not in there]
        measure = make_undefined(f"{', '.join(lacking)} not swept with a method that trains")
        if not lacking:
            used = select_rows(rows, site=signature.sites)
            measure = contrast(
                used,
                lambda curves, s=signature: s.statistic(_average_methods(curves)),
                by=["method"],
            )
        findings.append(
            Finding(
                signature=signature.text,
                source=signature.source,
                quantity=signature.quantity,
                measure=measure,
                note="; ".join(filter(None, (signature.note, note))),
            )
        )
    return findings


def compare_languages(losses: pd.DataFrame) -> list[Finding]:
    """Judge whether sites have one order in every query language, and MEMIT another."""
    rows = select_trained(losses)
    languages = list(dict.fromkeys(rows["language"]))
    note = f"the language in which it is least so, of {', '.join(languages)}"
    findings = []
    for low, high in (("value", "attn"), ("coef", "coef+attn")):
        used = select_rows(rows, site=[low, high])

        def least(curves: Mapping[tuple, np.ndarray], low: str = low, high: str = high) -> float:
            by_language = [
                _average_methods(
                    {key[1:]: curve for key, curve in curves.items() if key[0] == code}
                )
                for code in languages
            ]
            return float(min((krs[high] - krs[low]).mean() for krs in by_language))

        measure = make_undefined(f"{low} or {high} not swept with a method that trains")
        if {low, high} <= set(used["site"]):
            measure = contrast(used, least, by=["language", "method"])
        findings.append(
            Finding(
                signature=f"KRS({low}) < KRS({high}) in every query language",
                source=OWN,
                quantity=f"the lowest mean over layers of KRS({high}) − KRS({low})",
                measure=measure,
                note=note,
            )
        )
    used = select_rows(losses, site="value")
    measure = make_undefined("value not swept with both kinds of methods")
    if has_both_kinds(used):
        measure = contrast(used, _compare_edited_with_trained, by=["method"])
    control = Finding(
        signature="What MEMIT wrote into value vectors is found there",
        source=f"{OWN}: a control of the measurement",
        quantity="the highest KRS(value) of MEMIT − that of methods that train",
        measure=measure,
        note="means over methods, all query languages",
    )
    return [*findings, control]


def judge_drift(drifts: pd.DataFrame) -> list[Finding]:
    """Judge whether methods that train leave the unembedding and the norms where they were.

    Args:
        drifts: rows of `interp.behaviour.drift.measure_drift`, with `method` and `concept`.
    """
    findings = []
    for what, groups in (
        ("the unembedding", ("unembed",)),
        ("the norms", ("norms", "final_norm")),
    ):
        rows = select_rows(select_trained(drifts), group=groups)
        models = len({*zip(rows["method"], rows["concept"], strict=True)})
        measure = make_undefined("no model was compared")
        if len(rows) and not any(rows["relative_change"].tolist()):
            measure = make_undefined("not among the weights that were trained")
        elif len(rows):
            value = min(rows["cosine"].tolist()) - 0.999
            measure = Estimate(value=value, ci_low=value, ci_high=value, n=models)
        findings.append(
            Finding(
                signature=f"Training hardly moves {what}",
                source=SOURCE,
                quantity=f"the lowest cosine of {what}, U against V − 0.999",
                measure=measure,
                note="of all layers and models, n; weights are no sample, there is no interval",
            )
        )
    return findings


_MODEL = ["concept", "method", "strength"]

Means = Float[np.ndarray, "resample model"]

Draws = Float[np.ndarray, " resample"]


def judge_behaviour(items: pd.DataFrame, language: str, *, note: str = "") -> list[Finding]:
    """Judge whether both fall together, and whether MEMIT is choosier, in one query language."""
    rows = select_rows(items, language=language)
    models = {*zip(*(select_trained(rows)[name] for name in _MODEL), strict=True)}
    sizes = Counter(concept for concept, *_ in models)
    correlation = make_undefined("fewer than three trained models of a concept")
    if min(sizes.values(), default=0) >= 3:
        correlation = correlate_losses(select_trained(rows))
    difference = make_undefined("MEMIT and methods that train are not both there")
    if has_both_kinds(rows):
        difference = compare_side_effects(rows)
    return [
        Finding(
            signature="Target and unrelated BLEU fall together where a model is trained",
            source=f"{SOURCE}, Fig. 2",
            quantity="Pearson's r over methods and strengths of a concept, mean over concepts",
            measure=correlation,
            note=note,
        ),
        Finding(
            signature="MEMIT breaks that: it loses less on unrelated questions",
            source=f"{SOURCE}, Fig. 2",
            quantity="BLEU lost on unrelated questions per BLEU lost on targets: methods that "
            "train − MEMIT",
            measure=difference,
            note=note,
        ),
    ]


def correlate_losses(items: pd.DataFrame) -> Estimate:
    """Correlate BLEU on target and on unrelated questions (Pearson) over a concept's models.

    The mean over concepts, with its bootstrap interval over questions; `n` counts these.
    """

    def statistic(models: pd.DataFrame, target: Means, unrelated: Means) -> Draws:
        correlations = []
        for places in models.groupby("concept").indices.values():
            x, y = (
                values[:, places] - values[:, places].mean(axis=1, keepdims=True)
                for values in (target, unrelated)
            )
            with np.errstate(invalid="ignore", divide="ignore"):
                correlations.append((x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1)))
        return np.mean(correlations, axis=0)

    return _resample_questions(items, statistic)


def compare_side_effects(items: pd.DataFrame) -> Estimate:
    """Compare losses on unrelated questions per loss on targets: methods that train − MEMIT.

    Loss is 100 − BLEU, summed over models: 1 where both fall alike, 0 where only targets fall.
    """

    def statistic(models: pd.DataFrame, target: Means, unrelated: Means) -> Draws:
        of_trained = np.array([is_trained(method) for method in models["method"]])
        of = []
        for chosen in (of_trained, ~of_trained):
            lost, elsewhere = ((100 - values[:, chosen]).sum(1) for values in (target, unrelated))
            of.append(np.divide(elsewhere, lost, out=np.full(len(lost), np.nan), where=lost > 0))
        return of[0] - of[1]

    return _resample_questions(items, statistic)


def _resample_questions(
    items: pd.DataFrame,
    statistic: Callable[[pd.DataFrame, Means, Means], Draws],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Estimate a statistic of models' means, with its bootstrap interval over questions.

    Questions are drawn once for all models that were asked them: those about each concept, and the
    unrelated ones, by themselves.
    """
    rows = items.dropna(subset=["bleu"])
    rows = rows.assign(
        about=[
            concept if kind == TARGET else ""
            for concept, kind in zip(rows["concept"], rows["questions"], strict=True)
        ]
    )
    model = rows.groupby(_MODEL).ngroup().to_numpy()
    models: Any = rows.drop_duplicates(_MODEL).sort_values(_MODEL, ignore_index=True)
    question = rows.groupby(["questions", "about", "query_id", "language"]).ngroup().to_numpy()
    shape = (model.max() + 1, question.max() + 1)
    score, answered = np.zeros(shape), np.zeros(shape)
    score[model, question] = rows["bleu"]
    answered[model, question] = 1
    strata = rows.groupby(["questions", "about"]).ngroup().to_numpy()
    stratum, is_target = np.empty(shape[1], int), np.empty(shape[1], bool)
    stratum[question], is_target[question] = strata, rows["questions"] == TARGET

    counts = draw_counts(stratum, num_resamples=num_resamples, seed=seed)
    # The first row is the questions as they are.
    draws = np.concatenate([np.ones((1, shape[1])), counts])
    means = []
    for chosen in (is_target, ~is_target):
        count, total = ((draws * chosen) @ values.T for values in (answered, score))
        means.append(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))
    value, *resamples = statistic(models, *means)
    low, high = compute_percentile_interval(resamples)
    return Estimate(value=float(value), ci_low=low, ci_high=high, n=int(shape[1]))


def _average_methods(curves: Mapping[Sequence[str], np.ndarray]) -> dict[str, np.ndarray]:
    """Average the curves by (method, site) over methods."""
    by_site: dict[str, list[np.ndarray]] = {}
    for (_, site), curve in curves.items():
        by_site.setdefault(site, []).append(curve)
    return {site: np.mean(several, axis=0) for site, several in by_site.items()}


def _compare_edited_with_trained(curves: Mapping[Sequence[str], np.ndarray]) -> float:
    best = {method: curve.max() for (method, _), curve in curves.items()}
    of_trained = [value for method, value in best.items() if is_trained(method)]
    of_edited = [value for method, value in best.items() if not is_trained(method)]
    return float(np.mean(of_edited) - np.mean(of_trained))
