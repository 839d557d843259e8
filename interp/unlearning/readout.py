"""Log-probabilities and divergences at label positions, without keeping the logits.

With a vocabulary of 262,144 the unembedding is most of a training step. Its weight is frozen here
(U shares it with V), so that all that training needs of the logits z = W h + b is, per label,
the loss and its gradient in h:

    log p(y)             gradient  W_y − Σᵥ pᵥ Wᵥ
    KL(p₀ ‖ p)           gradient  Σᵥ (pᵥ − p₀ᵥ) Wᵥ

Both are made chunk by chunk in the forward pass, two matrix products in all; the logits of a chunk
are gone before the next one's are made. Where logits are capped, or the unembedding is trained,
autograd does the same, recomputing each chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

from interp.models.anatomy import Anatomy

CHUNK_ELEMENTS = 2**25
"""Logits in memory at a time: 128 MiB in float32."""


def label_logprobs(
    anatomy: Anatomy, states: Float[Tensor, "label d"], targets: Int[Tensor, " label"]
) -> Float[Tensor, " label"]:
    """Log-probability, in nats, of each label's token.

    Args:
        anatomy: of the model.
        states: what the unembedding reads where each label is predicted.
        targets: token ids.
    """
    if _by_hand(anatomy):
        return _logprobs(anatomy.unembed, states, targets)
    return _in_chunks(_logprobs_of, anatomy, states, targets)


def label_kl(
    anatomy: Anatomy,
    states: Float[Tensor, "label d"],
    reference: Anatomy,
    reference_states: Float[Tensor, "label d"],
) -> Float[Tensor, " label"]:
    """KL(θ₀ ‖ θ) of the next-token distributions, in nats, at each label.

    Args:
        anatomy: of θ; gradients flow through its states alone.
        states: what θ's unembedding reads.
        reference: the anatomy of θ₀.
        reference_states: what θ₀'s unembedding reads at the same places.
    """
    reference_states = reference_states.detach()
    if _by_hand(anatomy) and reference.logit_cap is None:
        return _kl(anatomy.unembed, states, reference.unembed, reference_states)

    def kl_of(anatomy: Anatomy, states: Tensor, reference_states: Tensor) -> Tensor:
        with torch.no_grad():
            before = reference.logits(reference_states).float().log_softmax(-1)
        after = anatomy.logits(states).float().log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1)

    return _in_chunks(kl_of, anatomy, states, reference_states)


def _by_hand(anatomy: Anatomy) -> bool:
    trained = any(parameter.requires_grad for parameter in anatomy.unembed.parameters())
    return anatomy.logit_cap is None and not trained


def _logprobs_of(anatomy: Anatomy, states: Tensor, targets: Tensor) -> Tensor:
    logits = anatomy.logits(states).float()
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def _in_chunks(function: Any, anatomy: Anatomy, states: Tensor, others: Tensor) -> Tensor:
    size = _chunk_size(anatomy.unembed.weight)
    pairs = zip(states.split(size), others.split(size), strict=True)
    return torch.cat([checkpoint(function, anatomy, *pair, use_reentrant=False) for pair in pairs])


def _chunk_size(weight: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // weight.shape[0])


def _as_computed(weight: Tensor) -> Tensor:
    """A frozen weight in the precision of autocast, where it is on; kept, as it never changes."""
    kind = weight.device.type
    if not torch.is_autocast_enabled(kind) or weight.dtype == torch.get_autocast_dtype(kind):
        return weight
    version = weight._version
    if weight not in _LOWERED or _LOWERED[weight][0] != version:
        _LOWERED[weight] = version, weight.detach().to(torch.get_autocast_dtype(kind))
    return _LOWERED[weight][1]


_LOWERED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Frozen weights in lower precision: without it, every chunk would convert all of them."""


def _product(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W h + b in float32; the product itself in the weight's precision."""
    product = states.to(weight.dtype) @ weight.T
    return product.float() if bias is None else product.float() + bias


def _mean_row(weights: Tensor, weight: Tensor) -> Tensor:
    """Σᵥ aᵥ Wᵥ in float32; the product itself in the weight's precision."""
    return (weights.to(weight.dtype) @ weight).float()


def _wants_slopes(states: Tensor) -> bool:
    return torch.is_grad_enabled() and states.requires_grad


def _logprobs(unembed: nn.Linear, states: Tensor, targets: Tensor) -> Tensor:
    """log p(y)."""
    weight, wanted = _as_computed(unembed.weight), _wants_slopes(states)
    found, slopes = [], []
    with torch.no_grad():
        size = _chunk_size(weight)
        for rows, labels in zip(states.split(size), targets.split(size), strict=True):
            logits = _product(rows, weight, unembed.bias)
            normaliser = logits.logsumexp(-1)
            found.append(logits.gather(-1, labels[:, None])[:, 0] - normaliser)
            if wanted:
                probabilities = logits.sub_(normaliser[:, None]).exp_()
                slopes.append(weight[labels].float() - _mean_row(probabilities, weight))
        values = torch.cat(found)
    return _WithSlopes.apply(states, values, torch.cat(slopes)) if wanted else values


def _kl(unembed: nn.Linear, states: Tensor, reference: nn.Linear, others: Tensor) -> Tensor:
    """KL(p₀ ‖ p)."""
    weight, wanted = _as_computed(unembed.weight), _wants_slopes(states)
    reference_weight = _as_computed(reference.weight)
    found, slopes = [], []
    with torch.no_grad():
        size = _chunk_size(weight)
        for rows, before_rows in zip(states.split(size), others.split(size), strict=True):
            after = _product(rows, weight, unembed.bias).log_softmax(-1)
            before = _product(before_rows, reference_weight, reference.bias).log_softmax(-1)
            probabilities = before.exp()
            found.append(probabilities.mul(before.sub_(after)).sum(-1))
            if wanted:
                slopes.append(_mean_row(after.exp_().sub_(probabilities), weight))
        values = torch.cat(found)
    return _WithSlopes.apply(states, values, torch.cat(slopes)) if wanted else values


class _WithSlopes(torch.autograd.Function):
    """Values [label] of states [label d], each with its gradient in its own state."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        ctx.dtype = states.dtype
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (grads[0][:, None] * slopes).to(ctx.dtype), None, None
