"""Answers of V, U and R beside each other."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from interp import trajectories
from interp.models import get_stop_token_ids
from interp.recovery.answers import restored_answers
from interp.recovery.batches import make_batch
from interp.recovery.engines.full import restore_model
from interp.recovery.hooks import record
from interp.recovery.pair import Pair
from interp.recovery.sites import ACTIVATION_SITES, Restoration, make_windows
from tests.helpers.tiny_models import NUM_LAYERS, question, tiny, tiny_pair, trajectory

QUERIES = [question(number, words=number) for number in (1, 2, 4, 6)]
NUM_TOKENS = 7


@torch.inference_mode()
def uncached(pair: Pair, prompt: str, restoration: Restoration) -> str:
    """Run the whole text through both models for every token, one question by itself."""
    prompt_ids = pair.base.encode(prompt)
    said: list[int] = []
    while len(said) < NUM_TOKENS:
        batch = make_batch([trajectory(prompt_ids, [*said, 0])])
        states = record(pair.donor.anatomy, batch, ACTIVATION_SITES).layers
        with restore_model(
            pair, restoration, states, batch.select_positions(restoration.positions)
        ):
            logits = pair.base.model(**batch.inputs(pair.base.anatomy.body)).logits[0, -1]
        token = int(logits.argmax())
        if token in get_stop_token_ids(pair.base):
            break
        said.append(token)
    return pair.base.decode(said)


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        *((name, "all") for name in ("llama", "gemma3", "opt")),
        ("gemma3", "prompt"),
        ("gemma3", "answer"),
    ],
)
def test_token_by_token_as_without_a_cache(name, positions):
    pair = tiny_pair(name)
    sites = ["coef+attn", "head[1]", "resid"]
    table = restored_answers(
        pair.vanilla,
        pair.unlearned,
        QUERIES,
        site=sites,
        layer=[1, 3],
        window=3,
        num_tokens=NUM_TOKENS,
        positions=positions,
        batch_size=3,
        progress=False,
    )
    restorations = [
        make_windows(site, num_layers=NUM_LAYERS, window=3, positions=positions)[layer]
        for site in sites
        for layer in (1, 3)
    ]
    expected = [uncached(pair, query.prompt, item) for item in restorations for query in QUERIES]
    assert table["restored"].tolist() == expected
    assert len(set(expected)) > len(QUERIES)


def test_the_answers_of_v_and_u_are_their_own():
    pair = tiny_pair("gemma3")
    queries = [question(1, language="de", concept="capitals"), question(2)]
    made = {
        name: [item.answer for item in trajectories(model, queries, num_tokens=6, progress=False)]
        for name, model in (("vanilla", pair.vanilla), ("unlearned", pair.unlearned))
    }
    assert made["vanilla"] != made["unlearned"]
    options = {"num_tokens": 6, "progress": False, "window": 3}
    table = restored_answers(pair.vanilla, pair.unlearned, queries, layer=0, **options)
    for name, answers in made.items():
        assert table[name].tolist() == answers
    assert list(table) == [
        *("language", "query_id", "concept", "prompt", "vanilla", "unlearned", "restored"),
        *("site", "layer", "first_layer", "last_layer"),
    ]
    assert table[["language", "query_id", "concept", "prompt"]].values.tolist() == [
        [query.language, query.id, query.concept, query.prompt] for query in queries
    ]
    assert (table[["site", "layer", "first_layer", "last_layer"]] == ["coef+attn", 0, 0, 1]).all(
        axis=None
    )
    # The questions of trajectories are the same questions.
    items = trajectories(pair.vanilla, queries, num_tokens=2, progress=False)
    again = restored_answers(pair.vanilla, pair.unlearned, items, layer=0, **options)
    assert again.equals(table)


def test_everything_restored_says_what_vanilla_says():
    pair = tiny_pair()
    everything = "coef+attn+resid+norms+unembed"
    options = {"site": everything, "layer": 2, "window": 5, "num_tokens": 8, "progress": False}
    table = restored_answers(pair.vanilla, pair.unlearned, QUERIES, **options)
    assert (table["restored"] == table["vanilla"]).all()
    assert (table["restored"] != table["unlearned"]).any()
    back = restored_answers(pair.vanilla, pair.unlearned, QUERIES, **options, direction="corrupt")
    assert (back["restored"] == back["unlearned"]).all()


def test_rows_by_site_and_layer():
    pair = tiny_pair()
    options = {"window": 3, "num_tokens": 1, "progress": False}
    table = restored_answers(
        pair.vanilla, pair.unlearned, QUERIES[:2], site=["coef", "attn@3", "unembed"], **options
    )
    windows_of = table[["site", "layer", "first_layer", "last_layer"]]
    assert windows_of.values.tolist()[::2] == windows_of.values.tolist()[1::2]
    assert windows_of.values.tolist()[::2] == [
        ["coef", 0, 0, 1],
        ["coef", 1, 0, 2],
        ["coef", 2, 1, 3],
        ["coef", 3, 2, 4],
        ["coef", 4, 3, 4],
        ["attn", 3, 3, 3],
        ["unembed", 5, 5, 5],
    ]


def test_both_models_are_as_they_were():
    pair = tiny_pair()
    before = [model.content_hash() for model in (pair.vanilla, pair.unlearned)]
    restored_answers(
        pair.vanilla, pair.unlearned, QUERIES, site="value", num_tokens=2, progress=False
    )
    assert before == [model.content_hash() for model in (pair.vanilla, pair.unlearned)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "num_tokens must be at least 1, not 0"),
        ({"queries": []}, "no queries"),
        ({"site": "coeff"}, "unknown site 'coeff'"),
        ({"layer": 5}, r"layer 5 of coef\+attn is out of range 0 to 4"),
        ({"layer": [1, -1]}, "layer -1 of coef"),
        ({"window": 2}, "window must be an odd number"),
        ({"unlearned": tiny(num_layers=4)}, "does not match"),
        ({"num_tokens": 64}, "more than the model's context of 64"),
        ({"site": "head[9]"}, "head 9 of the site .* is out of range 0 to 3"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    arguments = {"queries": QUERIES, "unlearned": tiny(seed=1), "window": 3} | options
    with pytest.raises(ValueError, match=message):
        restored_answers(tiny(), progress=False, **arguments)


def test_all_three_end_before_a_stop():
    pair = tiny_pair("llama")

    def answer(queries) -> list[str]:
        table = restored_answers(
            pair.vanilla, pair.unlearned, queries, layer=2, num_tokens=NUM_TOKENS, progress=False
        )
        return [text for name in ("vanilla", "unlearned", "restored") for text in table[name]]

    whole = answer(QUERIES)
    stopped = answer([replace(query, stop=("w1", "w2")) for query in QUERIES])
    # Of each text the words before the first that begins so.
    words = [text.split() for text in whole]
    wanted = [
        " ".join(itertools.takewhile(lambda word: word[:2] not in ("w1", "w2"), each))
        for each in words
    ]
    assert stopped == wanted
    assert stopped != whole
