"""KL in the place of CE on the retain set makes the method that has KL by its own formula."""

from __future__ import annotations

import pytest
import torch

from interp.unlearning import METHODS, TrainingConfig, make_training_card, train
from interp.unlearning.validation import check_settings
from tests.helpers.tiny_models import tiny
from tests.unlearning.test_training import FORGET, RETAIN, SETS

CONFIG = {"learning_rate": 1e-3, "num_steps": 4, "batch_size": 2, "autocast": False}


def run(objective, retain_loss="ce", **settings):
    config = TrainingConfig(
        objective=objective, retain_loss=retain_loss, settings=settings, **CONFIG
    )
    return train(tiny(), {"forget": FORGET, "retain": RETAIN}, config, progress=False)


@pytest.mark.parametrize(("plain", "by_kl"), [("gd", "gd_kl"), ("npo_rt", "npo_kl")])
def test_the_retain_loss_is_the_one_of_the_method_with_kl(plain, by_kl):
    made, wanted = run(plain, "kl", alpha=3.0), run(by_kl, alpha=3.0)
    pairs = zip(made.model.model.parameters(), wanted.model.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [row["loss"] for row in made.history] == [row["loss"] for row in wanted.history]
    # Nothing is called a cross-entropy that is none.
    assert "retain_ce" not in made.history[0]
    assert "retain_ce" in run(plain).history[0]
    other = run(plain, alpha=3.0).model.model.parameters()
    assert not all(map(torch.equal, made.model.model.parameters(), other))


def test_it_is_for_every_method_with_a_cross_entropy_on_the_retain_set():
    fit = ["gd", "npo_rt", "simnpo", "wga", "satimp", "undial", "altpo", "idk"]
    for name in fit:
        check_settings(tiny(), TrainingConfig(objective=name, retain_loss="kl"), evaluates=False)
    for name in sorted({*METHODS, "finetune"} - {*fit, "memit_empty", "memit_entropy"}):
        config = TrainingConfig(objective=name, retain_loss="kl", layer=1)
        with pytest.raises(ValueError, match=f"{name} has no CE on the retain set") as error:
            check_settings(tiny(), config, evaluates=False)
        assert sorted(str(error.value).rpartition(": ")[2].split(", ")) == sorted(fit)


def test_an_unknown_schedule_is_named(unchecked):
    with pytest.raises(ValueError, match="unknown schedule 'cosine'; valid: constant, linear"):
        check_settings(tiny(), TrainingConfig(schedule="cosine"), evaluates=False)


def test_an_unknown_loss_is_named(unchecked):
    with pytest.raises(ValueError, match="unknown retain_loss 'nll'; valid: ce, kl"):
        check_settings(tiny(), TrainingConfig(retain_loss="nll"), evaluates=False)


def test_cards_name_it_only_where_it_is_kl():
    for loss in ("ce", "kl"):
        card = make_training_card(tiny(), SETS, TrainingConfig(retain_loss=loss))
        assert card["settings"].get("retain_loss", "ce") == loss
        assert ("retain_loss" in card["settings"]) == (loss == "kl")
    card = make_training_card(tiny(), SETS, TrainingConfig(schedule="linear"))
    assert card["settings"]["schedule"] == "linear"
    assert "schedule" not in make_training_card(tiny(), SETS, TrainingConfig())["settings"]
