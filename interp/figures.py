"""Tables of recovery scores as plotly figures, and figures as files.

`heatmap` shows language × layer with one facet per site, `lines` the scores over the layers with
their intervals (Hong et al. 2024, Fig. 1), and `export` writes figures as HTML, PNG, SVG and PDF.
The tables are those of `interp.recovery.krs.krs_table`, of either direction.
"""

import html
import math
import os
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import diverging
from plotly.subplots import make_subplots

from interp.languages import LANGUAGES

FORMATS = ("html", "png", "svg", "pdf")

_SITE_TITLES = {
    "coef": "MLP coefficients (coef)",
    "attn": "attention state (attn)",
    "coef+attn": "coefficients + attention (coef+attn)",
    "value": "value vectors (value)",
    "key": "key vectors (key)",
    "attn_weights": "attention weights (attn_weights)",
    "unembed": "unembedding (unembed)",
    "mlp_out": "MLP output (mlp_out)",
    "resid": "residual stream (resid)",
}
_SCORE_TITLES = {"krs": "KRS", "effect": "effect"}
_COLUMNS = ("language", "site", "layer", "first_layer", "last_layer", "ci_low", "ci_high")
_COLUMNS += ("num_queries", "noise_floor", "reason")

# Noto draws every script; the browser goes down the list glyph by glyph.
_FONT = {
    "family": "Noto Sans, Noto Sans CJK SC, Noto Sans CJK JP, sans-serif",
    "size": 13,
    "color": "#202020",
}
_UNDEFINED = "#b3b3b3"
# Okabe and Ito's colour-blind safe palette without its yellow, which vanishes on white.
_LINE_COLOURS = ("0,114,178", "213,94,0", "0,158,115", "204,121,167", "86,180,233", "0,0,0")
_DASHES = ("solid", "dash", "dot")

# Pixels: what all facets of a row should take together, the space between facets, that of the
# tick labels below one and that of the title above one.
_PAGE_WIDTH = 900
_GAP = 28
_TICKS = 40
_FACET_TITLE = 28


def heatmap(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw language × layer, one facet per site, on one colour scale with zero in the middle.

    The scale is symmetric and ends at the largest score, but at ±1 at most: scores beyond take
    the last colour, which the colour bar then says. The traces and the hover hold the true
    scores. Undefined scores are grey, their reason is in the hover; cells that the table does not
    hold stay white. Several models (or concepts) stand in one row of facets each.

    Raises:
        ValueError: the table is empty, lacks columns or holds a cell twice.
    """
    name, cells = _cells(table)
    groups = list(dict.fromkeys(group for group, _ in cells))
    sites = list(dict.fromkeys(site for _, site in cells))
    records = [record for of_facet in cells.values() for record in of_facet]
    languages = list(dict.fromkeys(record["language"] for record in records))
    layers = sorted({record["layer"] for record in records})
    labels = [_language_label(code) for code in languages]
    width = int(np.clip(20 * len(layers), 240, 420))
    keys = [(group, site) for group in groups for site in sites]
    figure, places = _facets(
        [_site_title(site) for _, site in keys],
        num_columns=len(sites) if len(groups) > 1 else _num_columns(len(sites), width),
        size=(width, max(110, 24 * len(languages))),
        left=30 + 8 * max(map(len, labels)),
        right=130,
        headers=[_group_title(group) for group in groups] if len(groups) > 1 else [],
        title=title,
    )
    for key, (row, col) in zip(keys, places, strict=True):
        scores = np.full((len(languages), len(layers)), np.nan)
        hover = np.full(scores.shape, "", dtype=object)
        for record in cells.get(key, []):
            cell = languages.index(record["language"]), layers.index(record["layer"])
            if hover[cell]:
                raise ValueError(
                    f"The table holds {record['language']}, site {record['site']!r}, layer "
                    f"{record['layer']} twice: draw each window size by itself."
                )
            scores[cell], hover[cell] = record[name], _hover(record, name)
        shared: dict[str, Any] = {"x": layers, "y": languages, "hovertext": hover}
        shared |= {"hoverinfo": "text", "hoverongaps": False, "name": key[1]}
        shared |= {"xgap": int(width >= 8 * len(layers)), "ygap": 1}
        figure.add_trace(go.Heatmap(z=scores, coloraxis="coloraxis", **shared), row=row, col=col)
        undefined = np.isnan(scores) & (hover != "")
        if undefined.any():
            ones = np.where(undefined, 1, np.nan)
            shared |= {"colorscale": [_UNDEFINED, _UNDEFINED], "showscale": False}
            figure.add_trace(go.Heatmap(z=ones, **shared), row=row, col=col)

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
        ticktext=labels,
        showgrid=False,
    )
    if any(math.isnan(record[name]) for record in records):
        # The corner below the languages' names is always free.
        figure.add_annotation(
            text=f'<span style="color:{_UNDEFINED}">■</span> undefined',
            showarrow=False,
            xref="paper",
            x=0,
            xanchor="right",
            yref="paper",
            y=0,
            yanchor="bottom",
            yshift=-60,
        )
    figure.update_layout(coloraxis=_coloraxis([record[name] for record in records], name))
    return figure


def lines(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw the scores over the layers, one line with its interval band per site (Hong, Fig. 1).

    One facet per language (and model, where there are several).

    Raises:
        ValueError: the table is empty or lacks columns.
    """
    name, cells = _cells(table)
    groups = {group for group, _ in cells}
    sites = list(dict.fromkeys(site for _, site in cells))
    facets: dict[tuple, dict[str, list]] = {}
    for (group, site), records in cells.items():
        for record in records:
            facet = facets.setdefault((record["language"], group), {})
            facet.setdefault(site, []).append(record)
    width = 280
    titles = [_language_label(code) for code, _ in facets]
    if len(groups) > 1:
        room = width // 8
        titles = [
            f"{label}, {_shorten(_group_title(group), room - len(label))}"
            for label, (_, group) in zip(titles, facets, strict=True)
        ]
    figure, places = _facets(
        titles,
        num_columns=_num_columns(len(titles), width),
        size=(width, 190),
        left=70,
        right=250,
        title=title,
    )
    shown = set()
    for by_site, (row, col) in zip(facets.values(), places, strict=True):
        bands, curves = [], []
        for site, records in by_site.items():
            order = sites.index(site)
            colour = _LINE_COLOURS[order % len(_LINE_COLOURS)]
            dash = _DASHES[order // len(_LINE_COLOURS) % len(_DASHES)]
            records = sorted(records, key=lambda record: record["layer"])
            band_x, band_y = _band(records)
            bands.append(
                go.Scatter(
                    x=band_x,
                    y=band_y,
                    fill="toself",
                    fillcolor=f"rgba({colour},0.18)",
                    line_width=0,
                    mode="lines",
                    hoverinfo="skip",
                    legendgroup=site,
                    showlegend=False,
                )
            )
            curves.append(
                go.Scatter(
                    x=[record["layer"] for record in records],
                    y=[record[name] for record in records],
                    mode="lines+markers",
                    line={"color": f"rgb({colour})", "dash": dash, "width": 2},
                    marker_size=5,
                    hovertext=[_hover(record, name) for record in records],
                    hoverinfo="text",
                    name=_site_title(site),
                    legendgroup=site,
                    showlegend=site not in shown,
                )
            )
            shown.add(site)
        for trace in (*bands, *curves):
            figure.add_trace(trace, row=row, col=col)
    figure.update_yaxes(zeroline=True, zerolinecolor="#808080", gridcolor="#e6e6e6")
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(title_text=_SCORE_TITLES[name], col=1)
    return figure


def export(figures: Mapping[Any, go.Figure], *, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write each figure as `<stem>.<format>` for every format, and say which files were written.

    HTML is always written, holds plotly.js and opens without a network. The images need the extra
    `export` and a Chrome, which is started once for all figures; without them there is a warning
    and the HTML. A file appears under its name only when it is complete.

    Args:
        figures: stems, such as `figures/capitals` (missing folders are made), with their figures.
        formats: any of `html`, `png`, `svg`, `pdf`.

    Raises:
        ValueError: a format is unknown.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"Unknown format {unknown[0]!r}; the formats are {', '.join(FORMATS)}.")
    written, images, partial = [], [], {}
    try:
        for stem, figure in figures.items():
            for name in (each for each in FORMATS if each in {"html", *formats}):
                path = Path(f"{stem}.{name}")
                path.parent.mkdir(parents=True, exist_ok=True)
                partial[path] = path.with_name(f".{os.getpid()}.{path.name}")
                if name == "html":
                    page = figure.to_html(include_mathjax=False, config={"displaylogo": False})
                    partial[path].write_text(page, encoding="utf-8")
                    written.append(path)
                else:
                    options = {"format": name, "scale": 2 if name == "png" else 1}
                    images.append({"fig": figure, "path": partial[path], "opts": options})
        lacking = _render(images) if images else None
        if lacking:
            warnings.warn(f"Only HTML was written, no images: {lacking}.", stacklevel=2)
        else:
            written = list(partial)
        for path in written:
            os.replace(partial[path], path)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return written


def _render(images: list[dict[str, Any]]) -> str | None:
    """Write the images with one Chrome, or say what is lacking."""
    try:
        import kaleido
        from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError
    except ImportError:
        return "kaleido is not installed (pip install 'interp[export]')"
    try:
        # MathJax would come from the network, and nothing here uses it.
        kaleido.write_fig_from_object_sync(images, kopts={"mathjax": False}, cancel_on_error=True)
    except ChromeNotFoundError:
        return "there is no Chrome (apt install chromium, or run plotly_get_chrome)"
    except (BrowserClosedError, BrowserFailedError, TimeoutError) as error:
        return f"Chrome does not run here ({type(error).__name__}; try apt install chromium)"
    return None


def _cells(table: pd.DataFrame) -> tuple[str, dict[tuple[tuple, str], list[dict]]]:
    """Name the score's column and sort the rows by (group, site), in order of appearance.

    A group is what stands before `site` besides the language, such as the unlearned model.
    """
    columns = list(table.columns)
    name = "effect" if "effect" in columns else "krs"
    if missing := [column for column in (*_COLUMNS, name) if column not in columns]:
        raise ValueError(f"The table of scores lacks the columns {', '.join(missing)}.")
    if table.empty:
        raise ValueError("The table of scores is empty: there is nothing to draw.")
    group_columns = [c for c in columns[: columns.index("site")] if c != "language"]
    cells: dict[tuple[tuple, str], list[dict]] = {}
    # Tables that went through a CSV file have NaN for an empty reason.
    for record in table.astype({"reason": object}).fillna({"reason": ""}).to_dict("records"):
        group = tuple(str(record[column]) for column in group_columns)
        cells.setdefault((group, str(record["site"])), []).append(record)
    return name, cells


def _facets(
    titles: list[str],
    *,
    num_columns: int,
    size: tuple[int, int],
    left: int,
    right: int,
    title: str | None,
    headers: Sequence[str] = (),
) -> tuple[go.Figure, list[tuple[int, int]]]:
    """Lay facets of `size` pixels out in rows; return each facet's row and column too.

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
        subplot_titles=[html.escape(each) for each in titles],
        horizontal_spacing=_GAP / plot_width,
        vertical_spacing=gap_height / plot_height,
    )
    figure.update_annotations(font_size=14)
    axis = {"showline": True, "linecolor": "#404040", "title_font_size": 14, "automargin": True}
    figure.update_xaxes(matches="x", ticks="outside", title_standoff=8, **axis)
    figure.update_yaxes(matches="y", **axis)
    for index, (row, col) in enumerate(places):
        if col > 1:
            figure.update_yaxes(showticklabels=False, row=row, col=col)
        if index + num_columns >= len(titles):
            figure.update_xaxes(title_text="layer (window centre)", row=row, col=col)
    for row, text in enumerate(headers):
        figure.add_annotation(
            text=f"<b>{html.escape(_shorten(text, plot_width // 9))}</b>",
            x=0,
            xref="paper",
            xanchor="left",
            y=1 - row * (size[1] + gap_height) / plot_height,
            yref="paper",
            yanchor="bottom",
            yshift=_FACET_TITLE,
            showarrow=False,
        )
    title_lines = textwrap.wrap(title or "", max(30, (plot_width + left) // 9))
    top = 22 + _FACET_TITLE + header + 24 * len(title_lines)
    height = top + plot_height + 70
    figure.update_layout(
        template="plotly_white",
        font=_FONT,
        width=left + plot_width + right,
        height=height,
        margin={"l": left, "r": right, "t": top, "b": 70},
        title={
            "text": "<br>".join(map(html.escape, title_lines)),
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


def _num_columns(num_facets: int, width: int) -> int:
    """As many as fit on the page, more if the figure got tall, and evenly filled rows."""
    most = max(_PAGE_WIDTH // (width + _GAP), math.ceil(math.sqrt(num_facets)))
    return math.ceil(num_facets / math.ceil(num_facets / most))


def _shorten(text: str, length: int) -> str:
    """Cut the beginning off, since the end of a path is what tells it from others."""
    return text if len(text) <= length else "…" + text[len(text) - length + 1 :]


def _coloraxis(scores: list[float], name: str) -> dict[str, Any]:
    finite = [score for score in scores if math.isfinite(score)]
    end = min(max(map(abs, finite), default=1.0), 1.0) or 1.0
    text = _SCORE_TITLES[name]
    if min(finite, default=0) < -1:
        text += "<br>(below −1<br>shown as −1)"
    if max(finite, default=0) > 1:
        text += "<br>(above 1<br>shown as 1)"
    bar = {"title": {"text": text, "font": {"size": 14}}}
    bar |= {"thickness": 14, "lenmode": "pixels", "len": 200}
    return {"colorscale": diverging.RdBu, "cmin": -end, "cmid": 0, "cmax": end, "colorbar": bar}


def _band(records: list[dict]) -> tuple[list[float | None], list[float | None]]:
    """Outline the intervals, one polygon per unbroken run of layers that have one."""
    runs: list[list[dict]] = [[]]
    for record in records:
        if math.isnan(record["ci_low"]):
            runs.append([])
        else:
            runs[-1].append(record)
    xs: list[float | None] = []
    ys: list[float | None] = []
    for run in filter(None, runs):
        x = [record["layer"] for record in run]
        low, high = ([record[end] for record in run] for end in ("ci_low", "ci_high"))
        if len(run) == 1:
            # A band without width would not be seen.
            x, low, high = [x[0] - 0.2, x[0] + 0.2], low * 2, high * 2
        xs += [*x, *reversed(x), x[0], None]
        ys += [*high, *reversed(low), high[0], None]
    return xs, ys


def _hover(record: dict, name: str) -> str:
    if record["site"] == "unembed":
        window = "readout above the last layer"
    elif record["first_layer"] == record["last_layer"]:
        window = f"layer {record['layer']}"
    else:
        window = f"layers {record['first_layer']}–{record['last_layer']}"
    score, low, high = record[name], record["ci_low"], record["ci_high"]
    text = [
        f"<b>{html.escape(_language_label(record['language']))}</b>",
        html.escape(_site_title(record["site"])),
        window,
        f"{_SCORE_TITLES[name]} " + ("undefined" if math.isnan(score) else f"{score:.3f}"),
    ]
    if not math.isnan(low):
        text.append(f"bootstrap interval {low:.3f} to {high:.3f}")
    num_queries = record["num_queries"]
    text.append(f"{num_queries} question" + ("" if num_queries == 1 else "s"))
    if not math.isnan(record["noise_floor"]):
        text.append(f"noise floor {record['noise_floor']:.1e}")
    if record["reason"]:
        text += map(html.escape, textwrap.wrap(record["reason"], 60))
    return "<br>".join(text)


def _language_label(code: str) -> str:
    return f"{LANGUAGES[code].name} ({code})" if code in LANGUAGES else code


def _site_title(site: str) -> str:
    return _SITE_TITLES.get(site, site)


def _group_title(group: tuple) -> str:
    return ", ".join(group)
