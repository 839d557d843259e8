"""Alternate preference optimization (AltPO): plausible other answers are preferred."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.dpo import dpo
from interp.unlearning.objectives.losses import ce
from interp.unlearning.registry import method


@method(
    "altpo",
    tuned="alpha",
    learning_rate=6e-6,
    num_steps=44,
    settings={"beta": 0.7, "alpha": 60.0},
    preferred="alternate",
    retain_loss="kl",
)
def altpo(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    forget_reference_logprobs: Float[Tensor, "forget_sequence forget_label"],
    preferred_logprobs: Float[Tensor, "forget_sequence preferred_label"],
    preferred_reference_logprobs: Float[Tensor, "forget_sequence preferred_label"],
    preferred_mask: Bool[Tensor, "forget_sequence preferred_label"],
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    beta: float = 0.1,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Compute `dpo` + α·CE(R), y_w an alternate answer of the model's own (Mekala et al. 2024).

    The alternates are `interp.unlearning.alternate_answers`, one a text. The source asks a chat
    model for five "with some alternate plausible facts". Settings are those of its code.
    """
    forget = dpo(
        forget_logprobs,
        forget_mask,
        forget_reference_logprobs=forget_reference_logprobs,
        preferred_logprobs=preferred_logprobs,
        preferred_reference_logprobs=preferred_reference_logprobs,
        preferred_mask=preferred_mask,
        beta=beta,
    )
    return forget + alpha * ce(retain_logprobs, retain_mask)
