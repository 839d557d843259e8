"""Cross-entropy unlearning (CE-U): the model without the label is its own teacher."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.losses import label_mean
from interp.unlearning.registry import method


@method("ceu", learning_rate=2e-5, num_steps=24)
def ceu(
    forget_log_odds: Float[Tensor, "sequence label"],
    forget_mask: Bool[Tensor, "sequence label"],
) -> Float[Tensor, ""]:
    """Compute −E log(1 − p(F)), the mean over label tokens (Yang 2025, CE-U).

    CE-U is CE(q, p), where q is p without the label, a constant: q_v = p_v/(1 − p_y), q_y = 0. Its
    gradient in the logits is p − q: p_y at the label, −p_v·p_y/(1 − p_y) elsewhere. That is the
    gradient of −log(1 − p_y), unlikelihood training (Welleck et al. 2020, Eq. 4), which this is.
    The two differ in value by the entropy of q, of which CE-U takes no gradient.

    The paper's training, and OpenUnlearning, leave out each answer's first token; that is nothing
    left where an answer has one. Neither has a retain loss.
    """
    return label_mean(F.softplus(forget_log_odds.masked_fill(~forget_mask, 0.0)), forget_mask)
