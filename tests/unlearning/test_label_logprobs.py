"""Log-probabilities and divergences at labels, and their gradients, against plain autograd."""

from __future__ import annotations

import pytest
import torch

import interp.unlearning.label_logprobs as readout
from interp.unlearning.label_logprobs import (
    compare_at_labels,
    compute_label_kl,
    compute_label_log_odds,
    compute_label_logprobs,
    compute_logit_margin,
)
from tests.helpers.tiny_models import ARCHITECTURES, tiny


def states_of(model, count=7, seed=0):
    torch.manual_seed(seed)
    return torch.randn(count, model.anatomy.unembed.in_features, requires_grad=True)


TARGETS = torch.tensor([3, 49, 0, 7, 7, 12, 30])
WEIGHTS = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, -0.25, 3.0])


@pytest.fixture(params=[1, 3, 1000])
def chunks(request, monkeypatch):
    """One, three, or all labels at a time, and the vocabulary in blocks."""
    monkeypatch.setattr(readout, "CHUNK_ELEMENTS", 50 * request.param)
    monkeypatch.setattr(readout, "ROWS", request.param)
    monkeypatch.setattr(readout, "BLOCK", 7 * request.param)


def gradient(values, states):
    (found,) = torch.autograd.grad((values * WEIGHTS).sum(), states)
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logprobs_and_their_gradient(name, chunks):
    model = tiny(name)
    states = states_of(model)
    found = compute_label_logprobs(model.anatomy, states, TARGETS)
    plain = model.anatomy.logits(states).log_softmax(-1)[range(7), TARGETS]
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradient(found, states), gradient(plain, states), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "phi"])
def test_divergence_and_its_gradient(name, chunks):
    """Phi's unembedding has a bias, Gemma-2 caps its logits."""
    model, reference = tiny(name), tiny(name, seed=1)
    states, before = states_of(model), states_of(reference, seed=3)
    found = compute_label_kl(model.anatomy, states, reference.anatomy, before)
    p = model.anatomy.logits(states).log_softmax(-1)
    q = reference.anatomy.logits(before).log_softmax(-1)
    plain = (q.exp() * (q - p)).sum(-1)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradient(found, states), gradient(plain, states), atol=2e-5, rtol=1e-4
    )
    assert (found > 0).all()
    compute_label_kl(model.anatomy, states, reference.anatomy, before).sum().backward()
    assert before.grad is None
    assert states.grad is not None


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "phi"])
def test_the_comparison_is_that_of_full_logits(name, chunks):
    model, reference = tiny(name), tiny(name, seed=1)
    states, before = states_of(model), states_of(reference, seed=3)
    found = compare_at_labels(model.anatomy, states, reference.anatomy, before, TARGETS)
    p = model.anatomy.logits(states).log_softmax(-1)
    q = reference.anatomy.logits(before).log_softmax(-1)
    plain = ((q.exp() * (q - p)).sum(-1), p[range(7), TARGETS], q[range(7), TARGETS])
    for one, other in zip(found, plain, strict=True):
        assert not one.requires_grad
        torch.testing.assert_close(one, other.detach(), atol=1e-5, rtol=1e-5)


def without_targets(logits):
    return logits.scatter(-1, TARGETS[:, None], -torch.inf)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_odds_and_their_gradient(name, chunks):
    model = tiny(name)
    states = states_of(model)
    found = compute_label_log_odds(model.anatomy, states, TARGETS)
    p = model.anatomy.logits(states).softmax(-1)[range(7), TARGETS]
    plain = p.log() - (1 - p).log()
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradient(found, states), gradient(plain, states), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("lower", [False, True])
def test_log_odds_of_what_the_model_is_sure_of(lower):
    """p rounds to 1 in float32, and log p to 0 or above it; log p/(1 − p) is right all the same."""
    torch.manual_seed(0)
    model = tiny()
    weight = model.anatomy.unembed.weight
    states = (60 * weight[TARGETS] / weight[TARGETS].norm(dim=-1, keepdim=True) ** 2).detach()
    states.requires_grad_()
    logits = states.double() @ weight.double().T
    plain = logits[range(7), TARGETS] - without_targets(logits).logsumexp(-1)
    assert (plain > 17).all()
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        found = compute_label_log_odds(model.anatomy, states, TARGETS)
    close = {"atol": 0.1, "rtol": 2e-2} if lower else {"atol": 1e-4, "rtol": 1e-5}
    torch.testing.assert_close(found, plain.float(), **close)
    torch.testing.assert_close(gradient(found, states), gradient(plain, states), **close)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "phi"])
def test_divergence_of_the_other_tokens_and_its_gradient(name, chunks):
    model, reference = tiny(name), tiny(name, seed=1)
    states, before = states_of(model), states_of(reference, seed=3)
    found = compute_label_kl(model.anatomy, states, reference.anatomy, before, without=TARGETS)
    p = without_targets(model.anatomy.logits(states)).log_softmax(-1)
    q = without_targets(reference.anatomy.logits(before)).log_softmax(-1)
    terms = q.exp() * (q - p)
    plain = terms.scatter(-1, TARGETS[:, None], 0.0).sum(-1)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    (expected,) = torch.autograd.grad((plain * WEIGHTS).sum(), states)
    assert expected.isfinite().all()
    torch.testing.assert_close(gradient(found, states), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi"])
def test_the_logit_margin_and_its_gradient(name, chunks):
    model = tiny(name)
    states = states_of(model)
    found = compute_logit_margin(model.anatomy, states)
    logits = model.anatomy.logits(states)
    plain = logits.amax(-1) - logits.mean(-1)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradient(found, states), gradient(plain, states), atol=2e-5, rtol=1e-4
    )


def test_the_divergence_from_itself_is_zero():
    model = tiny()
    states = states_of(model)
    found = compute_label_kl(model.anatomy, states, model.anatomy, states)
    assert found.abs().max() < 1e-6
    assert gradient(found, states).abs().max() < 1e-6


def test_a_trained_unembedding_gets_its_gradient(chunks):
    model = tiny()
    weight = model.anatomy.unembed.weight.requires_grad_(True)
    states = states_of(model)
    found = compute_label_logprobs(model.anatomy, states, TARGETS)
    plain = model.anatomy.logits(states).log_softmax(-1)[range(7), TARGETS]
    grads = torch.autograd.grad((found * WEIGHTS).sum(), [states, weight])
    expected = torch.autograd.grad((plain * WEIGHTS).sum(), [states, weight])
    torch.testing.assert_close(grads, expected, atol=2e-5, rtol=1e-4)


def test_without_a_gradient_nothing_is_kept(chunks):
    model = tiny()
    found = compute_label_logprobs(model.anatomy, states_of(model).detach(), TARGETS)
    assert not found.requires_grad
    with torch.no_grad():
        assert not compute_label_logprobs(model.anatomy, states_of(model), TARGETS).requires_grad


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32():
    model = tiny()
    states = states_of(model)
    exact = compute_label_logprobs(model.anatomy, states, TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        found = compute_label_logprobs(model.anatomy, states, TARGETS)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.1
    near = gradient(found, states)
    assert (near - gradient(exact, states)).abs().max() < 0.1
