"""Table of a sweep: a row per question, site and layer, with the engine's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp import LanguageModel, Query
from interp.recovery.engines import ENGINES, full
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, make_windows
from interp.recovery.sweep import COLUMNS, measure
from interp.recovery.sweep_config import SweepConfig
from tests.helpers.tiny_models import question, tiny, trajectory

ANSWERS = [
    trajectory([1, 5, 6], [7, 8, 9], query=question(0)),
    trajectory([1, 15, 16, 17], [], query=question(1)),
    trajectory([1, 25], [26, 27], query=Query(id="q0", language="de", prompt="p", concept="c")),
    trajectory([1, 35, 36], [37], query=question(2)),
]


@pytest.fixture(scope="module")
def pair():
    return tiny("llama"), tiny("llama", seed=1)


def swept(pair, answers=ANSWERS, **options) -> pd.DataFrame:
    options = {"sites": ["coef", "value"], "window": 3} | options
    return interp.sweep(*pair, answers, progress=False, **options).losses


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_per_question_site_and_layer(pair, engine):
    losses = swept(pair, sites=["attn+coef", "value", "unembed"], engine=engine)
    assert tuple(losses.columns) == COLUMNS
    # Five layers for two sites, one place for the unembedding.
    assert len(losses) == 4 * (5 + 5 + 1)
    assert list(dict.fromkeys(losses["site"])) == ["coef+attn", "value", "unembed"]
    assert not losses.duplicated(["language", "query_id", "site", "layer"]).any()
    constants = {
        "vanilla": "V",
        "unlearned": "U",
        "engine": engine,
        "dtype": "float32",
        "variant": "paper",
        "direction": "restore",
        "distance": "logit_mse",
        "positions": "all",
    }
    for column, value in constants.items():
        assert set(losses[column]) == {value}
    german = losses[losses["language"] == "de"]
    assert set(german["concept"]) == {"c"}
    assert set(german["num_tokens"]) == {2}
    edges = losses[(losses["site"] == "value") & (losses["query_id"] == "q2")]
    assert edges[["layer", "first_layer", "last_layer"]].to_numpy().tolist() == [
        [0, 0, 1],
        [1, 0, 2],
        [2, 1, 3],
        [3, 2, 4],
        [4, 3, 4],
    ]
    unembed = losses[losses["site"] == "unembed"]
    assert set(unembed["layer"]) == set(unembed["first_layer"]) == set(unembed["last_layer"]) == {5}


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
@pytest.mark.parametrize("distance", ["logit_mse", "kl", "answer_logprob"])
def test_the_losses_are_the_engines(pair, direction, distance):
    losses = swept(pair, direction=direction, distance=distance, positions="prompt")
    restorations = [
        item
        for site in ("coef", "value")
        for item in make_windows(site, num_layers=5, window=3, positions="prompt")
    ]
    for item in ANSWERS:
        if not item.scored:
            continue
        models = dict(zip(("vanilla", "unlearned"), pair, strict=True))
        expected = full.measure(
            Pair(**models, direction=direction), [item], restorations, distance=distance
        ).losses[:, 0]
        before = full.measure(Pair(**models), [item], [NOTHING], distance=distance).losses.item()
        rows = losses[
            (losses["query_id"] == item.query.id) & (losses["language"] == item.query.language)
        ]
        scale = abs(before) + 1e-2
        np.testing.assert_allclose(rows["loss_restored"], expected, rtol=0, atol=1e-5 * scale)
        np.testing.assert_allclose(rows["loss_unlearned"], before, rtol=0, atol=1e-5 * scale)


def test_krs_of_the_table_by_hand(pair):
    recovery = interp.sweep(*pair, ANSWERS, sites=["coef"], window=3, progress=False)
    cell = recovery.losses.query("language == 'en' and layer == 4 and num_tokens > 0")
    assert len(cell) == 2
    expected = 1 - cell["loss_restored"].sum() / cell["loss_unlearned"].sum()
    krs = recovery.krs().query("language == 'en' and layer == 4")
    assert krs["krs"].item() == pytest.approx(expected, rel=1e-12)
    assert krs["num_queries"].item() == 2


def test_an_empty_answer_is_a_row_with_its_reason(pair):
    losses = swept(pair)
    empty = losses[losses["query_id"] == "q1"]
    assert len(empty) == 2 * 5
    assert set(empty["reason"]) == {"nothing scored: the answer is empty"}
    assert set(empty["num_tokens"]) == {0}
    assert empty[["loss_unlearned", "loss_restored", "loss_self"]].isna().all(axis=None)
    rest = losses[losses["query_id"] != "q1"]
    assert set(rest["reason"]) == {""}
    assert rest[["loss_unlearned", "loss_restored"]].notna().all(axis=None)
    krs = interp.Recovery(losses=losses).krs().query("language == 'en'")
    assert set(krs["num_queries"]) == {2}
    assert all("answer is empty" in reason for reason in krs["reason"])


def test_nothing_but_empty_answers(pair):
    losses = swept(pair, [ANSWERS[1]])
    assert len(losses) == 10
    assert losses["loss_unlearned"].isna().all()
    krs = interp.Recovery(losses=losses).krs()
    assert krs["krs"].isna().all()
    assert all(krs["reason"].str.contains("the answer is empty"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_noise_floor(pair, engine, direction):
    """V patched with its own states: measured on two questions of a cell, all but nothing."""
    items = [trajectory([1, 5, n], [7, n, 9], query=question(n)) for n in range(10, 14)]
    options = {"sites": ["coef", "resid", "value"], "engine": engine, "direction": direction}
    losses = swept(pair, items, **options)
    known = losses["loss_self"].notna()
    assert sorted(losses[known]["query_id"].unique()) == ["q10", "q11"]
    assert (losses[known]["loss_self"] / losses[known]["loss_unlearned"]).max() < 1e-9
    assert (losses[known]["loss_self"] >= 0).all()
    floor = interp.Recovery(losses=losses).krs()["noise_floor"]
    assert floor.notna().all()
    assert floor.max() < 1e-9


def test_noise_floor_in_bfloat16():
    """Rounding shows: not zero in the layered engine, yet far below the losses."""
    pair = tiny("llama"), tiny("llama", seed=1)
    for model in pair:
        model.model.to(torch.bfloat16)
    losses = swept(pair)
    assert set(losses["dtype"]) == {"bfloat16"}
    share = (losses["loss_self"] / losses["loss_unlearned"]).max()
    assert share < 1e-2


def test_the_reverse_direction(pair):
    """loss(V, V←U) / loss(V, U): 1 where everything is put in, and no KRS column."""
    recovery = interp.sweep(
        *pair, ANSWERS, sites=["resid+unembed+norms"], window=5, direction="corrupt", progress=False
    )
    table = recovery.krs()
    assert "krs" not in table
    # The windows that reach the last layer: its stream, the final norm and the unembedding are U's.
    top = table[table["last_layer"] == 4]
    assert top["effect"].tolist() == pytest.approx([1.0] * len(top), abs=1e-5)
    assert (table[table["last_layer"] < 4]["effect"] - 1).abs().min() > 1e-3


def test_queries_are_answered_on_the_way(pair):
    asked = [question(n, language=code) for n in range(3) for code in ("de", "en")]
    answers = interp.trajectories(pair[0], asked, num_tokens=5, progress=False)
    expected = swept(pair, answers)
    found = swept(pair, asked, num_tokens=5)
    pd.testing.assert_frame_equal(found, expected)
    assert set(found["num_tokens"]) <= set(range(6))


def test_progress_adds_up(pair):
    vanilla, unlearned = pair
    for direction in ("restore", "corrupt"):
        config = SweepConfig(sites=("coef", "attn"), window=3, direction=direction)
        done: list[float] = []
        pair_ = Pair(vanilla=vanilla, unlearned=unlearned, direction=direction)
        measure(pair_, ANSWERS, config, advance=done.append)
        assert sum(done) == pytest.approx(len(ANSWERS))


def test_inputs_are_left_alone(pair):
    before = list(ANSWERS)
    hashes = [model.content_hash() for model in pair]
    swept(pair, variant="hong2024")
    assert before == ANSWERS
    assert [model.content_hash() for model in pair] == hashes


# Mistakes


def refusal(call) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sites": []}, "no sites"),
        ({"sites": ["mlp"]}, "unknown site 'mlp'; valid: coef"),
        ({"sites": ["coef", "coef"]}, "duplicate site in coef, coef"),
        ({"sites": ["coef+attn", "attn+coef"]}, "duplicate site"),
        ({"window": 0}, "between 1 and 5"),
        ({"window": 2}, "not 2"),
        ({"window": 7}, "not 7"),
        ({"engine": "fast"}, "unknown engine 'fast'; valid: layered, full"),
        ({"variant": "hong"}, "unknown variant 'hong'; valid: paper, hong2024"),
        ({"positions": "last"}, "'last'; valid: all, prompt, answer"),
        ({"direction": "up"}, "unknown direction 'up'; valid: restore, corrupt"),
        ({"distance": "mse"}, "unknown distance 'mse'; valid: logit_mse, kl, answer_logprob"),
        ({"variant": "hong2024", "positions": "prompt"}, "hong2024 restores all positions"),
        ({"variant": "hong2024", "distance": "answer_logprob"}, "predicts no answer token"),
        ({"shard": (3, 2)}, "3/2"),
    ],
)
def test_settings_that_are_refused(pair, tmp_path, options, says):
    assert says in refusal(lambda: swept(pair, out=tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_objects_that_are_no_models_or_questions(pair, tmp_path):
    """One sentence each, before anything is made; "give what" is said where it can be known."""
    vanilla, unlearned = pair
    linear = torch.nn.Linear(2, 2)
    cases = [
        ((str(tmp_path), unlearned, ANSWERS), "vanilla must be a LanguageModel, not str: load it"),
        ((tmp_path, unlearned, ANSWERS), "vanilla must be a LanguageModel, not PosixPath: load it"),
        ((linear, unlearned, ANSWERS), "vanilla must be a LanguageModel, not Linear: make one"),
        ((pair, unlearned, ANSWERS), "vanilla must be a LanguageModel, not tuple"),
        ((vanilla, None, ANSWERS), "a specification or a LanguageModel, not NoneType"),
        ((vanilla, [linear], ANSWERS), "a specification or a LanguageModel, not Linear: make one"),
        ((vanilla, linear.state_dict(), ANSWERS), "not a dict: give its values"),
        ((vanilla, unlearned, None), "answers must be a list of Trajectory or Query, not NoneType"),
        ((vanilla, unlearned, tmp_path), "answers must be a list of Trajectory or Query, not Pos"),
        ((vanilla, unlearned, [{"id": "1"}]), "Trajectory or Query, and item 0 is a dict"),
    ]
    for given, says in cases:
        with pytest.raises(TypeError) as caught:
            interp.sweep(*given, out=tmp_path / "run", progress=False)
        message = str(caught.value)
        assert says in message
        assert "\n" not in message
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("given", ["3", 3.0, None, True, [3]])
def test_a_window_that_is_no_number(pair, given):
    with pytest.raises(TypeError) as caught:
        swept(pair, window=given)
    assert str(caught.value) == f"window must be a whole number, such as 5, not {given!r}"


def test_a_window_of_numpys(pair, tmp_path):
    """It is Python's own in the run's settings, which are JSON."""
    assert type(SweepConfig(window=np.int64(3)).window) is int
    given = swept(pair, window=np.int64(3), out=tmp_path)
    pd.testing.assert_frame_equal(given, swept(pair, window=3, out=tmp_path))


@pytest.mark.parametrize(
    ("given", "kind"), [(None, "NoneType"), (3, "int"), (b"coef", "bytes"), (["coef", 1], "int")]
)
def test_sites_that_are_no_names(given, kind):
    with pytest.raises(TypeError) as caught:
        SweepConfig(sites=given)
    assert str(caught.value) == f"sites must be names, such as ['coef', 'attn'], not {kind}"


def test_one_site_is_a_name_and_no_list_of_letters():
    assert SweepConfig(sites="coef").sites == ("coef",)
    assert SweepConfig(sites=iter(["coef", "attn"])).sites == ("coef", "attn")
    with pytest.raises(ValueError, match=r"unknown engine \['full'\]"):
        SweepConfig(engine=["full"])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("given", ["runs/U", None, "both", {"vanilla": "V"}])
def test_what_is_no_pair(pair, given):
    given = pair if given == "both" else given
    with pytest.raises(TypeError, match=r"pair must be a Pair of two loaded models, .* not \w+$"):
        measure(given, ANSWERS, SweepConfig())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("item", [question(0), {"id": "1"}, "w5"])
def test_questions_without_answers_are_not_measured(pair, item):
    vanilla, unlearned = pair
    both = Pair(vanilla=vanilla, unlearned=unlearned)
    with pytest.raises(TypeError, match=r"questions with answers, as interp\.trajectories makes"):
        measure(both, [*ANSWERS, item], SweepConfig())


def test_no_questions(pair):
    assert "no queries" in refusal(lambda: swept(pair, []))


def test_v_and_u_are_the_same(pair):
    vanilla, _ = pair
    twin = tiny("llama")
    twin.name = "twin"
    for unlearned in (vanilla, twin):
        message = refusal(lambda unlearned=unlearned: swept((vanilla, unlearned)))
        assert f"{unlearned.name!r} is identical to 'V'" in message


def test_models_that_do_not_match(pair):
    vanilla, _ = pair
    assert "the architecture is Qwen2ForCausalLM" in refusal(
        lambda: swept((vanilla, tiny("qwen2", seed=1)))
    )
    shorter = tiny("llama", seed=1, num_layers=3)
    assert "num_hidden_layers is 3" in refusal(lambda: swept((vanilla, shorter)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_that_are_not_finite(tmp_path, value):
    vanilla, unlearned = tiny("llama"), tiny("llama", seed=1)
    unlearned.model.model.layers[2].mlp.up_proj.weight[3, 3] = value
    message = refusal(lambda: swept((vanilla, unlearned), out=tmp_path / "run"))
    first = "model.layers.2.mlp.up_proj.weight"
    assert message == f"'U' has NaN or infinite weights, the first in {first}"
    assert not list((tmp_path / "run").rglob("losses/*"))


def test_what_overflows_is_a_row_with_its_reason():
    """Token 35 alone makes coefficients of 1e60 in U; the other questions are not concerned."""
    vanilla, unlearned = tiny("llama"), tiny("llama", seed=1)
    layer = unlearned.model.model.layers[0]
    unlearned.model.model.embed_tokens.weight[:, 0] = 0
    layer.self_attn.o_proj.weight[0] = 0
    before = swept((vanilla, unlearned))
    layer.mlp.up_proj.weight[:, 0] = layer.mlp.gate_proj.weight[:, 0] = 1e30
    unlearned.model.model.embed_tokens.weight[35, 0] = 1
    losses = swept((vanilla, unlearned))
    overflows = losses["query_id"] == "q2"
    assert set(losses[overflows & (losses["site"] == "value")]["reason"]) == {
        "the loss is not finite: states overflow in float32"
    }
    assert losses[overflows]["loss_unlearned"].isna().all()
    pd.testing.assert_frame_equal(losses[~overflows], before[~overflows])
    krs = interp.Recovery(losses=losses).krs().query("language == 'en' and site == 'value'")
    assert krs["krs"].notna().all()
    assert set(krs["num_queries"]) == {1}
    assert all("states overflow in float32" in reason for reason in krs["reason"])


def test_packed_weights(pair, monkeypatch):
    monkeypatch.setattr(LanguageModel, "has_packed_weights", True)
    message = refusal(lambda: swept(pair, sites=["coef", "attn+value"]))
    assert "'V' has packed quantised weights" in message
    assert "'value'" in message
    assert len(swept(pair, sites=["coef", "attn"])) == 4 * 2 * 5
