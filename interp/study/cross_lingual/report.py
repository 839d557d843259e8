"""What is measured in a study of false facts in many languages, its tables and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from interp import figures
from interp.data.endpoints import Endpoint
from interp.data.query import Query
from interp.evaluation import evaluate
from interp.runs import AFTER, Run
from interp.study.cross_lingual.outcomes import (
    CLEAN,
    MODEL,
    TAUGHT,
    agreements,
    best_windows,
    cells,
    changes,
    judged,
    ranked,
    scores,
)
from interp.study.rows import where
from interp.study.study import Drawing, Table

CONCEPTS = {"fake": "False facts", "real": "True facts"}


def asked(
    run: Run,
    queries: Sequence[Query],
    *,
    source: str,
    unlearning: str,
    taught: str,
    judge: Endpoint | None,
    num_tokens: int,
    out: Path,
) -> dict[str, pd.DataFrame]:
    """What a model says, and what every judge thinks of it.

    Args:
        run: how the model came about, with the probes of `queries`.
        queries: on false and true facts, with answers.
        source: the language of its false facts.
        unlearning: the languages that it forgot them in.
        taught: the language that answers are searched for (`answer_language`).
        judge: a chat model that judges, too.
        num_tokens: the longest answer.
        out: where answers and verdicts are kept.

    Returns:
        The parts `outcomes`, `answers` and `languages` of `Seen`.
    """
    labels = {"source": source, "unlearning": unlearning}
    metrics = ["alias", "answer_language", *(("o_f", "q_r") if judge else ())]
    table = evaluate(
        run.model, queries, metrics, taught=taught, judge=judge, num_tokens=num_tokens, out=out
    )
    said = pd.read_csv(out / "verdicts.csv", keep_default_na=False, na_values={"value": ""})
    after = where(run.probes, model=AFTER)
    return {
        "outcomes": pd.concat([ranked(after, **labels), judged(said, **labels)]),
        "answers": said.assign(**labels),
        "languages": table.query("metric.str.startswith('answer_language/')").assign(**labels),
    }


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was measured; every table has the columns `source` and `unlearning`.

    Attributes:
        outcomes: what each judge found in each answer, see `interp.study.cross_lingual.outcomes`.
        ranks: outcomes of the LoRA study, with the rank in `unlearning`.
        answers: what models said, as `interp.evaluate` lists verdicts.
        languages: the measures `answer_language/…` of `interp.evaluate`.
        steps: accuracies over the steps of unlearning, see `interp.runs.Run.accuracy`.
        losses: of the sweeps; empty without any.
        gaps: what a language or a mix lacks.
    """

    outcomes: pd.DataFrame
    ranks: pd.DataFrame
    answers: pd.DataFrame
    languages: pd.DataFrame
    steps: pd.DataFrame
    losses: pd.DataFrame
    gaps: pd.DataFrame


def tables(seen: Seen) -> dict[str, Table]:
    """Every table of the study, by name."""
    told = seen.languages.assign(found=seen.languages["metric"].str.partition("/")[2])
    told = told.rename(columns={"value": "share"}).drop(columns=["metric", "model", "layer"])
    found = {
        "spread": Table(
            rows=cells(seen.outcomes).drop(columns="model"),
            caption="Every judge's score of every model, with 95 % intervals over questions "
            "(Lu & Koehn 2024, Fig. 2, and the ends of Figs. 3–6).",
        ),
        "changes": Table(
            rows=changes(seen.outcomes),
            caption="What unlearning took: after against before, paired over questions.",
        ),
        "curves": Table(
            rows=_in_front(seen.steps),
            caption="Candidate ranking over the steps of unlearning, on the way in bfloat16 "
            "(Lu & Koehn 2024, Figs. 3–6).",
        ),
        "answer_language": Table(
            rows=_in_front(told),
            caption="Share of answers in which English, the question's, the taught or another "
            "language occurs (Lu & Koehn 2024, Table 1).",
        ),
        "agreement": Table(
            rows=agreements(seen.outcomes),
            caption="How two judges agree on false facts before unlearning (Lu & Koehn 2024, "
            "Fig. 7).",
        ),
        "ranks": Table(
            rows=cells(seen.ranks).drop(columns="model") if len(seen.ranks) else seen.ranks,
            caption="After unlearning in English by LoRA, by rank (Lu & Koehn 2024, Fig. 8).",
        ),
        "answers": Table(
            rows=_in_front(seen.answers.drop(columns="model")),
            caption="What every model said, and what the judges thought of it.",
        ),
    }
    if len(seen.losses):
        curves = scores(seen.losses)
        found["krs"] = Table(
            rows=curves, caption="KRS of every window, taught against unlearned models."
        )
        found["krs_best"] = Table(
            rows=best_windows(curves), caption="KRS of the best window in each query language."
        )
    found["gaps"] = Table(rows=seen.gaps, caption="What languages and mixes lack.")
    return {name: table for name, table in found.items() if len(table.rows)}


def drawings(seen: Seen, best: pd.DataFrame | None) -> dict[str, Drawing]:
    """Every figure of the study, by name.

    Args:
        seen: what was measured.
        best: the table `krs_best` of `tables`, if there is one.
    """
    found: dict[str, Drawing] = {}
    before = f"unlearning in {[TAUGHT, CLEAN]}"
    for judge, rows in seen.outcomes.groupby("judge", sort=False):
        stem = str(judge).partition(" ")[0]
        for name, part, title, which in (
            ("spread", rows.query(before), "Before unlearning", "Taught in (rows)"),
            ("left", rows.query(f"not {before}"), "After unlearning", "Taught in: unlearned in"),
        ):
            if len(part):
                found[f"{name}-{stem}"] = Drawing(
                    figure=figures.spread(cells(part), title=f"{title}, by {stem}"),
                    caption=f"{title}. {which}, asked in (columns); what {judge} finds in answers.",
                )
    for concept, title in CONCEPTS.items():
        steps = where(seen.steps, concept=concept)
        if len(steps):
            title = f"{title} during unlearning, by languages to forget in"
            found[f"curves-{concept}"] = Drawing(
                figure=figures.curves(steps, title=title),
                caption=f"{title}; candidate ranking, chance is dashed.",
            )
    if best is not None:
        title = "Where false facts sit: KRS at the best window"
        found["krs-array"] = Drawing(
            figure=figures.array(best, title=title),
            caption=f"{title}, per source and languages to forget in (rows), query language and "
            "site; framed is the language taught.",
        )
    if len(seen.ranks):
        title = "After unlearning in English by LoRA of several ranks"
        found["ranks"] = Drawing(
            figure=figures.spread(cells(seen.ranks), title=title),
            caption=f"{title}; candidate ranking.",
        )
    return found


def _in_front(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns that name the model in front."""
    return table.reindex(columns=[*MODEL, *(name for name in table if name not in MODEL)])
