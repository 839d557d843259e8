"""Post-MLP norms: what a layer that has one can add to the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PostNorm:
    """Norm between a down projection and the residual stream, n = b + g⊙u(v), at some tokens.

    It takes v to a u of a fixed norm, so that n moves on an ellipsoid. `entered` is v, `left` n.
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    entered: Float[Tensor, "row d_model"]
    left: Float[Tensor, "row d_model"]

    @property
    def direction(self) -> Float[Tensor, "row d_model"]:
        """u; 0 where the gain is."""
        live = self.gain != 0
        return torch.where(live, (self.left - self.bias) / torch.where(live, self.gain, 1.0), 0.0)

    def displacement(self, wanted: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Return the possible change of n that is nearest to the wanted one; differentiable."""
        return self.bias + self.gain * self._nearest(wanted) - self.left

    def entering(self, wanted: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Return the change of v that makes `displacement`, at v's present scale."""
        now = self.direction
        scale = (self.entered * now).sum(-1, keepdim=True) / now.square().sum(-1, keepdim=True)
        return scale * (self._nearest(wanted) - now)

    def _nearest(self, wanted: Tensor) -> Tensor:
        radius = self.direction.norm(dim=-1, keepdim=True)
        return project_onto_ellipsoid(self.gain, self.left - self.bias + wanted, radius)


def project_onto_ellipsoid(
    gain: Float[Tensor, " d"], target: Float[Tensor, "row d"], radius: Float[Tensor, "row 1"]
) -> Float[Tensor, "row d"]:
    """Find the u with ‖u‖ = radius for which g⊙u is nearest to a target.

    u = g⊙t / (g² + μ), with the μ ≥ −min g² that gives u its norm: found by bisection, then one
    Newton step, which carries the gradient (the implicit function theorem).
    """
    live = gain != 0
    excess = torch.where(live, gain**2 - gain[live].square().min(), 1.0)
    pull = gain * target

    def direction(shift: Tensor) -> Tensor:
        return pull / (excess + shift)

    with torch.no_grad():
        smallest = torch.where(live & (excess == 0), pull, 0.0).abs().amax(-1, keepdim=True)
        low, high = smallest / radius, pull.norm(dim=-1, keepdim=True) / radius
        for _ in range(100):
            middle = (low + high) / 2
            outside = direction(middle).norm(dim=-1, keepdim=True) > radius
            low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
        slope = -2 * (pull**2 / (excess + high) ** 3).sum(-1, keepdim=True)
    error = direction(high).square().sum(-1, keepdim=True) - radius**2
    return direction(high - error / slope)
