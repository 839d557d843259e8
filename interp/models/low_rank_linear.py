"""Low-rank linear maps beside packed weights: W x + s·B A x, as QLoRA trains and peft serves them.

Merged into packed weights, an adapter would be rounded to their few levels. Here W stays as it is,
and so can be another model's memory; A and B lie beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear


class LowRankLinear(nn.Module):
    """Linear map with a low-rank one beside it; the numbers are those of peft's unmerged layer.

    Attributes:
        packed: W, packed, and its bias.
        lora_a: A, [rank, in].
        lora_b: B, [out, rank].
        scale: s, a tensor, so that it is saved and hashed with A and B.
    """

    scale: Tensor

    def __init__(
        self,
        packed: nn.Linear,
        a: Float[Tensor, "rank in"],
        b: Float[Tensor, "out rank"],
        *,
        scale: float,
    ) -> None:
        super().__init__()
        self.packed = packed
        self.in_features, self.out_features = packed.in_features, packed.out_features
        self.lora_a = nn.Parameter(a, requires_grad=False)
        self.lora_b = nn.Parameter(b, requires_grad=False)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64, device=a.device))

    @classmethod
    def from_adapted(cls, adapted: Any, adapter: str = "default") -> LowRankLinear | None:
        """Take over peft's layer around packed weights; None where it is more than s·B A.

        Args:
            adapted: the layer of peft, of which A and B are taken, not copied.
            adapter: the adapter's name in it.
        """
        if adapted.lora_variant or any(adapted.lora_bias.values()):
            return None
        a, b = (half[adapter].weight.detach() for half in (adapted.lora_A, adapted.lora_B))
        return cls(adapted.get_base_layer(), a, b, scale=adapted.scaling[adapter])

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Compute W x + s·B A x; the second in the precision of A and B, rounded to the first's."""
        output = self.packed(x)
        added = linear(linear(x.to(self.lora_a.dtype), self.lora_a), self.lora_b) * self.scale
        return output + added.to(output.dtype)
