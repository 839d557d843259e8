"""Objectives by hand, and the loop that uses them."""

import json
import math

import pytest
import torch
from models_for_tests import tiny

from interp.models.loading import load
from interp.models.pairs import identical
from interp.unlearning.objectives import cross_entropy, gradient_difference
from interp.unlearning.training import (
    Example,
    UnlearningConfig,
    label_logprobs,
    make_card,
    save,
    unlearn,
)

FORGET = [Example(prompt="w3 w4", answer=" w5"), Example(prompt="w6 w7 w8", answer=" w9 w10")]
RETAIN = [Example(prompt="w11 w12", answer=" w13"), Example(prompt="w14", answer=" w15 w16")]
CONFIG = UnlearningConfig(learning_rate=1e-3, num_steps=8, stop_at=math.inf, autocast=False)


def test_gradient_difference_by_hand():
    forget, retain = torch.log(torch.tensor([0.5, 0.125])), torch.log(torch.tensor([0.25]))
    # CE(F) = (ln 2 + ln 8) / 2 = 2 ln 2, CE(R) = 2 ln 2.
    assert cross_entropy(forget).item() == pytest.approx(2 * math.log(2))
    assert gradient_difference(forget, retain).item() == pytest.approx(0.0, abs=1e-7)
    weighted = gradient_difference(forget, retain, gamma=0.5, alpha=1.5)
    assert weighted.item() == pytest.approx(2 * math.log(2))


def test_gradient_difference_has_the_numerical_gradient():
    forget = torch.tensor([-0.3, -1.1], dtype=torch.float64, requires_grad=True)
    retain = torch.tensor([-0.7, -0.2, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda f, r: gradient_difference(f, r, gamma=0.7, alpha=1.3), (forget, retain)
    )


def test_label_logprobs_are_those_of_the_answers_alone():
    model = tiny()
    with torch.inference_mode():
        found = label_logprobs(model, FORGET)
        expected = []
        for example in FORGET:
            prompt, whole = (
                model.encode(example.prompt),
                model.encode(example.prompt + example.answer),
            )
            logs = model.model(torch.tensor([whole])).logits[0].log_softmax(-1)
            expected += [logs[i - 1, whole[i]].item() for i in range(len(prompt), len(whole))]
    assert len(expected) == 3
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_unlearning_forgets_retains_and_leaves_the_vanilla_model_alone():
    vanilla = tiny()
    before = vanilla.content_hash()
    unlearned, history = unlearn(vanilla, FORGET, RETAIN, CONFIG, progress=False)
    assert vanilla.content_hash() == before
    assert not any(p.requires_grad or p.grad is not None for p in vanilla.model.parameters())
    assert not unlearned.model.training
    with torch.inference_mode():
        forget = [cross_entropy(label_logprobs(m, FORGET)).item() for m in (vanilla, unlearned)]
        retain = [cross_entropy(label_logprobs(m, RETAIN)).item() for m in (vanilla, unlearned)]
    assert forget[1] > forget[0] + 0.05
    assert retain[1] < retain[0]
    assert history[0]["forget_loss"] == pytest.approx(forget[0], rel=1e-5)
    assert history[0]["retain_loss"] == pytest.approx(retain[0], rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_embedding_is_the_vanilla_models_memory(name):
    vanilla = tiny(name)
    unlearned, _ = unlearn(vanilla, FORGET, RETAIN, CONFIG, progress=False)
    for get in ("get_input_embeddings", "get_output_embeddings"):
        one, other = (getattr(m.model, get)().weight for m in (vanilla, unlearned))
        assert one.data_ptr() == other.data_ptr()
    assert not identical(vanilla, unlearned)


def test_the_same_seed_gives_the_same_weights():
    hashes = {
        unlearn(tiny(), FORGET * 8, RETAIN * 8, config, progress=False)[0].content_hash()
        for config in (CONFIG, CONFIG)
    }
    assert len(hashes) == 1


def test_it_stops_once_enough_is_forgotten():
    config = UnlearningConfig(learning_rate=1e-3, num_steps=50, stop_at=0.0, autocast=False)
    unlearned, history = unlearn(tiny(), FORGET, RETAIN, config, progress=False)
    assert len(history) == 1
    assert identical(tiny(), unlearned)


def test_a_saved_model_loads_and_carries_its_card(tmp_path):
    vanilla = tiny()
    unlearned, _ = unlearn(vanilla, FORGET, RETAIN, CONFIG, progress=False)
    card = make_card(vanilla, FORGET, RETAIN, CONFIG)
    directory = save(unlearned, tmp_path / "unlearned", card=card)
    again = load(directory, like=vanilla)
    assert again.content_hash() == unlearned.content_hash()
    written = json.loads((directory / "unlearning.json").read_text(encoding="utf-8"))
    assert written["parent_hash"] == vanilla.content_hash()
    assert written["settings"]["learning_rate"] == 1e-3
    assert [path.name for path in tmp_path.iterdir()] == ["unlearned"]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="the forget set is empty"):
        unlearn(tiny(), [], RETAIN, CONFIG, progress=False)
    with pytest.raises(ValueError, match="the retain set is empty"):
        unlearn(tiny(), FORGET, [], CONFIG, progress=False)
    broken = tiny()
    broken.model.get_output_embeddings().weight.data[3] = math.nan
    with pytest.raises(ValueError, match="not finite at step 0"):
        unlearn(broken, FORGET, RETAIN, CONFIG, progress=False)
