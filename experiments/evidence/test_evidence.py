"""Unlearned or never known: statistics by hand, and tables and figures of tiny models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments.evidence.config import CLEAN, UNTOUCHED, Config
from experiments.evidence.data import make_material
from experiments.evidence.figures import make_figures
from experiments.evidence.findings import (
    ComparedPair,
    average_pairs,
    compare_answers,
    compare_krs,
    compare_readout,
    describe_range,
    make_findings,
)
from experiments.evidence.run import select_questions, sweep_models
from experiments.evidence.tables import make_tables
from interp import LanguageModel, Query
from tests.helpers.tiny_models import tiny

ONE = np.ones(2)


def values(restored, unlearned, answered) -> dict[str, np.ndarray]:
    """Of two facts and two layers; loss(V, U) is the same at both."""
    return {
        "loss_restored": np.array(restored, float),
        "loss_unlearned": np.array([[each] * 2 for each in unlearned], float),
        "answered_restored": np.array(answered, float),
    }


# KRS of U: 1 − (1 + 1)/8 = 0.75 and 1 − (3 + 3)/8 = 0.25; of N: 1 − (2 + 0)/4 = 0.5 and 1.
PAIR = ComparedPair(
    own=values([[1, 3], [1, 3]], [4, 4], [[1, 0], [0, 0]]),
    never=values([[2, 0], [0, 0]], [2, 2], [[0, 0], [0, 0]]),
    layers=[0, 1],
)


def test_scores_are_compared_each_at_its_best_window():
    assert compare_krs(PAIR, ONE) == pytest.approx(0.75 - 1)
    assert compare_answers(PAIR, ONE) == pytest.approx(0.5 - 0)
    # The second fact twice: no answer comes back.
    assert compare_answers(PAIR, np.array([0.0, 2.0])) == 0


def test_facts_of_which_nothing_is_scored_are_left_out():
    first = ComparedPair(PAIR.own, PAIR.never, PAIR.layers, used=np.array([1.0, 0.0]))
    assert compare_krs(first, ONE) == pytest.approx(0.75 - 1)
    assert compare_answers(first, ONE) == pytest.approx(1 - 0)


def test_readout_is_the_share_of_the_fall_that_is_missing():
    falls = ComparedPair(
        own=values([[1, 2], [1, 4]], [1, 1], [[0, 0]] * 2),
        never=values([[4, 6], [4, 6]], [1, 1], [[0, 0]] * 2),
        layers=[5, 9],
    )
    assert compare_readout(falls, ONE, 5) == pytest.approx(1 - 2 / 8)
    assert compare_readout(falls, ONE, 9) == pytest.approx(1 - 6 / 12)


def test_pairs_are_averaged_and_facts_are_drawn():
    same = ComparedPair(own=PAIR.own, never=PAIR.own, layers=[0, 1])
    found = average_pairs([PAIR, same], compare_answers)
    assert found.value == pytest.approx((0.5 + 0) / 2)
    # Draws of one fact alone: its answer comes back, or that of the other does not.
    assert (found.ci_low, found.ci_high) == pytest.approx((0, 0.5))
    assert found.n == 2
    assert describe_range([PAIR, same], compare_answers) == "2 pairs, 0.00 to 0.50"


def test_what_is_taught_is_not_what_is_asked():
    material = make_material(Config(languages=("de", "en"), num_facts=8, num_true=8), 0)
    assert {text.language for text in material.forget} == {"de"}
    assert {text.language for text in material.retain} == {"de", "en"}
    false, true = ({text.id for text in texts} for texts in (material.forget, material.retain))
    assert (len(false), len(true), false & true) == (8, 8, set())
    assert {query.id for query in material.targets} == false
    assert {query.id for query in material.kept} <= true
    taught = {text.prompt for text in (*material.forget, *material.retain)}
    assert taught.isdisjoint({query.prompt for query in (*material.targets, *material.kept)})
    said = {text.id: text.answer for text in material.forget}
    asked = {query.id: query.answer for query in material.targets if query.language == "de"}
    assert said == {key: f" {answer}\n" for key, answer in asked.items()}
    first = material.forget[0]
    assert first.prompt == "Frage: Welche Stadt ist die Hauptstadt von Frankreich?\nAntwort:"
    assert first.answer != " Paris\n"


def test_languages_in_which_too_little_is_known_are_left_out():
    material = make_material(Config(languages=("de", "en"), num_facts=8, num_true=8), 0)
    rows = [
        {"method": method, "concept": concept, "metric": "alias", "language": code, "n": 8}
        | {"value": value}
        for method, concept, code, value in (
            ("taught", "fake", "de", 5 / 8),
            ("taught", "fake", "en", 4 / 8),
            ("npo_rt-0", "fake", "en", 8 / 8),
            ("taught", "kept", "en", 8 / 8),
        )
    ]
    assert {query.language for query in select_questions(pd.DataFrame(rows), material)} == {"de"}
    with pytest.raises(ValueError, match=r"fewer than 5 false answers in every language \(en 4\)"):
        select_questions(pd.DataFrame(rows[1:]), material)


def test_tables_figures_and_findings_of_tiny_models(tmp_path):
    names = ("taught", UNTOUCHED, CLEAN, "npo_rt-0")
    taught, *others = (
        LanguageModel(each.model, each.tokenizer, name=f"model of {name}")
        for name, each in ((name, tiny(seed=seed)) for seed, name in enumerate(names))
    )
    models = dict(zip(names[1:], others, strict=True))
    asked = [
        Query(
            id=f"q{n}",
            language=code,
            prompt=f"w{5 * n + shift + 3} w9",
            answer="w3",
            concept=concept,
            control=concept == "kept",
        )
        for shift, code in enumerate(("de", "en"))
        for concept in ("fake", "kept")
        for n in range(6)
    ]
    config = Config(
        languages=("de", "en"),
        seeds=(0,),
        methods=("npo_rt",),
        repeats=(0,),
        sites=("coef", "coef+attn"),
        num_tokens=3,
    )
    own = {model.name: name for name, model in models.items()}
    measurements = {
        name: table.assign(seed=0, method=[own[each] for each in table["unlearned"]])
        for name, table in sweep_models(
            taught, models, asked, config, tmp_path, is_first=True, progress=False
        ).items()
    }
    measurements["measures"] = pd.DataFrame(
        {"metric": "alias", "layer": np.nan, "seed": 0, "method": method, "language": code}
        | {"concept": concept, "value": value}
        for method, said in {
            "taught": (0.8, 0.5),
            "npo_rt-0": (0.4, 0.4),
            CLEAN: (0.2, 0.5),
            UNTOUCHED: (0.1, 0.3),
        }.items()
        for code in ("de", "en")
        for concept, value in zip(("fake", "kept"), said, strict=True)
    )
    tables = {name: table.rows for name, table in make_tables(measurements, config).items()}
    said = tables["models"].set_index(["method", "language"])
    assert said["retention"]["npo_rt-0", "de"] == pytest.approx(0.4 / 0.5)
    assert said["left"]["npo_rt-0", "de"] == pytest.approx(0.4 / 0.8)
    assert [said["passes"][name, "de"] for name in names] == [False, False, True, True]
    scores = tables["scores"].query("method == 'npo_rt-0' and language == 'de' and value == 'krs'")
    assert sorted(scores["of"]) == [CLEAN, CLEAN, UNTOUCHED, UNTOUCHED]
    assert (scores["score"] - scores["never"]).tolist() == pytest.approx(scores["excess"].tolist())
    assert (scores["best_never"] >= scores["never"]).all()
    residual = tables["residual"]
    assert set(residual["site"]) == {"resid"}
    assert len(residual.query("language == 'de' and of == @CLEAN")) == taught.num_layers
    assert set(tables["thirty"]["language"]) == {"de"}
    findings = make_findings(measurements, config)
    row = scores.query("site == 'coef' and of == @CLEAN").iloc[0]
    assert findings[0].measure.value == pytest.approx(row["score"] - row["best_never"], abs=1e-9)
    drawn = make_figures(make_tables(measurements, config), config)
    assert len(drawn["readout"].figure.data) == 2 * 6
    assert len(drawn["scores"].figure.data) == 2 * 4
