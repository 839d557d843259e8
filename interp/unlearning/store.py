"""Where a run is kept, so that it is not done again: the finished model, or how far it came."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.files import digest_of
from interp.models.language_model import LanguageModel
from interp.models.loading import load
from interp.unlearning.checkpoints import CARD, STATE, Adapter, save
from interp.unlearning.config import difference

RESULTS = ("history", "reason", "edits")
"""What a card says beside which run it is of."""

DIGEST = "digest"
"""The entry of a card that the others must have. Cards without one are read too."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training run gave.

    Attributes:
        model: U, in evaluation mode, sharing V's embedding.
        history: a row per step: `step`, `loss`, `forget_ce` and `retain_ce` (nats per token, before
            the step), `grad_norm`, and what was evaluated after it.
        reason: why the run ended.
        edits: of MEMIT, a row per fact and language.
    """

    model: LanguageModel
    history: list[dict[str, float]]
    reason: str
    edits: list[dict[str, Any]] = field(default_factory=list)


def read_card(directory: Path) -> dict[str, object]:
    """The card of a model that was made here.

    Raises:
        ValueError: the directory has none, or it is damaged.
    """
    file = directory / CARD
    if not file.is_file():
        raise ValueError(f"{str(directory)!r} has no card ({CARD}): it was not made by interp")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict) or card.pop(DIGEST, None) not in (None, digest_of(card)):
        raise ValueError(f"{file} is damaged: delete the directory and make the model again")
    return card


@dataclass(frozen=True)
class Store:
    """Where a run is kept, and the card that says which run it is."""

    directory: Path
    card: dict[str, object]

    @property
    def state(self) -> Path:
        """The file of the run under way."""
        return self.directory.with_name(f"{self.directory.name}.{STATE}")

    def finished(self, vanilla: LanguageModel) -> Trained | None:
        """What the directory holds already, if it is of the same run."""
        if not (self.directory / CARD).is_file():
            return None
        found: dict[str, Any] = read_card(self.directory)
        results = {name: found.pop(name) for name in RESULTS if name in found}
        if not _are_results(results):
            raise ValueError(
                f"{self.directory / CARD} does not say how the model was made: delete the "
                "directory and make the model again"
            )
        if other := difference(found, self.card):
            raise ValueError(
                f"{self.directory} holds a model of another run ({other}); choose another output "
                "directory"
            )
        model = load(str(self.directory), like=vanilla)
        # A run that was killed when all but this was done.
        self.state.unlink(missing_ok=True)
        return Trained(model=model, **results)

    def finish(self, trained: Trained, adapter: Adapter | None = None) -> None:
        """Keep the model, which is called by its directory from here on."""
        card = self.card | {name: getattr(trained, name) for name in RESULTS}
        save(trained.model, self.directory, card=_signed(card), adapter=adapter)
        trained.model.name = str(self.directory)
        self.state.unlink(missing_ok=True)

    def checkpoint(
        self,
        model: LanguageModel,
        adapter: Adapter | None,
        history: list[dict[str, float]],
    ) -> None:
        """Keep the model as it is now, beside where the last one will be."""
        folder = self.directory.with_name(f"{self.directory.name}.checkpoints")
        step = len(history)
        card = self.card | {"history": history, "reason": f"checkpoint after step {step}"}
        save(model, folder / f"step-{step:05}", card=_signed(card), adapter=adapter)


def _signed(card: dict[str, object]) -> dict[str, object]:
    return card | {DIGEST: digest_of(card)}


def _are_results(found: dict[str, Any]) -> bool:
    """Whether `Trained` can be made of what a card says."""
    rows = [found.get("history"), found.get("edits", [])]
    return isinstance(found.get("reason"), str) and all(
        isinstance(table, list) and all(isinstance(row, dict) for row in table) for table in rows
    )
