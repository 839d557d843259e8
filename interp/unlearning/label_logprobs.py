"""Log-probabilities and divergences at label positions, without keeping the logits.

With a vocabulary of 262,144 the unembedding is most of a training step. Its weight is frozen here
(U shares it with V), so that all that training needs of the logits z = W h + b is, per label,
the loss and its gradient in h:

    log p(y)             gradient  W_y − Σᵥ pᵥ Wᵥ
    log p(y)/(1 − p(y))  gradient  W_y − Σᵥ qᵥ Wᵥ,  q the distribution of the other tokens
    KL(p₀ ‖ p)           gradient  Σᵥ (pᵥ − p₀ᵥ) Wᵥ
    maxᵥ zᵥ − meanᵥ zᵥ   gradient  W_max − meanᵥ Wᵥ

All are made in the forward pass, block by block of the vocabulary, so that logits never leave the
processor's cache: sums over the vocabulary are kept relative to the largest logit so far. Where
logits are capped, or the unembedding is trained, autograd does the same, recomputing chunks of
labels.

The log-odds leave the label out of the sums. Made of log p, they and 1 − p would be noise where
the model is sure: in bfloat16 from p = 0.99 on, in float32 from 1 − 1e-6.
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


def compute_label_log_odds(
    anatomy: Anatomy, states: Float[Tensor, "label d"], targets: Int[Tensor, " label"]
) -> Float[Tensor, " label"]:
    """Compute the log-odds log p/(1 − p), in nats, of each label's token.

    They are exact also where p rounds to 1. log p is −softplus(−odds), log(1 − p) −softplus(odds).

    Args:
        anatomy: of the model.
        states: what the unembedding reads where each label is predicted.
        targets: token ids.
    """
    if _has_closed_form_gradient(anatomy):
        return _compute_logprobs(anatomy.unembed, states, targets, against_others=True)
    return _apply_in_chunks(_compute_log_odds_by_autograd, anatomy, states, targets)


def compute_label_kl(
    anatomy: Anatomy,
    states: Float[Tensor, "label d"],
    reference: Anatomy,
    reference_states: Float[Tensor, "label d"],
    *,
    without: Int[Tensor, " label"] | None = None,
) -> Float[Tensor, " label"]:
    """Compute KL(θ₀ ‖ θ) of the next-token distributions, in nats, at each label.

    Args:
        anatomy: of θ; gradients flow through its states alone.
        states: what θ's unembedding reads.
        reference: the anatomy of θ₀.
        reference_states: what θ₀'s unembedding reads at the same places.
        without: token ids, one a label, that are left out: the distributions are those of the next
            token given that it is another one.
    """
    reference_states = reference_states.detach()
    if _has_closed_form_gradient(anatomy) and _is_affine(reference):
        kl, *_ = _compute_kl(anatomy.unembed, states, reference.unembed, reference_states, without)
        return kl

    def kl_of(
        anatomy: Anatomy, states: Tensor, others: Tensor, left_out: Tensor | None = None
    ) -> Tensor:
        with torch.no_grad():
            before = _leave_out(reference.logits(others).float(), left_out).log_softmax(-1)
        after = _leave_out(anatomy.logits(states).float(), left_out).log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1)

    given = (reference_states,) if without is None else (reference_states, without)
    return _apply_in_chunks(kl_of, anatomy, states, *given)


@torch.no_grad()
def compare_at_labels(
    anatomy: Anatomy,
    states: Float[Tensor, "label d"],
    reference: Anatomy,
    reference_states: Float[Tensor, "label d"],
    targets: Int[Tensor, " label"],
) -> tuple[Float[Tensor, " label"], Float[Tensor, " label"], Float[Tensor, " label"]]:
    """Compute KL(θ₀ ‖ θ), and the labels' log-probabilities under θ and under θ₀, in nats.

    Without gradients. Where logits are not capped, one pass over the vocabulary gives all three.

    Args:
        anatomy: of θ.
        states: what θ's unembedding reads where each label is predicted.
        reference: the anatomy of θ₀.
        reference_states: what θ₀'s unembedding reads at the same places.
        targets: token ids.
    """
    if not (_is_affine(anatomy) and _is_affine(reference)):
        return (
            compute_label_kl(anatomy, states, reference, reference_states),
            compute_label_logprobs(anatomy, states, targets),
            compute_label_logprobs(reference, reference_states, targets),
        )
    kl, after, before = _compute_kl(
        anatomy.unembed, states, reference.unembed, reference_states, None
    )
    return (
        kl,
        _compute_label_logits(anatomy.unembed, states, targets) - after,
        _compute_label_logits(reference.unembed, reference_states, targets) - before,
    )


def compute_logit_margin(
    anatomy: Anatomy, states: Float[Tensor, "label d"]
) -> Float[Tensor, " label"]:
    """Compute by how much the largest logit exceeds the mean logit at each label.

    It is 0 where the next-token distribution is uniform, and there alone.

    Args:
        anatomy: of the model.
        states: what the unembedding reads where each label is predicted.
    """
    if _has_closed_form_gradient(anatomy):
        return _compute_margin(anatomy.unembed, states)
    return _apply_in_chunks(_compute_margin_by_autograd, anatomy, states)


def _has_closed_form_gradient(anatomy: Anatomy) -> bool:
    trained = any(parameter.requires_grad for parameter in anatomy.unembed.parameters())
    return _is_affine(anatomy) and not trained


def _is_affine(anatomy: Anatomy) -> bool:
    """Return whether the logits are the unembedding's outputs themselves."""
    return anatomy.logit_cap is None and anatomy.logit_scale == 1


def _compute_logprobs_by_autograd(anatomy: Anatomy, states: Tensor, targets: Tensor) -> Tensor:
    logits = anatomy.logits(states).float()
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def _compute_log_odds_by_autograd(anatomy: Anatomy, states: Tensor, targets: Tensor) -> Tensor:
    logits = anatomy.logits(states).float()
    others = _leave_out(logits, targets).logsumexp(-1)
    return logits.gather(-1, targets[:, None])[:, 0] - others


def _compute_margin_by_autograd(anatomy: Anatomy, states: Tensor) -> Tensor:
    logits = anatomy.logits(states).float()
    return logits.amax(-1) - logits.mean(-1)


def _apply_in_chunks(function: Any, anatomy: Anatomy, states: Tensor, *others: Tensor) -> Tensor:
    size = _chunk_size(anatomy.unembed.weight)
    rows = zip(*(given.split(size) for given in (states, *others)), strict=True)
    return torch.cat([checkpoint(function, anatomy, *row, use_reentrant=False) for row in rows])


_NEVER = -1e30
"""Logit of what is left out: a probability of 0, and finite, so that differences are."""


def _leave_out(logits: Tensor, targets: Tensor | None = None, start: int = 0) -> Tensor:
    """Return a block of logits, of tokens from `start` on, in which targets have probability 0."""
    if targets is None:
        return logits
    places = targets - start
    columns = places.clamp(0, logits.shape[-1] - 1)[:, None]
    inside = (places[:, None] == columns).expand_as(columns)
    values = logits.gather(-1, columns).masked_fill(inside, _NEVER)
    return logits.scatter(-1, columns, values)


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


def _compute_label_logits(unembed: nn.Linear, states: Tensor, targets: Tensor) -> Tensor:
    rows = _cast_for_autocast(unembed.weight)[targets].float()
    values = (states.float() * rows).sum(-1)
    return values if unembed.bias is None else values + unembed.bias[targets]


def _needs_gradient(states: Tensor) -> bool:
    return torch.is_grad_enabled() and states.requires_grad


def _compute_logprobs(
    unembed: nn.Linear, states: Tensor, targets: Tensor, *, against_others: bool = False
) -> Tensor:
    """Compute log p(y), or log p(y)/(1 − p(y)): the sum over all tokens is one over the others."""
    with_gradients = _needs_gradient(states)
    parts, slopes = [], []
    with torch.no_grad():
        for rows, labels in zip(states.split(ROWS), targets.split(ROWS), strict=True):
            sums, mean = _OnlineSoftmax(rows), rows.new_zeros(rows.shape, dtype=torch.float32)
            for number, (weight, bias) in enumerate(_split_unembedding(unembed)):
                logits = _compute_logits(rows, weight, bias)
                if against_others:
                    logits = _leave_out(logits, labels, number * BLOCK)
                factor = sums.scale(logits)
                weights = sums.add(logits)
                if with_gradients:
                    mean = mean * factor[:, None] + (weights.to(weight.dtype) @ weight).float()
            parts.append(_compute_label_logits(unembed, rows, labels) - sums.normaliser)
            if with_gradients:
                label_rows = _cast_for_autocast(unembed.weight)[labels].float()
                slopes.append(label_rows - mean / sums.total[:, None])
        values = torch.cat(parts)
    return _WithGradients.apply(states, values, torch.cat(slopes)) if with_gradients else values


def _compute_kl(
    unembed: nn.Linear,
    states: Tensor,
    reference: nn.Linear,
    others: Tensor,
    without: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute KL(p₀ ‖ p), and log Σᵥ exp(zᵥ) of p and of p₀."""
    with_gradients = _needs_gradient(states)
    parts, slopes, normalisers = [], [], []
    with torch.no_grad():
        for first in range(0, len(states), ROWS):
            chosen = slice(first, first + ROWS)
            rows, before_rows = states[chosen], others[chosen]
            left_out = None if without is None else without[chosen]
            after_sums, before_sums = _OnlineSoftmax(rows), _OnlineSoftmax(before_rows)
            zeros = rows.new_zeros(rows.shape, dtype=torch.float32)
            after_mean, before_mean, gap = zeros, zeros, zeros[:, 0]
            for number, (block, before_block) in enumerate(
                zip(_split_unembedding(unembed), _split_unembedding(reference), strict=True)
            ):
                after, before = (
                    _leave_out(_compute_logits(given, *part), left_out, number * BLOCK)
                    for given, part in ((rows, block), (before_rows, before_block))
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
            normalisers.append(torch.stack([after_sums.normaliser, before_sums.normaliser]))
            if with_gradients:
                slopes.append(
                    after_mean / after_sums.total[:, None]
                    - before_mean / before_sums.total[:, None]
                )
        values = torch.cat(parts)
        after_normaliser, before_normaliser = torch.cat(normalisers, dim=1)
    if with_gradients:
        values = _WithGradients.apply(states, values, torch.cat(slopes))
    return values, after_normaliser, before_normaliser


def _compute_margin(unembed: nn.Linear, states: Tensor) -> Tensor:
    """Compute maxᵥ zᵥ − meanᵥ zᵥ."""
    with_gradients = _needs_gradient(states)
    whole = _cast_for_autocast(unembed.weight)
    parts, slopes = [], []
    with torch.no_grad():
        blocks = _split_unembedding(unembed)
        mean = torch.stack([weight.float().sum(0) for weight, _ in blocks]).sum(0) / len(whole)
        for rows in states.split(ROWS):
            tops = [_compute_logits(rows, *block).max(-1) for block in blocks]
            values = torch.stack([top.values for top in tops])
            places = torch.stack([top.indices + n * BLOCK for n, top in enumerate(tops)])
            largest = places.gather(0, values.argmax(0)[None])[0]
            slope = whole[largest].float() - mean
            value = (rows.float() * slope).sum(-1)
            if unembed.bias is not None:
                value = value + unembed.bias[largest] - unembed.bias.mean()
            parts.append(value)
            slopes.append(slope)
        margins = torch.cat(parts)
    return _WithGradients.apply(states, margins, torch.cat(slopes)) if with_gradients else margins


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
