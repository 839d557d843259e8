"""Unlearning losses, as pure functions of log-probabilities.

F is the forget set, R the retain set. Label tokens are the answers' tokens, never the prompts'.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def cross_entropy(label_logprobs: Float[Tensor, " label"]) -> Float[Tensor, ""]:
    """CE: the mean negative log-probability of the label tokens, in nats."""
    return -label_logprobs.mean()


def gradient_difference(
    forget_logprobs: Float[Tensor, " forget_label"],
    retain_logprobs: Float[Tensor, " retain_label"],
    *,
    gamma: float = 1.0,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """−γ·CE(F) + α·CE(R) (Yao et al. 2024).

    Hong et al. 2024 describe a KL term on R; their code uses CE with α = 1.5.

    Args:
        forget_logprobs: log-probabilities of F's label tokens, in nats.
        retain_logprobs: log-probabilities of R's label tokens, in nats.
        gamma: weight of the forgetting.
        alpha: weight of the retaining.
    """
    return -gamma * cross_entropy(forget_logprobs) + alpha * cross_entropy(retain_logprobs)
