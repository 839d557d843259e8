"""Training above frozen layers begins there, and its numbers are those of whole forwards."""

from __future__ import annotations

import pytest
import torch

from interp.unlearning import TrainableModel, TrainingConfig, tokenize, train
from interp.unlearning import frozen_layers as module
from interp.unlearning.frozen_layers import FrozenLayers
from tests.helpers.tiny_models import ARCHITECTURES, tiny, tiny_model, wrap
from tests.unlearning.test_training import FORGET, SETS

CONFIG = {"learning_rate": 1e-3, "num_steps": 4, "batch_size": 2, "autocast": False}
ROWS = [*SETS["forget"], *SETS["retain"]]


def run(objective, vanilla=None, **changes):
    config = TrainingConfig(objective=objective, **(CONFIG | {"layers": (3, 4)} | changes))
    return train(vanilla or tiny(), SETS, config, progress=False)


def count_calls(monkeypatch, layer):
    """Count the forwards of a layer of every model that is made from now on."""
    calls = []
    find = FrozenLayers.find.__func__

    def watched(cls, model, rows):
        frozen = find(cls, model, rows)
        model.anatomy.layers[layer].layer.register_forward_pre_hook(lambda *_: calls.append(1))
        # Where a layer hands on, its own forward is not run.
        mixer = model.anatomy.layers[layer].mixers[0].block
        plain = mixer.forward
        mixer.forward = lambda *given, **named: calls.append(2) or plain(*given, **named)
        return frozen

    monkeypatch.setattr(FrozenLayers, "find", classmethod(watched))
    return calls


@pytest.mark.parametrize("objective", ["gd", "npo_kl", "lingtea", "lingtea_code", "ceu"])
def test_the_numbers_are_those_of_whole_forwards(monkeypatch, objective):
    quick = run(objective)
    monkeypatch.setattr(FrozenLayers, "find", classmethod(lambda *_: None))
    whole = run(objective)
    for row, wanted in zip(quick.history, whole.history, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5, abs=1e-6)
    pairs = zip(quick.model.model.parameters(), whole.model.model.parameters(), strict=True)
    # AdamW's steps are of the learning rate's size whatever the gradient's.
    assert max(float((a - b).abs().max()) for a, b in pairs) < 1e-4


def draw_nothing(model):
    """Turn dropout off, wherever an architecture keeps its share."""
    for part in model.model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_of_every_architecture_the_states_are_the_same(name):
    model = TrainableModel(wrap(tiny_model(name), name="V"), "layers", layers=(3, 4)).model
    draw_nothing(model)
    rows = [tokenize(model, example) for example in ROWS]
    frozen = FrozenLayers.find(model, rows)
    assert frozen is not None
    assert frozen.number == 3
    batch = module.make_batch([*rows, rows[0]], model.device)
    whole = model.anatomy.body(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    for _ in range(2):
        again = frozen.run([*rows, rows[0]], batch)
        assert torch.allclose(again[batch.positions], whole[batch.positions], rtol=1e-4, atol=1e-5)


def test_a_text_goes_through_the_frozen_layers_once(monkeypatch):
    calls = count_calls(monkeypatch, 1)
    run("gd", num_steps=6)
    num_texts = len({example.prompt for example in ROWS})
    assert 0 < calls.count(2) <= num_texts
    assert calls.count(1) > 12


def test_where_the_lowest_layer_is_trained_nothing_is_frozen():
    for layers in (None, (0, 4)):
        model = TrainableModel(tiny(), "layers", layers=layers).model
        rows = [tokenize(model, example) for example in ROWS]
        assert FrozenLayers.find(model, rows) is None


def test_dropout_in_a_frozen_layer_is_drawn_at_every_step():
    vanilla = wrap(tiny_model("gpt2"), name="V")
    trainable = TrainableModel(vanilla, "layers", layers=(4,)).model
    rows = [tokenize(trainable, example) for example in ROWS]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert FrozenLayers.find(trainable, rows) is None
    assert torch.rand(1) == expected
    draw_nothing(trainable)
    assert FrozenLayers.find(trainable, rows) is not None


def test_what_does_not_fit_is_computed_anew(monkeypatch):
    monkeypatch.setattr(module, "_ROOM", 0)
    calls = count_calls(monkeypatch, 1)
    run("gd", num_steps=6)
    assert calls.count(2) >= 12


def test_an_adapter_above_frozen_layers():
    quick = run("gd", parameters="lora", lora_rank=2)
    assert [name for name in quick.history[0] if name == "loss"]
    model = TrainableModel(tiny(), "lora", layers=(3, 4), lora_rank=2).model
    frozen = FrozenLayers.find(model, [tokenize(model, FORGET[0])])
    assert frozen is not None
    assert frozen.number == 3
