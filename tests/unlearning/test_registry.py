"""Methods of one's own, by name."""

import functools
import math
from unittest import mock

import pytest
import torch

from interp.data import Text
from interp.unlearning.config import TrainingConfig
from interp.unlearning.methods import (
    METHODS,
    OBJECTIVES,
    default_settings,
    find_method,
    method,
    objective,
    unlearn,
)
from interp.unlearning.objectives.losses import ce
from tests.helpers.tiny_models import tiny

LIBRARY = tuple(METHODS)


def scaled(forget_logprobs, forget_mask, *, weight=2.0):
    """Learns F, `weight` times."""
    return weight * ce(forget_logprobs, forget_mask)


@pytest.fixture
def own():
    """A method of one's own, for one test."""
    with mock.patch.dict(OBJECTIVES), mock.patch.dict(METHODS):
        assert method("scaled")(scaled) is scaled
        yield


def text(answer):
    return Text(id=answer, language="en", kind="", prompt="w3 w4", answer=f" {answer}")


def test_a_registered_method_trains(own):
    assert tuple(METHODS) == (*LIBRARY, "scaled")
    config = TrainingConfig(
        objective="scaled",
        settings={"weight": 0.5},
        num_steps=1,
        batch_size=1,
        learning_rate=1e-3,
        autocast=False,
    )
    vanilla = tiny()
    done = unlearn(vanilla, [text("w7")], [], config, progress=False)
    with torch.inference_mode():
        logits = vanilla.model(torch.tensor([vanilla.encode("w3 w4")])).logits[0, -1]
    nll = -logits.log_softmax(-1)[7].item()
    assert done.history[0]["loss"] == pytest.approx(0.5 * nll, rel=1e-5)
    assert math.isfinite(done.history[0]["forget_ce"])


def test_it_has_defaults_like_any_method(own):
    config = find_method("scaled").config
    assert (config.objective, config.num_steps, config.learning_rate) == ("scaled", 20, 1e-5)
    assert "scaled" not in LIBRARY
    with pytest.raises(
        ValueError, match=r"unknown method 'scale'; valid: dpo, dpo_kl, altpo, .*, scaled$"
    ):
        find_method("scale")
    with pytest.raises(ValueError, match="unknown method 'finetune'"):
        find_method("finetune")


def test_it_may_have_defaults_and_a_form_of_its_own(own):
    method("scaled", num_steps=7, form="question", settings={"weight": 4.0})(scaled)
    found = find_method("scaled")
    assert (found.form, found.config.num_steps) == ("question", 7)
    assert (found.config.settings, default_settings("scaled")) == ({"weight": 4.0}, {"weight": 2.0})


def test_a_name_of_ones_own_can_be_registered_again(own):
    again = functools.partial(scaled, weight=3.0)
    method("scaled")(again)
    assert OBJECTIVES["scaled"][0].function is again
    assert default_settings("scaled") == {"weight": 3.0}


def test_settings_may_change_from_step_to_step(own):
    def halve(weight):
        return {"weight": weight / 2}

    method("scaled", update=halve, settings={"weight": 8.0})(scaled)
    config = TrainingConfig(objective="scaled", settings={"weight": 8.0}, num_steps=3, batch_size=1)
    history = unlearn(tiny(), [text("w7")], [], config, progress=False).history
    # What a row tells is what the next step has.
    assert [row["weight"] for row in history] == [4, 2, 1]
    assert history[0]["loss"] == pytest.approx(8 * history[0]["forget_ce"])
    assert history[2]["loss"] == pytest.approx(2 * history[2]["forget_ce"])
    with pytest.raises(ValueError, match="the update of scaled needs 'beta'; valid: what scaled"):
        method("scaled", update=lambda beta: {"weight": beta})(scaled)


def test_a_method_has_preferred_answers_of_its_own():
    assert find_method("altpo").preferred == "alternate"
    assert {find_method(name).preferred for name in LIBRARY if name != "altpo"} == {"refusal"}


def test_mistakes_are_named(own):
    for name in ("npo", "lingtea_code", "finetune", "memit_empty"):
        with pytest.raises(ValueError, match=f"'{name}' is an objective of the library"):
            method(name)(scaled)
    with pytest.raises(ValueError, match="mine needs 'forget_logits', which is not computed"):
        method("mine")(lambda forget_logits: forget_logits)
    with pytest.raises(ValueError, match="mine needs 'weight', which is not computed"):
        objective("mine")(lambda forget_logprobs, forget_mask, weight: weight)
    assert "mine" not in METHODS
    assert "mine" not in OBJECTIVES
