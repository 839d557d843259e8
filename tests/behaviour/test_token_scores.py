"""Scores of labels: against a plain forward, by hand, and whatever the batch."""

from __future__ import annotations

import math

import pytest
import torch

from interp.behaviour import token_scores
from interp.behaviour.token_scores import score_labels
from interp.unlearning import Example, tokenize
from tests.helpers.tiny_models import ARCHITECTURES, tiny

EXAMPLES = [
    Example(prompt="w5 w9 w13", answer=" w7 w40 w22 w8"),
    Example(prompt="", answer="w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15"),
    Example(prompt="w30 w31 w32 w33 w34 w35 w36", answer=" w3"),
    Example(prompt="", answer="w49"),
    Example(prompt="w5 w9 w13", answer=" w7 w40"),
]


@pytest.fixture(params=[(7, 3), (50, 1), (1000, 1000)])
def blocks(request, monkeypatch):
    """The vocabulary of 50 in blocks of which the last is short, in one block, in part of one."""
    monkeypatch.setattr(token_scores, "BLOCK", request.param[0])
    monkeypatch.setattr(token_scores, "ROWS", request.param[1])


def check_plain(model, examples, found):
    """One forward per text, full logits, double precision."""
    for example, scores in zip(examples, found, strict=True):
        row = tokenize(model, example)
        logits = model.model(torch.tensor([row.ids])).logits[0].double()
        places = range(row.first_label, len(row.ids))
        targets = torch.tensor(row.ids[row.first_label :])
        table = logits.log_softmax(-1)[[place - 1 for place in places]]
        mean = (table.exp() * table).sum(-1)
        variance = (table.exp() * (table - mean[:, None]) ** 2).sum(-1)
        expected = {
            "logprobs": table[range(len(targets)), targets],
            "mean_logprob": mean,
            "std_logprob": variance.sqrt(),
        }
        for name, values in expected.items():
            assert getattr(scores, name).tolist() == pytest.approx(values.tolist(), abs=1e-5)
        assert scores.is_argmax.tolist() == (table.argmax(-1) == targets).tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_those_of_a_plain_forward(name, blocks):
    model = tiny(name)
    found = score_labels(model, EXAMPLES, progress=False)
    assert [len(scores.logprobs) for scores in found] == [4, 13, 1, 1, 2]
    check_plain(model, EXAMPLES, found)


def test_the_true_token_is_the_likeliest_where_the_model_says_so(blocks):
    """Texts that go on as the model does: in a random one the true token is never the likeliest."""
    model = tiny()
    ids = list(model.encode("w5 w9 w13"))
    for _ in range(6):
        ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
    said = Example(prompt="w5 w9 w13", answer=f" {model.decode(ids[4:])}")
    other = Example(prompt="w5 w9 w13", answer=f" {model.decode([*ids[4:6], 3, *ids[7:]])}")
    found = score_labels(model, [said, other], progress=False)
    assert found[0].is_argmax.tolist() == [True] * 6
    assert found[1].is_argmax.tolist()[:3] == [True, True, False]
    check_plain(model, [said, other], found)


@pytest.mark.parametrize("batch_tokens", [1, 20, 40])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma3"])
def test_scores_do_not_depend_on_the_batch(name, batch_tokens):
    model = tiny(name)
    together = score_labels(model, EXAMPLES, progress=False)
    apart = score_labels(model, EXAMPLES, batch_tokens=batch_tokens, progress=False)
    for one, other in zip(together, apart, strict=True):
        for name in ("logprobs", "mean_logprob", "std_logprob"):
            assert getattr(one, name).tolist() == pytest.approx(
                getattr(other, name).tolist(), abs=1e-5
            )
        assert one.is_argmax.tolist() == other.is_argmax.tolist()


def saying(probabilities: dict[int, float]):
    """A model that predicts the same everywhere; what is left is shared by the other tokens."""
    model = tiny("phi")
    rest = (1 - sum(probabilities.values())) / (50 - len(probabilities))
    values = [probabilities.get(token, rest) for token in range(50)]
    model.anatomy.unembed.weight.zero_()
    model.anatomy.unembed.bias.copy_(torch.tensor(values).log() + 3)
    return model


def test_moments_by_hand(blocks):
    """A half, a quarter, and 48 times 1/192: 1, 2 and log₂ 192 bits."""
    model = saying({3: 0.5, 40: 0.25})
    (found,) = score_labels(model, [Example(prompt="w7", answer=" w3 w40 w9")], progress=False)
    bits = math.log2(192)
    assert found.logprobs.tolist() == pytest.approx(
        [-math.log(2), -2 * math.log(2), -bits * math.log(2)], abs=1e-6
    )
    assert found.is_argmax.tolist() == [True, False, False]
    mean = 1 / 2 * 1 + 1 / 4 * 2 + 1 / 4 * bits
    square = 1 / 2 * 1**2 + 1 / 4 * 2**2 + 1 / 4 * bits**2
    assert found.mean_logprob.tolist() == pytest.approx([-mean * math.log(2)] * 3, abs=1e-6)
    assert found.std_logprob.tolist() == pytest.approx(
        [math.sqrt(square - mean**2) * math.log(2)] * 3, abs=1e-6
    )


def test_of_equally_likely_tokens_the_first_is_the_likeliest(blocks):
    """As argmax has it, also where they stand in different blocks."""
    model = saying({5: 0.3, 6: 0.3, 44: 0.3})
    (found,) = score_labels(model, [Example(prompt="w7", answer=" w5 w6 w44")], progress=False)
    assert found.is_argmax.tolist() == [True, False, False]


def test_texts_that_cannot_be_scored():
    model = tiny()
    long = Example(prompt="", answer=" ".join(["w3"] * 64))
    with pytest.raises(ValueError, match="has 65 tokens, more than the model's context of 64"):
        score_labels(model, [long], progress=False)
    with pytest.raises(ValueError, match="its answer is empty"):
        score_labels(model, [Example(prompt="w3", answer="")], progress=False)
    assert score_labels(model, [], progress=False) == []
