"""The study of a behaviour that was trained away in English (Neplenbroek et al. 2025).

models = {"vanilla": vanilla, "finetune": tuned, "dpo": preferring}
parts = measure(models, task, num_tokens=30, out=out)
study = tell(parts, task, command=…, config=…)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp import figures
from interp.behaviour.answers import generate
from interp.behaviour.transfer import transfer
from interp.data.query import Query
from interp.evaluation import evaluate
from interp.launch import sweep
from interp.models.language_model import LanguageModel
from interp.recovery.krs import krs_table
from interp.study.study import Drawing, Study, Table
from interp.study.transfer.figures import by_language
from interp.study.transfer.findings import NAMES, VANILLA, findings, reduction_table
from interp.study.transfer.scores import cells, items
from interp.study.transfer.tasks import METHODS, Task


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What was measured.

    Attributes:
        items: see `transfer_scores.items`.
        measures: see `interp.evaluate`, by the models' names here, with the column `of`: answers to
            `questions`, or continuations of `texts`.
        answers: what models said, a column per model.
        losses: of the sweep, with the column `method`.
    """

    items: pd.DataFrame
    measures: pd.DataFrame
    answers: pd.DataFrame
    losses: pd.DataFrame


def measure(
    models: Mapping[str, LanguageModel],
    task: Task,
    *,
    out: Path,
    num_tokens: int = 30,
    swept: Sequence[Query] = (),
    sites: Sequence[str] = ("coef", "attn", "coef+attn", "value"),
    progress: bool = True,
) -> Parts:
    """Measure everything; what `out` has is not measured again.

    Args:
        models: `VANILLA` and one of each method, by these names.
        task: what is measured.
        out: folder for answers, measures and losses.
        num_tokens: the longest answer.
        swept: questions of the sweep.
        sites: what the sweep restores.
        progress: show progress bars.
    """
    own = {model.name: name for name, model in models.items()}
    about: dict[str, tuple[Sequence[Query], list[str]]] = {
        "texts": (task.prompts, ["consistency", "diversity"])
    }
    if all(query.answer for query in task.questions):
        about["questions"] = (task.questions, ["alias", "consistency"])
    measures, answers = [], []
    for of, (queries, metrics) in about.items():
        table = evaluate(
            list(models.values()),
            queries,
            metrics,
            num_tokens=num_tokens,
            out=out / of,
            progress=progress,
        )
        measures.append(table.assign(of=of, model=[own[name] for name in table["model"]]))
        answers.append(_said(models, queries, num_tokens, out / of))
    scored = items(models, task, num_tokens=num_tokens, out=out / "texts", progress=progress)
    recovery = sweep(
        models[VANILLA],
        [models[method] for method in METHODS],
        list(swept),
        sites=sites,
        num_tokens=num_tokens,
        out=out / "sweep",
        progress=progress,
    )
    losses = recovery.losses
    return Parts(
        items=scored,
        measures=pd.concat(measures, ignore_index=True),
        answers=pd.concat(answers, ignore_index=True),
        losses=losses.assign(method=[own[name] for name in losses["unlearned"]]),
    )


def tell(
    parts: Parts, task: Task, *, command: str, config: Mapping[str, Any], note: str = ""
) -> Study:
    """Tables, figures and findings of what was measured.

    Args:
        parts: what `measure` gives.
        task: what was measured.
        command: what was typed.
        config: settings, as JSON values.
        note: what differs from the paper.
    """
    rates = cells(parts.items)
    reduced = {
        method: reduction_table(parts.items, method, neutral=task.neutral) for method in METHODS
    }
    krs = krs_table(parts.losses.assign(unlearned=parts.losses["method"]))
    krs = krs.rename(columns={"unlearned": "method"})
    drawings = {
        "by_language": Drawing(
            figure=by_language(rates, title="The behaviour and its price, by language"),
            caption="The behaviour, language consistency, diversity and perplexity before and after"
            " training in English, with 95 % intervals over items.",
        )
    }
    for method, table in reduced.items():
        if len(table.dropna(subset=["reduction"])):
            drawings[f"transfer-{method}"] = Drawing(
                figure=figures.transfer(table, title=f"Transfer of {NAMES[method]} in English"),
                caption=f"Reduction of the behaviour by {NAMES[method]} in English against each "
                "language's share of web pages.",
            )
    named = krs.assign(unlearned=[NAMES[method] for method in krs["method"]])
    drawings["krs"] = Drawing(
        figure=figures.heatmap(named, title="Recovery of the vanilla answers"),
        caption="KRS of restored parts, by query language and layer.",
    )
    together = pd.concat(
        [table.assign(method=method) for method, table in reduced.items()], ignore_index=True
    )
    predictors = pd.concat(
        [transfer(table).assign(method=method) for method, table in reduced.items()],
        ignore_index=True,
    )
    return Study(
        name="transfer",
        title="A behaviour trained away in English: transfer and price",
        command=command,
        config=config,
        tables={
            "rates": Table(rows=rates, caption="Every measure by model and language."),
            "reductions": Table(
                rows=together,
                caption="Reduction of the behaviour by language, and what may predict it.",
            ),
            "predictors": Table(
                rows=predictors,
                caption="What goes with the reduction over languages, with permutation p-values.",
            ),
            "measures": Table(
                rows=parts.measures,
                caption="Answers to questions and continuations of texts: right answers, language, "
                "diversity.",
            ),
            "krs": Table(rows=krs, caption="KRS by method, query language, site and layer."),
            "answers": Table(rows=parts.answers, caption="What the models said."),
        },
        figures=drawings,
        findings=findings(parts.items, reduced, parts.losses, note=note),
    )


def _said(
    models: Mapping[str, LanguageModel], queries: Sequence[Query], num_tokens: int, folder: Path
) -> pd.DataFrame:
    """The answers that an evaluation kept, a column per model."""
    table = pd.DataFrame(
        {
            "language": [query.language for query in queries],
            "query_id": [query.id for query in queries],
            "concept": [query.concept for query in queries],
            "prompt": [query.prompt for query in queries],
        }
    )
    for name, model in models.items():
        said = generate(
            model, queries, num_tokens=num_tokens, cache=folder / "answers.jsonl", progress=False
        )
        table[name] = [answer.text for answer in said]
    return table
