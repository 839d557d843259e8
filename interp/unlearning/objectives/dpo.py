"""Direct preference optimization: another answer is preferred to the one to be forgotten."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.losses import label_mean, log_ratio, softplus_loss
from interp.unlearning.registry import method


@method("dpo", tuned="beta", learning_rate=5e-6, num_steps=20)
def dpo(
    forget_logprobs: Float[Tensor, "sequence forget_label"],
    forget_mask: Bool[Tensor, "sequence forget_label"],
    *,
    forget_reference_logprobs: Float[Tensor, "sequence forget_label"],
    preferred_logprobs: Float[Tensor, "sequence preferred_label"],
    preferred_reference_logprobs: Float[Tensor, "sequence preferred_label"],
    preferred_mask: Bool[Tensor, "sequence preferred_label"],
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """Compute −(2/β)·E log σ(β[log(π/π₀)(y_w) − log(π/π₀)(y_l)]) (Rafailov et al. 2023, Eq. 7).

    y_l is the forget answer, y_w the one preferred to it: a refusal, a counterfactual or (Hong et
    al. 2024) another concept's paragraph. The factor is npo's: Rafailov et al. have none, Zhang et
    al. 2024 print 1/β (Eq. 2).
    """
    preferred = log_ratio(preferred_logprobs, preferred_reference_logprobs, preferred_mask)
    forget = log_ratio(forget_logprobs, forget_reference_logprobs, forget_mask)
    return softplus_loss(preferred - forget, beta)


@method(
    "dpo_kl",
    tuned="alpha",
    learning_rate=2.5e-5,
    adam_epsilon=1e-3,
    num_steps=56,
    settings={"alpha": 34.0},
)
def dpo_kl(
    forget_logprobs: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    forget_reference_logprobs: Float[Tensor, "forget_sequence forget_label"],
    preferred_logprobs: Float[Tensor, "forget_sequence preferred_label"],
    preferred_reference_logprobs: Float[Tensor, "forget_sequence preferred_label"],
    preferred_mask: Bool[Tensor, "forget_sequence preferred_label"],
    retain_kl: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    beta: float = 0.1,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Compute `dpo` + α·KL(R) (a baseline of Zhang et al. 2024); KL(R) is `npo_kl`'s."""
    forget = dpo(
        forget_logprobs,
        forget_mask,
        forget_reference_logprobs=forget_reference_logprobs,
        preferred_logprobs=preferred_logprobs,
        preferred_reference_logprobs=preferred_reference_logprobs,
        preferred_mask=preferred_mask,
        beta=beta,
    )
    return forget + alpha * label_mean(retain_kl, retain_mask)
