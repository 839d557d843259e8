"""Objectives against arithmetic on paper, and what must hold of every one of them.

Those that weigh or change single tokens' distributions are in `test_token_objectives`.
"""

import copy
import hashlib
import inspect
import math

import pytest
import torch
from torch.autograd import gradcheck

from interp.unlearning.objectives.altpo import altpo
from interp.unlearning.objectives.dpo import dpo, dpo_kl
from interp.unlearning.objectives.ga import ga
from interp.unlearning.objectives.gd import gd, gd_kl
from interp.unlearning.objectives.idk import idk
from interp.unlearning.objectives.lingtea import (
    lingtea,
    lingtea_code_retain,
    lingtea_fixed,
    mean_confidence,
)
from interp.unlearning.objectives.losses import ce, label_mean, nll
from interp.unlearning.objectives.npo import npo, npo_kl, npo_rt
from interp.unlearning.objectives.rmu import draw_rmu_direction, rmu
from interp.unlearning.objectives.simnpo import simnpo
from interp.unlearning.objectives.task_vector import negate_task_vector
from interp.unlearning.registry import OBJECTIVES as REGISTERED
from interp.unlearning.registry import TENSORS
from tests.helpers.label_tables import (
    FORGET,
    FORGET_MASK,
    FORGET_REFERENCE,
    LN2,
    PAD,
    PREFERRED,
    PREFERRED_MASK,
    PREFERRED_REFERENCE,
    RETAIN,
    RETAIN_KL,
    RETAIN_MASK,
    logs,
)

OBJECTIVES = {
    name if len(parts) == 1 else f"{name}_{part.sets[0]}": part
    for name, parts in REGISTERED.items()
    for part in parts
}
"""Objectives by name; of those in turn each by itself, named by its set."""


def test_ce_is_the_mean_over_tokens_and_nll_the_sum_over_a_sequence():
    # (1 + 3 + 4) / 3; the mean of the sequences' means would be (2 + 4) / 2 = 3.
    assert ce(FORGET, FORGET_MASK).item() == pytest.approx(8 / 3 * LN2)
    # 1 + 3 and 4; 2 and 1 + 1.
    assert nll(FORGET, FORGET_MASK).tolist() == pytest.approx([4 * LN2, 4 * LN2])
    assert nll(RETAIN, RETAIN_MASK).tolist() == pytest.approx([2 * LN2, 2 * LN2])
    # (0.3 + 0.6 + 0.9) / 3
    assert label_mean(RETAIN_KL, RETAIN_MASK).item() == pytest.approx(0.6)


def test_ga_and_gd():
    assert ga(FORGET, FORGET_MASK).item() == pytest.approx(-8 / 3 * LN2)
    retain = {"retain_logprobs": RETAIN, "retain_mask": RETAIN_MASK}
    # CE(R) = (2 + 1 + 1) / 3 = 4/3; −8/3 + 4/3 = −4/3.
    assert gd(FORGET, FORGET_MASK, **retain).item() == pytest.approx(-4 / 3 * LN2)
    # −0.5 · 8/3 + 1.5 · 4/3 = 2/3
    weighted = gd(FORGET, FORGET_MASK, **retain, gamma=0.5, alpha=1.5)
    assert weighted.item() == pytest.approx(2 / 3 * LN2)
    kl = {"retain_kl": RETAIN_KL, "retain_mask": RETAIN_MASK}
    assert gd_kl(FORGET, FORGET_MASK, **kl).item() == pytest.approx(-8 / 3 * LN2 + 0.6)
    # −0.5 · 8/3 ln 2 + 2 · 0.6
    weighted = gd_kl(FORGET, FORGET_MASK, **kl, gamma=0.5, alpha=2)
    assert weighted.item() == pytest.approx(-4 / 3 * LN2 + 1.2)


def test_gd_without_retaining_is_ga():
    forgotten = 0.7 * ga(FORGET, FORGET_MASK)
    ce_form = gd(
        FORGET, FORGET_MASK, retain_logprobs=RETAIN, retain_mask=RETAIN_MASK, gamma=0.7, alpha=0
    )
    kl_form = gd_kl(
        FORGET, FORGET_MASK, retain_kl=RETAIN_KL, retain_mask=RETAIN_MASK, gamma=0.7, alpha=0
    )
    assert ce_form == kl_form == forgotten


NPO = {"forget_reference_logprobs": FORGET_REFERENCE}


def test_npo():
    # nll_θ − nll_θ₀ = (4 − 3) ln 2 and (4 − 2) ln 2; softplus(−k ln 2) = ln(1 + 2⁻ᵏ).
    # β = 1: 2 · ½ · [ln(1 + 1/2) + ln(1 + 1/4)] = ln(1.5 · 1.25).
    value = npo(FORGET, FORGET_MASK, **NPO, beta=1).item()
    assert value == pytest.approx(math.log(1.875))
    # β = 2: 1 · ½ · [ln(1 + 2⁻²) + ln(1 + 2⁻⁴)].
    value = npo(FORGET, FORGET_MASK, **NPO, beta=2).item()
    assert value == pytest.approx(math.log(1.25 * 1.0625) / 2)
    # β = 0.1, the source's: 20 · ½ · [ln(1 + 2^−0.1) + ln(1 + 2^−0.2)].
    expected = 10 * (math.log(1 + 2**-0.1) + math.log(1 + 2**-0.2))
    assert npo(FORGET, FORGET_MASK, **NPO).item() == pytest.approx(expected)


def test_npo_with_retaining():
    # β = 1: ln 1.875 as above, with 1 · 0.6 or 0.5 · 4/3 ln 2.
    kl = npo_kl(FORGET, FORGET_MASK, **NPO, retain_kl=RETAIN_KL, retain_mask=RETAIN_MASK, beta=1)
    assert kl.item() == pytest.approx(math.log(1.875) + 0.6)
    rt = npo_rt(
        FORGET,
        FORGET_MASK,
        **NPO,
        retain_logprobs=RETAIN,
        retain_mask=RETAIN_MASK,
        beta=1,
        alpha=0.5,
    )
    assert rt.item() == pytest.approx(math.log(1.875) + 2 / 3 * LN2)


@pytest.mark.parametrize("beta", [0.1, 1, 4.5])
def test_npo_starts_at_a_constant_with_the_gradient_of_ascent(beta):
    logprobs = FORGET.clone().requires_grad_()
    loss = npo(logprobs, FORGET_MASK, forget_reference_logprobs=FORGET, beta=beta)
    assert loss.item() == pytest.approx(2 / beta * LN2)
    loss.backward()
    # −∇E[nll], each of the two sequences with weight ½ (Zhang et al. 2024, W = 1 at θ = θ₀).
    assert logprobs.grad.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5, 0.0])


def test_npo_is_ascent_where_beta_vanishes():
    # Zhang et al. 2024, Proposition 1: npo − (2/β) ln 2 → −E[nll_θ − nll_θ₀] = −(1 + 2)/2 · ln 2.
    beta = 1e-6
    value = npo(FORGET, FORGET_MASK, **NPO, beta=beta).item() - 2 / beta * LN2
    assert value == pytest.approx(-1.5 * LN2, rel=1e-4)


def test_dpo():
    preferred = {
        "preferred_logprobs": PREFERRED,
        "preferred_reference_logprobs": PREFERRED_REFERENCE,
        "preferred_mask": PREFERRED_MASK,
    }
    # In ln 2: log(π/π₀)(y_w) = −1 + 2 and −3 + 4, log(π/π₀)(y_l) = −4 + 3 and −4 + 2: margins 2, 3.
    # β = 1: 2 · ½ · [ln(1 + 1/4) + ln(1 + 1/8)].
    value = dpo(FORGET, FORGET_MASK, **NPO, **preferred, beta=1).item()
    assert value == pytest.approx(math.log(1.25 * 1.125))
    # β = 0.1, the source's: 10 · [ln(1 + 2^−0.2) + ln(1 + 2^−0.3)].
    expected = 10 * (math.log(1 + 2**-0.2) + math.log(1 + 2**-0.3))
    assert dpo(FORGET, FORGET_MASK, **NPO, **preferred).item() == pytest.approx(expected)


def test_dpo_of_equal_ratios_is_a_constant():
    # Every answer is a quarter as likely as before, whatever its length and its probability.
    loss = dpo(
        logs([1 / 2, 1 / 8]),
        torch.tensor([[True, True]]),
        forget_reference_logprobs=logs([1, 1 / 4]),
        preferred_logprobs=logs([1 / 32]),
        preferred_reference_logprobs=logs([1 / 8]),
        preferred_mask=torch.tensor([[True]]),
        beta=0.3,
    )
    assert loss.item() == pytest.approx(2 / 0.3 * LN2)


def test_npo_is_dpo_whose_preferred_answer_stays_as_likely():
    value = dpo(
        FORGET,
        FORGET_MASK,
        **NPO,
        preferred_logprobs=PREFERRED,
        preferred_reference_logprobs=PREFERRED,
        preferred_mask=PREFERRED_MASK,
    )
    assert value.item() == pytest.approx(npo(FORGET, FORGET_MASK, **NPO).item())


def test_simnpo():
    retain = {"retain_logprobs": RETAIN, "retain_mask": RETAIN_MASK}
    # nll/|y| = 4/2 and 4/1 (ln 2). β = 1: ln(1 + 1/4) + ln(1 + 1/16), and CE(R) = 4/3.
    value = simnpo(FORGET, FORGET_MASK, **retain, beta=1).item()
    assert value == pytest.approx(math.log(1.25 * 1.0625) + 4 / 3 * LN2)
    # δ = ln 2, β = 2: 1 · ½ · [ln(1 + 2^−2) + ln(1 + 2^−6)], α = 0.
    value = simnpo(FORGET, FORGET_MASK, **retain, beta=2, delta=LN2, alpha=0).item()
    assert value == pytest.approx(math.log(1.25 * (1 + 1 / 64)) / 2)
    # β = 4.5, the source's: 2/4.5 · ½ · [ln(1 + 2^−9) + ln(1 + 2^−18)].
    value = simnpo(FORGET, FORGET_MASK, **retain).item()
    expected = (math.log(1 + 2**-9) + math.log(1 + 2**-18)) / 4.5
    assert value == pytest.approx(expected + 4 / 3 * LN2)


def test_altpo():
    preferred = {
        "preferred_logprobs": PREFERRED,
        "preferred_reference_logprobs": PREFERRED_REFERENCE,
        "preferred_mask": PREFERRED_MASK,
    }
    retain = {"retain_logprobs": RETAIN, "retain_mask": RETAIN_MASK}
    # dpo with β = 1, as above, and 0.5 · 4/3.
    value = altpo(FORGET, FORGET_MASK, **NPO, **preferred, **retain, beta=1, alpha=0.5)
    assert value.item() == pytest.approx(math.log(1.25 * 1.125) + 2 / 3 * LN2)


def test_dpo_kl():
    preferred = {
        "preferred_logprobs": PREFERRED,
        "preferred_reference_logprobs": PREFERRED_REFERENCE,
        "preferred_mask": PREFERRED_MASK,
    }
    retain = {"retain_kl": RETAIN_KL, "retain_mask": RETAIN_MASK}
    # dpo with β = 1, as above, and 0.5 · 0.6.
    value = dpo_kl(FORGET, FORGET_MASK, **NPO, **preferred, **retain, beta=1, alpha=0.5)
    assert value.item() == pytest.approx(math.log(1.25 * 1.125) + 0.3)


def test_idk():
    # CE of the refusals (1 + 2 + 1) / 3 = 4/3, CE(R) = 4/3; 4/3 + 0.5 · 4/3 = 2.
    value = idk(
        PREFERRED, PREFERRED_MASK, retain_logprobs=RETAIN, retain_mask=RETAIN_MASK, alpha=0.5
    )
    assert value.item() == pytest.approx(2 * LN2)


LINGTEA = {"retain_logprobs": RETAIN, "retain_kl": RETAIN_KL, "retain_mask": RETAIN_MASK}


def test_lingtea():
    teacher = logs([1 / 4, PAD], [1 / 2, 1])
    # A mean of probabilities: 1/4, and (1/2 + 1) / 2.
    assert mean_confidence(teacher, RETAIN_MASK).tolist() == pytest.approx([0.25, 0.75])
    # κ·KL: 0.25 · 0.3 + 0.75 · 0.6 + 0.75 · 0.9 = 1.2.
    # (1 − κ)·−log p: 0.75 · 2 + 0.25 · 1 + 0.25 · 1 = 2 (ln 2). Both over three tokens.
    value = lingtea(FORGET, FORGET_MASK, retain_reference_logprobs=teacher, **LINGTEA).item()
    assert value == pytest.approx(-8 / 3 * LN2 + (1.2 + 2 * LN2) / 3)
    weighed = lingtea(
        FORGET, FORGET_MASK, retain_reference_logprobs=teacher, alpha=6.0, **LINGTEA
    ).item()
    assert weighed == pytest.approx(-8 / 3 * LN2 + 2 * (1.2 + 2 * LN2))


def test_lingtea_between_its_ends():
    sure, lost = torch.zeros_like(RETAIN), torch.full_like(RETAIN, -math.inf)
    ends = [
        lingtea(FORGET, FORGET_MASK, retain_reference_logprobs=teacher, **LINGTEA).item()
        for teacher in (sure, lost)
    ]
    kl = gd_kl(FORGET, FORGET_MASK, retain_kl=RETAIN_KL, retain_mask=RETAIN_MASK).item()
    plain = gd(FORGET, FORGET_MASK, retain_logprobs=RETAIN, retain_mask=RETAIN_MASK).item()
    assert ends == pytest.approx([kl, plain])


def test_lingtea_with_a_fixed_kappa():
    # κ·KL: 0.25 · (0.3 + 0.6 + 0.9) = 0.45. (1 − κ)·−log p: 0.75 · (2 + 1 + 1) = 3 (ln 2).
    value = lingtea_fixed(FORGET, FORGET_MASK, kappa=0.25, **LINGTEA).item()
    assert value == pytest.approx(-8 / 3 * LN2 + (0.45 + 3 * LN2) / 3)
    value = lingtea_fixed(FORGET, FORGET_MASK, kappa=0.25, alpha=3.0, **LINGTEA).item()
    assert value == pytest.approx(-8 / 3 * LN2 + 0.45 + 3 * LN2)
    with pytest.raises(ValueError, match=r"kappa is 1.5; it must be between 0 and 1"):
        lingtea_fixed(FORGET, FORGET_MASK, kappa=1.5, **LINGTEA)


def test_lingtea_code_retain():
    # κ per token: 1/2; 1/4 and 1/2.
    # KD: (0.5 · 0.3 + 0.25 · 0.6 + 0.5 · 0.9) / 2 sequences = 0.375.
    # CE: (0.5 · 2 + 0.75 · 1 + 0.5 · 1) / 3 tokens = 0.75 (ln 2).
    value = lingtea_code_retain(
        RETAIN,
        RETAIN_MASK,
        retain_repeat_logprobs=logs([1 / 2, PAD], [1 / 4, 1 / 2]),
        retain_own_kl=RETAIN_KL,
    )
    assert value.item() == pytest.approx(0.375 + 0.75 * LN2)


def test_rmu():
    real = torch.tensor([[True, True, False]])
    forget = torch.tensor([[[4.0, 6.0], [3.0, 4.0], [PAD, PAD]]])
    retain = torch.tensor([[[1.0, 1.0], [PAD, PAD], [PAD, PAD]]])
    frozen = torch.tensor([[[1.0, 3.0], [0.0, 0.0], [0.0, 0.0]]])
    # c·u = (3, 4): (1 + 4 + 0 + 0) / 4 = 1.25. On R: (0 + 4) / 2 = 2. 1.25 + 3 · 2.
    value = rmu(
        forget,
        real,
        retain_states=retain,
        retain_reference_states=frozen,
        retain_positions=torch.tensor([[True, False, False]]),
        direction=torch.tensor([0.6, 0.8]),
        c=5,
        alpha=3,
    )
    assert value.item() == pytest.approx(7.25)


def test_rmu_squares_in_float32():
    real = torch.ones(1, 1, dtype=torch.bool)
    states = torch.tensor([[[257.0, 0.0]]])
    value = rmu(
        states.bfloat16(),
        real,
        retain_states=states.bfloat16(),
        retain_reference_states=states.bfloat16(),
        retain_positions=real,
        direction=torch.tensor([0.0, 1.0]),
        c=0.5,
    )
    # 257 is 256 in bfloat16, whose square plus 0.25 is no bfloat16: (65536 + 0.25) / 2.
    assert value.item() == 32768.125


def test_the_direction_of_rmu():
    before = torch.get_rng_state()
    direction = draw_rmu_direction(640, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert direction.double().norm().item() == pytest.approx(1, abs=1e-7)
    assert direction.min() >= 0
    # Uniform entries: the mean of u is √3/2 of its root mean square, here 1/√640.
    assert direction.mean().item() * math.sqrt(640) == pytest.approx(math.sqrt(3) / 2, abs=0.05)
    assert not torch.equal(direction, draw_rmu_direction(640, seed=1))
    # Made apart with NumPy's Mersenne Twister.
    digest = hashlib.sha256(direction.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest[:16] == "e2b39844ff21ace9"


def test_task_vector():
    before = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[4.0]])}
    tuned = {"b": torch.tensor([[1.0]]), "a": torch.tensor([2.0, 0.0])}
    kept = copy.deepcopy((before, tuned))
    # 1 − 0.5 · (2 − 1), 2 − 0.5 · (0 − 2), 4 − 0.5 · (1 − 4)
    edited = negate_task_vector(before, tuned, alpha=0.5)
    assert {name: tensor.tolist() for name, tensor in edited.items()} == {
        "a": [0.5, 3.0],
        "b": [[5.5]],
    }
    assert list(edited) == ["a", "b"]
    for mapping, copied in zip((before, tuned), kept, strict=True):
        assert all(torch.equal(mapping[name], copied[name]) for name in copied)
    # α = 1, the source's; −1 is θ_F, 0 a copy of θ₀.
    assert negate_task_vector(before, tuned)["a"].tolist() == [0.0, 4.0]
    assert negate_task_vector(before, tuned, alpha=-1)["a"].tolist() == [2.0, 0.0]
    unmoved = negate_task_vector(before, tuned, alpha=0)["a"]
    assert unmoved.tolist() == [1.0, 2.0]
    assert unmoved.data_ptr() != before["a"].data_ptr()


def test_task_vector_keeps_the_precision_but_computes_in_float32():
    before, tuned = torch.tensor([[256.0], [1.5]], dtype=torch.bfloat16)
    # 256 + 3 · 254.5 = 1019.5, and bfloat16 has 1016 and 1020; step by step in bfloat16 it is 1016.
    edited = negate_task_vector({"w": torch.nn.Parameter(before)}, {"w": tuned}, alpha=3)["w"]
    assert (edited.dtype, edited.item(), edited.requires_grad) == (torch.bfloat16, 1020, False)


def test_task_vector_names_what_does_not_agree():
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="'b' is in one of the two models only"):
        negate_task_vector({"a": one}, {"a": one, "b": one})
    with pytest.raises(ValueError, match=r"'a' has the shape \(1,\) in one model, \(2,\) in the"):
        negate_task_vector({"a": one}, {"a": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"'a' is torch\.int64"):
        negate_task_vector({"a": one.long()}, {"a": one.long()})


def inputs(name, *, padding=0.0, extra=0):
    """Random arguments of an objective, with `extra` columns of padding that hold `padding`."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    lengths = {"forget": [3, 1], "preferred": [2, 3], "retain": [1, 2, 2]}
    found = {}
    for need in OBJECTIVES[name].needs:
        if need == "direction":
            found[need] = draw_rmu_direction(4, seed=0).double()
            continue
        rows = lengths[need.partition("_")[0]]
        mask = torch.arange(max(rows) + extra) < torch.tensor(rows)[:, None]
        if need.endswith(("_mask", "_positions")):
            found[need] = mask
            continue
        states = need.endswith("_states")
        shape = (len(rows), max(rows), 4) if states else (len(rows), max(rows))
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if not states:
            values = values.abs() if need.endswith("_kl") else -values.abs()
        wide = torch.full((len(rows), max(rows) + extra, *shape[2:]), padding).double()
        wide[:, : max(rows)] = values
        found[need] = wide.masked_fill(~mask[..., None] if states else ~mask, padding)
    return found


LOSSES = sorted(OBJECTIVES)
WEIGHTED = ("satimp", "wga")
"""Their weights are functions of θ that no gradient is taken of."""
FROZEN = ("_reference_logprobs", "_reference_log_odds", "_reference_states", "_repeat_logprobs")


def trained(tensors):
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not name.endswith((*FROZEN, "direction"))
    ]


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in WEIGHTED])
def test_every_loss_has_the_numerical_gradient(name):
    tensors = inputs(name)
    names = trained(tensors)

    def loss(*values):
        return OBJECTIVES[name].function(**tensors | dict(zip(names, values, strict=True)))

    assert gradcheck(loss, [tensors[n].requires_grad_() for n in names])


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_has_a_gradient_through_what_is_frozen(name):
    tensors = inputs(name)
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.requires_grad_()
    OBJECTIVES[name].function(**tensors).backward()
    moved = {n for n, tensor in tensors.items() if tensor.grad is not None}
    assert moved == {*trained(tensors)}


@pytest.mark.parametrize("padding", [math.nan, math.inf, -math.inf, 1e6])
@pytest.mark.parametrize("name", LOSSES)
def test_padding_does_not_matter(name, padding):
    plain, padded = inputs(name), inputs(name, padding=padding, extra=2)
    names = trained(plain)
    for tensors in (plain, padded):
        for n in names:
            tensors[n].requires_grad_()
    losses = [OBJECTIVES[name].function(**tensors) for tensors in (plain, padded)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    for loss in losses:
        loss.backward()
    for n in names:
        width = plain[n].shape[1]
        assert torch.allclose(plain[n].grad, padded[n].grad[:, :width], rtol=1e-12)
        assert not padded[n].grad[:, width:].any()


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_sequences_does_not_matter(name):
    tensors = inputs(name)
    turned = {n: t if n == "direction" else t.flip(0) for n, t in tensors.items()}
    function = OBJECTIVES[name].function
    assert function(**turned).item() == pytest.approx(function(**tensors).item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_to_learn_from_is_an_error(name):
    tensors = inputs(name)
    for need, mask in tensors.items():
        if mask.dtype == torch.bool:
            with pytest.raises(ValueError, match=r"^no (label tokens|real positions)"):
                OBJECTIVES[name].function(**tensors | {need: torch.zeros_like(mask)})


@pytest.mark.parametrize(
    "name", ["npo", "npo_kl", "npo_rt", "simnpo", "dpo", "dpo_kl", "altpo", "pdu"]
)
def test_a_sequence_without_labels_is_an_error_in_a_mean_over_sequences(name):
    tensors = inputs(name)
    tensors["forget_mask"][1] = False
    with pytest.raises(ValueError, match=r"^no label tokens in the sequences \[1\] of 2$"):
        OBJECTIVES[name].function(**tensors)


def test_a_batch_of_no_sequences_is_an_error():
    nothing = torch.zeros(0, 3)
    with pytest.raises(ValueError, match="no label tokens"):
        ce(nothing, nothing.bool())
    with pytest.raises(ValueError, match="no label tokens"):
        npo(nothing, nothing.bool(), forget_reference_logprobs=nothing)


def test_numbers_that_are_not_finite_are_passed_on():
    mask = torch.tensor([[True, True]])
    assert ce(logs([0, 1 / 2]), mask).item() == math.inf
    assert math.isnan(ce(logs([PAD, 1 / 2]), mask).item())
    # What was forgotten altogether costs nothing more.
    gone = npo(logs([0, 1 / 2]), mask, forget_reference_logprobs=logs([1 / 2, 1 / 2]))
    assert gone.item() == 0
    assert math.isnan(npo(logs([PAD, 1]), mask, forget_reference_logprobs=logs([1, 1])).item())


@pytest.mark.parametrize("beta", [0, -1, math.nan])
def test_beta_is_positive(beta):
    with pytest.raises(ValueError, match=f"beta is {beta}; it must be positive"):
        npo(FORGET, FORGET_MASK, **NPO, beta=beta)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_registry_says_what_the_functions_take(name):
    parameters = inspect.signature(OBJECTIVES[name].function).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    assert dict(OBJECTIVES[name].settings) == defaults
    assert sorted(OBJECTIVES[name].needs) == sorted(parameters.keys() - defaults.keys())


def test_the_registry_describes_all_that_is_needed_and_no_more():
    assert {need for entry in OBJECTIVES.values() for need in entry.needs} == {*TENSORS}


def test_references_are_needed_where_the_formula_has_them():
    with_reference = {
        name
        for name, entry in OBJECTIVES.items()
        if any("reference" in need or "kl" in need for need in entry.needs)
    }
    assert with_reference == {
        *("altpo", "dpo", "dpo_kl", "gd_kl", "lingtea", "lingtea_fixed", "lingtea_code_retain"),
        *("npo", "npo_kl", "npo_rt", "pdu", "rmu", "undial"),
    }
    assert OBJECTIVES["lingtea_code_forget"].function is ga
