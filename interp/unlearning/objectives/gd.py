"""Gradient difference: ascent on F, descent on R."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.config import Bound
from interp.unlearning.objectives.ga import ga
from interp.unlearning.objectives.losses import ce, label_mean
from interp.unlearning.registry import method


# The forget loss has no bound: in a language that does not know the facts it runs away.
@method(
    "gd",
    tuned="alpha",
    learning_rate=2e-5,
    num_steps=24,
    settings={"alpha": 3.0},
    stops=(Bound(metric="forget_ce", above=100.0),),
)
def gd(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    gamma: float = 1.0,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Compute the gradient difference −γ·CE(F) + α·CE(R) (Yao et al. 2024).

    Hong et al. 2024 describe `gd_kl`; their code is this, with α = 1.5.
    """
    return gamma * ga(forget_logprobs, forget_mask) + alpha * ce(retain_logprobs, retain_mask)


@method(
    "gd_kl",
    tuned="alpha",
    learning_rate=2.5e-5,
    adam_epsilon=1e-3,
    warmup_steps=8,
    num_steps=60,
    settings={"alpha": 200.0},
)
def gd_kl(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    retain_kl: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    gamma: float = 1.0,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Compute the gradient difference −γ·CE(F) + α·KL(R) (Yao et al. 2024).

    Hong et al. 2024's text has it, too. KL(R) is the mean over R's label tokens of KL(θ₀ ‖ θ), see
    `compute_label_kl`.
    """
    return gamma * ga(forget_logprobs, forget_mask) + alpha * label_mean(retain_kl, retain_mask)
