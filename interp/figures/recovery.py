"""Heatmaps and curves of recovery scores.

`plot_heatmap` shows language × layer with one facet per site, `plot_lines` the scores over the
layers with their intervals (Hong et al. 2024, Fig. 1). The tables are
those of `interp.recovery.krs.compute_krs`, of either direction.
"""

import math
import textwrap
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import diverging, sequential

from interp.figures.layout import (
    COLOURS,
    DASHES,
    check_table,
    choose_num_columns,
    escape,
    label_language,
    lay_out,
    set_language_layer_axes,
    shorten,
)

_SITE_TITLES = {
    "coef": "MLP coefficients (coef)",
    "attn": "attention state (attn)",
    "coef+attn": "coefficients + attention (coef+attn)",
    "value": "value vectors (value)",
    "key": "key vectors (key)",
    "attn_weights": "attention weights (attn_weights)",
    "router": "routing (router)",
    "router_weights": "router weights (router_weights)",
    "unembed": "unembedding (unembed)",
    "mlp_out": "MLP output (mlp_out)",
    "resid": "residual stream (resid)",
}
_SCORE_TITLES = {
    "krs": "KRS",
    "effect": "effect",
    "recovered": "V's answers<br>given again",
    "retained": "V's answers<br>still given",
}
_SHARES = ("recovered", "retained")
_COLUMNS = ("language", "site", "layer", "first_layer", "last_layer", "ci_low", "ci_high")
_COLUMNS += ("num_queries", "reason")

FEW_KNOWN = 5
"""Known questions of a language below which its name is grey: little can be said of it."""

_UNDEFINED = "#b3b3b3"
_FAINT = "#8c8c8c"

# Pixels that the facets of an array should take together.
_ARRAY_WIDTH = 1500


def plot_heatmap(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw language × layer, one facet per site, on one colour scale with zero in the middle.

    The scale is symmetric and ends at the largest score, but at ±1 at most: scores beyond take
    the last colour, which the colour bar then says; that of shares of answers goes from 0 to 1. The
    traces and the hover hold the true scores. Undefined scores are grey, their reason is in the
    hover; cells that the table does not hold stay white. Several models (or concepts) stand in one
    row of facets each.

    Beside a language stands to how many of its questions V gives the right answer, where the table
    says so (`num_known`, `num_asked`); fewer than `FEW_KNOWN` make its name grey, as scores then
    speak of no knowledge.

    Raises:
        ValueError: the table is empty, lacks columns or holds a cell twice.
    """
    name, cells = _group_cells(table)
    groups = list(dict.fromkeys(group for group, _ in cells))
    sites = list(dict.fromkeys(site for _, site in cells))
    records = [record for of_facet in cells.values() for record in of_facet]
    languages = list(dict.fromkeys(record["language"] for record in records))
    layers = sorted({record["layer"] for record in records})
    labels, is_known = _label_languages(records, languages)
    width = int(np.clip(20 * len(layers), 240, 420))
    columns = choose_num_columns(len(sites), width)
    if len(groups) > 1:
        columns = len(sites)
        width = max(180, min(width, _ARRAY_WIDTH // columns))
    keys = [(group, site) for group in groups for site in sites]
    figure, places = lay_out(
        [_format_site(site, width) for _, site in keys],
        num_columns=columns,
        size=(width, max(110, 24 * len(languages))),
        left=30 + 8 * max(map(len, labels)),
        right=130,
        headers=[_format_group(group) for group in groups] if len(groups) > 1 else [],
        title=title,
        x_title=_name_axis(records),
    )
    for key, (row, col) in zip(keys, places, strict=True):
        scores = np.full((len(languages), len(layers)), np.nan)
        hover = np.full(scores.shape, "", dtype=object)
        for record in cells.get(key, []):
            cell = languages.index(record["language"]), layers.index(record["layer"])
            if hover[cell]:
                raise ValueError(
                    f"duplicate score of {record['language']}, site {record['site']!r}, layer "
                    f"{record['layer']}: draw each window size by itself"
                )
            scores[cell], hover[cell] = record[name], _format_hover(record, name)
        shared: dict[str, Any] = {"x": layers, "y": languages, "hovertext": hover}
        shared |= {"hoverinfo": "text", "hoverongaps": False, "name": key[1]}
        shared |= {"xgap": int(width >= 8 * len(layers)), "ygap": 1}
        figure.add_trace(go.Heatmap(z=scores, coloraxis="coloraxis", **shared), row=row, col=col)
        undefined = np.isnan(scores) & (hover != "")
        if undefined.any():
            ones = np.where(undefined, 1, np.nan)
            shared |= {"colorscale": [_UNDEFINED, _UNDEFINED], "showscale": False}
            figure.add_trace(go.Heatmap(z=ones, **shared), row=row, col=col)

    texts = [
        escape(label) if known else f'<span style="color:{_FAINT}">{escape(label)}</span>'
        for label, known in zip(labels, is_known, strict=True)
    ]
    set_language_layer_axes(figure, languages, layers, width, texts)
    notes = []
    if any(math.isnan(record[name]) for record in records):
        notes.append(f'<span style="color:{_UNDEFINED}">■</span> undefined')
    if not all(is_known):
        notes.append(f'<span style="color:{_FAINT}">grey: V knows fewer than {FEW_KNOWN}</span>')
    if notes:
        # The corner below the languages' names is always free.
        figure.add_annotation(
            text="<br>".join(notes),
            align="right",
            showarrow=False,
            xref="paper",
            x=0,
            xanchor="right",
            yref="paper",
            y=0,
            yanchor="bottom",
            yshift=-60,
        )
    figure.update_layout(coloraxis=_make_coloraxis([record[name] for record in records], name))
    return figure


def _name_axis(records: list[dict]) -> str:
    """Name the axis of layers, and say how many tokens of an answer are scored."""
    counts = [record.get("num_tokens", math.nan) for record in records]
    rounded = sorted({f"{count:.0f}" for count in counts if not math.isnan(count)}, key=int)
    if not rounded:
        return "layer (window centre)"
    tokens = "token" if rounded == ["1"] else "tokens"
    ends = rounded if len(rounded) == 1 else (rounded[0], rounded[-1])
    return f"layer (window centre); {'–'.join(ends)} {tokens} scored per answer"


def _label_languages(records: list[dict], languages: list[str]) -> tuple[list[str], list[bool]]:
    """Return the languages' names with what V knows of them, and whether that is enough."""
    labels, is_known = [], []
    for code in languages:
        counts = {
            (record["num_known"], record["num_asked"])
            for record in records
            if record["language"] == code and not math.isnan(record.get("num_known", math.nan))
        }
        # Groups, such as concepts, have counts of their own.
        known = [f"{num_known:.0f}/{num_asked:.0f}" for num_known, num_asked in sorted(counts)]
        labels.append(" · ".join([label_language(code), *(known if len(known) == 1 else [])]))
        is_known.append(not counts or max(number for number, _ in counts) >= FEW_KNOWN)
    return labels, is_known


def plot_lines(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw the scores over the layers, one line with its interval band per site (Hong, Fig. 1).

    One facet per language (and model, where there are several).

    Raises:
        ValueError: the table is empty or lacks columns.
    """
    name, cells = _group_cells(table)
    groups = {group for group, _ in cells}
    sites = list(dict.fromkeys(site for _, site in cells))
    facets: dict[tuple, dict[str, list]] = {}
    for (group, site), records in cells.items():
        for record in records:
            facet = facets.setdefault((record["language"], group), {})
            facet.setdefault(site, []).append(record)
    width = 280
    titles = [label_language(code) for code, _ in facets]
    if len(groups) > 1:
        room = width // 8
        titles = [
            f"{label}, {shorten(_format_group(group), room - len(label))}"
            for label, (_, group) in zip(titles, facets, strict=True)
        ]
    figure, places = lay_out(
        titles,
        num_columns=choose_num_columns(len(titles), width),
        size=(width, 190),
        left=70,
        right=250,
        title=title,
        x_title=_name_axis([record for of_cell in cells.values() for record in of_cell]),
    )
    shown = set()
    for by_site, (row, col) in zip(facets.values(), places, strict=True):
        bands, curves = [], []
        for site, records in by_site.items():
            order = sites.index(site)
            colour = COLOURS[order % len(COLOURS)]
            dash = DASHES[order // len(COLOURS) % len(DASHES)]
            records = sorted(records, key=lambda record: record["layer"])
            band_x, band_y = _outline_band(records)
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
                    hovertext=[_format_hover(record, name) for record in records],
                    hoverinfo="text",
                    name=escape(_format_site(site)),
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


def _group_cells(table: pd.DataFrame) -> tuple[str, dict[tuple[tuple, str], list[dict]]]:
    """Name the score's column and sort the rows by (group, site), in order of appearance.

    A group is what stands before `site` besides the language, such as the unlearned model.
    """
    columns = list(table.columns)
    name = next((column for column in _SCORE_TITLES if column in columns), "krs")
    check_table(table, (*_COLUMNS, name), "scores")
    group_columns = [c for c in columns[: columns.index("site")] if c != "language"]
    cells: dict[tuple[tuple, str], list[dict]] = {}
    # Tables that went through a CSV file have NaN for an empty reason.
    for record in table.astype({"reason": object}).fillna({"reason": ""}).to_dict("records"):
        group = tuple(str(record[column]) for column in group_columns)
        cells.setdefault((group, str(record["site"])), []).append(record)
    return name, cells


def _make_coloraxis(scores: list[float], name: str) -> dict[str, Any]:
    if name in _SHARES:
        bar = {"title": {"text": _SCORE_TITLES[name], "font": {"size": 14}}, "thickness": 14}
        bar |= {"lenmode": "pixels", "len": 200, "tickformat": ".0%"}
        return {"colorscale": sequential.Blues, "cmin": 0, "cmax": 1, "colorbar": bar}
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


def _outline_band(records: list[dict]) -> tuple[list[float | None], list[float | None]]:
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


def _format_hover(record: dict, name: str) -> str:
    if record["site"] == "unembed":
        window = "readout above the last layer"
    elif record["first_layer"] == record["last_layer"]:
        window = f"layer {record['layer']}"
    else:
        window = f"layers {record['first_layer']}–{record['last_layer']}"
    score, low, high = record[name], record["ci_low"], record["ci_high"]
    text = [
        f"<b>{escape(label_language(record['language']))}</b>",
        escape(_format_site(record["site"])),
        window,
        f"{_SCORE_TITLES[name].replace('<br>', ' ')} "
        + ("undefined" if math.isnan(score) else f"{score:.3f}"),
    ]
    if not math.isnan(low):
        kind = "" if name in _SHARES else "bootstrap "
        text.append(f"{kind}interval {low:.3f} to {high:.3f}")
    num_queries = record["num_queries"]
    text.append(f"{num_queries} question" + ("" if num_queries == 1 else "s"))
    if name in _SHARES and not math.isnan(record.get("unlearned", math.nan)):
        text.append(f"U itself gives {record['unlearned']:.3f}")
    if not math.isnan(record.get("num_known", math.nan)):
        text.append(f"V knows {record['num_known']:.0f} of {record['num_asked']:.0f}")
    if not math.isnan(record.get("noise_floor", math.nan)):
        text.append(f"noise floor {record['noise_floor']:.1e}")
    if record["reason"]:
        text += map(escape, textwrap.wrap(record["reason"], 60))
    return "<br>".join(text)


def _format_site(site: str, pixels: int = 420) -> str:
    """Return a site's title in words, where they fit above a facet so wide."""
    title = _SITE_TITLES.get(site, site)
    return title if 7 * len(title) <= pixels + 20 else site


def _format_group(group: tuple) -> str:
    return ", ".join(group)
