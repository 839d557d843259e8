"""Layout that all figures share: facets in rows, fonts for every script, colours."""

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.languages import LANGUAGES

# Noto draws every script; the browser goes down the list glyph by glyph.
FONT = {
    "family": "Noto Sans, Noto Sans CJK SC, Noto Sans CJK JP, sans-serif",
    "size": 13,
    "color": "#202020",
}
# Okabe and Ito's colour-blind safe palette without its yellow, which vanishes on white.
COLOURS = ("0,114,178", "213,94,0", "0,158,115", "204,121,167", "86,180,233", "0,0,0")
DASHES = ("solid", "dash", "dot")

# Pixels: what all facets of a row should take together, the space between facets, that of the
# tick labels below one and that of the title above one.
_PAGE_WIDTH = 900
_GAP = 28
_TICKS = 40
_FACET_TITLE = 28
# Pixels that a line of a legend takes.
_LEGEND_LINE = 30


def format_accuracy_hover(row: Mapping[str, Any], heading: str = "") -> str:
    """Format the hover of an accuracy with its interval: a row of `probing.accuracy`."""
    questions = f"{row['num_queries']:.0f} question" + ("" if row["num_queries"] == 1 else "s")
    lines = [
        f"<b>{escape(label_language(row['language']))}</b>",
        *([escape(heading)] if heading else []),
        f"{row['accuracy']:.1%} right, interval {row['ci_low']:.1%} to {row['ci_high']:.1%}",
        f"chance {row['chance']:.1%}, {questions}",
    ]
    return "<br>".join(lines)


def check_table(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Refuse a table that cannot be drawn.

    Raises:
        ValueError: it lacks some of the columns, or is empty; `what` it is a table of is named.
    """
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"The table of {what} lacks the columns {', '.join(missing)}.")
    if table.empty:
        raise ValueError(f"The table of {what} is empty: there is nothing to draw.")


def set_language_layer_axes(
    figure: go.Figure,
    languages: Sequence[str],
    layers: Sequence[int],
    width: int,
    texts: Sequence[str] | None = None,
) -> int:
    """Set the axes of heatmaps of languages by layers; return the step between ticks in layers.

    Facets are `width` pixels wide; the first language stands at the top. Categories, which plotly
    matches and does not show, are the codes as they are; the tick labels are `texts`, as Plotly
    reads them, or the languages' names.
    """
    step = next(s for s in (1, 2, 5, 10, 20, 50) if s * width / len(layers) >= 26 or s == 50)
    figure.update_xaxes(
        type="category",
        categoryarray=layers,
        range=[-0.5, len(layers) - 0.5],
        tickvals=layers[::step],
        showgrid=False,
    )
    figure.update_yaxes(
        type="category",
        categoryarray=languages,
        range=[len(languages) - 0.5, -0.5],
        tickvals=languages,
        ticktext=texts or [escape(label_language(code)) for code in languages],
        showgrid=False,
    )
    return step


def lay_out(
    titles: list[str],
    *,
    num_columns: int,
    size: tuple[int, int],
    left: int,
    right: int,
    title: str | None,
    x_title: str,
    headers: Sequence[str] = (),
) -> tuple[go.Figure, list[tuple[int, int]]]:
    """Lay facets of `size` pixels out in rows; return each facet's row and column too.

    All texts are plain: they are escaped here.
    `left` and `right` are margins in pixels, `headers` lines above the rows, one per row.
    """
    num_rows = math.ceil(len(titles) / num_columns)
    header = 26 if headers else 0
    gap_height = _TICKS + _FACET_TITLE + header
    plot_width = num_columns * (size[0] + _GAP) - _GAP
    plot_height = num_rows * (size[1] + gap_height) - gap_height
    places = [(i // num_columns + 1, i % num_columns + 1) for i in range(len(titles))]
    specs: list[list[Any]] = [
        [{} if (row, col) in places else None for col in range(1, num_columns + 1)]
        for row in range(1, num_rows + 1)
    ]
    figure = make_subplots(
        rows=num_rows,
        cols=num_columns,
        specs=specs,
        subplot_titles=[escape(each) for each in titles],
        horizontal_spacing=_GAP / plot_width,
        vertical_spacing=gap_height / plot_height,
    )
    figure.update_annotations(font_size=14)
    x_title = wrap_title(x_title, size[0])
    axis = {"showline": True, "linecolor": "#404040", "title_font_size": 14, "automargin": True}
    figure.update_xaxes(matches="x", ticks="outside", title_standoff=8, **axis)
    figure.update_yaxes(matches="y", **axis)
    for index, (row, col) in enumerate(places):
        if col > 1:
            figure.update_yaxes(showticklabels=False, row=row, col=col)
        if index + num_columns >= len(titles):
            figure.update_xaxes(title_text=x_title, row=row, col=col)
    for row, text in enumerate(headers):
        figure.add_annotation(
            text=f"<b>{escape(shorten(text, plot_width // 9))}</b>",
            x=0,
            xref="paper",
            xanchor="left",
            y=1 - row * (size[1] + gap_height) / plot_height,
            yref="paper",
            yanchor="bottom",
            yshift=_FACET_TITLE,
            showarrow=False,
        )
    title_lines = textwrap.wrap(title or "", max(30, (plot_width + right) // 9))
    top = 22 + _FACET_TITLE + header + 24 * len(title_lines)
    bottom = 70 + 18 * x_title.count("<br>")
    height = top + plot_height + bottom
    figure.update_layout(
        template="plotly_white",
        font=FONT,
        width=left + plot_width + right,
        height=height,
        margin={"l": left, "r": right, "t": top, "b": bottom},
        title={
            "text": "<br>".join(map(escape, title_lines)),
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            # The anchor "bottom" is the first line's baseline, further lines hang below it.
            "y": 1 - 30 / height,
            "yanchor": "bottom",
            "font": {"size": 17},
        },
    )
    return figure, places


def place_legend_below(figure: go.Figure, height: int = _LEGEND_LINE) -> go.Figure:
    """Place the legend in a line of its own below the axes, and make room for it."""
    layout: Any = figure.layout
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0.005}
    return figure.update_layout(
        legend=legend | {"yanchor": "bottom"},
        height=layout.height + height,
        margin_b=layout.margin.b + height,
    )


def wrap_title(title: str, pixels: int) -> str:
    """Wrap an axis' title, a plain text, in lines that are no longer than the axis."""
    return "<br>".join(map(escape, textwrap.wrap(title, max(12, pixels // 8))))


def build_text_heatmap(
    values: np.ndarray[Any, Any],
    texts: np.ndarray[Any, Any],
    hover: np.ndarray[Any, Any],
    *,
    name: str | None = None,
) -> go.Heatmap:
    """Build a heatmap with texts in its cells: values, texts and hovers [row, column].

    Texts and hovers are shown as Plotly reads them: see `escape`.
    """
    num_rows, num_columns = values.shape
    return go.Heatmap(
        x=list(range(num_columns)),
        y=list(range(num_rows)),
        z=values,
        text=texts,
        texttemplate="%{text}",
        textfont={"size": 12},
        hovertext=hover,
        hoverinfo="text",
        hoverongaps=False,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        name=name,
    )


def fit_legend_height(least: int, *, num_lines: int, num_rows: int) -> int:
    """Return a facet's height; a legend that is higher than all rows is cut off in a picture."""
    return max(least, math.ceil(_LEGEND_LINE * num_lines / num_rows))


def choose_num_columns(num_facets: int, width: int) -> int:
    """Choose as many as fit on the page, more if the figure got tall, and evenly filled rows."""
    most = max(_PAGE_WIDTH // (width + _GAP), math.ceil(math.sqrt(num_facets)))
    return math.ceil(num_facets / math.ceil(num_facets / most))


def shorten(text: str, length: int) -> str:
    """Cut the beginning off a plain text: the end of a path is what tells it from others."""
    return text if len(text) <= length else "…" + text[len(text) - length + 1 :]


def label_language(code: str) -> str:
    """Return a language's English name and code, as plain text."""
    return f"{LANGUAGES[code].name} ({code})" if code in LANGUAGES else code


def escape(text: object) -> str:
    """Return what Plotly shows as this very text, where it would read tags, entities or TeX.

    Texts are cut to length and measured before they are escaped. Quotes stay as they are, since
    Plotly knows no entity for them; two dollars would be TeX where a page has MathJax.
    """
    return html.escape(str(text), quote=False).replace("$", "&#36;")
