"""Explorer: it holds the losses' numbers, and shows them where a person clicks.

The table of losses is made so that every number can be worked out by hand. Arabic has two
questions, Japanese one, German one that scores nothing; layer 1 of `attn` was not measured.
"""

import json
import math
import re

import pandas as pd
import pytest

import interp
from interp import Recovery, cli
from tests.helpers.browser import chromium, opened
from tests.helpers.tiny_models import mixed_trajectories, tiny_pair

NAN = math.nan

UNLEARNED = {("ar", "FR"): 2.0, ("ar", "DE"): 4.0, ("ja", "FR"): 1.0, ("de", "FR"): NAN}
RESTORED = {
    # (site, layer): losses in the order of the questions above
    ("coef", 0): (1.0, 3.8, 1.25, NAN),
    ("coef", 1): (0.5, 1.0, 0.125, NAN),
    ("coef", 2): (3.0, 0.0, 0.0625, NAN),
    ("attn", 0): (2.0, 4.0, 1.0, NAN),
    ("attn", 2): (0.25, 0.75, 0.5, NAN),
}
ATTACK = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
PROMPTS = {
    ("ar", "FR"): f"ما عاصمة فرنسا؟ {ATTACK}",
    ("ar", "DE"): "ما عاصمة ألمانيا؟\nالجواب:",
    ("ja", "FR"): "フランスの首都は?",
    ("de", "FR"): "Hauptstadt von Frankreich?",
}
SAID = {("ar", "FR"): "باريس", ("ar", "DE"): "برلين", ("ja", "FR"): "パリ", ("de", "FR"): ""}


def losses(*, unlearned="runs/U", scale=1.0, direction="restore"):
    """`scale` multiplies loss(V, R)."""
    rows = [
        {
            "vanilla": "V",
            "unlearned": unlearned,
            "language": language,
            "query_id": query_id,
            "concept": "capitals",
            "site": site,
            "layer": layer,
            "first_layer": max(0, layer - 1),
            "last_layer": min(2, layer + 1),
            "num_tokens": 0 if language == "de" else 7,
            "loss_unlearned": loss,
            "loss_restored": scale * restored[number],
            "loss_self": 2e-7 * loss,
            "variant": "paper",
            "direction": direction,
            "distance": "logit_mse",
            "positions": "all",
            "reason": "nothing scored: the answer is empty" if language == "de" else "",
        }
        for number, ((language, query_id), loss) in enumerate(UNLEARNED.items())
        for (site, layer), restored in RESTORED.items()
    ]
    return pd.DataFrame(rows)


def answers(*, site="coef", layer=0, restored="<b>" + ATTACK):
    """Return the answers where Arabic was restored."""
    return pd.DataFrame(
        [
            {
                "language": language,
                "query_id": query_id,
                "concept": "capitals",
                "prompt": PROMPTS[language, query_id],
                "vanilla": SAID[language, query_id],
                "unlearned": f"لندن {query_id}",
                "restored": restored,
                "site": site,
                "layer": layer,
            }
            for language, query_id in UNLEARNED
            if language == "ar"
        ]
    )


def data_of(explorer):
    (text,) = re.findall(
        r'<script id="data" type="application/json">(.*?)</script>', explorer.page, re.DOTALL
    )
    assert "<" not in text
    return json.loads(text)


# What the page holds


def test_each_loss_stands_once_and_nan_is_null():
    data = data_of(Recovery(losses=losses()).explore())
    asked = [(question["language"], question["id"]) for question in data["questions"]]
    assert asked == list(UNLEARNED)
    (model,) = data["models"]
    assert model["unlearned"] == [2, 4, 1, None]
    assert model["tokens"] == [7, 7, 7, 0]
    assert model["reasons"] == ["", "", "", "nothing scored: the answer is empty"]
    assert model["restored"]["coef"]["0"] == [1, 3.8, 1.25, None]
    assert {site: list(by_layer) for site, by_layer in model["restored"].items()} == {
        "coef": ["0", "1", "2"],
        "attn": ["0", "2"],
    }


def test_cells_are_the_scores_with_their_reasons():
    (model,) = data_of(Recovery(losses=losses()).explore())["models"]
    assert model["cells"]["coef"]["ar"]["0"]["score"] == 0.2  # 1 - (1 + 3.8) / (2 + 4)
    assert model["cells"]["coef"]["ja"]["0"]["score"] == -0.25
    assert "1" not in model["cells"]["attn"]["ar"]
    undefined = model["cells"]["coef"]["de"]["0"]
    assert (undefined["score"], undefined["low"], undefined["queries"]) == (None, None, 0)
    assert undefined["reason"] == "1 of 1 questions left out: nothing scored: the answer is empty"
    assert model["cells"]["attn"]["ja"]["2"]["reason"] == "one question: no interval"


def test_losses_keep_six_digits():
    table = losses()
    table.loc[0, "loss_restored"] = 0.000123456789
    (model,) = data_of(Recovery(losses=table).explore())["models"]
    assert model["restored"]["coef"]["0"][0] == 0.000123457


def test_prompts_and_answers_stand_with_their_question():
    data = data_of(Recovery(losses=losses()).explore(answers()))
    prompts = list(PROMPTS.values())
    assert [each["prompt"] for each in data["questions"]] == [*prompts[:2], None, None]
    (model,) = data["models"]
    assert model["answers"] == {
        "vanilla": {"0": "باريس", "1": "برلين"},
        "unlearned": {"0": "لندن FR", "1": "لندن DE"},
        "restored": {"coef": {"0": {"0": "<b>" + ATTACK, "1": "<b>" + ATTACK}}},
    }


def test_languages_stand_as_in_the_figure():
    """Heatmaps go site by site: Japanese, which the first site lacks, comes last there."""
    table = losses()
    table = table[(table["language"] != "ja") | (table["site"] == "attn")]
    (model,) = data_of(Recovery(losses=table).explore())["models"]
    assert model["languages"] == model["figure"]["layout"]["yaxis"]["categoryarray"]
    assert model["languages"] == ["ar", "de", "ja"]


def test_models_have_a_figure_each_on_one_colour_scale():
    table = pd.concat([losses(), losses(unlearned="runs/U2", scale=0.5)])
    data = data_of(Recovery(losses=table).explore({"runs/U2": answers()}))
    first, second = data["models"]
    assert (first["name"], second["name"]) == ("runs/U", "runs/U2")
    assert first["restored"]["coef"]["0"][:2] == [1, 3.8]
    assert second["restored"]["coef"]["0"][:2] == [0.5, 1.9]
    assert second["cells"]["coef"]["ar"]["0"]["score"] == 0.6  # 1 - 2.4 / 6
    assert (first["answers"]["restored"], list(second["answers"]["restored"])) == ({}, ["coef"])
    ends = {model["figure"]["layout"]["coloraxis"]["cmax"] for model in data["models"]}
    # The highest score of both: half of 0.0625 at layer 2 of Japanese, 1 - 0.03125.
    assert ends == {0.96875}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (answers().drop(columns="restored"), "lacks the columns restored"),
        (answers().assign(language="fr"), r"given for 'FR' \(fr\), not measured"),
        (answers(layer=7), "site 'coef', layer 7 of 'runs/U', which was not measured"),
        (answers(site="value"), "site 'value', layer 0 of 'runs/U', which was not measured"),
        (
            pd.concat([answers(), answers()]),
            r"duplicate answers to 'FR' \(ar\) for site 'coef', layer 0",
        ),
        ({"other": answers()}, "given for 'other'; measured are runs/U"),
    ],
)
def test_answers_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Recovery(losses=losses()).explore(given)


def test_several_models_need_answers_by_name():
    both = pd.concat([losses(), losses(unlearned="runs/U2")])
    with pytest.raises(ValueError, match=r"dict of tables by the model's name \(runs/U, runs/U2\)"):
        Recovery(losses=both).explore(answers())


def test_a_question_with_two_losses_of_u_is_refused():
    table = losses()
    table.loc[1, "loss_unlearned"] *= 1 + 1e-6
    Recovery(losses=table).explore()  # rounding
    table.loc[1, "loss_unlearned"] = 2.1
    with pytest.raises(ValueError, match=r"question 'FR' \(ar\) has several loss\(V, U\)"):
        Recovery(losses=table).explore()


def test_the_file_is_whole_and_asks_for_nothing(tmp_path):
    path = tmp_path / "new" / "explore.html"
    explorer = Recovery(losses=losses()).explore(title="{{data}} & <b>")
    assert explorer.write(path) == path
    assert [file.name for file in path.parent.iterdir()] == ["explore.html"]
    text = path.read_text(encoding="utf-8")
    assert "<h1>{{data}} &amp; &lt;b&gt;</h1>" in text
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", text.split("<script>")[0])
    assert "default-src 'none'" in text[:400]


def test_a_sweep_and_its_run_directory_are_explored(tmp_path, capsys):
    pair = tiny_pair("llama")
    asked = mixed_trajectories()
    recovery = interp.sweep(
        pair.vanilla, pair.unlearned, asked, sites=["coef"], out=tmp_path, progress=False
    )
    cli.main(["figures", str(tmp_path), "--formats", "html"])
    assert str(tmp_path / "figures" / "explore.html") in capsys.readouterr().out.split()
    page_of_run = (tmp_path / "figures" / "explore.html").read_text(encoding="utf-8")
    data = data_of(recovery.explore(trajectories=asked))
    prompts = {item.query.id: (item.query.prompt, item.answer) for item in asked}
    assert {q["id"]: (q["prompt"], q["vanilla"]) for q in data["questions"]} == prompts
    assert page_of_run == recovery.explore(trajectories=asked).page


# What a person sees


def click_cell(page, inside, facet, row, column):
    """Press the mouse at the middle of a cell, and say where that is.

    A facet has three languages and three layers.
    """
    box = inside.locator(f".draglayer .{facet} .nsewdrag").bounding_box()
    x = box["x"] + box["width"] * (column + 0.5) / 3
    y = box["y"] + box["height"] * (row + 0.5) / 3
    page.mouse.click(x, y)
    return x, y


def outlined(inside):
    """Return the middle of the outline around the chosen cell."""
    box = inside.locator(".shapelayer path").last.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def rows(inside):
    """Each question's prompt, numbers and answers of V, U and R; the first row are the means."""
    return [
        (
            row.locator(".prompt").all_inner_texts(),
            row.locator("td.number").all_inner_texts(),
            row.locator("dd").all_inner_texts(),
        )
        for row in inside.locator("#rows tr").all()
    ]


def text(inside, name):
    return inside.locator(f"#{name}").inner_text()


def both_models():
    table = pd.concat([losses(), losses(unlearned="runs/U2", scale=0.5)])
    by_model = {"runs/U": answers(), "runs/U2": answers(site="attn", layer=2, restored="روما")}
    return Recovery(losses=table).explore(by_model)


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return both_models().write(tmp_path_factory.mktemp("explorer") / "explore.html")


@pytest.fixture
def shown(browser, exported):
    """Open the exported file of two models in a browser; no script of a prompt may run."""
    with opened(browser, exported) as page:
        page.wait_for_selector("html[data-ready]", state="attached")
        yield page
        assert page.evaluate("window.hacked") is None


def test_a_click_shows_the_questions_behind_a_cell(shown):
    clicked = click_cell(shown, shown, "xy", row=0, column=0)
    assert text(shown, "cell") == "Arabic (ar), coef, layers 0–1"
    assert outlined(shown) == pytest.approx(clicked, abs=1)
    # Resamples of two questions: 1 - 1/2 at best, 1 - 3.8/4 at worst.
    assert text(shown, "score") == (
        "KRS 0.200 · bootstrap interval 0.050 to 0.500 · 2 questions · noise floor 2.0e−7"
    )
    assert text(shown, "reason") == ""
    assert rows(shown) == [
        ([], ["3.000", "2.400", "0.200"], []),
        (
            [PROMPTS["ar", "FR"]],
            ["2.000", "1.000", "0.500", "7"],
            ["باريس", "لندن FR", "<b>" + ATTACK],
        ),
        (
            [PROMPTS["ar", "DE"]],
            ["4.000", "3.800", "0.050", "7"],
            ["برلين", "لندن DE", "<b>" + ATTACK],
        ),
    ]
    direction = "each => getComputedStyle(each).direction"
    assert shown.locator(".prompt").first.evaluate(direction) == "rtl"
    assert shown.locator(".meta").first.evaluate(direction) == "ltr"
    click_cell(shown, shown, "x2y2", row=1, column=2)
    assert text(shown, "cell") == "Japanese (ja), attn, layers 1–2"
    assert text(shown, "reason") == "one question: no interval"
    assert rows(shown)[1] == ([], ["1.000", "0.5000", "0.500", "7"], ["not generated"] * 3)
    assert "prompt not given" in text(shown, "rows")


def test_undefined_cells_say_why_and_unmeasured_ones_do_nothing(shown):
    click_cell(shown, shown, "xy", row=2, column=1)
    assert text(shown, "cell") == "German (de), coef, layers 0–2"
    assert text(shown, "score") == "KRS undefined · 0 questions"
    assert text(shown, "reason").startswith("1 of 1 questions left out: nothing scored")
    assert [numbers for _, numbers, _ in rows(shown)] == [
        ["–", "–", "undefined"],
        ["–", "–", "undefined", "0"],
    ]
    click_cell(shown, shown, "x2y2", row=0, column=1)
    assert text(shown, "cell") == "German (de), coef, layers 0–2"


def test_the_highest_score_is_chosen_first_and_arrows_move_it(shown):
    # Japanese, coef, layer 2: 1 - 0.0625.
    assert text(shown, "cell") == "Japanese (ja), coef, layers 1–2"
    shown.locator("#figure").focus()
    for key, cell in [
        ("ArrowUp", "Arabic (ar), coef, layers 1–2"),
        ("ArrowUp", "Arabic (ar), coef, layers 1–2"),
        ("ArrowRight", "Arabic (ar), attn, layers 0–1"),
        ("ArrowRight", "Arabic (ar), attn, layers 1–2"),
        ("ArrowDown", "Japanese (ja), attn, layers 1–2"),
        ("ArrowRight", "Japanese (ja), attn, layers 1–2"),
    ]:
        shown.keyboard.press(key)
        assert text(shown, "cell") == cell
    by_keys = outlined(shown)
    assert click_cell(shown, shown, "x2y2", row=1, column=2) == pytest.approx(by_keys, abs=1)


def test_columns_sort_the_questions(shown):
    click_cell(shown, shown, "xy", row=0, column=2)

    def losses_shown():
        return [numbers[1] for _, numbers, _ in rows(shown)[1:]]

    assert losses_shown() == ["3.000", "0.000"]
    column = shown.get_by_role("columnheader", name="loss(V, R)")
    button = column.get_by_role("button")
    button.click()
    assert (losses_shown(), column.get_attribute("aria-sort")) == (["3.000", "0.000"], "descending")
    button.click()
    assert (losses_shown(), column.get_attribute("aria-sort")) == (["0.000", "3.000"], "ascending")
    # The order stays with the next cell.
    click_cell(shown, shown, "xy", row=0, column=0)
    assert losses_shown() == ["1.000", "3.800"]
    shown.get_by_role("button", name="1 − R / U").click()
    assert [numbers[2] for _, numbers, _ in rows(shown)[1:]] == ["0.500", "0.050"]


def test_another_model_keeps_the_cell(shown):
    click_cell(shown, shown, "x2y2", row=0, column=2)
    # 1 - (0.25 + 0.75) / 6
    assert rows(shown)[0] == ([], ["3.000", "0.5000", "0.833"], [])
    assert rows(shown)[1][2] == ["باريس", "لندن FR", "not generated"]
    shown.locator("#model").select_option("runs/U2")
    assert text(shown, "cell") == "Arabic (ar), attn, layers 1–2"
    # loss(V, R) is halved: 1 - 0.5 / 6, and 1 - 0.125 / 2.
    assert rows(shown)[0] == ([], ["3.000", "0.2500", "0.917"], [])
    assert rows(shown)[1][1:] == (
        ["2.000", "0.1250", "0.938", "7"],
        ["باريس", "لندن FR", "روما"],
    )
    assert "U: runs/U2 (unlearned)" in text(shown, "legend")
    click_cell(shown, shown, "xy", row=1, column=0)
    # Twice 1.25 / 1 was -0.25; half of it is 0.625.
    assert text(shown, "score").startswith("KRS 0.375")


def test_a_notebooks_frame_is_clicked(browser, tmp_path):
    notebook = tmp_path / "notebook.html"
    frame = both_models()._repr_html_()
    notebook.write_text(f"<!doctype html><h3>Out[1]:</h3>{frame}", encoding="utf-8")
    with opened(browser, notebook) as page:
        inside = page.frame_locator("iframe")
        inside.locator("html[data-ready]").wait_for(state="attached")
        click_cell(page, inside, "xy", row=0, column=0)
        assert text(inside, "cell") == "Arabic (ar), coef, layers 0–1"
        assert rows(inside)[2][0] == [PROMPTS["ar", "DE"]]
        page.keyboard.press("ArrowDown")
        assert text(inside, "cell") == "Japanese (ja), coef, layers 0–1"
        assert page.evaluate("[window.hacked, frames[0].hacked]") == [None, None]


def test_parts_of_u_in_v_show_the_share_of_the_effect(browser, tmp_path):
    path = Recovery(losses=losses(direction="corrupt")).explore().write(tmp_path / "e.html")
    with opened(browser, path) as page:
        page.wait_for_selector("html[data-ready]", state="attached")
        click_cell(page, page, "xy", row=0, column=0)
        assert text(page, "score").startswith("effect 0.800")
        assert [numbers[2] for _, numbers, _ in rows(page)] == ["0.800", "0.500", "0.950"]
        assert page.get_by_role("button", name="R / U").inner_text() == "R / U"
        assert "R: V with this part of U put in" in text(page, "legend")


def luminance(colour):
    """Relative luminance of an rgb(…) colour, WCAG 2."""
    channels = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_is_readable_in_light_and_in_dark(shown):
    click_cell(shown, shown, "x2y2", row=1, column=2)
    style = "(name, kind) => getComputedStyle(document.querySelector(name))[kind]"
    for scheme, tick in [("light", "(32"), ("dark", "(230"), ("light", "(32")]:
        shown.emulate_media(color_scheme=scheme)
        # The figure is drawn again once the browser has told the page of the scheme.
        redrawn = f"tick => ({style})('.xtick text', 'fill').includes(tick)"
        shown.wait_for_function(redrawn, arg=tick)
        ground = luminance(shown.evaluate(f"({style})('body', 'backgroundColor')"))
        assert (ground < 0.1) == (scheme == "dark")
        for name, kind in [
            ("h2", "color"),
            (".meta", "color"),
            ("#reason", "color"),
            (".absent", "color"),
            (".xtick text", "fill"),
        ]:
            ink = luminance(shown.evaluate(f"({style})('{name}', '{kind}')"))
            low, high = sorted((ink, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, scheme)  # WCAG 2, AA


def test_the_questions_stand_below_the_figure_or_beside_it(shown):
    for width, place in [(400, "below"), (1000, "below"), (1700, "beside")]:
        shown.set_viewport_size({"width": width, "height": 800})
        # Only the figure scrolls sideways.
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        figure = shown.locator("#figure").bounding_box()
        questions = shown.locator("#questions").bounding_box()
        beside = questions["x"] >= figure["x"] + figure["width"]
        below = questions["y"] >= figure["y"] + figure["height"]
        assert (below, beside) == (place == "below", place == "beside")
