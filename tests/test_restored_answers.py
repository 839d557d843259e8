"""Answers under restoration."""

import pytest
from models_for_tests import question, tiny_pair

from interp.data.trajectories import trajectories
from interp.recovery.answers import restored_answer
from interp.recovery.sites import NOTHING, SITES, Restoration

EVERYWHERE = tuple(range(5))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_nothing_restored_is_the_base_models_own_greedy_answer(name):
    pair = tiny_pair(name)
    query = question(1)
    for one in (pair, pair.with_itself()):
        expected = trajectories(one.base, [query], num_tokens=6, progress=False)[0].answer
        assert restored_answer(one, query, NOTHING, num_tokens=6) == expected


def test_everything_restored_answers_as_the_vanilla_model():
    pair = tiny_pair()
    query = question(2)
    everything = Restoration(sites=tuple(SITES), layers=EVERYWHERE)
    expected = trajectories(pair.vanilla, [query], num_tokens=6, progress=False)[0].answer
    own = trajectories(pair.unlearned, [query], num_tokens=6, progress=False)[0].answer
    assert restored_answer(pair, query, everything, num_tokens=6) == expected != own


def test_num_tokens_below_one_is_refused():
    with pytest.raises(ValueError, match="num_tokens must be at least 1, not 0"):
        restored_answer(tiny_pair(), question(1), NOTHING, num_tokens=0)
