"""Log-probabilities and divergences at label positions, without keeping the logits.

With a vocabulary of 262,144 the unembedding is most of a training step. Its weight is frozen here
(U shares it with V), so that all that training needs of the logits z = W h + b is, per label,
the loss and its gradient in h:

    log p(y)             gradient  W_y − Σᵥ pᵥ Wᵥ
    KL(p₀ ‖ p)           gradient  Σᵥ (pᵥ − p₀ᵥ) Wᵥ

Both are made in the forward pass, block by block of the vocabulary, so that logits never leave the
processor's cache: sums over the vocabulary are kept relative to the largest logit so far. Where
logits are capped, or the unembedding is trained, autograd does the same, recomputing chunks of
labels.
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

BLOCK = 8192
"""Tokens of the vocabulary at a time."""

ROWS = 256
"""Labels at a time."""

CHUNK_ELEMENTS = 2**25
"""Logits in memory at a time where autograd recomputes them: 128 MiB in float32."""


def compute_label_logprobs(
    anatomy: Anatomy, states: Float[Tensor, "label d"], targets: Int[Tensor, " label"]
) -> Float[Tensor, " label"]:
    """Compute the log-probability, in nats, of each label's token.

    Args:
        anatomy: of the model.
        states: what the unembedding reads where each label is predicted.
        targets: token ids.
    """
    if _has_closed_form_gradient(anatomy):
        return _compute_logprobs(anatomy.unembed, states, targets)
    return _apply_in_chunks(_compute_logprobs_by_autograd, anatomy, states, targets)


def compute_label_kl(
    anatomy: Anatomy,
    states: Float[Tensor, "label d"],
    reference: Anatomy,
    reference_states: Float[Tensor, "label d"],
) -> Float[Tensor, " label"]:
    """Compute KL(θ₀ ‖ θ) of the next-token distributions, in nats, at each label.

    Args:
        anatomy: of θ; gradients flow through its states alone.
        states: what θ's unembedding reads.
        reference: the anatomy of θ₀.
        reference_states: what θ₀'s unembedding reads at the same places.
    """
    reference_states = reference_states.detach()
    if _has_closed_form_gradient(anatomy) and _is_affine(reference):
        return _compute_kl(anatomy.unembed, states, reference.unembed, reference_states)

    def kl_of(anatomy: Anatomy, states: Tensor, reference_states: Tensor) -> Tensor:
        with torch.no_grad():
            before = reference.logits(reference_states).float().log_softmax(-1)
        after = anatomy.logits(states).float().log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1)

    return _apply_in_chunks(kl_of, anatomy, states, reference_states)


def _has_closed_form_gradient(anatomy: Anatomy) -> bool:
    trained = any(parameter.requires_grad for parameter in anatomy.unembed.parameters())
    return _is_affine(anatomy) and not trained


def _is_affine(anatomy: Anatomy) -> bool:
    """Return whether the logits are the unembedding's outputs themselves."""
    return anatomy.logit_cap is None and anatomy.logit_scale == 1


def _compute_logprobs_by_autograd(anatomy: Anatomy, states: Tensor, targets: Tensor) -> Tensor:
    logits = anatomy.logits(states).float()
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def _apply_in_chunks(function: Any, anatomy: Anatomy, states: Tensor, others: Tensor) -> Tensor:
    size = _chunk_size(anatomy.unembed.weight)
    pairs = zip(states.split(size), others.split(size), strict=True)
    return torch.cat([checkpoint(function, anatomy, *pair, use_reentrant=False) for pair in pairs])


def _chunk_size(weight: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // weight.shape[0])


def _cast_for_autocast(weight: Tensor) -> Tensor:
    """Cast a frozen weight to autocast's precision, where it is on; kept, as it never changes."""
    kind = weight.device.type
    if not torch.is_autocast_enabled(kind) or weight.dtype == torch.get_autocast_dtype(kind):
        return weight
    version = weight._version
    if weight not in _LOWERED or _LOWERED[weight][0] != version:
        _LOWERED[weight] = version, weight.detach().to(torch.get_autocast_dtype(kind))
    return _LOWERED[weight][1]


_LOWERED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Frozen weights in lower precision: without it, every chunk would convert all of them."""


def _compute_logits(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute W h + b in float32; the product itself in the weight's precision."""
    product = states.to(weight.dtype) @ weight.T
    return product.float() if bias is None else product.float() + bias


def _split_unembedding(unembed: nn.Linear) -> list[tuple[Tensor, Tensor | None]]:
    """Split the unembedding into blocks of the vocabulary."""
    weights = _cast_for_autocast(unembed.weight).split(BLOCK)
    biases = [None] * len(weights) if unembed.bias is None else unembed.bias.split(BLOCK)
    return list(zip(weights, biases, strict=True))


class _OnlineSoftmax:
    """Σᵥ exp(zᵥ) and Σᵥ exp(zᵥ) aᵥ over the blocks seen so far, relative to the largest zᵥ.

    Where a block has a larger one, the sums so far are scaled down to it (Milakov & Gimelshein
    2018).
    """

    def __init__(self, states: Tensor) -> None:
        self.largest = states.new_full((len(states),), -torch.inf, dtype=torch.float32)
        self.total = torch.zeros_like(self.largest)

    def scale(self, logits: Tensor) -> Tensor:
        """Take in the logits of another block; return the factor of the earlier sums."""
        largest = torch.maximum(self.largest, logits.amax(-1))
        factor = (self.largest - largest).exp()
        self.largest = largest
        self.total = self.total * factor
        return factor

    def add(self, logits: Tensor) -> Tensor:
        """Exponentiate a block's logits relative to the largest, in place, and add them up."""
        weights = logits.sub_(self.largest[:, None]).exp_()
        self.total = self.total + weights.sum(-1)
        return weights

    @property
    def normaliser(self) -> Tensor:
        """log Σᵥ exp(zᵥ)."""
        return self.largest + self.total.log()


def _needs_gradient(states: Tensor) -> bool:
    return torch.is_grad_enabled() and states.requires_grad


def _compute_logprobs(unembed: nn.Linear, states: Tensor, targets: Tensor) -> Tensor:
    """Compute log p(y)."""
    with_gradients = _needs_gradient(states)
    parts, slopes = [], []
    with torch.no_grad():
        for rows, labels in zip(states.split(ROWS), targets.split(ROWS), strict=True):
            sums, mean = _OnlineSoftmax(rows), rows.new_zeros(rows.shape, dtype=torch.float32)
            for weight, bias in _split_unembedding(unembed):
                logits = _compute_logits(rows, weight, bias)
                factor = sums.scale(logits)
                weights = sums.add(logits)
                if with_gradients:
                    mean = mean * factor[:, None] + (weights.to(weight.dtype) @ weight).float()
            label_rows = _cast_for_autocast(unembed.weight)[labels].float()
            value = (rows.float() * label_rows).sum(-1)
            if unembed.bias is not None:
                value = value + unembed.bias[labels]
            parts.append(value - sums.normaliser)
            if with_gradients:
                slopes.append(label_rows - mean / sums.total[:, None])
        values = torch.cat(parts)
    return _WithGradients.apply(states, values, torch.cat(slopes)) if with_gradients else values


def _compute_kl(unembed: nn.Linear, states: Tensor, reference: nn.Linear, others: Tensor) -> Tensor:
    """Compute KL(p₀ ‖ p)."""
    with_gradients = _needs_gradient(states)
    parts, slopes = [], []
    with torch.no_grad():
        for rows, before_rows in zip(states.split(ROWS), others.split(ROWS), strict=True):
            after_sums, before_sums = _OnlineSoftmax(rows), _OnlineSoftmax(before_rows)
            zeros = rows.new_zeros(rows.shape, dtype=torch.float32)
            after_mean, before_mean, gap = zeros, zeros, zeros[:, 0]
            for block, before_block in zip(
                _split_unembedding(unembed), _split_unembedding(reference), strict=True
            ):
                after, before = (
                    _compute_logits(rows, *block),
                    _compute_logits(before_rows, *before_block),
                )
                differences = before - after
                after_factor, before_factor = after_sums.scale(after), before_sums.scale(before)
                before_weights = before_sums.add(before)
                gap = gap * before_factor + (before_weights * differences).sum(-1)
                after_weights = after_sums.add(after)
                if with_gradients:
                    weight = block[0]
                    after_mean = after_mean * after_factor[:, None]
                    after_mean += (after_weights.to(weight.dtype) @ weight).float()
                    before_mean = before_mean * before_factor[:, None]
                    before_mean += (before_weights.to(weight.dtype) @ weight).float()
            mean_gap = gap / before_sums.total
            parts.append(mean_gap - before_sums.normaliser + after_sums.normaliser)
            if with_gradients:
                slopes.append(
                    after_mean / after_sums.total[:, None]
                    - before_mean / before_sums.total[:, None]
                )
        values = torch.cat(parts)
    return _WithGradients.apply(states, values, torch.cat(slopes)) if with_gradients else values


class _WithGradients(torch.autograd.Function):
    """Carries values [label] of states [label d], each with its gradient in its own state."""

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
