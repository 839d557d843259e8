"""What unlearning a concept costs elsewhere: answers kept on target and on unrelated questions.

The measure is sentence BLEU of a model's answer against V's (`interp.behaviour.overlap`), 100 for
V itself. Hong et al. 2024 find that both fall together where a model is trained (Fig. 2), and that
MEMIT is choosier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.behaviour.measure import Measure, mean, measured, undefined
from interp.study.dissect import SOURCE, is_trained
from interp.study.study import Finding

TARGET, UNRELATED = "target", "unrelated"
_MODEL = ["concept", "method", "strength"]

Means = Float[np.ndarray, " model"]


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
    each = items.groupby([*by, "query_id"], sort=False)["bleu"].mean().reset_index()
    found = measured(each, by, {"bleu": lambda rows: mean(rows["bleu"].tolist())})
    return found.drop(columns="metric").rename(columns={"value": "bleu"})


def fall_together(items: pd.DataFrame) -> Measure:
    """Pearson's r of BLEU on target and on unrelated questions, over the models of a concept.

    The mean over concepts, with its bootstrap interval over questions; `n` counts these.
    """

    def statistic(models: pd.DataFrame, target: Means, unrelated: Means) -> float:
        found = []
        for places in models.groupby("concept").indices.values():
            x, y = (values[places] - values[places].mean() for values in (target, unrelated))
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append((x @ y) / np.sqrt((x @ x) * (y @ y)))
        return float(np.mean(found))

    return _over_questions(items, statistic)


def price(items: pd.DataFrame) -> Measure:
    """What methods that train lose on unrelated questions per loss on targets, minus MEMIT's.

    Loss is 100 − BLEU, summed over models: 1 where both fall alike, 0 where only targets fall.
    """

    def of(chosen: np.ndarray, target: Means, unrelated: Means) -> float:
        lost = float((100 - target[chosen]).sum())
        return float((100 - unrelated[chosen]).sum()) / lost if lost else np.nan

    def statistic(models: pd.DataFrame, target: Means, unrelated: Means) -> float:
        trained = models["method"].map(is_trained).to_numpy(bool)
        return of(trained, target, unrelated) - of(~trained, target, unrelated)

    return _over_questions(items, statistic)


def behaviour_findings(items: pd.DataFrame, language: str, *, note: str = "") -> list[Finding]:
    """Whether both fall together, and whether MEMIT is choosier, in one query language."""
    rows = items[items["language"] == language]
    trained = rows[rows["method"].map(is_trained)]
    correlation = undefined("fewer than three trained models of a concept")
    if len(trained) and trained[_MODEL].drop_duplicates().groupby("concept").size().min() >= 3:
        correlation = fall_together(trained)
    difference = undefined("MEMIT and methods that train are not both there")
    if rows["method"].map(is_trained).nunique() == 2:
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


def by_language(items: pd.DataFrame) -> pd.DataFrame:
    """Both findings in every query language: a row each, with its verdict and interval."""
    return pd.DataFrame(
        [
            {"language": code, "signature": item.signature, "verdict": item.verdict}
            | {"quantity": item.quantity, **asdict(item.measure)}
            for code in dict.fromkeys(items["language"])
            for item in behaviour_findings(items, code)
        ]
    )


def _over_questions(
    items: pd.DataFrame,
    statistic: Callable[[pd.DataFrame, Means, Means], float],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Measure:
    """A statistic of each model's means, with its percentile bootstrap interval over questions.

    Questions are drawn once for all models that were asked them: those about each concept, and the
    unrelated ones, by themselves.
    """
    rows = items.dropna(subset=["bleu"])
    about = rows["concept"].where(rows["questions"] == TARGET, "")
    model = rows.groupby(_MODEL).ngroup().to_numpy()
    models = rows.drop_duplicates(_MODEL).sort_values(_MODEL)[_MODEL].reset_index(drop=True)
    keys = rows.assign(about=about)[["questions", "about", "query_id", "language"]]
    question = keys.groupby([*keys]).ngroup().to_numpy()
    shape = (model.max() + 1, question.max() + 1)
    score, asked = np.zeros(shape), np.zeros(shape)
    score[model, question] = rows["bleu"]
    asked[model, question] = 1
    strata = keys.groupby(["questions", "about"]).ngroup().to_numpy()
    stratum, is_target = np.empty(shape[1], int), np.empty(shape[1], bool)
    stratum[question], is_target[question] = strata, rows["questions"] == TARGET

    def value(weights: np.ndarray) -> float:
        means = []
        for chosen in (is_target, ~is_target):
            count = asked @ (weights * chosen)
            total = score @ (weights * chosen)
            means.append(np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0))
        return statistic(models, *means)

    rng = np.random.default_rng(seed)
    draws = np.empty((num_resamples, shape[1]))
    for one in set(stratum):
        (places,) = np.nonzero(stratum == one)
        uniform = np.full(len(places), 1 / len(places))
        draws[:, places] = rng.multinomial(len(places), uniform, size=num_resamples)
    found = np.array([value(draw) for draw in draws])
    found = found[~np.isnan(found)]
    low, high = np.quantile(found, [0.025, 0.975]) if len(found) else (np.nan, np.nan)
    return Measure(
        value=value(np.ones(shape[1])), ci_low=float(low), ci_high=float(high), n=shape[1]
    )
