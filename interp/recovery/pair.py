"""Pair of a vanilla and an unlearned model, and which of them is put into which."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from interp.models.language_model import LanguageModel
from interp.recovery.distances import Distance, DistanceScorer

Direction = Literal["restore", "corrupt"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """V and U. Losses are always distances from V's logits.

    Attributes:
        vanilla: V.
        unlearned: U, of the same architecture and tokenizer.
        direction: "restore" puts V's parts into U's run, "corrupt" U's parts into V's run.
    """

    vanilla: LanguageModel
    unlearned: LanguageModel
    direction: Direction = "restore"
    _scorers: dict[tuple[Distance, bool], DistanceScorer] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.direction not in ("restore", "corrupt"):
            raise ValueError(f"unknown direction {self.direction!r}; valid: restore, corrupt")

    @property
    def base(self) -> LanguageModel:
        """Model that runs."""
        return self.unlearned if self.direction == "restore" else self.vanilla

    @property
    def donor(self) -> LanguageModel:
        """Model whose parts are put in."""
        return self.vanilla if self.direction == "restore" else self.unlearned

    def get_scorer(self, distance: Distance, *, own_precision: bool = False) -> DistanceScorer:
        """Return the distance from V's logits; its Gram matrices are made once per pair."""
        key = (distance, own_precision)
        if key not in self._scorers:
            self._scorers[key] = DistanceScorer(
                self.vanilla.anatomy,
                self.unlearned.anatomy,
                runs=self.base.anatomy,
                distance=distance,
                own_precision=own_precision,
            )
        return self._scorers[key]

    def with_itself(self) -> Pair:
        """Return the pair V and V, for the noise floor."""
        return Pair(vanilla=self.vanilla, unlearned=self.vanilla)
