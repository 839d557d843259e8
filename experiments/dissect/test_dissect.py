"""The dissection: its formulas by hand, its concepts, and the whole of it on a tiny model."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import interp
from experiments.dissect import data, figures, findings, tables
from experiments.dissect import run as script
from experiments.dissect.config import (
    EDITED,
    PRESETS,
    TRAINED,
    Config,
    is_trained,
    scale_settings,
    spread_over_steps,
)
from experiments.dissect.data import EDIT, QUESTION, STATEMENT
from experiments.dissect.signatures import SIGNATURES
from experiments.study import Study
from interp.behaviour import Answer
from interp.data import read_concepts
from interp.unlearning import MemitConfig, TrainingConfig, build_edits
from tests.helpers.tiny_models import save, tiny

# Recovery


def losses(
    curves: dict[tuple[str, str], list[float]],
    *,
    language: str = "en",
    unlearned: dict[str, list[float]] | None = None,
) -> pd.DataFrame:
    """Losses whose KRS, of each of two questions, are these curves by (method, site)."""
    rows = []
    for (method, site), curve in curves.items():
        for number, before in enumerate((unlearned or {}).get(method, [1.0, 1.0])):
            for layer, krs in enumerate(curve):
                rows.append(
                    {
                        "vanilla": "V",
                        "unlearned": f"out/{method}",
                        "method": method,
                        "language": language,
                        "concept": "c",
                        "query_id": f"q{number}",
                        "site": site,
                        "layer": layer,
                        "first_layer": layer,
                        "last_layer": layer,
                        "loss_unlearned": before,
                        "loss_restored": before * (1 - krs),
                        "loss_self": 0.0,
                        "variant": "paper",
                        "direction": "restore",
                        "distance": "logit_mse",
                        "positions": "all",
                        "reason": "",
                    }
                )
    return pd.DataFrame(rows)


def test_methods_count_alike_however_much_they_broke():
    """The ratio of means would give (0.2 · 100 + 0.6 · 1) / 101 = 0.204."""
    table = losses(
        {("ga", "attn"): [0.2], ("npo", "attn"): [0.6], ("memit_empty", "attn"): [0.0]},
        unlearned={"ga": [60.0, 140.0], "npo": [0.5, 1.5], "memit_empty": [1.0, 1.0]},
    )
    found = tables.average_krs(table)
    assert found["krs"].tolist() == pytest.approx([0.4])
    assert found["num_queries"].tolist() == [2]
    each = tables.score_methods(table).set_index("method")["krs"]
    assert each.to_dict() == pytest.approx({"ga": 0.2, "npo": 0.6, "memit_empty": 0.0})


def test_within_a_method_it_is_the_ratio_of_means():
    table = losses({("ga", "attn"): [0.0]}, unlearned={"ga": [1.0, 3.0]})
    table["loss_restored"] = [0.5, 0.5]
    # 1 − (0.5 + 0.5) / (1 + 3)
    assert tables.average_krs(table)["krs"].tolist() == pytest.approx([0.75])


def test_a_mean_needs_a_method_that_trains():
    with pytest.raises(ValueError, match="a method that trains"):
        tables.average_krs(losses({("memit_empty", "attn"): [0.2]}))


AS_PUBLISHED = {
    "value": [0.0] * 6,
    "attn": [0.0, 0.1, 0.2, 0.4, 0.5, 0.6],
    "coef": [0.0, 0.1, 0.2, 0.3, 0.5, 0.85],
    "coef+attn": [0.1, 0.2, 0.4, 0.7, 0.9, 0.98],
    "key": [0.1] * 6,
    "attn_weights": [0.2] * 6,
}


def found_in(curves: dict[str, list[float]]) -> dict[str, tuple[str, float]]:
    table = losses({("gd", site): curve for site, curve in curves.items()})
    return {
        item.signature: (item.verdict, item.measure.value)
        for item in findings.judge_curves(table, "en")
    }


def test_the_papers_curves_show_all_that_it_says():
    found = found_in(AS_PUBLISHED)
    assert len(found) == len(SIGNATURES)
    assert {verdict for verdict, _ in found.values()} == {"seen"}
    by_hand = {
        "KRS(value) < KRS(attn)": 0.3,
        "KRS(coef) < KRS(coef+attn)": 3.28 / 6 - 1.95 / 6,
        "KRS(value) is far below KRS(attn), under a tenth of it": 0.03,
        "KRS(value) < 0.001 at every layer": 0.001,
        "KRS(attn) rises with depth": 0.55 - 0.05,
        "KRS(coef) rises with depth": (0.5 + 0.85) / 2 - 0.05,
        # Layer 15 of 32 is layer 3 of 6.
        "KRS(attn) ≥ 0.3 from layer 15 of 32 up": 0.1,
        "KRS(coef) ≥ 0.8 in the last three layers": 0.05,
        "KRS(coef+attn) > 0.9 at its best window": 0.08,
        "KRS(value) < KRS(key)": 0.1,
        "KRS(value) < KRS(attn_weights)": 0.2,
    }
    assert {name: found[name][1] for name in by_hand} == pytest.approx(by_hand)


def test_the_opposite_curves_contradict_it():
    upside_down = {site: [0.8 - krs for krs in curve] for site, curve in AS_PUBLISHED.items()}
    verdicts = {name: verdict for name, (verdict, _) in found_in(upside_down).items()}
    assert set(verdicts.values()) == {"contradicted"}


def test_a_site_that_was_not_swept_is_not_measured():
    verdicts = found_in({"attn": AS_PUBLISHED["attn"]})
    assert verdicts["KRS(attn) rises with depth"][0] == "seen"
    assert verdicts["KRS(value) < KRS(attn)"][0] == "not measured"


def test_the_language_in_which_it_is_least_so_decides():
    english = losses({("gd", "value"): [0.1, 0.1], ("gd", "attn"): [0.5, 0.7]})
    german = losses({("gd", "value"): [0.1, 0.3], ("gd", "attn"): [0.0, 0.2]}, language="de")
    edited = losses({("memit_empty", "value"): [0.2, 1.0]})
    value, order, control = findings.compare_languages(pd.concat([english, german, edited]))
    assert value.measure.value == pytest.approx(-0.1)
    assert value.verdict == "contradicted"
    assert "of en, de" in value.note
    assert order.verdict == "not measured"
    # Trained: layer 1, (0.1 + 0.3) / 2, the mean of both languages' equal losses.
    assert control.measure.value == pytest.approx(1.0 - 0.2)
    both = pd.concat([english, german])
    table = tables.tabulate_findings(
        {code: findings.judge_curves(both, code) for code in ("en", "de")}
    )
    rows = table.set_index(["language", "signature"])
    assert rows.loc[("en", "KRS(value) < KRS(attn)"), "value"] == pytest.approx(0.5)
    assert rows.loc[("de", "KRS(value) < KRS(attn)"), "verdict"] == "contradicted"


# Behaviour


def answers(bleu: dict[tuple[str, float, str], list[float]], concept: str = "c") -> pd.DataFrame:
    """Sentence BLEU by (method, strength, kind of question), a value per question."""
    return pd.DataFrame(
        [
            {
                "concept": concept,
                "method": method,
                "strength": strength,
                "questions": questions,
                "language": "en",
                "query_id": f"{questions}{number}",
                "bleu": value,
            }
            for (method, strength, questions), values in bleu.items()
            for number, value in enumerate(values)
        ]
    )


FALLING = answers(
    {
        ("ga", 0.5, "target"): [90, 90],
        ("ga", 0.5, "unrelated"): [80, 100],
        ("ga", 1.0, "target"): [60, 60],
        ("ga", 1.0, "unrelated"): [70, 90],
        ("ga", 2.0, "target"): [0, 0],
        ("ga", 2.0, "unrelated"): [50, 70],
    }
)


def test_what_falls_together_is_correlated():
    found = findings.correlate_losses(FALLING)
    # Target 90, 60, 0; unrelated 90, 80, 60: a line, whichever questions are drawn.
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((1, 1, 1))
    assert found.n == 4
    both = pd.concat([FALLING, FALLING.assign(concept="other", bleu=100 - FALLING["bleu"])])
    rising = both["concept"].eq("other") & both["questions"].eq("target")
    both.loc[rising, "bleu"] = 100 - both.loc[rising, "bleu"]
    assert findings.correlate_losses(both).value == pytest.approx(0)


def test_the_price_is_what_is_lost_elsewhere_per_loss_on_targets():
    edited = answers(
        {
            ("memit_empty", 1.0, "target"): [0, 20],
            ("memit_empty", 1.0, "unrelated"): [100, 91],
        }
    )
    found = findings.compare_side_effects(pd.concat([FALLING, edited]))
    # Trained: (10 + 20 + 40) / (10 + 40 + 100); MEMIT: 4.5 / 90.
    assert found.value == pytest.approx(70 / 150 - 0.05)
    # The first unrelated question alone: 100 / 150 − 0; the second alone: 40 / 150 − 9 / 90.
    assert found.ci_low < 40 / 150 - 9 / 100 + 1e-9
    assert found.ci_high > 100 / 150 - 1e-9
    together, choosier = findings.judge_behaviour(pd.concat([FALLING, edited]), "en", note="small")
    assert (together.verdict, choosier.verdict) == ("seen", "seen")
    assert choosier.note == "small"


def test_too_few_models_have_no_correlation():
    few = FALLING[FALLING["strength"] < 2]
    together, choosier = findings.judge_behaviour(few, "en")
    assert (together.verdict, choosier.verdict) == ("not measured", "not measured")
    german = FALLING.assign(language="de")
    verdicts = [item.verdict for item in findings.judge_behaviour(german, "de")]
    assert verdicts == ["seen", "not measured"]


def test_a_question_asked_of_two_models_counts_once():
    second = FALLING.assign(concept="d", bleu=FALLING["bleu"] / 2)
    found = tables.average_overlap(pd.concat([FALLING, second]))
    row = found[(found["strength"] == 0.5) & (found["questions"] == "unrelated")].iloc[0]
    assert row["n"] == 2
    # (80 + 40) / 2 and (100 + 50) / 2
    assert (row["bleu"], row["ci_low"], row["ci_high"]) == pytest.approx((67.5, 60, 75))


def test_a_method_is_drawn_from_v_to_its_strongest():
    figure = figures.plot_tradeoff(tables.average_overlap(FALLING.iloc[::-1]))
    diagonal, path = figure.data
    assert list(path.x) == pytest.approx([100, 90, 80, 60])
    assert list(path.y) == pytest.approx([100, 90, 60, 0])
    assert list(path.error_x.array) == pytest.approx([0, 10, 10, 10])
    assert list(diagonal.x) == [0, 100]
    assert path.name == "ga"


# Drift


def moved(**groups: tuple[float, float]) -> pd.DataFrame:
    """Cosine and relative change by group, of one trained and one edited model."""
    rows = [
        {
            "method": method,
            "concept": "c",
            "layer": -1 if group in ("unembed", "final_norm") else 0,
            "group": group,
            "cosine": cosine if method == "gd" else 0.5,
            "relative_change": change,
            "effective_rank": 1.0,
            "num_parameters": 4,
            "reason": "",
        }
        for method in ("gd", "memit_empty")
        for group, (cosine, change) in groups.items()
    ]
    return pd.DataFrame(rows)


def test_norms_that_hardly_move_are_seen():
    table = moved(unembed=(1.0, 0.0), norms=(0.9999, 0.01), final_norm=(0.9995, 0.02))
    unembedding, norms = findings.judge_drift(table)
    assert unembedding.verdict == "not measured"
    assert "not among the weights that were trained" in unembedding.measure.reason
    assert norms.measure.value == pytest.approx(0.0005)
    assert (norms.verdict, norms.measure.n) == ("seen", 1)
    table = moved(unembed=(0.99, 0.1), norms=(1.0, 0.0))
    verdicts = [item.verdict for item in findings.judge_drift(table)]
    assert verdicts == ["contradicted", "not measured"]


def test_drift_is_drawn_as_the_mean_over_models():
    table = moved(norms=(0.99, 0.02), value=(0.9, 0.04))
    more = table.assign(relative_change=table["relative_change"] * 3)
    figure = figures.plot_mean_drift(pd.concat([table, more]), trained=True)
    drawn = [trace for trace in figure.data if trace.legendgroup == "value"]
    assert 0.08 in [pytest.approx(trace.y[0]) for trace in drawn]
    with pytest.raises(ValueError, match="empty"):
        figures.plot_mean_drift(table[table["method"] == "gd"], trained=False)


# Concepts


def test_a_group_is_a_relation_on_a_continent():
    ids = [fact.id for fact in data.select_country_group("capital/Asia", ["zh"])]
    assert ids[0] == "capital-JP"
    assert "capital-FR" not in ids
    for name in ("capital/Atlantis", "hue/Asia", "continent/Asia", "capital"):
        with pytest.raises(ValueError, match="no group"):
            data.select_country_group(name, ["en"])


def test_what_is_known_is_answered_rightly(monkeypatch):
    def said(_model, queries, **_settings):
        return [Answer(query=query, text=" Paris\nQuestion: Rome") for query in queries]

    monkeypatch.setattr(data, "generate", said)
    facts = data.select_country_group("capital/Europe", ["en"])[:5]
    assert len(facts) == 5
    assert data.find_known_facts(tiny(), facts, num_tokens=8) == {"capital-FR"}


@pytest.fixture
def built_in(monkeypatch):
    """Concepts of a model that knows what has an even number of letters."""

    def known(_vanilla, facts, **_settings):
        return {fact.id for fact in facts if len(fact.object["en"]) % 2 == 0}

    monkeypatch.setattr(data, "find_known_facts", known)

    def make(**changes):
        settings = {"languages": ["en", "de"], "num_questions": 4, "num_unrelated": 8}
        names = ["capital/Europe", "capital/Asia"]
        return data.build_fact_concepts(tiny(), names, **(settings | changes))

    return make


def test_what_is_asked_about_other_things_is_not_taught(built_in):
    europe, asia = built_in()
    assert [query.id for query in europe.targets[:4]] == [query.id for query in europe.targets[4:]]
    assert {query.language for query in europe.targets} == {"en", "de"}
    assert all(len(str(q.answer)) % 2 == 0 for q in europe.targets if q.language == "en")
    assert europe.unrelated == asia.unrelated
    unrelated = {query.id for query in europe.unrelated}
    assert len(unrelated) == 8
    assert len({name.rpartition("-")[0] for name in unrelated}) == 4
    own = {fact.id for fact in data.select_country_group("capital/Europe", ["en"])}
    for form in (STATEMENT, QUESTION):
        retained = {text.id for text in europe.retain[form]}
        assert len(europe.retain[form]) == 200
        assert not retained & (own | unrelated)
        assert {text.id for text in europe.forget[form]} == {q.id for q in europe.targets}
    assert europe.num_candidates > 20


def test_texts_of_a_concept_say_the_answer_and_memit_can_edit_them(built_in):
    europe = built_in()[0]
    answers = {q.id: q.answer for q in europe.targets if q.language == "en"}
    for form in (STATEMENT, QUESTION):
        assert all(str(answers[text.id]) in text.answer for text in europe.forget[form])
    edits = build_edits(europe.forget[EDIT])
    assert [edit.id for edit in edits] == list(answers)
    assert all(edit.answer == f" {answers[edit.id]}" for edit in edits)
    assert all(len(edit.prompts) >= 2 for edit in edits)


def test_too_little_knowledge_is_refused(built_in, monkeypatch):
    with pytest.raises(ValueError, match="unrelated questions are wanted"):
        built_in(num_unrelated=400)
    names = {"capital-JP"}
    monkeypatch.setattr(data, "find_known_facts", lambda *_a, **_k: names)
    with pytest.raises(ValueError, match=r"knows 0 of .* facts of 'capital/Europe'"):
        built_in(num_unrelated=0)


@pytest.fixture(scope="module")
def concept_file(tmp_path_factory) -> str:
    """Two concepts in the authors' format, in the words of the tiny tokenizer."""

    def record(number: int) -> dict:
        name, base = f"w{20 + number}", 5 * number
        words = [f"w{4 + base + place}" for place in range(8)]
        return {
            "id": number,
            "Concept": name,
            "Layer": 1,
            "Dim": 3,
            "wikipedia_content": f"{' '.join(words)} .\nHeading\n{' '.join(words[::-1])} .",
            "QA": [f"{word} {name} w44 ?" for word in words[:4]],
            "text_completion": [
                {"First_half": f"{name} {words[0]} ", "Second_half": " ".join(words[1:3])},
                {"First_half": words[2], "Second_half": words[3]},
            ],
            "unrelated_QA": [f"{word} w45 w{40 + number} ?" for word in words],
        }

    path = tmp_path_factory.mktemp("concepts") / "concepts.json"
    path.write_text(json.dumps([record(1), record(2)]))
    return str(path)


def test_concepts_of_a_file(concept_file, tmp_path):
    first, second = data.read_file_concepts(
        concept_file, num_concepts=5, num_questions=3, num_unrelated=2
    )
    assert [text.answer for text in first.forget[STATEMENT]] == [
        "w9 w10 w11 w12 w13 w14 w15 w16 .",
        "w16 w15 w14 w13 w12 w11 w10 w9 .",
    ]
    assert first.retain[QUESTION] == second.forget[QUESTION]
    (edit,) = build_edits(first.forget[EDIT])
    assert (edit.subject, edit.prompts, edit.answer) == ("w21", ("w21 w9",), " w10 w11")
    assert edit.subject_spans == ((0, 3),)
    assert [query.id for query in first.targets] == [f"concept-1:{n}" for n in (1, 2, 3)]
    assert first.targets[0].prompt == "Question: w9 w21 w44 ?\nAnswer:"
    assert len(first.unrelated) == 2
    (alone,) = list(read_concepts(concept_file))[:1]
    assert alone.concept == "w21"
    lone = tmp_path / "one.json"
    lone.write_text(json.dumps(json.loads(Path(concept_file).read_text())[:1]))
    with pytest.raises(ValueError, match="one concept"):
        data.read_file_concepts(str(lone), num_concepts=1, num_questions=1, num_unrelated=1)


# The script


def test_strength_is_what_the_settings_name():
    trained, edited = TrainingConfig(num_steps=5, learning_rate=1e-5), MemitConfig()
    assert scale_settings(trained, 2.0).learning_rate == pytest.approx(2e-5)
    assert scale_settings(edited, 2.0).strength == 2
    assert scale_settings(edited, 2.0, edited_by="regularisation").regularisation == 7500
    assert scale_settings(trained, 0.5, trained_by="num_steps").num_steps == 2
    assert scale_settings(trained, 0.01, trained_by="num_steps").num_steps == 1
    assert scale_settings(trained, 1.0, seed=3).seed == 3
    assert scale_settings(edited, 0.5, edited_by="clamp").clamp == 2


@pytest.mark.parametrize("num_steps", [5, 20])
def test_all_methods_go_equally_far(num_steps):
    for name in TRAINED:
        config = spread_over_steps(name, num_steps)
        assert config.num_steps * config.learning_rate == pytest.approx(1e-4)
        assert config.objective == name


@pytest.mark.parametrize("preset", ["quick", "full", "paper"])
def test_a_study_of_any_preset_can_be_written(preset, tmp_path):
    """Bounds that stop nothing are infinite, which JSON is not."""
    settings = asdict(PRESETS[preset])
    Study(name="dissect", title="t", command="c", config=settings).write(tmp_path)
    about = json.loads((tmp_path / "study.json").read_text(), parse_constant=pytest.fail)
    assert about["config"]["window"] == 5
    if preset != "paper":
        assert about["config"]["methods"]["gd"]["stops"][0]["below"] == "-inf"


def test_presets_are_whole():
    for config in PRESETS.values():
        assert config.swept in config.strengths
        assert any(map(is_trained, config.methods))
    for preset in ("full", "paper"):
        assert len(PRESETS[preset].strengths) == 3
        assert list(PRESETS[preset].methods) == [*TRAINED, *EDITED]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"swept": 3.0}, "swept is 3, which is not among the strengths"),
        ({"methods": {"memit_empty": MemitConfig()}}, "methods has none that trains; those that"),
    ],
)
def test_settings_that_give_no_study_are_refused_at_once(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        script.run(replace(PRESETS["quick"], **changes), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory, concept_file):
    """A tiny dissection: killed once, taken up, finished."""
    base = tmp_path_factory.mktemp("dissect")
    patch = pytest.MonkeyPatch()
    patch.setenv("INTERP_CACHE", str(base / "cache"))
    training = TrainingConfig(num_steps=3, learning_rate=1e-3, batch_size=2, autocast=False)
    config = Config(
        model=save(tiny(), base / "V"),
        file=concept_file,
        num_questions=4,
        num_unrelated=5,
        languages=("en",),
        methods={
            "gd": training,
            "npo": replace(training, objective="npo"),
            "memit_empty": MemitConfig(
                objective="empty",
                target=" w3",
                essence="{subject} w13",
                layers=(1, 2, 3),
                regularisation=0.1,
                num_steps=5,
                moment_tokens=300,
                moment_languages=("en",),
            ),
        },
        strengths=(1.0, 2.0),
        window=3,
        num_tokens=4,
    )
    made: list[str] = []
    unlearn = interp.unlearn

    def counted(*args, **settings):
        made.append(Path(settings["out"]).name)
        return unlearn(*args, **settings)

    patch.setattr(interp, "unlearn", counted)
    with pytest.MonkeyPatch.context() as killed:
        calls = iter(range(3))

        def dies(*args, **settings):
            if next(calls) == 2:
                raise KeyboardInterrupt
            return interp_drift(*args, **settings)

        interp_drift = script.measure_drift
        killed.setattr(script, "measure_drift", dies)
        with pytest.raises(KeyboardInterrupt):
            script.run(config, base / "out", progress=False)
    before = list(made)
    made.clear()
    study = script.run(config, base / "out", progress=False)
    yield config, base / "out", study, before, made
    patch.undo()


def test_a_killed_run_goes_on_where_it_was(run):
    _, out, _, before, made = run
    # The third model that is compared is MEMIT's: all before it were done.
    assert before == ["w21-gd-1", "w21-gd-2", "w21-npo-1", "w21-npo-2", "w21-memit_empty-1"]
    assert made == ["w21-memit_empty-1", "w21-memit_empty-2"] + [
        f"w22-{method}-{strength}" for method in ("gd", "npo", "memit_empty") for strength in (1, 2)
    ]
    assert len(list((out / "measured").iterdir())) == 12
    assert not list((out / "models").glob("*/model.safetensors"))


def test_a_second_run_makes_nothing_and_says_the_same(run):
    config, out, study, _, made = run
    num_made = len(made)
    again = script.run(config, out, progress=False)
    assert len(made) == num_made
    for name, table in study.tables.items():
        pd.testing.assert_frame_equal(again.tables[name].rows, table.rows)
    pd.testing.assert_frame_equal(again.findings_table(), study.findings_table())


def test_the_study_has_every_number(run):
    config, _, study, *_ = run
    rows = {name: table.rows for name, table in study.tables.items()}
    krs = rows["krs"]
    assert len(krs) == 3 * len(config.sites) * 5
    assert krs["num_queries"].eq(8).all()
    # MEMIT changed layers 1 to 3 and nothing else: the window around 2 brings all back.
    edited = krs[(krs["method"] == "memit_empty") & (krs["site"] == "value")]
    assert edited.set_index("layer").loc[2, "krs"] == pytest.approx(1.0, abs=1e-5)
    means = krs[krs["method"] != "memit_empty"].groupby(["site", "layer"])["krs"].mean()
    drawn = rows["krs-mean"].set_index(["site", "layer"])["krs"]
    np.testing.assert_allclose(drawn, means.loc[drawn.index], atol=1e-9)
    assert len(rows["answers"]) == 12 * 9
    assert set(rows["answers"]["questions"]) == {"target", "unrelated"}
    asked = rows["answers"].set_index(["concept", "query_id"])["prompt"]
    assert set(asked.loc[("w21", "concept-1:2")]) == {"Question: w10 w21 w44 ?\nAnswer:"}
    assert len(rows["models"]) == 12
    assert set(rows["models"].query("method == 'gd'")["num_steps"]) == {3}
    assert set(rows["measures"]["metric"]) == {"bleu", "chrf"}
    assert set(rows["drift"]["strength"]) == {1.0}
    assert rows["concepts"]["num_questions"].tolist() == [4, 4]
    found = study.findings_table().set_index("signature")
    assert found.loc["What MEMIT wrote into value vectors is found there", "verdict"] != (
        "not measured"
    )
    assert found.loc["Training hardly moves the unembedding", "verdict"] == "not measured"
    assert not math.isnan(found.loc["KRS(value) < KRS(attn)", "value"])
    assert found.loc["KRS(value) < KRS(attn)", "n"] == 8


def test_the_study_is_written(run, tmp_path):
    study = run[2]
    names = {path.name for path in study.write(tmp_path, formats=["html"])}
    assert names == {
        "curves.html",
        "curves-methods.html",
        "heatmap.html",
        "target-unrelated.html",
        "drift-trained.html",
        "drift-memit.html",
    }
    about = json.loads((tmp_path / "study.json").read_text())
    assert about["config"]["methods"]["gd"]["learning_rate"] == 1e-3


def test_the_swept_strength_must_be_one(run, tmp_path):
    with pytest.raises(ValueError, match="swept is 3"):
        script.run(replace(run[0], swept=3.0), tmp_path)
