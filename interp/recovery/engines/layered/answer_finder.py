"""Which runs give V's answer, told from their final states.

A run does where the likeliest token at every scored position is the answer's next. All logits of a
run cost more than several layers, and one wrong token is enough. So most runs are turned down by a
few rivals, the likeliest tokens of the unlearned model at the same position. Those that are left
are read in full, many positions at once, a stretch of the answers after the other. What is found is
what `argmax` over all logits finds.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.recovery.batches import Batch, send
from interp.recovery.distances import DistanceScorer, Readout

NUM_RIVALS = 8
"""Likeliest tokens of the unlearned model that are tried first."""

STRETCHES = ((0, 4), (4, 12), (12, 1 << 30))
"""Tokens of the answers that are read together."""

RUNS_AT_ONCE = 16
"""Runs that are kept until those left of them are read in full."""


def find_places(
    is_left: Bool[Tensor, " batch"],
    question: Int[Tensor, " scored"],
    places: Int[Tensor, " some"],
) -> Int[Tensor, " left"]:
    """Choose scored positions of some questions. Their number is waited for on a GPU."""
    return places[is_left[question[places]]]


def list_stretches(batch: Batch) -> list[Int[Tensor, " some"]]:
    """List the scored positions of each stretch, by number; those without any are left out."""
    # They stand question by question, and are known on the CPU: nothing waits for a GPU.
    steps = [step for count in batch.num_scored for step in range(count)]
    stretches = [
        [place for place, step in enumerate(steps) if first <= step < end]
        for first, end in STRETCHES
    ]
    device = batch.scored_question.device
    return [send(torch.tensor(places), device) for places in stretches if places]


class _Run(NamedTuple):
    number: int
    state: Float[Tensor, "scored d"]
    readout: Readout


class AnswerFinder:
    """Finder of the runs of a batch that give V's answers."""

    def __init__(
        self,
        scorer: DistanceScorer,
        batch: Batch,
        unlearned: Float[Tensor, "scored d"],
    ) -> None:
        """Start.

        Args:
            scorer: reads final states.
            batch: the questions.
            unlearned: the unlearned model's own final states.
        """
        self._scorer, self._unlearned = scorer, unlearned
        self._question, self._num_questions = batch.scored_question, batch.scored.shape[0]
        self._next_ids = batch.at_scored(batch.next_ids)
        self._stretches = list_stretches(batch)
        # Per unembedding: those rows of it that are the answers' tokens and their rivals'.
        self._rows: dict[Readout, tuple[Tensor, Tensor | None]] = {}
        self._candidates: Int[Tensor, "scored candidate"] | None = None
        self._waiting: list[_Run] = []
        self._answered: list[Bool[Tensor, " batch"]] = []

    def add(self, state: Float[Tensor, "scored d"], readout: Readout) -> None:
        """Add a run, by its final states and whose unembedding reads them."""
        state = state.to(self._scorer.get_unembedding(readout).weight.device)
        logits = self._read_candidates(state, readout)
        # What is nearly equal may be rounded otherwise, and is read in full.
        margin = max(1e-4, 8 * torch.finfo(state.dtype).eps) * logits.abs().amax(1)
        is_beaten = logits[:, 1:].amax(1) > logits[:, 0] + margin
        self._waiting.append(_Run(len(self._answered), state, readout))
        self._answered.append(self._join(~is_beaten, self._question))
        if len(self._waiting) == RUNS_AT_ONCE:
            self._read_waiting()

    def find_all(self) -> Bool[Tensor, "run batch"]:
        """Return whether the runs give V's answers, in the order in which they were added."""
        self._read_waiting()
        return torch.stack([answered.cpu() for answered in self._answered])

    def _join(
        self, is_right: Bool[Tensor, " some"], question: Int[Tensor, " some"]
    ) -> Bool[Tensor, " batch"]:
        """Return for every question whether none of some positions of it is wrong."""
        question = question.to(is_right.device)
        wrong = is_right.new_zeros(self._num_questions, dtype=torch.int)
        return wrong.index_add_(0, question, (~is_right).int()) == 0

    def _read_candidates(
        self, state: Tensor, readout: Readout
    ) -> Float[Tensor, "scored candidate"]:
        """Compute the logits of the answer's tokens, the first, and of their rivals."""
        if readout not in self._rows:
            unembed = self._scorer.get_unembedding(readout)
            chosen = self._find_candidates().to(unembed.weight.device)
            bias = None if unembed.bias is None else unembed.bias[chosen].float()
            self._rows[readout] = unembed.weight[chosen].float(), bias
        weights, bias = self._rows[readout]
        logits = torch.einsum("pd,pcd->pc", state.to(weights), weights)
        return self._scorer.finish_logits(logits if bias is None else logits + bias)

    def _find_candidates(self) -> Int[Tensor, "scored candidate"]:
        if self._candidates is None:
            parts = self._scorer.read_in_parts(self._unlearned, "unlearned")
            likeliest = [part.topk(min(NUM_RIVALS, part.shape[-1])).indices for part in parts]
            rivals = torch.cat(likeliest).to(self._next_ids.device)
            # The answer's own token among them never beats itself.
            self._candidates = torch.cat([self._next_ids[:, None], rivals], dim=1)
        return self._candidates

    def _read_waiting(self) -> None:
        """Read in full what is left of the runs that wait, and forget them."""
        readouts: tuple[Readout, Readout] = ("vanilla", "unlearned")
        for readout, stretch in product(readouts, self._stretches):
            runs = [run for run in self._waiting if run.readout == readout]
            places = [
                find_places(
                    self._answered[run.number],
                    self._question.to(run.state.device),
                    stretch.to(run.state.device),
                )
                for run in runs
            ]
            left = [run.state[at] for run, at in zip(runs, places, strict=True) if len(at)]
            if not left:
                continue
            parts = self._scorer.read_in_parts(torch.cat(left), readout)
            likeliest = torch.cat([part.argmax(-1) for part in parts])
            sizes = [len(at) for at in places]
            for run, at, tokens in zip(runs, places, likeliest.split(sizes), strict=True):
                is_right = tokens.to(at.device) == self._next_ids.to(at.device)[at]
                question = self._question.to(at.device)[at]
                self._answered[run.number] &= self._join(is_right, question)
        self._waiting.clear()
