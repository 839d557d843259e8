"""Objectives that weigh tokens or change their distributions, against arithmetic on paper.

Where the source states its loss in logits, the value and the gradient are compared with that, too.
"""

import math

import pytest
import torch

from interp.unlearning.objectives.ceu import ceu
from interp.unlearning.objectives.gd import gd
from interp.unlearning.objectives.pdu import pdu, update_multiplier
from interp.unlearning.objectives.satimp import satimp
from interp.unlearning.objectives.undial import undial
from interp.unlearning.objectives.wga import wga
from interp.unlearning.registry import OBJECTIVES
from tests.helpers.label_tables import FORGET, FORGET_MASK, LN2, PAD, RETAIN, RETAIN_MASK, logs

RETAINING = {"retain_logprobs": RETAIN, "retain_mask": RETAIN_MASK}


def test_wga():
    # p·log p: 1/2 · 1, 1/8 · 3, 1/16 · 4, a third of their sum is 3/8 (ln 2); CE(R) = 4/3.
    value = wga(FORGET, FORGET_MASK, **RETAINING).item()
    assert value == pytest.approx((-3 / 8 + 4 / 3) * LN2)
    # β = 2: 1/4 · 1 + 1/64 · 3 + 1/256 · 4 = 5/16; 3 · −5/48 + 1/2 · 4/3.
    value = wga(FORGET, FORGET_MASK, **RETAINING, beta=2, gamma=3, alpha=0.5).item()
    assert value == pytest.approx((-5 / 16 + 2 / 3) * LN2)
    # β = 0 is gradient difference.
    value = wga(FORGET, FORGET_MASK, **RETAINING, beta=0).item()
    assert value == pytest.approx(gd(FORGET, FORGET_MASK, **RETAINING).item())


def test_satimp():
    # p(1 − p)²·−log p: 1/2 · 1/4 · 1, 1/8 · 49/64 · 3 and 1/16 · 225/256 · 4, which are 128, 294
    # and 225 of 1024. −1/3 · 647/1024 + 4/3.
    value = satimp(FORGET, FORGET_MASK, **RETAINING, beta1=1, beta2=2, gamma=1).item()
    assert value == pytest.approx((-647 / 3072 + 4 / 3) * LN2)
    # The settings of the source, p⁵(1 − p): 2⁻⁵ · 1/2 · 1 + 2⁻¹⁵ · 7/8 · 3 + 2⁻²⁰ · 15/16 · 4.
    forget = 2**-6 + 2**-18 * 21 + 2**-22 * 15
    value = satimp(FORGET, FORGET_MASK, **RETAINING, alpha=0).item()
    assert value == pytest.approx(-0.1 * forget / 3 * LN2)


WEIGHTED = {
    # p, and p(1 − p), of p = 1/2, 1/8, 1/16, each over three tokens.
    "wga": ({"beta": 1}, [1 / 6, 1 / 24, 1 / 48]),
    "satimp": ({"beta1": 1, "beta2": 1, "gamma": 1}, [1 / 12, 7 / 192, 15 / 768]),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_are_constants(name):
    """The gradient in log p is the weight: those of p are not followed."""
    settings, expected = WEIGHTED[name]
    logprobs = FORGET.clone().requires_grad_()
    function = OBJECTIVES[name][0].function
    function(logprobs, FORGET_MASK, **RETAINING, alpha=0, **settings).backward()
    assert logprobs.grad[FORGET_MASK].tolist() == pytest.approx(expected)
    assert logprobs.grad[~FORGET_MASK].tolist() == [0]


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_probability_that_was_rounded_above_one_counts_as_one(name):
    sure = torch.tensor([[0.05]])
    retain = {"retain_logprobs": torch.tensor([[0.0]]), "retain_mask": torch.tensor([[True]])}
    value = OBJECTIVES[name][0].function(sure, torch.tensor([[True]]), **retain)
    assert value.item() == pytest.approx({"wga": 0.05, "satimp": 0}[name])


def odds(*rows):
    """Log-odds."""
    return torch.tensor(rows, dtype=torch.float64).log()


# p is 1/2 and 3/4 in the first sequence, 1/5 in the second; under θ₀ 1/2 and 6/7, and 1/2.
ODDS = odds([1, 3], [1 / 4, PAD])
REFERENCE_ODDS = odds([1, 6], [1, PAD])


def test_ceu():
    # −log(1 − p): ln 2, ln 4, ln 5/4; a third of ln 10.
    assert ceu(ODDS, FORGET_MASK).item() == pytest.approx(math.log(10) / 3)
    # Where p is 1 in any precision, the odds still say by how much, and the gradient is whole.
    sure = torch.tensor([[80.0]], requires_grad=True)
    loss = ceu(sure, torch.tensor([[True]]))
    loss.backward()
    assert (loss.item(), sure.grad.item()) == (80, 1)


def make_logits():
    generator = torch.Generator().manual_seed(3)
    return [3 * torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2)]


LABELS = torch.tensor([0, 6, 2, 2, 4])


def split(logits):
    """Log-odds of the labels, and the logarithms of the others' distribution."""
    label = torch.nn.functional.one_hot(LABELS, 7).bool()
    others = logits.masked_fill(label, -math.inf)
    return logits[label] - others.logsumexp(-1), others.log_softmax(-1).masked_fill(label, 0)


def test_ceu_has_the_gradient_of_cross_entropy_with_the_model_without_the_label():
    """CE(q, p) with q a constant, as its source defines it, and −log(1 − p)."""
    logits, _ = make_logits()
    logits.requires_grad_()
    without = logits.detach().scatter(-1, LABELS[:, None], -math.inf).softmax(-1)
    source = -(without * logits.log_softmax(-1)).sum(-1).mean()
    ours = ceu(split(logits)[0][:, None], torch.ones(5, 1, dtype=torch.bool))
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (source, ours)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    # They differ by the entropy of q.
    entropy = -torch.xlogy(without, without).sum(-1).mean()
    assert (source - ours).item() == pytest.approx(entropy.item())


UNDIAL = {
    "forget_reference_log_odds": REFERENCE_ODDS,
    "forget_others_kl": torch.tensor([[0.2, 0.4], [0.7, PAD]], dtype=torch.float64),
}


def test_undial():
    # β = ln 2 halves θ₀'s odds: 1/2, 3, 1/2; a = 1/3, 3/4, 1/3.
    # KL(1/3 ‖ 1/2) = 1/3 ln 2/3 + 2/3 ln 4/3 = 5/3 ln 2 − ln 3, and 2/3 · 0.2.
    # KL(3/4 ‖ 3/4) = 0, and 1/4 · 0.4.
    # KL(1/3 ‖ 1/5) = 1/3 ln 5/3 + 2/3 ln 5/6 = ln 5 − ln 3 − 2/3 ln 2, and 2/3 · 0.7.
    # Together ln 2 + ln 5/9 + 0.1 + 0.6, over three tokens.
    value = undial(ODDS, FORGET_MASK, **UNDIAL, **RETAINING, beta=LN2).item()
    assert value == pytest.approx((math.log(10 / 9) + 0.7) / 3)
    more = undial(ODDS, FORGET_MASK, **UNDIAL, **RETAINING, beta=LN2, alpha=0.5).item()
    assert more - value == pytest.approx(2 / 3 * LN2)


@pytest.mark.parametrize("beta", [0.5, 3, 10])
def test_undial_is_the_divergence_from_the_adjusted_logits(beta):
    """CE(softmax(z₀ − β·onehot(y)), softmax(z)), as its source and OpenUnlearning have it."""
    logits, before = make_logits()
    logits.requires_grad_()
    target = (before - beta * torch.nn.functional.one_hot(LABELS, 7)).softmax(-1)
    source = -(target * logits.log_softmax(-1)).sum(-1).mean()
    (label, others), (label_before, others_before) = split(logits), split(before)
    others_kl = (others_before.exp() * (others_before - others)).sum(-1)
    ours = undial(
        label[:, None],
        torch.ones(5, 1, dtype=torch.bool),
        forget_reference_log_odds=label_before[:, None],
        forget_others_kl=others_kl[:, None],
        **RETAINING,
        beta=beta,
    )
    entropy = -(target * target.log()).sum(-1).mean()
    assert ours.item() == pytest.approx((source - entropy).item(), rel=1e-10)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (source, ours)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


PDU = {
    "retain_logprobs": RETAIN,
    "retain_reference_logprobs": logs([1 / 2, PAD], [1 / 2, 1 / 2]),
    "retain_mask": RETAIN_MASK,
}


def test_pdu():
    margins = torch.tensor([[1.0, 3.0], [2.0, PAD]], dtype=torch.float64)
    # Of the sequences (1 + 9)/2 and 4, together 9/2; over the tokens it would be 14/3.
    # CE(R) = 4/3 ln 2, under θ₀ ln 2; the bound is 1.25 ln 2, exceeded by 1/12 ln 2.
    value = pdu(margins, FORGET_MASK, **PDU, tolerance=0.25, multiplier=6).item()
    assert value == pytest.approx(4.5 + LN2 / 2)
    given = {**PDU, "dual_step_size": 12.0, "multiplier": 6.0}
    # λ + 12 · 1/12 ln 2.
    changed = update_multiplier(**given, tolerance=0.25, dual_warmup=0)
    assert changed == {"multiplier": pytest.approx(6 + LN2), "dual_warmup": 0}
    # With the bound at 2 ln 2: 6 − 12 · 2/3 ln 2 = 6 − 8 ln 2 = 0.4548…; at 3 ln 2 below 0.
    changed = update_multiplier(**given, tolerance=1, dual_warmup=0)
    assert changed["multiplier"] == pytest.approx(6 - 8 * LN2)
    assert update_multiplier(**given, tolerance=2, dual_warmup=0)["multiplier"] == 0
    # Two steps of warm-up are left.
    changed = update_multiplier(**given, tolerance=2, dual_warmup=2)
    assert changed == {"multiplier": 6, "dual_warmup": 1}
