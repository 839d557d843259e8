"""Page of a study: what it holds, what a person sees, and what is refused.

The study is made so that every number can be worked out: the KRS of a method, strength, site,
language and layer is a sum of what each of them adds, and the interval is 0.1 to both sides.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import interp
from experiments.study import Drawing, Finding, Study
from interp import cli
from interp.figures import plot_heatmap
from interp.report import Table, build_report, read_report, write_report
from interp.report.krs_curves import build_curves
from interp.statistics import Estimate, make_undefined
from tests.helpers.browser import chromium, opened
from tests.helpers.tiny_models import mixed_trajectories, tiny_pair

ATTACK = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
LANGUAGES = {"en": 0.3, "de": 0.2, "zh-Hans": 0.1, "ar": 0.0}
SITES = {"coef": 0.1, "attn": 0.0, "coef+attn": 0.3, "value": -0.35}
METHODS = {("gd", 20): 0.1, ("gd", 40): 0.0, ("npo", 20): 0.2, ("npo", 40): 0.1, ("memit", 4): -0.2}
LAYERS = range(10)


def krs_rows() -> pd.DataFrame:
    """Chinese is undefined where memit was measured; value was not measured for npo at 40."""
    rows = []
    for (method, strength), of_method in METHODS.items():
        for language, of_language in LANGUAGES.items():
            for site, of_site in SITES.items():
                if (method, strength, site) == ("npo", 40, "value"):
                    continue
                for layer in LAYERS:
                    lacking = (method, language) == ("memit", "zh-Hans")
                    krs = of_method + of_language + of_site + 0.03 * layer
                    rows.append(
                        {
                            "unlearned": f"models/{method}-{strength}",
                            "language": language,
                            "site": site,
                            "layer": layer,
                            "first_layer": max(0, layer - 2),
                            "last_layer": min(9, layer + 2),
                            "krs": math.nan if lacking else krs,
                            "ci_low": math.nan if lacking else krs - 0.1,
                            "ci_high": math.nan if lacking else krs + 0.1,
                            "num_queries": 0 if lacking else 12,
                            "noise_floor": 2e-7,
                            "reason": "loss(V, U) is 0" if lacking else "",
                            "method": method,
                            "strength": strength,
                        }
                    )
    return pd.DataFrame(rows)


SAID = {"en": "Paris is it.", "de": "Es ist Paris.", "zh-Hans": "是巴黎。", "ar": "إنها باريس"}


def answer_rows() -> pd.DataFrame:
    """Ninety questions in four languages to each of five models."""
    return pd.DataFrame(
        [
            {
                "language": language,
                "method": method,
                "strength": strength,
                "query_id": "NA" if number == 0 else f"Q{number}",
                "prompt": f"{SAID[language]} {number}?" + (ATTACK if number == 1 else ""),
                "vanilla": SAID[language],
                "unlearned": "" if method == "memit" else f"{method} says <b>nothing</b> {number}",
            }
            for method, strength in METHODS
            for language in LANGUAGES
            for number in range(90)
        ]
    )


def findings() -> list[Finding]:
    def of(value, low, high):
        return Estimate(value=value, ci_low=low, ci_high=high, n=12)

    shared = {"source": "Hong, Fig. 1", "quantity": "best of one − best of the other"}
    return [
        Finding(signature="KRS(coef+attn) > KRS(coef)", measure=of(0.2, 0.1, 0.34567), **shared),
        Finding(signature="value is far below", measure=of(-0.2, -0.4, -0.1), **shared),
        Finding(signature="rises", measure=of(0.1, -0.1, 0.3), note="small model", **shared),
        Finding(signature=f"BLEU {ATTACK}", measure=make_undefined("no such data"), **shared),
    ]


def a_study(**changes) -> Study:
    scores = krs_rows()
    one = scores.query("method == 'gd' and strength == 20").drop(columns=["unlearned"])
    bleu = pd.DataFrame(
        {
            "method": [method for method, _ in METHODS for _ in range(4)],
            "language": list(LANGUAGES) * len(METHODS),
            "bleu": np.linspace(0.123456, 99, 20),
            "n": range(100, 120),
            "note": ["", ATTACK] * 10,
        }
    )
    curve = go.Figure(go.Scatter(y=[0.1, 0.5], line_color="rgb(0,0,0)", name=ATTACK))
    curve.update_layout(template="plotly_white", font_color="#202020", title=ATTACK)
    fields = {
        "name": "dissect",
        "title": f"Where knowledge sits {ATTACK}",
        "limits": f"Whether it is known. {ATTACK}",
        "command": "python experiments/dissect/run.py quick --out runs/dissect",
        "config": {"preset": "quick", "methods": ["gd", "npo"], "model": ATTACK, "steps": 40},
        "tables": {
            "krs": Table(rows=scores, caption="Recovery by model."),
            "answers": Table(rows=answer_rows(), caption="What models said."),
            "bleu": Table(rows=bleu, caption=f"Overlap. {ATTACK}"),
            "empty": Table(rows=pd.DataFrame(), caption="Nothing was measured."),
        },
        "figures": {
            "heatmap": Drawing(figure=plot_heatmap(one), caption="Gradient difference, 20 steps."),
            "training": Drawing(figure=curve, caption=f"Cross-entropy. {ATTACK}"),
        },
        "findings": findings(),
    }
    return Study(**(fields | changes))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a study's directory. Read only."""
    out = tmp_path_factory.mktemp("study") / "dissect"
    a_study().write(out, formats=["html"])
    return out


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert "<" not in text
    return json.loads(text)


# What the page holds


def test_curves_are_told_apart_by_what_is_needed():
    found = build_curves(krs_rows())
    assert {each["name"]: each["values"] for each in found["selectors"]} == {
        "language": list(LANGUAGES),
        "site": list(SITES),
        # The model's path says nothing that method and strength do not.
        "method": ["gd", "npo", "memit"],
        "strength": ["20", "40", "4"],
    }
    assert found["selectors"][0]["labels"][1] == "German (de)"
    assert len(found["curves"]) == 5 * 4 * 4 - 4
    (one,) = [each for each in found["curves"] if each["key"] == [1, 2, 1, 0]]
    # npo 0.2, German 0.2, coef+attn 0.3, a layer 0.03.
    assert one["score"] == pytest.approx([0.7 + 0.03 * layer for layer in LAYERS])
    assert one["ci_low"][9] == pytest.approx(0.87)
    assert (one["also"], one["first_layer"][5]) == ("unlearned models/npo-20", 3)
    (lacking,) = [each for each in found["curves"] if each["key"] == [2, 0, 2, 2]]
    assert lacking["score"] == [None] * 10
    assert lacking["reason"][0] == "loss(V, U) is 0"
    # The highest is npo, English, coef+attn, layer 9: 1.07.
    assert (found["scale"]["cmin"], found["scale"]["cmax"]) == (-1, 1)
    assert "above 1" in found["scale"]["colorbar"]["title"]["text"]
    assert found["sites"]["coef"] == "MLP coefficients (coef)"


def test_models_without_a_method_are_told_apart_by_their_names():
    rows = krs_rows().drop(columns=["method", "strength"])
    names = [each["name"] for each in build_curves(rows)["selectors"]]
    assert names == ["language", "site", "unlearned"]


def test_a_fraction_is_a_measurement_unless_it_tells_cells_apart():
    rows = krs_rows().query("method == 'gd'").drop(columns=["unlearned", "method"])
    rows = rows.assign(strength=rows["strength"] / 8, drift=np.linspace(0, 1, len(rows)))
    found = build_curves(rows)
    assert [each["name"] for each in found["selectors"]] == ["language", "site", "strength"]
    assert found["selectors"][2]["values"] == ["2.5", "5"]
    assert len(found["curves"][0]["score"]) == len(LAYERS)


def test_what_is_the_same_everywhere_is_said_once():
    rows = krs_rows().query("method == 'memit' and language == 'en'")
    found = build_curves(rows.drop(columns=["first_layer", "last_layer"]))
    assert found["everywhere"] == "unlearned models/memit-4, method memit, strength 4"
    assert found["curves"][0]["first_layer"] == list(LAYERS)
    undefined_only = build_curves(krs_rows().query("method == 'memit' and language == 'zh-Hans'"))
    assert undefined_only["scale"]["cmax"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="ci_low"), "lacks the columns ci_low"),
        (lambda rows: rows.assign(krs="high"), "has a text in its column 'krs'"),
        (
            lambda rows: pd.concat([rows, rows.tail(1)]),
            r"duplicate cell .* \(language ar, site value, method memit, strength 4, layer 9\)",
        ),
    ],
)
def test_a_table_that_is_none_of_scores_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build_curves(change(krs_rows()))


def test_a_study_is_read_as_it_was_written(written):
    shown = read_report(written)
    assert shown.about["command"] == "python experiments/dissect/run.py quick --out runs/dissect"
    assert shown.about["seed"] == "0"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", shown.about["day"])
    assert "torch" in shown.about["versions"]
    assert shown.settings["methods"] == ["gd", "npo"]
    assert [each["verdict"] for each in shown.findings] == [
        "seen",
        "contradicted",
        "undecided",
        "not measured",
    ]
    # Namibia's code is no lacking value.
    assert set(shown.tables["answers"].rows["query_id"]) >= {"NA", "Q1"}
    assert shown.tables["empty"].rows.empty
    krs = data_of(build_report([shown]))["studies"][0]["tables"][0]
    columns = {column["name"]: column for column in krs["columns"]}
    assert columns["krs"]["values"][:2] == [0.5, 0.53]
    assert columns["language"]["choices"]["de"] == "German (de)"
    # Numbers that tell models apart are chosen from, others are not.
    assert list(columns["strength"]["choices"]) == ["20", "40", "4"]
    assert "choices" not in columns["num_queries"]


def test_the_file_is_whole_and_asks_for_nothing(written, tmp_path):
    out = write_report([written], out=tmp_path / "new" / "page.html")
    assert [file.name for file in out.parent.iterdir()] == ["page.html"]
    text = out.read_text(encoding="utf-8")
    assert f"<h1>Where knowledge sits {ATTACK.split('<')[0]}&lt;/script&gt;" in text
    assert ATTACK not in text
    assert text.count("plotly.js v") == 1
    assert "default-src 'none'" in text[:400]


def damaged(written, tmp_path, damage):
    folder = tmp_path / "study"
    shutil.copytree(written, folder)
    damage(folder)
    return folder


def edit(file, change):
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")


def about(**changes):
    def change(text):
        return json.dumps(json.loads(text) | changes)

    return lambda folder: edit(folder / "study.json", change)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: edit(folder / "study.json", lambda text: text[:-9]), "it is not JSON"),
        (about(seed=math.nan), "it is not JSON"),
        (lambda folder: edit(folder / "study.json", lambda text: "[]"), "an object is expected"),
        (about(title=["a"]), r"'title' is \[\"a\"\]"),
        (about(limits=["a"]), "'limits' is no text"),
        (about(versions={"torch": 2}), "'versions' is"),
        (about(findings=[{"signature": "s"}]), "'source' is lacking"),
        (about(tables={"../../secret": "c"}), "'../../secret' is no file's name"),
        (
            lambda folder: (folder / "tables" / "bleu.csv").unlink(),
            "bleu.csv is missing: run the experiment again",
        ),
        (
            lambda folder: edit(folder / "tables" / "bleu.csv", lambda text: text[:-3]),
            "its end is lacking",
        ),
        (
            lambda folder: edit(
                folder / "tables" / "bleu.csv", lambda text: text + "a,b,1,2,3,4\n"
            ),
            "it is no table",
        ),
        (lambda folder: edit(folder / "tables" / "bleu.csv", lambda text: ""), "it is no table"),
        (
            lambda folder: (folder / "tables" / "bleu.csv").write_bytes(b"\xff\xfe\n"),
            "it is no table",
        ),
        (
            lambda folder: edit(folder / "figures" / "training.json", lambda text: "{}"),
            "'data' is lacking",
        ),
        (
            lambda folder: edit(
                folder / "tables" / "krs.csv", lambda text: text.replace("ci_low", "low")
            ),
            "lacks the columns ci_low",
        ),
    ],
)
def test_damage_is_one_sentence(written, tmp_path, capsys, damage, message):
    folder = damaged(written, tmp_path, damage)
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", str(folder)])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert str(folder) in said
    assert said.count("\n") == 1
    assert not (folder / "report.html").exists()


def test_what_is_no_study_is_refused(tmp_path, capsys):
    for args, message in [
        ([], "at least one study"),
        ([str(tmp_path)], "neither a study nor a run directory"),
        ([str(tmp_path), str(tmp_path)], "needs --out"),
    ]:
        with pytest.raises(SystemExit) as caught:
            cli.main(["report", *args])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_a_run_directory_is_shown_with_its_scores_and_answers(tmp_path, capsys):
    pair, asked = tiny_pair("llama"), mixed_trajectories()
    recovery = interp.sweep(
        pair.vanilla, pair.unlearned, asked, sites=["coef", "attn"], out=tmp_path, progress=False
    )
    cli.main(["report", str(tmp_path)])
    assert capsys.readouterr().out.split() == [str(tmp_path / "report.html")]
    (study,) = data_of((tmp_path / "report.html").read_text(encoding="utf-8"))["studies"]
    scores = recovery.krs()
    shown = [value for curve in study["recovery"]["curves"] for value in curve["score"]]
    assert sorted(shown) == pytest.approx(sorted(scores["krs"]), rel=1e-5)
    said = {column["name"]: column["values"] for column in study["answers"]["columns"]}
    assert said["vanilla"] == [item.answer for item in asked]
    assert said["prompt"] == [item.query.prompt for item in asked]
    assert [each["name"] for each in study["figures"]] == ["heatmap", "lines", "answers"]
    assert study["about"]["vanilla"] == pair.vanilla.name
    assert "no model that never knew was measured" in study["limits"]
    assert json.loads(study["settings"]["sites"]) == ["coef", "attn"]


# What a person sees


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def page_file(written, tmp_path_factory):
    return write_report([written], out=tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def shown(browser, page_file):
    """Open the page in a browser, wide; no script of a name or an answer may run."""
    with opened(browser, page_file) as page:
        page.wait_for_selector("html[data-ready]", state="attached")
        yield page
        assert page.evaluate("window.hacked") is None


def draw(page, name):
    """Scroll to what is drawn only once it is near."""
    page.locator(name).scroll_into_view_if_needed()
    page.wait_for_selector(f"{name}[data-drawn]", state="attached")


def choose(page, section, name, option):
    page.locator(section).get_by_label(name, exact=True).select_option(option)


def traces(page):
    """Return what the curves show: name → its scores, and the name of the thick one."""
    found = page.evaluate(
        "document.querySelector('.curves').data"
        ".filter((trace) => trace.showlegend)"
        ".map(({ name, y, line }) => [name, y, line.width])"
    )
    thick = [name for name, _, width in found if width == 4]
    return {name: scores for name, scores, _ in found}, thick


def status(page, section):
    return page.locator(f"{section} [role=status]").first.inner_text()


def test_selectors_change_curves_and_heatmap(shown):
    draw(shown, ".recovery")
    drawn, thick = traces(shown)
    # gd at 20 in English: 0.1 + 0.3, and what the site adds.
    assert {name: scores[0] for name, scores in drawn.items()} == pytest.approx(
        {
            "MLP coefficients (coef)": 0.5,
            "attention state (attn)": 0.4,
            "coefficients + attention (coef+attn)": 0.7,
            "value vectors (value)": 0.05,
        }
    )
    assert thick == ["MLP coefficients (coef)"]
    choose(shown, ".recovery", "language", "German (de)")
    choose(shown, ".recovery", "site", "attention state (attn)")
    assert status(shown, ".recovery") == (
        "German (de), attention state (attn), gd, 20: highest at layers 7–9, KRS 0.570 · "
        "interval 0.470 to 0.670 · 12 questions · noise floor 2.0e−7"
    )
    choose(shown, ".recovery", "one line per", "language")
    drawn, thick = traces(shown)
    assert drawn["Arabic (ar)"][9] == pytest.approx(0.1 + 0.27)
    assert thick == ["German (de)"]
    cells = shown.evaluate("document.querySelector('.heatmap').data[0].z")
    assert len(cells) == 4
    assert cells[0] == pytest.approx([0.4 + 0.03 * layer for layer in LAYERS])
    row = shown.evaluate("document.querySelector('.heatmap').layout.shapes[0]")
    assert (row["y0"], row["y1"]) == (0.5, 1.5)
    assert shown.locator(".heatmap .hm image, .heatmap .hm path").count() > 0
    assert shown.locator(".curves .scatterlayer path.js-line").count() == 8  # and their bands


def test_models_without_the_chosen_setting_show_another_and_say_so(shown):
    draw(shown, ".recovery")
    choose(shown, ".recovery", "one line per", "method")
    drawn, _ = traces(shown)
    assert set(drawn) == {"gd", "npo", "memit (strength 4)"}
    # memit has no strength 20: choosing it chooses 4.
    choose(shown, ".recovery", "method", "memit")
    assert shown.locator(".recovery").get_by_label("strength").input_value() == "2"
    assert set(traces(shown)[0]) == {"gd (strength 20)", "npo (strength 20)", "memit"}
    choose(shown, ".recovery", "language", "zh-Hans")
    assert "KRS undefined · 0 questions" in status(shown, ".recovery")
    assert "loss(V, U) is 0" in status(shown, ".recovery")
    note = shown.locator(".recovery figcaption").last.inner_text()
    assert note.endswith("Empty: not measured. Grey: undefined.")
    # A site that was not measured for this model is not taken from another.
    choose(shown, ".recovery", "method", "npo")
    choose(shown, ".recovery", "strength", "40")
    choose(shown, ".recovery", "one line per", "site")
    assert len(traces(shown)[0]) == 3
    note = shown.locator(".recovery figcaption").first.inner_text()
    assert note.endswith("Not measured with these choices: value vectors (value).")


def cells_of(page, table):
    rows = page.locator(".table", has=page.get_by_role("heading", name=table, exact=True))
    texts = "rows => rows.map((row) => [...row.children].map((cell) => cell.innerText))"
    return rows, lambda: rows.locator("tbody tr").evaluate_all(texts)


def test_tables_are_filtered_searched_and_sorted(shown):
    table, cells = cells_of(shown, "bleu")
    assert len(cells()) == 20
    assert cells()[0] == ["gd", "English (en)", "0.1235", "100", "–"]
    table.get_by_label("language").select_option("German (de)")
    table.get_by_label("method").select_option("npo")
    assert [row[3] for row in cells()] == ["109", "113"]
    assert table.locator("[role=status]").inner_text() == "2 of 20 rows"
    table.get_by_label("method").select_option("all")
    table.get_by_label("search").fill("MEMIT german")
    assert [row[3] for row in cells()] == ["117"]
    table.get_by_label("search").fill("")
    table.get_by_label("language").select_option("all")
    head = table.get_by_role("columnheader", name="bleu")
    head.get_by_role("button").click()
    assert ([row[3] for row in cells()][:2], head.get_attribute("aria-sort")) == (
        ["119", "118"],
        "descending",
    )
    head.get_by_role("button").click()
    assert ([row[3] for row in cells()][:2], head.get_attribute("aria-sort")) == (
        ["100", "101"],
        "ascending",
    )


def test_a_long_table_is_shown_in_part_and_says_so(shown):
    table, cells = cells_of(shown, "krs")
    assert len(cells()) == 200
    table.get_by_role("button", name="show all 760").click()
    assert table.locator("tbody tr").count() == 760
    assert cells()[-1][:4] == ["models/memit-4", "Arabic (ar)", "value", "9"]
    table.get_by_label("strength").select_option("4")
    assert table.locator("[role=status]").inner_text() == "160 of 760 rows"
    box = table.locator(".scroll")
    assert box.evaluate("each => each.scrollHeight > each.clientHeight")


def test_answers_are_searched_and_chosen(shown):
    answers = shown.locator(".answers")
    assert status(shown, ".answers") == "1800 answers"
    answers.get_by_label("language").select_option("Arabic (ar)")
    answers.get_by_label("method").select_option("npo")
    answers.get_by_label("strength").select_option("40")
    assert status(shown, ".answers") == "90 of 1800 answers"
    answers.get_by_label("search").fill("باريس 17")
    (card,) = answers.locator(".said > div").all()
    assert card.locator(".meta").inner_text() == "Arabic (ar) · method npo · strength 40 · Q17"
    assert card.locator("dd").all_inner_texts() == ["إنها باريس", "npo says <b>nothing</b> 17"]
    direction = "each => getComputedStyle(each).direction"
    assert card.locator(".prompt").evaluate(direction) == "rtl"
    answers.get_by_label("method").select_option("all")
    answers.get_by_label("strength").select_option("4")
    assert answers.locator(".said dd").last.inner_text() == "(empty)"
    answers.get_by_label("search").fill("onerror")
    assert ATTACK in answers.locator(".said .prompt").first.inner_text()


def test_findings_stand_with_verdict_and_interval(shown):
    rows = [row.locator("td").all_inner_texts() for row in shown.locator(".findings tr").all()]
    assert [row[0] for row in rows[1:]] == ["seen", "contradicted", "undecided", "not measured"]
    assert rows[1][3].strip() == "0.2 (0.1 to 0.3457), n = 12"
    assert rows[2][3].strip() == "−0.2 (−0.4 to −0.1), n = 12"
    assert rows[3][2].split("\n") == ["best of one − best of the other", "small model"]
    assert (rows[4][1].split("\n")[0], rows[4][3]) == (f"BLEU {ATTACK}", "–")
    summed = shown.locator(".findings p").inner_text()
    assert summed.startswith("1 seen, 1 contradicted, 1 undecided, 1 not measured.")
    # The bar of 0.1 to 0.34567 ends 55 units right of 0, which is at 60.
    bar = shown.locator(".interval rect").first
    ends = [float(bar.get_attribute(name)) for name in ("x", "width")]
    assert ends == pytest.approx([60 + 5.5 / 0.34567, 55 - 5.5 / 0.34567])


def test_what_is_not_said_stands_first(shown):
    first = shown.locator("article > *").first
    assert first.get_attribute("class") == "limits"
    assert first.inner_text() == f"What this does not say. Whether it is known. {ATTACK}"


def test_what_was_run_is_told(shown):
    about = dict(
        zip(
            shown.locator(".about dt").all_inner_texts(),
            shown.locator(".about dd").all_inner_texts(),
            strict=True,
        )
    )
    assert about["command"] == "python experiments/dissect/run.py quick --out runs/dissect"
    assert about["seed"] == "0"
    shown.get_by_text("settings", exact=True).click()
    settings = shown.locator(".settings dd").all_inner_texts()
    assert settings == ["quick", '["gd", "npo"]', ATTACK, "40"]


def test_every_figure_is_drawn_with_its_caption(shown):
    captions = []
    figures = shown.locator("figure:has(> .drawing[role=group])").all()
    for figure in figures:
        place = figure.locator(".drawing")
        place.scroll_into_view_if_needed()
        shown.wait_for_function("place => 'drawn' in place.dataset", arg=place.element_handle())
        assert place.locator(".plot-container").count() == 1
        captions.append(figure.locator("figcaption").inner_text())
    assert captions == ["Gradient difference, 20 steps.", f"Cross-entropy. {ATTACK}"]
    assert shown.locator("figure .heatmaplayer .hm").count() >= 4
    # plotly's text is no HTML either.
    assert shown.locator("img[src=x]").count() == 0


def luminance(colour):
    """Relative luminance of an rgb(…) colour, WCAG 2."""
    channels = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_and_lines_are_readable_in_light_and_in_dark(shown):
    shown.locator(".drawing").last.scroll_into_view_if_needed()
    draw(shown, ".recovery")
    style = "(name, kind) => getComputedStyle(document.querySelector(name))[kind]"
    inks = [
        (".part", "color"),
        (".meta", "color"),
        ("figcaption", "color"),
        (".verdict.seen", "color"),
        (".verdict.contradicted", "color"),
        (".choices label", "color"),
        ("a", "color"),
        (".curves .xtick text", "fill"),
        (".drawing[role=group] .xtick text", "fill"),
        # A black line.
        (".drawing[role=group] .js-line", "stroke"),
    ]
    for scheme, tick in [("light", "(32"), ("dark", "(230"), ("light", "(32")]:
        shown.emulate_media(color_scheme=scheme)
        # Figures are drawn again once the browser has told the page of the scheme.
        for name in (".curves", ".drawing[role=group]"):
            redrawn = f"tick => ({style})('{name} .xtick text', 'fill').includes(tick)"
            shown.wait_for_function(redrawn, arg=tick)
        ground = luminance(shown.evaluate(f"({style})('body', 'backgroundColor')"))
        assert (ground < 0.1) == (scheme == "dark")
        for name, kind in inks:
            ink = luminance(shown.evaluate(f"({style})('{name}', '{kind}')"))
            low, high = sorted((ink, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, scheme)  # WCAG 2, AA


def test_it_fits_a_telephone_and_a_wide_screen(shown):
    draw(shown, ".recovery")
    for width, place in [(400, "below"), (1000, "below"), (1700, "beside")]:
        shown.set_viewport_size({"width": width, "height": 800})
        # Only tables and figures scroll sideways.
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        curves_box = shown.locator(".curves").bounding_box()
        heatmap_box = shown.locator(".recovery .heatmap").bounding_box()
        beside = heatmap_box["x"] >= curves_box["x"] + curves_box["width"]
        assert beside == (place == "beside")
        for plot in (".curves", ".recovery .heatmap"):
            drawn = shown.locator(f"{plot} .main-svg").first.bounding_box()
            assert drawn["width"] == shown.locator(plot).bounding_box()["width"]


def test_everything_is_reached_and_changed_with_the_keyboard(shown):
    draw(shown, ".recovery")
    shown.locator(".recovery").get_by_label("language").focus()
    shown.keyboard.press("ArrowDown")
    assert status(shown, ".recovery").startswith("German (de), ")
    shown.keyboard.press("Tab")
    shown.keyboard.press("ArrowDown")
    assert "attention state (attn)" in status(shown, ".recovery")
    unnamed = shown.evaluate(
        "[...document.querySelectorAll('select, input')].filter((each) => !each.labels.length)"
        ".length"
    )
    assert unnamed == 0
    levels = [int(each[1]) for each in shown.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((each) => each.tagName)"
    )]  # fmt: skip
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_a_printed_page_has_every_figure_in_dark_ink(browser, page_file, tmp_path):
    with opened(browser, page_file, width=400, height=300) as page:
        page.emulate_media(color_scheme="dark")
        page.wait_for_selector("html[data-ready]", state="attached")
        assert page.locator(".drawing[data-drawn]").count() == 0
        page.evaluate(
            "addEventListener('beforeprint', () => { window.inks = "
            "[...document.querySelectorAll('.drawing')].map((place) => "
            "[...place.querySelectorAll('.xtick text')].map((each) => each.style.fill)); })"
        )
        page.pdf(path=tmp_path / "page.pdf")
        inks = [set(each) for each in page.evaluate("window.inks")]
        # Curves, heatmap, and the two figures, none of which had been near the window.
        assert inks == [{"rgb(32, 32, 32)"}] * 4
        page.wait_for_function("document.querySelector('.xtick text').style.fill.includes('230')")


def test_several_studies_stand_on_one_page(browser, written, tmp_path, capsys):
    other = tmp_path / "other"
    plain = a_study(name="plain", title="Nothing yet", tables={}, figures={}, findings=[])
    plain.write(other, formats=["html"])
    out = tmp_path / "both.html"
    cli.main(["report", str(written), str(other), "--out", str(out)])
    assert capsys.readouterr().out.split() == [str(out)]
    with opened(browser, out) as page:
        page.wait_for_selector("html[data-ready]", state="attached")
        assert page.locator("h1").inner_text() == "2 studies"
        titles = page.locator("h2").all_inner_texts()
        assert titles == [f"Where knowledge sits {ATTACK}", "Nothing yet"]
        assert page.locator("nav a").all_inner_texts() == titles
        page.locator("nav a").last.click()
        assert page.url.endswith("#section-1-0")
