"""What unlearning a concept costs elsewhere: answers kept on target and on unrelated questions.

The measure is sentence BLEU of a model's answer against V's (`interp.behaviour.overlap`), 100 for
V itself. Hong et al. 2024 find that both fall together where a model is trained (Fig. 2), and that
MEMIT is choosier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.behaviour.measure import (
    Measure,
    draw_counts,
    mean,
    measured,
    percentiles,
    undefined,
)
from interp.study.dissect.recovery import are_both_there, is_trained, trained
from interp.study.dissect.signatures import SOURCE
from interp.study.rows import where
from interp.study.study import Finding

TARGET, UNRELATED = "target", "unrelated"
_MODEL = ["concept", "method", "strength"]

Means = Float[np.ndarray, "resample model"]
Draws = Float[np.ndarray, " resample"]


def kept(items: pd.DataFrame) -> pd.DataFrame:
    """Mean sentence BLEU by method, strength, language and kind of question.

    A question that models of several concepts were asked counts once, with its mean.

    Args:
        items: rows of `sentence_overlap` with the columns `concept`, `method`, `strength` and
            `questions`, which is `target` or `unrelated`.

    Returns:
        `method`, `strength`, `language`, `questions`, and the measure with its 95 % bootstrap
        interval over questions.
    """
    by = ["method", "strength", "language", "questions"]
    groups: Any = items.groupby([*by, "query_id"], sort=False)
    each = groups["bleu"].mean().reset_index()
    found = measured(each, by, {"bleu": lambda rows: mean(rows["bleu"].tolist())})
    return found.drop(columns="metric").rename(columns={"value": "bleu"})


def fall_together(items: pd.DataFrame) -> Measure:
    """Pearson's r of BLEU on target and on unrelated questions, over the models of a concept.

    The mean over concepts, with its bootstrap interval over questions; `n` counts these.
    """

    def statistic(models: pd.DataFrame, target: Means, unrelated: Means) -> Draws:
        found = []
        for places in models.groupby("concept").indices.values():
            x, y = (
                values[:, places] - values[:, places].mean(axis=1, keepdims=True)
                for values in (target, unrelated)
            )
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append((x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1)))
        return np.mean(found, axis=0)

    return _over_questions(items, statistic)


def price(items: pd.DataFrame) -> Measure:
    """What methods that train lose on unrelated questions per loss on targets, minus MEMIT's.

    Loss is 100 − BLEU, summed over models: 1 where both fall alike, 0 where only targets fall.
    """

    def statistic(models: pd.DataFrame, target: Means, unrelated: Means) -> Draws:
        of_trained = np.array([is_trained(method) for method in models["method"]])
        of = []
        for chosen in (of_trained, ~of_trained):
            lost, elsewhere = ((100 - values[:, chosen]).sum(1) for values in (target, unrelated))
            of.append(np.divide(elsewhere, lost, out=np.full(len(lost), np.nan), where=lost > 0))
        return of[0] - of[1]

    return _over_questions(items, statistic)


def behaviour_findings(items: pd.DataFrame, language: str, *, note: str = "") -> list[Finding]:
    """Whether both fall together, and whether MEMIT is choosier, in one query language."""
    rows = where(items, language=language)
    models = {*zip(*(trained(rows)[name] for name in _MODEL), strict=True)}
    sizes = Counter(concept for concept, *_ in models)
    correlation = undefined("fewer than three trained models of a concept")
    if min(sizes.values(), default=0) >= 3:
        correlation = fall_together(trained(rows))
    difference = undefined("MEMIT and methods that train are not both there")
    if are_both_there(rows):
        difference = price(rows)
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


def _over_questions(
    items: pd.DataFrame,
    statistic: Callable[[pd.DataFrame, Means, Means], Draws],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Measure:
    """A statistic of each model's means, with its percentile bootstrap interval over questions.

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
    score, asked = np.zeros(shape), np.zeros(shape)
    score[model, question] = rows["bleu"]
    asked[model, question] = 1
    strata = rows.groupby(["questions", "about"]).ngroup().to_numpy()
    stratum, is_target = np.empty(shape[1], int), np.empty(shape[1], bool)
    stratum[question], is_target[question] = strata, rows["questions"] == TARGET

    counts = draw_counts(stratum, num_resamples=num_resamples, seed=seed)
    # The first row is the questions as they are.
    draws = np.concatenate([np.ones((1, shape[1])), counts])
    means = []
    for chosen in (is_target, ~is_target):
        count, total = ((draws * chosen) @ values.T for values in (asked, score))
        means.append(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))
    value, *found = statistic(models, *means)
    low, high = percentiles(found)
    return Measure(value=float(value), ci_low=low, ci_high=high, n=int(shape[1]))
