"""LingTea: forgetting in many languages under a teacher that counts where it is sure.

Choi, Min & Choo 2024. The teacher is the model before, θ₀, frozen; the student is θ. Every sequence
comes in a language z drawn anew. Forget: −CE(F_z). Retain: the teacher is imitated in as far as
it is confident, and the text itself learned in as far as it is not. The temperature is 1.

Shapes, masks, units and errors are those of `interp.unlearning.objectives.losses`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.ga import ga
from interp.unlearning.objectives.losses import label_mean, label_sums
from interp.unlearning.registry import method


def mean_confidence(
    reference_logprobs: Float[Tensor, "sequence label"], mask: Bool[Tensor, "sequence label"]
) -> Float[Tensor, " sequence"]:
    """Compute κ of each sequence, the mean of the teacher's probabilities of its label tokens.

    It is the mean of probabilities, not the probability of the sequence and not exp of the mean
    log-probability: one token that the teacher finds impossible does not make κ zero.
    """
    return label_sums(reference_logprobs.detach().exp(), mask) / mask.sum(-1)


@method("lingtea", learning_rate=4e-5, num_steps=5)
def lingtea(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_reference_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_kl: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Compute −CE(F_z) + α·[κ·KL(teacher ‖ student) + (1 − κ)·CE(R_z)] (Choi et al. 2024).

    κ is a sequence's `mean_confidence`. The terms on R are a mean over all label tokens of the
    batch, each token weighted by the κ of its sequence: KL(R) where κ is 1, CE(R) where it is 0.
    The source has no α, that is 1.
    """
    weight = mean_confidence(retain_reference_logprobs, retain_mask)[:, None]
    retain = weight * retain_kl - (1 - weight) * retain_logprobs
    return ga(forget_logprobs, forget_mask) + alpha * label_mean(retain, retain_mask)


@method("lingtea_fixed", learning_rate=4e-5, num_steps=5)
def lingtea_fixed(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_kl: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    kappa: float = 0.5,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Compute `lingtea` with one κ for every sequence, the baseline of the adaptive one.

    Raises:
        ValueError: κ is not between 0 and 1, or as all objectives.
    """
    if not 0 <= kappa <= 1:
        raise ValueError(f"kappa is {kappa}; it must be between 0 and 1")
    retain = kappa * retain_kl - (1 - kappa) * retain_logprobs
    return ga(forget_logprobs, forget_mask) + alpha * label_mean(retain, retain_mask)


@method("lingtea_code", learning_rate=3e-5, num_steps=8, after=(ga,))
def lingtea_code_retain(
    retain_logprobs: Float[Tensor, "sequence label"],
    retain_mask: Bool[Tensor, "sequence label"],
    *,
    retain_repeat_logprobs: Float[Tensor, "sequence label"],
    retain_own_kl: Float[Tensor, "sequence label"],
) -> Float[Tensor, ""]:
    """Compute the released code's retain term, in turn with `ga`, each for an epoch.

    Σ κ·KL(teacher ‖ student) / (number of sequences) − Σ (1 − κ)·log p / (number of label tokens).
    Both sums run over all label tokens. κ and KL are taken at the label token's own position, where
    the model predicts what follows it, not at the position that predicts it: κ is the teacher's
    probability of repeating the token. (This is the code's BLOOM branch. Its XGLM branch
    weighs a token's log p with the κ of the token before. It divides the second sum by all tokens,
    which is larger by those without a label, the first of a text among them.)

    Args:
        retain_logprobs: the student's log-probabilities of the label tokens.
        retain_mask: True on labels.
        retain_repeat_logprobs: the teacher's log-probability, at each label token's position, of
            that token again.
        retain_own_kl: KL(teacher ‖ student) at each label token's position.
    """
    # A weight of NaN under the padding would make the gradient there NaN.
    weight = torch.where(retain_mask, retain_repeat_logprobs.detach().exp(), 0)
    imitation = label_sums(weight * retain_own_kl, retain_mask).mean()
    return imitation - label_mean((1 - weight) * retain_logprobs, retain_mask)
