"""Task vector, learned on the forget set and then negated: arithmetic on weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.objectives.losses import ce
from interp.unlearning.registry import method


@method(
    "task_vector",
    tuned="alpha",
    learning_rate=1e-5,
    num_steps=12,
    negated=1.0,
    settings={"alpha": 2.2},
)
def finetune_forget(
    forget_logprobs: Float[Tensor, "sequence label"],
    forget_mask: Bool[Tensor, "sequence label"],
) -> Float[Tensor, ""]:
    """Compute CE(F): what is learned is then subtracted as a task vector (Ilharco et al. 2023)."""
    return ce(forget_logprobs, forget_mask)


def negate_task_vector(
    parameters: Mapping[str, Tensor],
    finetuned: Mapping[str, Tensor],
    *,
    alpha: float = 1.0,
) -> dict[str, Tensor]:
    """Return θ₀ − α·(θ_F − θ₀), forgetting via negation (Ilharco et al. 2023, Section 3).

    Args:
        parameters: θ₀'s tensors by name; left as they are.
        finetuned: those of θ_F, which is θ₀ fine-tuned on F (by minimising CE(F)).
        alpha: how far to go.

    Returns:
        New tensors of θ₀'s precision, computed in float32 (float64 stays), in θ₀'s order.

    Raises:
        ValueError: names or shapes differ, or a tensor is not of floating point.
    """
    if differing := sorted(parameters.keys() ^ finetuned.keys()):
        raise ValueError(f"{differing[0]!r} is in one of the two models only")
    for name, tensor in parameters.items():
        if tensor.shape != finetuned[name].shape:
            raise ValueError(
                f"{name!r} has the shape {tuple(tensor.shape)} in one model, "
                f"{tuple(finetuned[name].shape)} in the other"
            )
        if not (tensor.is_floating_point() and finetuned[name].is_floating_point()):
            raise ValueError(f"{name!r} is {tensor.dtype}, which has no arithmetic of weights")
    with torch.no_grad():
        return {
            name: _negate(tensor, finetuned[name], alpha) for name, tensor in parameters.items()
        }


def _negate(tensor: Tensor, finetuned: Tensor, alpha: float) -> Tensor:
    before = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return (before - alpha * (finetuned - before)).to(tensor.dtype)
