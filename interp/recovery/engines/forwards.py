"""Losses and answers by whole forwards, one per restoration, read from the model's own logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.trajectories import Trajectory
from interp.recovery.batches import Batch, PaddingSide, make_batch
from interp.recovery.distances import Distance, compare_logits
from interp.recovery.measured import Measured
from interp.recovery.pair import Pair
from interp.recovery.sites import Restoration

Score = Callable[[Tensor, Tensor], Tensor]
"""V's logits and a run's [scored, vocab] → `distances.compare_logits`, [2, scored]."""


@runtime_checkable
class BatchRunner(Protocol):
    """Function of an engine that runs one batch under every restoration."""

    def __call__(
        self, batch: Batch, restorations: Sequence[Restoration], score: Score
    ) -> Iterator[Float[Tensor, "2 scored"]]:
        """Yield what `score` gives of each restoration's logits, in order."""
        ...


def measure_by_forwards(
    runs: BatchRunner,
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    *,
    distance: Distance = "logit_mse",
    own_precision: bool = False,
    padding_side: PaddingSide = "right",
    batch_size: int = 8,
    answers: bool = True,
    advance: Callable[[float], object] = lambda _questions: None,
) -> Measured:
    """Measure every restoration on every question, batch by batch.

    Args:
        runs: the engine's way to run a batch.
        pair: the base model that runs, the donor, and V.
        trajectories: the questions with V's answers, each with at least one scored position.
        restorations: what to put back; the empty one gives the base model's own loss.
        distance: `logit_mse`, `kl` or `answer_logprob`.
        own_precision: compute the distance in the models' own precision.
        padding_side: where shorter questions are padded.
        batch_size: questions per forward.
        answers: find also whether a run gives V's answer.
        advance: called after each forward with how many questions' worth of work is done.
    """
    losses = torch.empty(len(restorations), len(trajectories), dtype=torch.float64)
    answered = torch.empty(losses.shape, dtype=torch.bool)
    with torch.inference_mode():
        for start in range(0, len(trajectories), batch_size):
            here = slice(start, start + batch_size)
            batch = make_batch(
                trajectories[here], device=pair.base.device, padding_side=padding_side
            )
            next_ids = batch.next_ids[batch.scored]

            def score(target: Tensor, logits: Tensor, next_ids: Tensor = next_ids) -> Tensor:
                if not own_precision:
                    target, logits = target.float(), logits.float()
                return compare_logits(distance, target, logits, next_ids.to(logits.device))

            for row, scored in enumerate(runs(batch, restorations, score)):
                means = batch.average_per_question(scored.double()).cpu()
                losses[row, here], answered[row, here] = means[0], means[1] == 1
                advance(len(trajectories[here]) / len(restorations))
    return Measured(losses=losses, answered=answered if answers else None)
