"""Primal-dual unlearning (PDU): flat logits on F under a bound on the loss on R."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.losses import ce, label_sums
from interp.unlearning.registry import method


def update_multiplier(
    retain_logprobs: Float[Tensor, "sequence label"],
    retain_mask: Bool[Tensor, "sequence label"],
    *,
    retain_reference_logprobs: Float[Tensor, "sequence label"],
    tolerance: float,
    multiplier: float,
    dual_step_size: float,
    dual_warmup: float,
) -> dict[str, float]:
    """Ascend in the multiplier: λ ← max(0, λ + η·[CE(R) − ε]), once the warm-up is over."""
    if dual_warmup > 0:
        return {"multiplier": multiplier, "dual_warmup": dual_warmup - 1}
    excess = _exceed_bound(retain_logprobs, retain_reference_logprobs, retain_mask, tolerance)
    return {
        "multiplier": max(0.0, multiplier + dual_step_size * excess.item()),
        "dual_warmup": 0.0,
    }


@method(
    "pdu",
    tuned="tolerance",
    learning_rate=2e-5,
    num_steps=24,
    settings={"dual_warmup": 12.0},
    update=update_multiplier,
)
def pdu(
    forget_logit_margin: Float[Tensor, "forget_sequence forget_label"],
    forget_mask: Bool[Tensor, "forget_sequence forget_label"],
    *,
    retain_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_reference_logprobs: Float[Tensor, "retain_sequence retain_label"],
    retain_mask: Bool[Tensor, "retain_sequence retain_label"],
    tolerance: float = 0.1,
    multiplier: float = 100.0,
    dual_step_size: float = 5.0,  # noqa: ARG001 of the update alone
    dual_warmup: float = 0.0,  # noqa: ARG001
) -> Float[Tensor, ""]:
    """Compute E_F[(1/|y|)·Σ (max z − mean z)²] + λ·[CE(R) − ε] (Entesari et al. 2025).

    The Lagrangian of "flatten the logits on F, such that CE(R) ≤ ε". λ is `multiplier`, and
    `update_multiplier` raises it after every step at which R's loss is too high, by the batch that
    the step was made with.

    ε is the source's natural choice, (1 + tolerance)·CE₀(R), CE₀ the loss under θ₀, here of the
    same batch. OpenUnlearning takes a number (0.3 nats in TOFU, with λ = 100 at first, η = 5 and
    half of the epochs as warm-up). Its mean on F runs over all positions, prompts and padding too.

    Args:
        forget_logit_margin: θ's largest minus its mean logit, at each label of F.
        forget_mask: True on F's labels.
        retain_logprobs: θ's log-probabilities of R's labels.
        retain_reference_logprobs: θ₀'s.
        retain_mask: True on R's labels.
        tolerance: by which share R's loss may rise.
        multiplier: λ at the start. The squared margins are some hundreds.
        dual_step_size: η.
        dual_warmup: steps in which λ stays as it is.

    Raises:
        ValueError: as all objectives.
    """
    squares = forget_logit_margin.masked_fill(~forget_mask, 0.0).square()
    forget = (label_sums(squares, forget_mask) / forget_mask.sum(-1)).mean()
    excess = _exceed_bound(retain_logprobs, retain_reference_logprobs, retain_mask, tolerance)
    return forget + multiplier * excess


def _exceed_bound(logprobs: Tensor, reference: Tensor, mask: Tensor, tolerance: float) -> Tensor:
    """Compute CE(R) − ε, by how much R's loss exceeds its bound."""
    return ce(logprobs, mask) - (1 + tolerance) * ce(reference.detach(), mask)
