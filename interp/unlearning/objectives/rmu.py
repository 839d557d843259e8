"""Representation misdirection for unlearning (RMU)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.unlearning.registry import method


# The states of Gemma-3-270M have a length of about 4,500 there.
@method(
    "rmu",
    tuned="c",
    learning_rate=1e-4,
    num_steps=60,
    parameters="mlp",
    layers=(5, 6, 7),
    layer=7,
    settings={"c": 10_000.0, "alpha": 10.0},
)
def rmu(
    forget_states: Float[Tensor, "forget_sequence forget_pos d_model"],
    forget_positions: Bool[Tensor, "forget_sequence forget_pos"],
    *,
    retain_states: Float[Tensor, "retain_sequence retain_pos d_model"],
    retain_reference_states: Float[Tensor, "retain_sequence retain_pos d_model"],
    retain_positions: Bool[Tensor, "retain_sequence retain_pos"],
    direction: Float[Tensor, " d_model"],
    c: float = 6.5,
    alpha: float = 1200.0,
) -> Float[Tensor, ""]:
    """Compute MSE(h(F), c·u) + α·MSE(h(R), h⁰(R)) (Li et al. 2024, Section 4).

    The mean runs over positions and over d_model, as in the code; the paper's squared norms are
    d_model times that. The code counts padding and the token in front of every text, the loop here
    neither. In float32 (float64 stays).

    Args:
        forget_states: θ's residual stream after one layer on F. The source's layer is 7 (of 32).
        forget_positions: True at real positions, False at padding.
        retain_states: θ's on R, after the same layer.
        retain_reference_states: θ₀'s on R; no gradient flows into it.
        retain_positions: True at real positions, False at padding.
        direction: u, see `draw_rmu_direction`.
        c: the length to which F's states are drawn, 2 to 6.5 in the sources; compare it with the
            length that they have (some thousands in Gemma-3).
        alpha: weight of the retaining, 1 to 1200 in the sources.

    Raises:
        ValueError: no real positions.
    """
    forget = _mean_square(forget_states, c * direction.detach(), forget_positions)
    retain = _mean_square(retain_states, retain_reference_states.detach(), retain_positions)
    return forget + alpha * retain


def draw_rmu_direction(d_model: int, *, seed: int) -> Float[Tensor, " d_model"]:
    """Draw u, a unit vector of entries uniform in [0, 1) before it is scaled (Li et al. 2024).

    Float32, on the CPU, the same bytes for a seed on every machine.
    """
    generator = torch.Generator().manual_seed(seed)
    entries = torch.rand(d_model, generator=generator, dtype=torch.float64)
    # A vectorised sum depends on the processor in its last bits; this one is exactly rounded.
    norm = math.sqrt(math.fsum(entry * entry for entry in entries.tolist()))
    return (entries / norm).float()


def _mean_square(states: Tensor, target: Tensor, positions: Tensor) -> Tensor:
    if not positions.any():
        raise ValueError(f"no real positions: the mask of shape {tuple(positions.shape)} is False")
    precise = torch.promote_types(states.dtype, torch.float32)
    chosen = target.expand_as(states)[positions]
    return (states[positions].to(precise) - chosen.to(precise)).square().mean()
