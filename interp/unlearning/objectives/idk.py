"""Refusals as answers to the questions of the forget set."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.losses import ce
from interp.unlearning.registry import method


@method(
    "idk",
    tuned="alpha",
    learning_rate=2.5e-5,
    adam_epsilon=1e-3,
    num_steps=60,
    settings={"alpha": 34.0},
    retain_loss="kl",
)
def idk(
    preferred_logprobs: Float[Tensor, "forget_sequence preferred_label"],
    preferred_mask: Bool[Tensor, "forget_sequence preferred_label"],
    *,
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Compute CE of refusals as answers to F's questions + α·CE(R) (Maini et al. 2024)."""
    return ce(preferred_logprobs, preferred_mask) + alpha * ce(retain_logprobs, retain_mask)
