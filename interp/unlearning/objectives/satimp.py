"""Saturation and importance: gradient ascent on the tokens between known and forgotten."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.losses import ce, label_mean, label_probabilities
from interp.unlearning.registry import method


@method(
    "satimp",
    tuned="alpha",
    learning_rate=2.5e-5,
    adam_epsilon=1e-3,
    num_steps=56,
    settings={"beta1": 0.4, "gamma": 1.0, "alpha": 30.0},
    retain_loss="kl",
)
def satimp(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    beta1: float = 5.0,
    beta2: float = 1.0,
    gamma: float = 0.1,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Compute γ·E_F[p^β₁ (1 − p)^β₂ log p] + α·CE(R), the weight a constant (Yang et al. 2025).

    The mean runs over tokens. p^β₁ is the saturation, small where a token is forgotten;
    (1 − p)^β₂ the importance, small where any model would say it. `wga` is β₂ = 0. The settings
    are those of OpenUnlearning's configuration; its class, and the authors' code, weigh the second
    term instead (γ = 1, α = 0.1).
    """
    p = label_probabilities(forget_logprobs, forget_mask)
    weight = p**beta1 * (1 - p) ** beta2
    forget = label_mean(weight * forget_logprobs, forget_mask)
    return gamma * forget + alpha * ce(retain_logprobs, retain_mask)
