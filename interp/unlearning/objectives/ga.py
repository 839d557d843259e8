"""Gradient ascent."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.losses import ce
from interp.unlearning.registry import method


@method("ga", learning_rate=2e-5, num_steps=10)
def ga(
    forget_logprobs: Float[Tensor, "sequence label"],
    forget_mask: Bool[Tensor, "sequence label"],
) -> Float[Tensor, ""]:
    """Compute gradient ascent, −CE(F) (Jang et al. 2023).

    The papers sum over a sequence's tokens (Zhang et al. 2024, Eq. 1), the code takes their mean.
    """
    return -ce(forget_logprobs, forget_mask)
