"""Weighted gradient ascent: tokens that are forgotten already count less."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.losses import ce, label_mean, label_probabilities
from interp.unlearning.registry import method


@method(
    "wga",
    tuned="alpha",
    learning_rate=2.5e-5,
    adam_epsilon=1e-3,
    warmup_steps=4,
    num_steps=64,
    settings={"beta": 0.7, "alpha": 24.0},
    retain_loss="kl",
)
def wga(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    beta: float = 1.0,
    gamma: float = 1.0,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Compute γ·E_F[p^β log p] + α·CE(R), the weight p^β a constant (Wang et al. 2025).

    The mean runs over tokens. The weight takes back the 1/p in the gradient of log p, which makes
    gradient ascent run away; β = 0 is `gd`. The paper's objective and its code have the first term
    alone (α = 0); OpenUnlearning adds the second.
    """
    weight = label_probabilities(forget_logprobs, forget_mask) ** beta
    forget = label_mean(weight * forget_logprobs, forget_mask)
    return gamma * forget + alpha * ce(retain_logprobs, retain_mask)
