"""How many questions and rows go up the layers together: what fits a budget of memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from interp.data.trajectories import Trajectory
from interp.models.memory import free_memory
from interp.recovery.batches import PaddingSide, grouped_by_prefix, shared_prefix
from interp.recovery.pair import Pair

BUDGET_FRACTION = 0.4
"""Share of the free memory that rows and states may take."""

CPU_BYTES = 1 << 28
"""As much as a CPU makes use of: more rows at a time would not be faster."""

GROUP_OVERHEAD = 256
"""Tokens that could be run in the time that one more group of questions costs."""

SAVED_TOKENS = 64
"""A shared prefix is run once where that saves so many tokens: it costs more calls of a layer."""


@dataclass(frozen=True, kw_only=True)
class RowBudget:
    """How much is computed at once.

    Attributes:
        chunk_tokens: tokens per call of a layer. On a CPU what its cache holds, on a GPU what fills
            it.
        bytes: memory for the rows' residual streams and one layer's states.
    """

    chunk_tokens: int
    bytes: int

    @classmethod
    def of(cls, devices: Collection[torch.device]) -> RowBudget:
        """What suits the devices of a model now: the fullest of its GPUs decides."""
        gpus = [device for device in devices if device.type == "cuda"]
        spare = int(min(map(free_memory, gpus or devices)) * BUDGET_FRACTION)
        if gpus:
            return cls(chunk_tokens=1 << 15, bytes=spare)
        return cls(chunk_tokens=1800, bytes=min(CPU_BYTES, spare))

    def halved(self) -> RowBudget:
        """Half of everything."""
        return RowBudget(chunk_tokens=max(1, self.chunk_tokens // 2), bytes=self.bytes // 2)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One upward pass.

    Attributes:
        questions: which of the trajectories, shortest first.
        rows: which of the restorations.
        prefix: how many tokens that the questions begin with are run once for all.
        num_tokens: positions per row, padding included.
        num_bytes: memory that it needs.
    """

    questions: tuple[int, ...]
    rows: tuple[int, ...]
    prefix: int
    num_tokens: int
    num_bytes: int


class Planner:
    """Cuts questions × restorations into jobs that fit a budget."""

    def __init__(
        self, pair: Pair, trajectories: Sequence[Trajectory], *, padding_side: PaddingSide = "right"
    ) -> None:
        """Note the sizes.

        Args:
            pair: V and U.
            trajectories: the questions.
            padding_side: prefixes are shared where padding stands on the right.
        """
        self._trajectories = trajectories
        self._sharing = padding_side == "right"
        d_model = pair.base.model.config.hidden_size
        d_mlp = pair.base.anatomy.num_units("coef")
        size = torch.finfo(pair.base.dtype).bits // 8
        # Before a layer, and after it.
        self._row_bytes = 2 * d_model * size
        # Two models: the layer's input and output, attention state and coefficients.
        self._state_bytes = 2 * (3 * d_model + d_mlp) * size

    def jobs(self, num_rows: int, budget: RowBudget) -> list[Job]:
        """All that there is to do."""
        groups = [list(range(len(self._trajectories)))]
        if self._sharing:
            groups = grouped_by_prefix(self._trajectories, overhead=GROUP_OVERHEAD)
        if not num_rows:
            return []
        rows = tuple(range(num_rows))
        return [job for group in groups for job in self._cut(group, rows, budget)]

    def again(self, jobs: Sequence[Job], budget: RowBudget) -> list[Job]:
        """The same to do, within a smaller budget."""
        return [part for job in jobs for part in self._cut(job.questions, job.rows, budget)]

    def _cut(self, questions: Sequence[int], rows: tuple[int, ...], budget: RowBudget) -> list[Job]:
        waiting = sorted(questions, key=lambda index: self._trajectories[index].scored.stop)
        found = []
        while waiting:
            count = self._num_fitting(waiting, len(rows), budget)
            now, waiting = waiting[:count], waiting[count:]
            job = self._job(now, rows)
            # Of one question that does not fit, some of the rows: parts as even as can be.
            spare = budget.bytes - job.num_tokens * self._state_bytes
            most = max(1, spare // (job.num_tokens * self._row_bytes))
            parts = math.ceil(len(rows) / most)
            size = math.ceil(len(rows) / parts)
            found += [
                self._job(now, rows[start : start + size]) for start in range(0, len(rows), size)
            ]
        return found

    def _num_fitting(self, questions: Sequence[int], num_rows: int, budget: RowBudget) -> int:
        """How many questions, of those in the order of their lengths, go together: at least one."""
        prefix = self._prefix(questions)
        count = 1
        for number, index in enumerate(questions, start=1):
            rest = self._trajectories[index].scored.stop - prefix
            if self._bytes(prefix + number * rest, num_rows) > budget.bytes:
                break
            count = number
        # Even batches: 12 questions where 11 fit are 6 and 6.
        return math.ceil(len(questions) / math.ceil(len(questions) / count))

    def _job(self, questions: Sequence[int], rows: tuple[int, ...]) -> Job:
        prefix = self._prefix(questions)
        longest = max(self._trajectories[index].scored.stop for index in questions)
        num_tokens = prefix + len(questions) * (longest - prefix)
        return Job(
            questions=tuple(questions),
            rows=rows,
            prefix=prefix,
            num_tokens=num_tokens,
            num_bytes=self._bytes(num_tokens, len(rows)),
        )

    def _bytes(self, num_tokens: int, num_rows: int) -> int:
        return num_tokens * (num_rows * self._row_bytes + self._state_bytes)

    def _prefix(self, questions: Sequence[int]) -> int:
        """How long a prefix is run once for all: none where that would save next to nothing."""
        if not self._sharing:
            return 0
        prefix = shared_prefix([self._trajectories[index] for index in questions])
        return prefix if prefix * (len(questions) - 1) >= SAVED_TOKENS else 0
