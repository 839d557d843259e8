"""Interactive heatmap of a sweep, with the questions behind every cell.

`explore` puts the heatmap and what stands behind its cells into one HTML page that needs no network
and no kernel: each question's prompt, its losses and what V, U and R answer. The page is
`explorer.html` with the program `explorer.js`; what both show is the JSON that is made here.
"""

import html
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.utils import PlotlyJSONEncoder

from interp.figures.html_page import build_page, read_text, round_value
from interp.figures.layout import check_table, label_language
from interp.figures.recovery import plot_heatmap
from interp.files import write_atomically

_QUESTION = ["language", "concept", "query_id"]
_MODELS = ["vanilla", "unlearned"]
_LOSSES = (*_MODELS, *_QUESTION, "site", "layer", "num_tokens", "loss_unlearned", "loss_restored")
_LOSSES += ("direction", "distance", "reason")
_QUESTIONS = (*_QUESTION, "prompt", "answer")
_ANSWERS = (*_QUESTION, "prompt", "vanilla", "unlearned", "restored", "site", "layer")

_DISTANCES = {
    "logit_mse": "the mean squared difference of their logits",
    "kl": "the KL divergence of their next-token distributions, in nats",
    "answer_logprob": "how much less log-probability V's answer has, in nats",
}

_TABLE_HEIGHT = 480
"""Pixels below the figure for the questions, in a notebook."""

_SAME = 1e-4
"""Largest relative difference of a question's loss(V, U) between its rows, from rounding."""


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """Interactive page; Jupyter shows it by itself.

    Attributes:
        page: the HTML, plotly.js included (5 MB).
        height: of the page in a notebook, in pixels.
    """

    page: str
    height: int

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page as one file that opens without a network."""
        target = Path(path)
        write_atomically(target, lambda scratch: scratch.write_text(self.page, encoding="utf-8"))
        return target

    def _repr_html_(self) -> str:
        """Return a frame that holds the page itself, so that a saved notebook shows it too."""
        return (
            f'<iframe title="recovery explorer" srcdoc="{html.escape(self.page)}" '
            f'style="width: 100%; height: {self.height}px; border: 0"></iframe>'
        )


def explore(
    losses: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    questions: pd.DataFrame | None = None,
    answers: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    title: str | None = None,
) -> Explorer:
    """Make a page on which a click on a cell of the heatmap shows the questions behind it.

    A question is shown with loss(V, U), loss(V, R), its own 1 − loss(V, R) / loss(V, U) (without
    the 1 − where U's parts are put into V), its number of scored tokens and three answers. What
    was not given is "not generated". The highest score is chosen at first. Losses are kept to six
    digits. Several unlearned models have a selector and one colour scale.

    Args:
        losses: a sweep's, see `recovery.sweep.COLUMNS`.
        scores: their `recovery.krs.krs_table`, by language.
        questions: V's answers: language, concept, query_id, prompt, answer.
        answers: answers of V, U and R, for the cells where R answered: language, query_id, concept,
            prompt, vanilla, unlearned, restored (texts), site, layer. Where there are several
            unlearned models: a table each, by the model's name.
        title: above all of it.

    Raises:
        ValueError: a table is empty or lacks columns; `answers` name a model, question, site or
            layer that was not measured, or a cell twice; a question has several loss(V, U).
    """
    check_table(losses, _LOSSES, "losses")
    data = _build_data(losses, scores, questions=questions, answers=answers)
    name = title or f"Recovery: {losses['vanilla'].iloc[0]}"
    whole = build_page(
        title=name,
        body=read_text("interp.figures", "explorer.html").replace("{{title}}", html.escape(name)),
        data=data,
        style=read_text("interp.figures", "explorer.css"),
        script=read_text("interp.figures", "explorer.js"),
    )
    tallest = max(model["figure"]["layout"]["height"] for model in data["models"])
    return Explorer(page=whole, height=tallest + _TABLE_HEIGHT)


def _build_data(
    losses: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    questions: pd.DataFrame | None,
    answers: pd.DataFrame | Mapping[str, pd.DataFrame] | None,
) -> dict[str, Any]:
    """Build what the page shows, as JSON values.

    Questions stand once; lists of a model (`unlearned`, `tokens`, …) have one entry for each.
    `restored` and `cells` go by site and layer, and by site, language and layer.
    """
    index = {key: number for number, key in enumerate(dict.fromkeys(_get_keys(losses)))}
    tables = _group_answers(answers, list(losses["unlearned"].unique()))
    entries: list[dict[str, Any]] = [
        {"language": language, "concept": concept, "id": query_id, "prompt": None, "vanilla": None}
        for language, concept, query_id in index
    ]
    for table in tables.values():
        for key, prompt in zip(_get_keys(table), table["prompt"], strict=True):
            if key not in index:
                raise ValueError(f"answers are given for {key[2]!r} ({key[0]}), not measured here")
            entries[index[key]]["prompt"] = prompt
    if questions is not None:
        check_table(questions, _QUESTIONS, "questions")
        texts = zip(_get_keys(questions), questions["prompt"], questions["answer"], strict=True)
        for key, prompt, answer in texts:
            if key in index:
                entries[index[key]] |= {"prompt": prompt, "vanilla": answer}
    scale = plot_heatmap(scores).layout["coloraxis"]
    pairs = list(losses[_MODELS].drop_duplicates().itertuples(index=False, name=None))
    models = []
    for vanilla, unlearned in pairs:
        rows, cells = losses, scores
        for column, value in zip(_MODELS, (vanilla, unlearned), strict=True):
            rows = rows.loc[rows[column] == value]
            if column in cells:
                cells = cells.loc[cells[column] == value].drop(columns=column)
        figure = plot_heatmap(cells).update_layout(coloraxis=scale)
        model = {
            "name": unlearned if len({v for v, _ in pairs}) == 1 else f"{vanilla}, {unlearned}",
            "legend": _format_legend(rows),
            "figure": json.loads(json.dumps(figure, cls=PlotlyJSONEncoder)),
            "languages": list(figure.layout["yaxis"].categoryarray),
            "layers": list(figure.layout["xaxis"].categoryarray),
            "cells": _collect_scores(cells),
            **_collect_losses(rows, index),
        }
        model["answers"] = _collect_answers(
            tables.get(unlearned), index, model["restored"], unlearned
        )
        models.append(model)
    corrupt = losses["direction"].iloc[0] == "corrupt"
    return {
        "score": "effect" if corrupt else "KRS",
        "corrupt": corrupt,
        "languages": {code: label_language(code) for code in losses["language"].unique()},
        "questions": entries,
        "models": models,
    }


def _get_keys(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(table[_QUESTION].itertuples(index=False, name=None))


def _group_answers(
    answers: pd.DataFrame | Mapping[str, pd.DataFrame] | None, names: list[str]
) -> Mapping[str, pd.DataFrame]:
    if answers is None:
        return {}
    if isinstance(answers, pd.DataFrame):
        if len(names) > 1:
            raise ValueError(
                "there are several unlearned models: give answers as a dict of tables by the "
                f"model's name ({', '.join(names)})"
            )
        answers = {names[0]: answers}
    for name, table in answers.items():
        if name not in names:
            raise ValueError(f"answers are given for {name!r}; measured are {', '.join(names)}")
        check_table(table, _ANSWERS, "answers")
    return answers


def _collect_losses(rows: pd.DataFrame, index: Mapping[tuple, int]) -> dict[str, Any]:
    """Return a model's loss(V, U) per question and loss(V, R) per site, layer and question."""
    once: dict[str, list] = {name: [None] * len(index) for name in ("unlearned", "tokens")}
    reasons = [""] * len(index)
    restored: dict[str, dict[str, list[float | None]]] = {}
    columns = ("site", "layer", "num_tokens", "loss_unlearned", "loss_restored", "reason")
    values = zip(*(rows[name].tolist() for name in columns), strict=True)
    for key, (site, layer, tokens, unlearned, left, reason) in zip(
        _get_keys(rows), values, strict=True
    ):
        number, loss = index[key], round_value(unlearned)
        first = once["unlearned"][number]
        if first is None:
            once["unlearned"][number] = loss
        elif loss is not None and not math.isclose(first, loss, rel_tol=_SAME):
            raise ValueError(
                f"the question {key[2]!r} ({key[0]}) has several loss(V, U): explore each sweep "
                "by itself"
            )
        # Tables that went through a CSV file have NaN for an empty reason.
        once["tokens"][number], reasons[number] = tokens, "" if pd.isna(reason) else reason
        by_layer = restored.setdefault(site, {})
        by_layer.setdefault(str(layer), [None] * len(index))[number] = round_value(left)
    return {**once, "reasons": reasons, "restored": restored}


def _collect_scores(scores: pd.DataFrame) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Return a model's scores by site, language and layer."""
    name = "effect" if "effect" in scores else "krs"
    cells: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for row in scores.to_dict("records"):
        of_site = cells.setdefault(row["site"], {})
        of_site.setdefault(row["language"], {})[str(row["layer"])] = {
            "score": round_value(row[name]),
            "low": round_value(row["ci_low"]),
            "high": round_value(row["ci_high"]),
            "queries": row["num_queries"],
            "floor": round_value(row["noise_floor"]),
            "first": row["first_layer"],
            "last": row["last_layer"],
            "reason": row["reason"],
        }
    return cells


def _collect_answers(
    table: pd.DataFrame | None, index: Mapping[tuple, int], restored: Mapping, model: str
) -> dict[str, dict]:
    """Return the answers of V, U and R by the question's number."""
    texts: dict[str, dict] = {"vanilla": {}, "unlearned": {}, "restored": {}}
    if table is None:
        return texts
    for key, row in zip(_get_keys(table), table.to_dict("records"), strict=True):
        site, layer, number = row["site"], str(row["layer"]), index[key]
        cell = f"site {site!r}, layer {layer} of {model!r}"
        if layer not in restored.get(site, {}):
            raise ValueError(f"answers are given for {cell}, which was not measured")
        column = texts["restored"].setdefault(site, {}).setdefault(layer, {})
        if number in column:
            raise ValueError(f"duplicate answers to {key[2]!r} ({key[0]}) for {cell}")
        column[number] = row["restored"]
        texts["vanilla"][number], texts["unlearned"][number] = row["vanilla"], row["unlearned"]
    return texts


def _format_legend(rows: pd.DataFrame) -> str:
    vanilla, unlearned, direction, distance = (
        rows[name].iloc[0] for name in (*_MODELS, "direction", "distance")
    )
    made = (
        "V with this part of U put in"
        if direction == "corrupt"
        else "U with this part of V put back"
    )
    return (
        f"V: {vanilla} (vanilla). U: {unlearned} (unlearned). R: {made}. All run on V's answer; "
        f"a loss is {_DISTANCES[distance]}, its mean over the scored tokens."
    )
