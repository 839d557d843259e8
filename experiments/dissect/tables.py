"""Tables of the dissection: KRS, kept answers, drift, signatures per query language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.dissect.config import Config
from experiments.dissect.data import EDIT, STATEMENT, ForgetConcept
from experiments.dissect.findings import find_signatures, select_trained
from experiments.study import Finding
from interp.data import REAL_LANGUAGE
from interp.recovery import compute_krs
from interp.report import Table
from interp.statistics import (
    estimate_groups,
    estimate_mean,
)

MEAN = "mean of methods that train"

_CELL = ["language", "concept", "query_id", "site", "layer", "first_layer", "last_layer"]

_SETTINGS = ["vanilla", "variant", "direction", "distance", "positions"]

_LOSSES = ["loss_unlearned", "loss_restored", "loss_self"]


def make_tables(measurements: Mapping[str, pd.DataFrame], config: Config) -> dict[str, Table]:
    """Make every table of the study.

    Args:
        measurements: what `run.measure` returns.
        config: what was dissected.

    Raises:
        ValueError: no model was trained, or none was asked in English.
    """
    losses, answers = measurements["losses"], measurements["answers"]
    if REAL_LANGUAGE not in set(losses["language"]):
        raise ValueError("English, in which concepts are unlearned, must be a query language")
    by_language = {
        code: find_signatures(measurements, config, code)
        for code in dict.fromkeys(losses["language"])
    }
    return {
        "concepts": Table(rows=measurements["concepts"], caption="What was unlearned."),
        "models": Table(
            rows=measurements["models"],
            caption="Every model: its last step, of MEMIT the means over its edits.",
        ),
        "krs": Table(
            rows=score_methods(losses),
            caption="KRS per method and query language, questions of all concepts.",
        ),
        "krs-mean": Table(
            rows=average_krs(losses), caption="KRS, the mean over methods that train."
        ),
        "signatures": Table(
            rows=tabulate_findings(by_language),
            caption="Every signature in every query language.",
        ),
        "kept": Table(
            rows=average_overlap(answers), caption="Mean sentence BLEU against V's answers."
        ),
        "measures": Table(
            rows=measurements["measures"],
            caption="Corpus BLEU and chrF against V's answers, and the share of right answers "
            "(alias), per model and query language.",
        ),
        "drift": Table(
            rows=measurements["drift"], caption="Drift of the weights, by layer and group."
        ),
        "answers": Table(rows=answers, caption="Answers before and after unlearning."),
    }


def average_krs(losses: pd.DataFrame) -> pd.DataFrame:
    """Compute KRS per language, site and layer, averaged over the methods that train.

    Losses are divided by their method's mean loss(V, U) in the language; the ratio of means over
    methods and questions is then the mean over methods of Hong's ratio of means.

    Args:
        losses: of a sweep, with the column `method`.

    Returns:
        See `compute_krs`; its intervals are over questions.

    Raises:
        ValueError: no method trains.
    """
    rows = select_trained(losses)
    if rows.empty:
        raise ValueError("no losses of a method that trains")
    of_method: Any = rows.groupby(["method", "language"])
    unit = of_method["loss_unlearned"].transform("mean")
    scaled = rows.assign(**{name: rows[name] / unit for name in _LOSSES})
    kept = dict.fromkeys(_LOSSES, "mean") | dict.fromkeys([*_SETTINGS, "reason"], "first")
    cells: Any = scaled.groupby(_CELL, sort=False, dropna=False)
    return compute_krs(cells.agg(kept).reset_index().assign(unlearned=MEAN))


def score_methods(losses: pd.DataFrame) -> pd.DataFrame:
    """Compute KRS per method, language, site and layer, over the questions of all concepts."""
    return compute_krs(losses.assign(unlearned=""), by=("method", "language"))


def average_overlap(items: pd.DataFrame) -> pd.DataFrame:
    """Average sentence BLEU by method, strength, language and kind of question.

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
    means = estimate_groups(each, by, {"bleu": lambda rows: estimate_mean(rows["bleu"].tolist())})
    return means.drop(columns="metric").rename(columns={"value": "bleu"})


def tabulate_findings(findings: Mapping[str, Sequence[Finding]]) -> pd.DataFrame:
    """Tabulate the findings of every query language: a row each, with verdict and interval."""
    return pd.DataFrame(
        [
            {"language": code, "signature": item.signature, "verdict": item.verdict}
            | {"quantity": item.quantity, **vars(item.measure)}
            for code, of_language in findings.items()
            for item in of_language
        ]
    )


def tabulate_concepts(concepts: Sequence[ForgetConcept]) -> pd.DataFrame:
    """Tabulate a row per concept: how much of it was known, asked and trained on."""
    return pd.DataFrame(
        [
            {
                "concept": concept.name,
                "num_candidates": concept.num_candidates,
                "num_questions": len({query.id for query in concept.targets}),
                "num_unrelated": len({query.id for query in concept.unrelated}),
                "num_forget_texts": len(concept.forget[STATEMENT]),
                "num_edit_texts": len(concept.forget[EDIT]),
                "num_retain_texts": len(concept.retain[STATEMENT]),
                "questions": ", ".join(dict.fromkeys(query.id for query in concept.targets)),
            }
            for concept in concepts
        ]
    )
