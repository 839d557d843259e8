"""Resuming a run: a finished model is not made again, an interrupted run goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.files import compute_digest
from interp.models.language_model import LanguageModel
from interp.models.loading import load
from interp.unlearning.checkpoints import CARD, DIGEST, STATE, Adapter, save
from interp.unlearning.model_card import describe_difference

RESULTS = ("history", "reason", "edits")
"""Entries of a card beside those that say which run it is of."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Result of a training run.

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
    """Read the card of a model that was made here.

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
    # Cards of earlier versions have no digest.
    if not isinstance(card, dict) or card.pop(DIGEST, None) not in (None, compute_digest(card)):
        raise ValueError(f"{file} is damaged: delete the directory and make the model again")
    return card


@dataclass(frozen=True)
class RunStore:
    """Directory in which a run is kept, and the card that says which run it is."""

    directory: Path
    card: dict[str, object]

    @property
    def state(self) -> Path:
        """File of the run under way."""
        return self.directory.with_name(f"{self.directory.name}.{STATE}")

    def load_finished(self, vanilla: LanguageModel) -> Trained | None:
        """Load the model that the directory holds, if it is of the same run."""
        if not (self.directory / CARD).is_file():
            return None
        card: dict[str, Any] = read_card(self.directory)
        results = {name: card.pop(name) for name in RESULTS if name in card}
        if not _has_results(results):
            raise ValueError(
                f"{self.directory / CARD} does not say how the model was made: delete the "
                "directory and make the model again"
            )
        if other := describe_difference(card, self.card):
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
        save(trained.model, self.directory, card=_sign(card), adapter=adapter)
        trained.model.name = str(self.directory)
        self.state.unlink(missing_ok=True)

    def save_checkpoint(
        self,
        model: LanguageModel,
        adapter: Adapter | None,
        history: list[dict[str, float]],
    ) -> None:
        """Keep the model as it is now, beside where the last one will be."""
        folder = self.directory.with_name(f"{self.directory.name}.checkpoints")
        step = len(history)
        card = self.card | {"history": history, "reason": f"checkpoint after step {step}"}
        save(model, folder / f"step-{step:05}", card=_sign(card), adapter=adapter)


def _sign(card: dict[str, object]) -> dict[str, object]:
    return card | {DIGEST: compute_digest(card)}


def _has_results(card: dict[str, Any]) -> bool:
    """Return True if `Trained` can be made of a card's results."""
    rows = [card.get("history"), card.get("edits", [])]
    return isinstance(card.get("reason"), str) and all(
        isinstance(table, list) and all(isinstance(row, dict) for row in table) for table in rows
    )
