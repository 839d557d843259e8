"""HTML page of one or several studies: its data as JSON, and the file.

    write_report([Path("runs/dissect")], out=Path("runs/dissect/report.html"))

The page's program is in five parts: `tables.js`, `recovery.js` (curves and heatmap with selectors),
`answers.js`, `figures.js` and `report.js`, which puts them together.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from interp.figures.html_page import build_page, read_text, round_value
from interp.figures.layout import COLOURS, DASHES
from interp.files import write_atomically
from interp.report.krs_curves import build_curves, format_values, label_values
from interp.report.reader import ReportData, read_report

_PROGRAM = ("tables.js", "recovery.js", "answers.js", "figures.js", "report.js")

_MOST_CHOICES = 40
"""Most values of a column that are chosen from; one with more is searched."""

_SHORT = 60
"""Characters of the longest value that is chosen from."""

_TEXTS = ("reason", "note")
_SAID = ("prompt", "question", "answer", "expected", "vanilla", "unlearned", "restored", "text")
"""Columns, and those of answers, that are never chosen from, however few values they have."""


def write_report(
    directories: Sequence[str | os.PathLike[str]], *, out: str | os.PathLike[str]
) -> Path:
    """Write one page of studies and run directories, in this order.

    Raises:
        ValueError: a directory is neither, or holds a damaged file.
    """
    text = build_report([read_report(directory) for directory in directories], names=directories)
    target = Path(out)
    write_atomically(target, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    return target


def build_report(
    studies: Sequence[ReportData], *, names: Sequence[str | os.PathLike[str]] | None = None
) -> str:
    """Build the page as HTML, plotly.js included (5 MB); it opens without a network.

    Args:
        studies: what is shown.
        names: what each is called in an error; their titles if None.

    Raises:
        ValueError: there is nothing to show, or a table `krs` is not one of recovery scores.
    """
    if not studies:
        raise ValueError("there is no study to report")
    title = studies[0].title if len(studies) == 1 else f"{len(studies)} studies"
    shown = []
    for study, name in zip(studies, names or [each.title for each in studies], strict=True):
        try:
            shown.append(_build_values(study))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return build_page(
        title=title,
        body=read_text("interp.report", "report.html").replace("{{title}}", html.escape(title)),
        data={"studies": shown, "colours": COLOURS, "dashes": DASHES},
        style=read_text("interp.report", "report.css"),
        script="".join(read_text("interp.report", name) for name in _PROGRAM),
    )


def _build_values(study: ReportData) -> dict[str, Any]:
    recovery = study.tables.get("krs")
    answers = study.tables.get("answers")
    curves = None if recovery is None or recovery.rows.empty else build_curves(recovery.rows)
    apart = [] if curves is None else [each["name"] for each in curves["selectors"]]
    return {
        "title": study.title,
        "limits": study.limits,
        "about": study.about,
        "settings": {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in study.settings.items()
        },
        "findings": list(study.findings),
        "tables": [
            {"name": name, "caption": table.caption, **_build_columns(table.rows, chosen=apart)}
            for name, table in study.tables.items()
            if name != "answers"
        ],
        "recovery": curves and {**curves, "caption": recovery.caption if recovery else ""},
        "figures": [
            {"name": name, "caption": caption, "figure": figure}
            for name, (figure, caption) in study.figures.items()
        ],
        "answers": None
        if answers is None
        else {
            "caption": answers.caption,
            **_build_columns(answers.rows, chosen=apart, never=(*_TEXTS, *_SAID)),
        },
    }


def _build_columns(
    rows: pd.DataFrame, *, chosen: Sequence[str], never: Sequence[str] = _TEXTS
) -> dict[str, Any]:
    """Convert a table to columns; numbers to six digits, other values as they are written.

    A column whose few short values stand in several rows, or that is `chosen`, has `choices`
    (labels by value in words), and `keys`, its values in words, where these differ from `values`.
    """
    columns = []
    for name, column in rows.items():
        numeric = pd.api.types.is_numeric_dtype(column) and column.dtype != bool
        keys = format_values(list(column))
        entry: dict[str, Any] = {"name": str(name), "number": numeric}
        if numeric:
            entry["values"] = [round_value(each) for each in column]
        else:
            entry["values"] = ["" if pd.isna(each) else str(each) for each in column]
        few = list(dict.fromkeys(keys))
        if 1 < len(few) <= _MOST_CHOICES and max(map(len, few)) <= _SHORT:
            repeated = not numeric and name not in never and 2 * len(few) <= len(keys)
            if name in chosen or repeated:
                entry["choices"] = dict(zip(few, label_values(few, str(name)), strict=True))
                if keys != entry["values"]:
                    entry["keys"] = keys
        columns.append(entry)
    return {"columns": columns, "length": len(rows)}
