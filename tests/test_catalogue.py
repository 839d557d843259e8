"""Objectives of one's own, by name."""

import math

import pytest
import torch
from models_for_tests import tiny

from interp.data.corpus import Text
from interp.unlearning import catalogue
from interp.unlearning.catalogue import METHODS, OBJECTIVES, Objective, methods, register
from interp.unlearning.config import TrainingConfig
from interp.unlearning.methods import UNLEARNING, method_of, unlearn
from interp.unlearning.objectives import ce

FORGET = ("forget_logprobs", "forget_mask")


def scaled(forget_logprobs, forget_mask, *, weight=2.0):
    """Learns F, `weight` times."""
    return weight * ce(forget_logprobs, forget_mask)


@pytest.fixture
def own(monkeypatch):
    """An objective of one's own, for one test."""
    monkeypatch.setattr(catalogue, "OBJECTIVES", dict(OBJECTIVES))
    register("scaled", Objective(function=scaled, needs=FORGET, settings={"weight": 2.0}))


def text(answer):
    return Text(id=answer, language="en", kind="", prompt="w3 w4", answer=f" {answer}")


def test_a_registered_objective_trains(own):
    assert methods() == (*METHODS[: METHODS.index("lingtea_code")], "scaled", "lingtea_code")
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
    config = method_of("scaled").config
    assert (config.objective, config.num_steps, config.learning_rate) == ("scaled", 20, 1e-5)
    assert "scaled" not in UNLEARNING
    with pytest.raises(ValueError, match=r"no method 'scale'; valid: ga, .*, scaled$"):
        method_of("scale")
    with pytest.raises(ValueError, match="no method 'finetune'"):
        method_of("finetune")


def test_a_name_of_ones_own_can_be_registered_again(own):
    again = Objective(function=scaled, needs=FORGET, settings={"weight": 3.0})
    register("scaled", again)
    assert catalogue.OBJECTIVES["scaled"] is again


def test_mistakes_are_named(own):
    for name in ("npo", "lingtea_code", "lingtea_code_forget"):
        with pytest.raises(ValueError, match=f"'{name}' is an objective of the library"):
            register(name, Objective(function=scaled, needs=FORGET, settings={"weight": 2.0}))
    with pytest.raises(ValueError, match="mine needs 'forget_logits', which is not computed"):
        register("mine", Objective(function=scaled, needs=("forget_logits",)))
    with pytest.raises(ValueError, match=r"takes forget_logprobs, forget_mask, weight; its needs"):
        register("mine", Objective(function=scaled, needs=FORGET))
    assert "mine" not in methods()
