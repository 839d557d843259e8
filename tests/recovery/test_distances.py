"""Distances from V's logits: by hand, against explicit logits in float64, and close to V."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence

from interp.models import Anatomy
from interp.recovery import distances
from interp.recovery.distances import (
    DistanceScorer,
    compute_distance,
    compute_gram_matrices,
    get_own_gram,
)
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, Restoration
from tests.helpers.tiny_models import (
    OWN_ENGINES,
    mixed_trajectories,
    tiny,
    tiny_model,
    tiny_pair,
    wrap,
)

NO_TOKENS = torch.tensor([-1])
ANATOMY = tiny().anatomy


def reading(weight, bias=None, *, cap: float | None = None) -> Anatomy:
    """Make an anatomy whose unembedding is the given matrix."""
    weight = torch.as_tensor(weight)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(torch.as_tensor(bias), requires_grad=False)
    return replace(ANATOMY, unembed=linear, logit_cap=cap)


def explicit(vanilla: Anatomy, reader: Anatomy, target, states) -> torch.Tensor:
    """mean over the vocabulary of (z_V − z)², in float64 throughout."""

    def logits(anatomy, state):
        z = state.double() @ anatomy.unembed.weight.double().T
        if anatomy.unembed.bias is not None:
            z = z + anatomy.unembed.bias.double()
        cap = anatomy.logit_cap
        return z if cap is None else torch.tanh(z / cap) * cap

    return (logits(vanilla, target) - logits(reader, states)).square().mean(-1)


# Two tokens, by hand. V reads h_V = (1, 2) as z_V = (5, 2).

H_V = torch.tensor([[1.0, 2.0]])
H = torch.tensor([[[2.0, 1.0]]])
W_V = [[1.0, 2.0], [0.0, 1.0]]
W_U = [[1.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("vanilla", "unlearned", "readout", "loss"),
    [
        # z = (4, 1): (1² + 1²) / 2
        (reading(W_V), reading(W_V), "unlearned", 1.0),
        # z = (3, 2): (2² + 0²) / 2
        (reading(W_V), reading(W_U), "unlearned", 2.0),
        # V's own unembedding put back: as in the first line.
        (reading(W_V), reading(W_U), "vanilla", 1.0),
        # z_V = (6, 2), z = (3, 4): (3² + 2²) / 2
        (reading(W_V, [1.0, 0.0]), reading(W_U, [0.0, 2.0]), "unlearned", 6.5),
        # The bias alone differs: z_V = (6, 2), z = (4, 3): (2² + 1²) / 2
        (reading(W_V, [1.0, 0.0]), reading(W_V, [0.0, 2.0]), "unlearned", 2.5),
        # Both read by V, whose bias cancels.
        (reading(W_V, [1.0, 0.0]), reading(W_V, [0.0, 2.0]), "vanilla", 1.0),
    ],
)
def test_logit_mse_by_hand(vanilla, unlearned, readout, loss):
    scorer = DistanceScorer(vanilla, unlearned)
    found = scorer.compute_losses(H_V, H, NO_TOKENS, readout=readout)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(loss, abs=1e-12)


def test_capped_logits_by_hand():
    """z_V = (5, 2), z = (4, 1), each 3 · tanh(z / 3)."""
    capped = reading(W_V, cap=3.0)
    found = (
        DistanceScorer(capped, capped).compute_losses(H_V, H, NO_TOKENS, readout="unlearned").item()
    )
    first = 3 * math.tanh(5 / 3) - 3 * math.tanh(4 / 3)
    second = 3 * math.tanh(2 / 3) - 3 * math.tanh(1 / 3)
    assert found == pytest.approx((first**2 + second**2) / 2, rel=1e-6)
    assert found < 0.5


def random_case(*, changed: bool, bias: str, seed: int = 0, vocab_size: int = 101, d: int = 13):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    weight, b = normal(vocab_size, d), normal(vocab_size)
    other = weight + 0.3 * normal(vocab_size, d) if changed else weight.clone()
    biases = {
        "none": (None, None),
        "same": (b, b.clone()),
        "changed": (b, b + normal(vocab_size)),
    }[bias]
    vanilla, unlearned = reading(weight, biases[0]), reading(other, biases[1])
    return vanilla, unlearned, normal(7, d), normal(3, 7, d)


@pytest.mark.parametrize("bias", ["none", "same", "changed"])
@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("readout", ["vanilla", "unlearned"])
def test_gram_equals_explicit_logits(changed, bias, readout):
    vanilla, unlearned, target, states = random_case(changed=changed, bias=bias)
    reader = vanilla if readout == "vanilla" else unlearned
    found = DistanceScorer(vanilla, unlearned).compute_losses(
        target, states, torch.full((7,), -1), readout=readout
    )
    torch.testing.assert_close(
        found, explicit(vanilla, reader, target, states), rtol=1e-6, atol=0.0
    )


@pytest.mark.parametrize("bias", ["none", "changed"])
def test_gram_matrices_in_chunks(bias):
    vanilla, unlearned, *_ = random_case(changed=True, bias=bias)
    whole = compute_gram_matrices(vanilla.unembed, unlearned.unembed)
    chunked = compute_gram_matrices(vanilla.unembed, unlearned.unembed, chunk=10)
    w, w_v = (
        anatomy.unembed.weight.double()
        if bias == "none"
        else torch.cat([anatomy.unembed.weight, anatomy.unembed.bias[:, None]], 1).double()
        for anatomy in (unlearned, vanilla)
    )
    expected = (w.T @ w, w.T @ (w_v - w), (w_v - w).T @ (w_v - w))
    for found in (whole, chunked):
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    assert compute_gram_matrices(vanilla.unembed, vanilla.unembed)[1:] == (None, None)


@pytest.mark.parametrize("bias", ["none", "same"])
def test_the_gram_matrix_is_kept_with_the_weight_until_that_changes(bias):
    vanilla, unlearned, *_ = random_case(changed=False, bias=bias)
    assert unlearned.unembed.weight is not vanilla.unembed.weight
    first = get_own_gram(vanilla.unembed)
    assert get_own_gram(vanilla.unembed) is first
    # Another unlearned model of the same unembedding is scored by it.
    scorer = DistanceScorer(vanilla, unlearned)
    scorer.prepare("unlearned")
    assert scorer._grams["unlearned"][0] is first
    for changed in (vanilla.unembed.weight, vanilla.unembed.bias):
        if changed is None:
            continue
        changed.data.view(-1)[3] += 1e-3
        now = get_own_gram(vanilla.unembed)
        expected, _, _ = compute_gram_matrices(vanilla.unembed, vanilla.unembed)
        assert torch.equal(now, expected)
        assert not torch.equal(now, first)
    kept = len(distances._OWN_GRAMS)
    del vanilla, unlearned, scorer, changed
    assert len(distances._OWN_GRAMS) == kept - 1


@pytest.mark.parametrize("distance_from_v", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("changed", [False, True])
def test_nothing_cancels_close_to_v(changed, distance_from_v):
    """Losses keep their relative precision however close R is to V, with bfloat16-like steps."""
    vanilla, unlearned, target, _ = random_case(changed=False, bias="none", d=32, vocab_size=500)
    if changed:
        generator = torch.Generator().manual_seed(9)
        step = torch.randn(unlearned.unembed.weight.shape, generator=generator)
        unlearned.unembed.weight.add_(distance_from_v * step)
    # Steps in units that float32 can hold exactly beside h_V.
    generator = torch.Generator().manual_seed(8)
    states = target + distance_from_v * torch.randn(2, *target.shape, generator=generator)
    found = DistanceScorer(vanilla, unlearned).compute_losses(
        target, states, torch.full((7,), -1), readout="unlearned"
    )
    expected = explicit(vanilla, unlearned, target, states)
    assert (expected < 100 * distance_from_v**2 * 32).all()
    assert (expected > 0).all()
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=0.0)


def test_v_itself_is_at_distance_zero():
    vanilla, unlearned, target, _ = random_case(changed=True, bias="changed")
    scorer = DistanceScorer(vanilla, unlearned)
    found = scorer.compute_losses(target, target[None], torch.full((7,), -1), readout="vanilla")
    assert (found == 0).all()


# KL and the answer's log-probability


def test_kl_and_logprob_by_hand():
    """p_V = (1/4, 3/4), p = (1/2, 1/2)."""
    target, logits = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    kl = compute_distance("kl", target, logits, NO_TOKENS)
    assert kl.item() == pytest.approx(0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2), rel=1e-5)
    for token, expected in [(0, math.log(1 / 2)), (1, math.log(3 / 2))]:
        found = compute_distance("answer_logprob", target, logits, torch.tensor([token]))
        assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_kl_and_logprob_against_torch_distributions(cap):
    vanilla, unlearned, target, states = random_case(changed=True, bias="changed")
    vanilla, unlearned = replace(vanilla, logit_cap=cap), replace(unlearned, logit_cap=cap)
    tokens = torch.arange(7) * 11
    p = Categorical(logits=vanilla.logits(target).double())
    q = Categorical(logits=unlearned.logits(states).double())
    expected = {
        "kl": kl_divergence(p, q),
        "answer_logprob": p.log_prob(tokens) - q.log_prob(tokens),
    }
    for distance, value in expected.items():
        # 101 words at 4 bytes, three times: one, two or all positions at a time.
        for budget in (1, 2 * 101 * 4 * 3, 1 << 20):
            scorer = DistanceScorer(vanilla, unlearned, distance=distance, logits_budget=budget)
            found = scorer.compute_losses(target, states, tokens, readout="unlearned")
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_explicit_logits_in_chunks(cap):
    vanilla, unlearned, target, states = random_case(changed=True, bias="none")
    vanilla, unlearned = replace(vanilla, logit_cap=cap), replace(unlearned, logit_cap=cap)
    expected = explicit(vanilla, unlearned, target, states)
    for budget in (1, 1 << 20):
        scorer = DistanceScorer(vanilla, unlearned, logits_budget=budget)
        found = scorer.compute_losses(target, states, torch.full((7,), -1), readout="unlearned")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_own_precision_is_that_of_the_logits():
    """hong2024 subtracts and squares bfloat16 logits; the paper's variant does so in float32."""
    vanilla, unlearned, target, states = random_case(changed=True, bias="none")
    for anatomy in (vanilla, unlearned):
        anatomy.unembed.to(torch.bfloat16)
    target, states = target.bfloat16(), states.bfloat16()
    z_v = target @ vanilla.unembed.weight.T
    z = states @ unlearned.unembed.weight.T
    own = (z_v - z).square().mean(-1)
    assert own.dtype == torch.bfloat16
    found = [
        DistanceScorer(vanilla, unlearned, own_precision=precision).compute_losses(
            target, states, torch.full((7,), -1), readout="unlearned"
        )
        for precision in (True, False)
    ]
    assert torch.equal(found[0], own.double())
    exact = explicit(vanilla, unlearned, target, states)
    torch.testing.assert_close(found[1], exact, rtol=1e-5, atol=0.0)
    assert (found[0] - exact).abs().max() > 1e-3


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_distance():
    with pytest.raises(ValueError, match="'mse'; valid: logit_mse, kl, answer_logprob"):
        DistanceScorer(ANATOMY, ANATOMY, distance="mse")
    with pytest.raises(ValueError, match="predicts no answer token"):
        compute_distance("answer_logprob", torch.zeros(1, 2), torch.zeros(1, 2), NO_TOKENS)


# In a model


@pytest.mark.parametrize("architecture", ["llama", "phi", "gemma2"])
def test_mean_over_tokens_then_per_question(architecture):
    pair = tiny_pair(architecture)
    items = mixed_trajectories(3)
    for engine in OWN_ENGINES.values():
        found = engine(pair, items, [NOTHING])[0].tolist()
        for item, loss in zip(items, found, strict=True):
            ids = torch.tensor([item.token_ids])
            with torch.no_grad():
                z_v, z = (m.model(ids).logits[0] for m in (pair.vanilla, pair.unlearned))
            first = len(item.prompt_ids) - 1
            by_token = [
                (z_v[position] - z[position]).double().square().sum().item() / 50
                for position in range(first, first + len(item.answer_ids))
            ]
            assert loss == pytest.approx(sum(by_token) / len(by_token), rel=1e-5)


@pytest.mark.parametrize("distance", ["logit_mse", "kl"])
def test_v_with_itself_where_only_the_unembeddings_bias_differs(distance):
    """Noise floor: it is V's own, also where U shares V's unembedding but for its bias."""
    vanilla, model = tiny("phi"), tiny_model("phi")
    model.lm_head.weight = vanilla.model.lm_head.weight
    model.lm_head.bias.add_(1.0 + torch.arange(50) / 50)
    pair = Pair(vanilla=vanilla, unlearned=wrap(model))
    middle = Restoration(sites=("coef",), layers=(1, 2, 3))
    for engine in OWN_ENGINES.values():
        losses = engine(pair, mixed_trajectories(2), [NOTHING], distance=distance)
        assert losses.min() > 1e-3
        alone = engine(pair.with_itself(), mixed_trajectories(2), [middle], distance=distance)
        assert alone.max() < 1e-9
