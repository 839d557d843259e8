"""Text that a person gives is shown as it is: no figure reads it as tags, entities or TeX."""

from __future__ import annotations

import html
import re

import pandas as pd
import pytest

from interp.figures import (
    escape,
    export,
    lay_out,
    plot_accuracy,
    plot_drift,
    plot_heads,
    plot_heatmap,
    plot_lens,
    plot_lines,
    plot_measures,
    plot_spread,
    plot_target_unrelated,
    plot_training,
)

# A tag that plotly knows, a token, an entity, a link and TeX; each is seen as itself.
TEXTS = ["<b>x</b>", "<eos>", "a&lt;b", '<a href="http://x.y">q</a>', "$x$ $y$", "1<br>2"]
ORDINARY = ["Qwen/Qwen3-0.6B", 'it\'s "quoted" (v1.2), 100 %', "zh-Hant", "فارسی", "…/runs/U_1"]

OWN_TAGS = re.compile(r"</?(?:b|sup|br|span)(?: style=\"[^\"<>]*\")?>")
# What plotly matches or groups by, and never shows where there are tick labels and hovers.
IDENTITIES = {"categoryarray", "tickvals", "legendgroup"}
INTERVAL = {"ci_low": 0.1, "ci_high": 0.9}


def scores(names: list[str]) -> pd.DataFrame:
    constants = INTERVAL | {"krs": 0.5, "num_queries": 3, "noise_floor": 0.0}
    return pd.DataFrame(
        {"unlearned": model, "language": name, "site": site, "layer": 0, "first_layer": 0}
        | {"last_layer": 0, "reason": f"left out: {name}"}
        | constants
        for name in names
        for model in names[:2]
        for site in names[:2]
    )


def measures(names: list[str], **more: object) -> pd.DataFrame:
    return pd.DataFrame(
        {"model": model, "language": code, "concept": concept, "metric": names[0], "value": 0.5}
        | {"n": 4, "reason": f"because {code}"}
        | INTERVAL
        | more
        for model in names
        for code in names
        for concept in names[:2]
    )


def draw_all(names: list[str]) -> dict:
    """Return every figure of the library, with these texts wherever a person's can stand."""
    first, second = names[:2]
    table = scores(names)
    accuracies = pd.DataFrame(
        {"model": model, "step": 0, "language": code, "concept": first, "accuracy": 0.5}
        | {"chance": 0.25, "num_queries": 4}
        | INTERVAL
        for model in names
        for code in names
    )
    lens = pd.DataFrame(
        {"model": model, "language": code, "layer": layer, "logprob": -1.0, "readable": 0.5}
        | {"readable_low": 0.1, "readable_high": 0.9, "num_queries": 4}
        | INTERVAL
        for model in names
        for code in names
        for layer in (-1, 0)
    )
    drift = {"cosine": 0.9, "relative_change": 0.1, "effective_rank": 3.0, "num_parameters": 7}
    heads = table.drop(columns="unlearned").drop_duplicates("language").assign(site="head[0]")
    history = pd.DataFrame({"step": [0], "forget_ce": [1.0]})
    by_layer = measures(names, metric="drift_cosine", layer=0.0).drop_duplicates("model")
    others = [by_layer.assign(metric=f"drift_{name}", value=value) for name, value in drift.items()]
    drifts = plot_measures(pd.concat([by_layer, *others[:3]]).drop_duplicates(["model", "metric"]))
    figures = {
        "heatmap": plot_heatmap(table, title=first),
        "lines": plot_lines(table, title=second),
        "heads": plot_heads(heads, title=first),
        "accuracy": plot_accuracy(accuracies.drop(columns="step"), title=first),
        "training": plot_training(history, accuracies[accuracies["model"] == first], title=first),
        "spread": plot_spread(measures(names)),
        "pair": plot_target_unrelated(measures(names), target=first, unrelated=second),
        "lens": plot_lens(lens, title=first),
        "drift": plot_drift(
            pd.DataFrame({"layer": 0, "group": name} | drift for name in names), title=first
        ),
        "bare": lay_out(
            [first],
            num_columns=1,
            size=(200, 100),
            left=9,
            right=9,
            title=first,
            x_title=second,
            headers=[first],
        )[0],
    }
    return figures | drifts


def shown(value: object, key: str = "") -> list[str]:
    """Return every string of a figure that plotly shows."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        # A heatmap has a hover of its own, so neither its name nor its categories are shown.
        hidden = {"name", "x", "y"} if value.get("type") == "heatmap" else set()
        return [
            text
            for name, each in value.items()
            if name not in IDENTITIES | hidden and name != "template"
            for text in shown(each, name)
        ]
    if isinstance(value, list | tuple) or type(value).__name__ == "ndarray":
        return [text for each in value for text in shown(each, key)]
    return []


FIGURES = draw_all(TEXTS)


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_of_a_persons_text_is_read_as_a_tag(name):
    """But for the tags of the library's own, no "<" and no bare "&" is left."""
    texts = shown(FIGURES[name].to_plotly_json())
    assert any("&lt;" in text for text in texts), "the text is in this figure"
    for text in texts:
        rest = OWN_TAGS.sub("", text)
        assert "<" not in rest, text
        assert "<b>x" not in text, text
        assert re.findall(r"&(?!lt;|gt;|amp;|#36;)", rest) == [], text
        assert "$" not in rest, text


@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_label_is_the_same_byte_for_byte(text):
    assert escape(text) == text


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_escaped_reads_as_the_text(text):
    """Plotly's entities are HTML's; of quotes it knows none, so that they may not be escaped."""
    assert html.unescape(escape(text)) == text
    assert "&quot;" not in escape(text)


def test_ordinary_names_stand_in_figures_as_they_are():
    names = ['runs/U "1"', "it's"]
    figures = draw_all(names)
    assert list(figures["spread"].layout.xaxis.ticktext) == names
    assert list(figures["spread"].layout.yaxis.ticktext) == names
    assert list(figures["heatmap"].layout.yaxis.ticktext) == names
    assert [trace.name for trace in figures["pair"].data if trace.showlegend] == names


def test_categories_are_the_same_in_data_and_axes():
    """They match as strings: an escaped one on one side alone would leave a facet empty."""
    for name in ("heatmap", "lens"):
        figure = FIGURES[name]
        axis = figure.layout.yaxis
        assert list(axis.tickvals) == list(axis.categoryarray) == TEXTS
        assert all(list(trace.y) == TEXTS for trace in figure.data)
        assert list(axis.ticktext) == list(map(escape, TEXTS))


def test_texts_are_cut_and_measured_before_they_are_escaped():
    """30 letters of a name are left, counted as they are seen, and no entity is cut apart."""
    name = "<" * 40
    figure = plot_spread(measures([name, "<b>"]))
    assert figure.layout.yaxis.ticktext[0] == "…" + "&lt;" * 29
    plain = plot_spread(measures(["x" * 40, "xyz"]))
    assert figure.layout.width == plain.layout.width
    assert figure.layout.margin == plain.layout.margin


def test_own_markup_stays():
    (hover,) = FIGURES["drift"].data[0].hovertext
    assert hover.startswith("<b>&lt;b&gt;x&lt;/b&gt;</b><br>layer 0<br>1 − cosine ")
    ticks = FIGURES["drift"].layout.yaxis.ticktext
    assert list(ticks) == ["10<sup>−1</sup>"]


def test_a_picture_shows_the_texts(tmp_path):
    """In Chrome, as plotly draws them: each text is there, nothing is bold or a link."""
    figure = plot_heatmap(scores(TEXTS).query("unlearned == '<b>x</b>'"), title=TEXTS[0])
    written = export({tmp_path / "labels": figure}, formats=["svg"])
    if len(written) == 1:
        pytest.skip("no Chrome on this machine")
    picture = written[1].read_text(encoding="utf-8")
    seen = [
        html.unescape(re.sub(r"<[^>]*>", "", text))
        for text in re.findall(r"<text\b.*?</text>", picture, flags=re.DOTALL)
    ]
    assert set(TEXTS) <= set(seen)
    assert seen.count(TEXTS[0]) == 3  # the title, a facet and a tick label
    assert "font-weight: bold" not in picture
    assert "<a " not in picture
