"""Self-distillation with adjusted logits (UNDIAL): θ₀, less sure of the label, is the teacher."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from interp.unlearning.objectives.losses import ce, label_mean
from interp.unlearning.registry import method


@method(
    "undial",
    tuned="alpha",
    learning_rate=6e-6,
    num_steps=44,
    settings={"alpha": 8.0},
    retain_loss="kl",
)
def undial(
    forget_log_odds: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    forget_reference_log_odds: Float[Tensor, "forget_sequence forget_label"],
    forget_others_kl: Float[Tensor, "forget_sequence forget_label"],
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    beta: float = 10.0,
    alpha: float = 0.0,
) -> Float[Tensor, ""]:
    """Compute KL(p̃ ‖ p)(F) + α·CE(R), p̃ = softmax(z₀ − β·onehot(y)) (Dong et al. 2025).

    z₀ are θ₀'s logits; the mean runs over label tokens. Without the label, p̃ is θ₀'s distribution
    of the other tokens, and β less are its log-odds of the label. So with a = p̃(y)

        KL(p̃ ‖ p) = KL(a ‖ p(y)) + (1 − a)·KL of the other tokens' distributions,

    the first of two outcomes, label or not. The source minimises CE(p̃, p), which is larger by the
    entropy of p̃ and has the same gradient. It has β = 3, 10 or 30, and no retain loss;
    OpenUnlearning can weigh one in and has α = 0. Its mean runs over all positions, prompts and
    padding too.
    """
    odds = forget_log_odds.masked_fill(~forget_mask, 0.0)
    target = forget_reference_log_odds.detach().masked_fill(~forget_mask, 0.0) - beta
    label = target.sigmoid() * (logsigmoid(target) - logsigmoid(odds))
    others = (-target).sigmoid() * (logsigmoid(-target) - logsigmoid(-odds) + forget_others_kl)
    return label_mean(label + others, forget_mask) + alpha * ce(retain_logprobs, retain_mask)
