"""Fine-tuning on texts to learn: it teaches, and unlearns nothing."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.losses import ce
from interp.unlearning.registry import objective


@objective("finetune")
def finetune(
    retain_logprobs: Float[Tensor, "sequence label"],
    retain_mask: Bool[Tensor, "sequence label"],
) -> Float[Tensor, ""]:
    """Compute CE(R): texts are learned, such as those of a contaminated corpus, or instructions."""
    return ce(retain_logprobs, retain_mask)
