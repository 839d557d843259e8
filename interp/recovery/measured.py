"""What an engine measures."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class Measured(NamedTuple):
    """What an engine measures of every restoration on every question, on the CPU.

    Attributes:
        losses: distances of the run's logits from V's, float64, averaged over scored positions.
        answered: whether the run's likeliest token is V's at every scored position. Decoding
            greedily, the run would give V's answer: by induction its text so far is V's. None
            where it was not asked for.
    """

    losses: Float[Tensor, "restoration query"]
    answered: Bool[Tensor, "restoration query"] | None = None
