"""Losses that objectives share, as pure functions of log-probabilities.

F is the forget set, R the retain set, θ the model in training and θ₀ the model before. A batch is
a table of label tokens with a row per sequence and a mask that is True on labels, False on padding;
what stands under the padding never matters. Labels are the answers' or the texts' tokens, never the
prompts'. Log-probabilities and losses are in nats. θ₀ is frozen: no gradient flows into anything
called a reference.

Where the mask has no labels at all, or a sequence has none in a loss that is a mean over sequences,
every function raises a ValueError. Infinite and undefined numbers on labels are passed on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def label_mean(
    values: Float[Tensor, "sequence label"], mask: Bool[Tensor, "sequence label"]
) -> Float[Tensor, ""]:
    """Average over all label tokens of the batch.

    Raises:
        ValueError: the mask has no labels.
    """
    if not mask.any():
        raise ValueError(f"no label tokens: the mask of shape {tuple(mask.shape)} is all False")
    return values[mask].mean()


def label_sums(
    values: Float[Tensor, "sequence label"], mask: Bool[Tensor, "sequence label"]
) -> Float[Tensor, " sequence"]:
    """Sum over each sequence's label tokens.

    Raises:
        ValueError: there is no sequence, or one without labels.
    """
    empty = (~mask.any(-1)).nonzero().flatten().tolist()
    if empty or not len(mask):
        raise ValueError(f"no label tokens in the sequences {empty} of {len(mask)}")
    return torch.where(mask, values, 0).sum(-1)


def label_probabilities(
    logprobs: Float[Tensor, "sequence label"], mask: Bool[Tensor, "sequence label"]
) -> Float[Tensor, "sequence label"]:
    """Return the label tokens' probabilities as constants, 1 under the padding.

    At most 1: in bfloat16 a token that is all but sure has a log-probability above 0.
    """
    return logprobs.detach().masked_fill(~mask, 0.0).clamp(max=0.0).exp()


def ce(
    logprobs: Float[Tensor, "sequence label"], mask: Bool[Tensor, "sequence label"]
) -> Float[Tensor, ""]:
    """Compute CE: −log p of the label tokens, the mean over all label tokens of the batch."""
    return -label_mean(logprobs, mask)


def nll(
    logprobs: Float[Tensor, "sequence label"], mask: Bool[Tensor, "sequence label"]
) -> Float[Tensor, " sequence"]:
    """Compute nll(y|x): −log p of each sequence, the sum over its label tokens."""
    return -label_sums(logprobs, mask)


def log_ratio(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Compute log(π/π₀) of each sequence, the first minus the reference."""
    return label_sums(logprobs, mask) - label_sums(reference_logprobs.detach(), mask)


def softplus_loss(margin: Float[Tensor, " sequence"], beta: float) -> Float[Tensor, ""]:
    """Compute (2/β)·E softplus(−β·margin), which is −(2/β)·E log σ(β·margin)."""
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be positive")
    return 2 / beta * F.softplus(-beta * margin).mean()
