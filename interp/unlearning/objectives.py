"""Unlearning losses, as pure functions of log-probabilities.

F is the forget set, R the retain set, θ the model in training and θ₀ the model before. A batch is
a table of label tokens with a row per sequence and a mask that is True on labels, False on padding;
what stands under the padding never matters. Labels are the answers' or the texts' tokens, never the
prompts'. Log-probabilities and losses are in nats. θ₀ is frozen: no gradient flows into anything
called a reference.

Where the mask has no labels at all, or a sequence has none in a loss that is a mean over sequences,
every function raises a ValueError. Infinite and undefined numbers on labels are passed on.

`interp.unlearning.lingtea` and `interp.unlearning.representation` hold the other objectives,
`interp.unlearning.catalogue` lists all of them with what they need.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def label_mean(
    values: Float[Tensor, "sequence label"], mask: Bool[Tensor, "sequence label"]
) -> Float[Tensor, ""]:
    """The mean over all label tokens of the batch.

    Raises:
        ValueError: the mask has no labels.
    """
    if not mask.any():
        raise ValueError(f"no label tokens: the mask of shape {tuple(mask.shape)} is all False")
    return values[mask].mean()


def label_sums(
    values: Float[Tensor, "sequence label"], mask: Bool[Tensor, "sequence label"]
) -> Float[Tensor, " sequence"]:
    """The sum over each sequence's label tokens.

    Raises:
        ValueError: there is no sequence, or one without labels.
    """
    empty = (~mask.any(-1)).nonzero().flatten().tolist()
    if empty or not len(mask):
        raise ValueError(f"no label tokens in the sequences {empty} of {len(mask)}")
    return torch.where(mask, values, 0).sum(-1)


def ce(
    logprobs: Float[Tensor, "sequence label"], mask: Bool[Tensor, "sequence label"]
) -> Float[Tensor, ""]:
    """CE: −log p of the label tokens, the mean over all label tokens of the batch."""
    return -label_mean(logprobs, mask)


def nll(
    logprobs: Float[Tensor, "sequence label"], mask: Bool[Tensor, "sequence label"]
) -> Float[Tensor, " sequence"]:
    """nll(y|x): −log p of each sequence, the sum over its label tokens."""
    return -label_sums(logprobs, mask)


def finetune(
    retain_logprobs: Float[Tensor, "sequence label"],
    retain_mask: Bool[Tensor, "sequence label"],
) -> Float[Tensor, ""]:
    """CE(R): learning texts, such as those of a contaminated corpus, or instructions."""
    return ce(retain_logprobs, retain_mask)


def finetune_forget(
    forget_logprobs: Float[Tensor, "sequence label"],
    forget_mask: Bool[Tensor, "sequence label"],
) -> Float[Tensor, ""]:
    """CE(F): learning what is then subtracted as a task vector (Ilharco et al. 2023)."""
    return ce(forget_logprobs, forget_mask)


def ga(
    forget_logprobs: Float[Tensor, "sequence label"],
    forget_mask: Bool[Tensor, "sequence label"],
) -> Float[Tensor, ""]:
    """Gradient ascent: −CE(F) (Jang et al. 2023).

    The papers sum over a sequence's tokens (Zhang et al. 2024, Eq. 1), the code takes their mean.
    """
    return -ce(forget_logprobs, forget_mask)


def gd(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    gamma: float = 1.0,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Gradient difference: −γ·CE(F) + α·CE(R) (Yao et al. 2024).

    Hong et al. 2024 describe `gd_kl`; their code is this, with α = 1.5.
    """
    return gamma * ga(forget_logprobs, forget_mask) + alpha * ce(retain_logprobs, retain_mask)


def gd_kl(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    retain_kl: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    gamma: float = 1.0,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Gradient difference: −γ·CE(F) + α·KL(R) (Yao et al. 2024, and Hong et al. 2024's text).

    KL(R) is the mean over R's label tokens of KL(θ₀ ‖ θ), see `interp.unlearning.readout.label_kl`.
    """
    return gamma * ga(forget_logprobs, forget_mask) + alpha * label_mean(retain_kl, retain_mask)


def dpo(
    forget_logprobs: Float[Tensor, "sequence forget_label"],
    forget_mask: Bool[Tensor, "sequence forget_label"],
    *,
    forget_reference_logprobs: Float[Tensor, "sequence forget_label"],
    preferred_logprobs: Float[Tensor, "sequence preferred_label"],
    preferred_reference_logprobs: Float[Tensor, "sequence preferred_label"],
    preferred_mask: Bool[Tensor, "sequence preferred_label"],
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """−(2/β)·E log σ(β[log(π/π₀)(y_w) − log(π/π₀)(y_l)]) (Rafailov et al. 2023, Eq. 7).

    y_l is the forget answer, y_w the one preferred to it: a refusal, a counterfactual or (Hong et
    al. 2024) another concept's paragraph. The factor is npo's: Rafailov et al. have none, Zhang et
    al. 2024 print 1/β (Eq. 2).
    """
    preferred = _log_ratio(preferred_logprobs, preferred_reference_logprobs, preferred_mask)
    forget = _log_ratio(forget_logprobs, forget_reference_logprobs, forget_mask)
    return _softplus_loss(preferred - forget, beta)


def npo(
    forget_logprobs: Float[Tensor, "sequence label"],
    forget_mask: Bool[Tensor, "sequence label"],
    *,
    forget_reference_logprobs: Float[Tensor, "sequence label"],
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """Negative preference optimization (Zhang et al. 2024, Eq. 3).

    (2/β)·E softplus(−β[nll_θ(F) − nll_θ₀(F)]), the mean over sequences.
    """
    return _softplus_loss(
        -_log_ratio(forget_logprobs, forget_reference_logprobs, forget_mask), beta
    )


def npo_kl(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    forget_reference_logprobs: Float[Tensor, "forget_sequence forget_label"],
    retain_kl: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    beta: float = 0.1,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """`npo` + α·KL(R) (Zhang et al. 2024, Section 2 and Eq. 3).

    KL(R) is the mean over R's label tokens of KL(θ₀ ‖ θ). The paper prints KL(θ ‖ θ₀); its code has
    KL(θ₀ ‖ θ), the mean over all positions, prompts and padding too.
    """
    forget = npo(
        forget_logprobs,
        forget_mask,
        forget_reference_logprobs=forget_reference_logprobs,
        beta=beta,
    )
    return forget + alpha * label_mean(retain_kl, retain_mask)


def npo_rt(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    forget_reference_logprobs: Float[Tensor, "forget_sequence forget_label"],
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    beta: float = 0.1,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """`npo` + α·CE(R) (Zhang et al. 2024, Section 2 and Eq. 3)."""
    forget = npo(
        forget_logprobs,
        forget_mask,
        forget_reference_logprobs=forget_reference_logprobs,
        beta=beta,
    )
    return forget + alpha * ce(retain_logprobs, retain_mask)


def simnpo(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    beta: float = 4.5,
    delta: float = 0.0,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Simple NPO, without a reference model (Fan et al. 2024).

    (2/β)·E softplus(−β[nll(F)/|y| − δ]) + α·CE(R), |y| a sequence's number of label tokens. The
    sources have β = 4.5 or 2.5. δ is the margin as in the code; the paper's stands outside the
    brackets and is β·δ. The code multiplies the first term by 0.1375.
    """
    per_token = nll(forget_logprobs, forget_mask) / forget_mask.sum(-1)
    return _softplus_loss(per_token - delta, beta) + alpha * ce(retain_logprobs, retain_mask)


def idk(
    preferred_logprobs: Float[Tensor, "forget_sequence preferred_label"],
    preferred_mask: Bool[Tensor, "forget_sequence preferred_label"],
    *,
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """CE of refusals as answers to F's questions + α·CE(R) (Maini et al. 2024)."""
    return ce(preferred_logprobs, preferred_mask) + alpha * ce(retain_logprobs, retain_mask)


def _log_ratio(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log(π/π₀) of each sequence."""
    return label_sums(logprobs, mask) - label_sums(reference_logprobs.detach(), mask)


def _softplus_loss(margin: Float[Tensor, " sequence"], beta: float) -> Float[Tensor, ""]:
    """(2/β)·E softplus(−β·margin), which is −(2/β)·E log σ(β·margin)."""
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be positive")
    return 2 / beta * F.softplus(-beta * margin).mean()
