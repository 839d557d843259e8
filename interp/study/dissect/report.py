"""The study of a dissection: what was measured of every model, as tables, figures and findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from interp import figures
from interp.data.corpus import REAL_LANGUAGE
from interp.study.dissect import behaviour, recovery
from interp.study.dissect import figures as drawings
from interp.study.dissect.concepts import EDIT, STATEMENT, Concept
from interp.study.rows import where
from interp.study.study import Drawing, Study, Table

TABLES = ("models", "answers", "measures", "losses", "drift")


def study(
    tables: Mapping[str, pd.DataFrame],
    concepts: Sequence[Concept],
    *,
    model: str,
    command: str,
    config: Mapping[str, Any],
    setting: str,
    seed: int = 0,
) -> Study:
    """Tell what was found.

    Args:
        tables: by the names in `TABLES`, each with the columns `concept`, `method` and `strength`:
            how models were made; rows of `sentence_overlap`, with `questions`; of `evaluate`, with
            `questions`; of a sweep; of `drift`.
        concepts: what was unlearned, in English.
        model: V.
        command: what was typed.
        config: settings.
        setting: what a reader of a finding must know of it.
        seed: of every choice.

    Raises:
        ValueError: no model was trained, or none was asked in English.
    """
    losses, items, drifts = tables["losses"], tables["answers"], tables["drift"]
    if REAL_LANGUAGE not in set(losses["language"]):
        raise ValueError("English, in which concepts are unlearned, must be a query language")
    name = model.rpartition("/")[2]
    count = f"{len(concepts)} concept{'s' if len(concepts) > 1 else ''}"
    note = f"{name}, {count}, {setting}"
    krs, mean = recovery.method_krs(losses), recovery.mean_krs(losses)
    kept = behaviour.kept(items)
    signatures = {
        code: [
            *recovery.recovery_findings(losses, code, note=note),
            *behaviour.behaviour_findings(items, code, note=f"{note}, sentence BLEU"),
        ]
        for code in dict.fromkeys(losses["language"])
    }
    return Study(
        name="dissect",
        title=f"Dissecting fine-tuning unlearning, {name}",
        command=command,
        config=config,
        tables={
            "concepts": Table(rows=concept_table(concepts), caption="What was unlearned."),
            "models": Table(
                rows=tables["models"],
                caption="Every model: its last step, of MEMIT the means over its edits.",
            ),
            "krs": Table(
                rows=krs, caption="KRS per method and query language, questions of all concepts."
            ),
            "krs-mean": Table(rows=mean, caption="KRS, the mean over methods that train."),
            "signatures": Table(
                rows=recovery.by_language(signatures),
                caption="Every signature in every query language.",
            ),
            "kept": Table(rows=kept, caption="Mean sentence BLEU against V's answers."),
            "measures": Table(
                rows=tables["measures"],
                caption="Corpus BLEU and chrF against V's answers, and the share of right answers "
                "(alias), per model and query language.",
            ),
            "drift": Table(rows=drifts, caption="Drift of the weights, by layer and group."),
            "answers": Table(rows=items, caption="Answers before and after unlearning."),
        },
        figures=_drawings(krs, mean, kept, drifts, name),
        findings=[
            *signatures[REAL_LANGUAGE],
            *recovery.language_findings(losses),
            *recovery.drift_findings(drifts),
        ],
        seed=seed,
    )


def concept_table(concepts: Sequence[Concept]) -> pd.DataFrame:
    """A row per concept: how much of it was known, asked and trained on."""
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


def _drawings(
    krs: pd.DataFrame, mean: pd.DataFrame, kept: pd.DataFrame, drifts: pd.DataFrame, name: str
) -> dict[str, Drawing]:
    in_english = where(krs, language=REAL_LANGUAGE)
    drawn = {
        "curves": Drawing(
            figure=figures.lines(mean, title=f"KRS over the layers, mean over methods, {name}"),
            caption="KRS per site and query language, the mean over methods that train, with 95 % "
            "bootstrap intervals over the questions of all concepts (Hong, Fig. 1).",
        ),
        "curves-methods": Drawing(
            figure=figures.lines(in_english, title=f"KRS by method, asked in English, {name}"),
            caption="KRS per site and method, asked in English. MEMIT edits value vectors.",
        ),
        "heatmap": Drawing(
            figure=figures.heatmap(mean, title=f"KRS by query language, {name}"),
            caption="KRS per site, query language and layer, the mean over methods that train.",
        ),
        "target-unrelated": Drawing(
            figure=drawings.tradeoff(kept, title=f"What answers keep, {name}"),
            caption="Sentence BLEU against V's answers on target and on unrelated questions, the "
            "mean over questions and concepts, from V to each method's strongest (Hong, Fig. 2). "
            "Below the dotted line targets lose more.",
        ),
    }
    for trained, what in ((True, "trained"), (False, "memit")):
        if trained in {recovery.is_trained(method) for method in drifts["method"]}:
            of = "methods that train" if trained else "MEMIT"
            drawn[f"drift-{what}"] = Drawing(
                figure=drawings.mean_drift(
                    drifts, trained=trained, title=f"Drift of the weights, {of}, {name}"
                ),
                caption=f"U against V by layer and group of weights, the mean over models: {of}.",
            )
    return drawn
