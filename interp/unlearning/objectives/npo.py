"""Negative preference optimization, alone and with a retain loss."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.losses import ce, label_mean, log_ratio, softplus_loss
from interp.unlearning.registry import method


@method("npo", tuned="beta", learning_rate=1e-5, num_steps=9)
def npo(
    forget_logprobs: Float[Tensor, "sequence label"],
    forget_mask: Bool[Tensor, "sequence label"],
    *,
    forget_reference_logprobs: Float[Tensor, "sequence label"],
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """Compute negative preference optimization (Zhang et al. 2024, Eq. 3).

    (2/β)·E softplus(−β[nll_θ(F) − nll_θ₀(F)]), the mean over sequences.
    """
    return softplus_loss(-log_ratio(forget_logprobs, forget_reference_logprobs, forget_mask), beta)


@method(
    "npo_kl",
    tuned="alpha",
    learning_rate=6e-6,
    num_steps=40,
    settings={"beta": 1.5, "alpha": 40.0},
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
    """Compute `npo` + α·KL(R) (Zhang et al. 2024, Section 2 and Eq. 3).

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


@method("npo_rt", tuned="beta", learning_rate=5e-6, num_steps=30)
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
    """Compute `npo` + α·CE(R) (Zhang et al. 2024, Section 2 and Eq. 3)."""
    forget = npo(
        forget_logprobs,
        forget_mask,
        forget_reference_logprobs=forget_reference_logprobs,
        beta=beta,
    )
    return forget + alpha * ce(retain_logprobs, retain_mask)
