"""Simple NPO: negative preference optimization without a reference model."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.losses import ce, nll, softplus_loss
from interp.unlearning.registry import method


@method(
    "simnpo",
    tuned="alpha",
    learning_rate=2.5e-5,
    adam_epsilon=1e-3,
    warmup_steps=8,
    num_steps=44,
    settings={"beta": 1.2, "alpha": 32.0},
    retain_loss="kl",
)
def simnpo(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    beta: float = 4.5,
    delta: float = 0.0,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Compute simple NPO, without a reference model (Fan et al. 2024).

    (2/β)·E softplus(−β[nll(F)/|y| − δ]) + α·CE(R), |y| a sequence's number of label tokens. The
    sources have β = 4.5 or 2.5. δ is the margin as in the code; the paper's stands outside the
    brackets and is β·δ. The code multiplies the first term by 0.1375.
    """
    per_token = nll(forget_logprobs, forget_mask) / forget_mask.sum(-1)
    return softplus_loss(per_token - delta, beta) + alpha * ce(retain_logprobs, retain_mask)
