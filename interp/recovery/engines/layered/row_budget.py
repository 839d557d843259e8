"""Batch sizes of the layered engine: questions and rows per pass that fit a budget of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from interp.data.trajectories import Trajectory
from interp.models.memory import measure_free_memory
from interp.recovery.batches import PaddingSide, count_shared_tokens, group_by_prefix
from interp.recovery.engines.layered.prefix_sharing import can_share_prefix
from interp.recovery.pair import Pair

BUDGET_FRACTION = 0.4
"""Share of the free memory that rows and states may take."""

CPU_BYTES = 1 << 27
"""As much as a CPU makes use of: more rows at a time would not be faster."""

GROUP_OVERHEAD = 256
"""Tokens that could be run in the time that one more group of questions costs."""

SAVED_TOKENS = 64
"""Tokens to save so that a shared prefix is run once for all: it costs more calls of a layer."""

FILLED = 4
"""Below a quarter of the tokens that a call may have, calls of a layer are slower per token: the
weights are read for few of them. Then more questions go together, though their rows wait outside.
"""


@dataclass(frozen=True, kw_only=True)
class RowBudget:
    """Limits on what is computed at once.

    Attributes:
        chunk_tokens: tokens per call of a layer, and of one layer's states. On a CPU what its cache
            holds, on a GPU what fills it.
        bytes: memory for the rows that wait for their next layer; others wait
            outside (`disk_offload`).
    """

    chunk_tokens: int
    bytes: int

    @classmethod
    def for_pair(cls, pair: Pair) -> RowBudget:
        """Fit the devices' free memory now: the fullest of the GPUs decides."""
        devices = pair.base.devices
        gpus = [device for device in devices if device.type == "cuda"]
        spare = int(min(map(measure_free_memory, gpus or devices)) * BUDGET_FRACTION)
        sizes = Sizes.for_pair(pair)
        most = (1 << 15) if gpus else 1800
        chunk_tokens = max(1, min(most, spare // (sizes.states + sizes.call)))
        return cls(chunk_tokens=chunk_tokens, bytes=spare if gpus else min(CPU_BYTES, spare))

    def halve(self) -> RowBudget:
        """Return half of everything; below calls of one token nothing is left."""
        if self.chunk_tokens == 1:
            return RowBudget(chunk_tokens=1, bytes=0)
        return RowBudget(chunk_tokens=self.chunk_tokens // 2, bytes=self.bytes // 2)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes that one token takes.

    Attributes:
        row: in a row that waits.
        states: in one layer's states of both models: the input and the output, the attention state
            and the coefficients.
        call: within a layer while it runs, rows before and after it included, about.
    """

    row: int
    states: int
    call: int

    @classmethod
    def for_pair(cls, pair: Pair) -> Sizes:
        """Compute the sizes for a pair's widths and precision."""
        d_model = pair.base.text_config.hidden_size
        d_mlp = max(parts.stored_width for parts in pair.base.anatomy.layers)
        size = torch.finfo(pair.base.dtype).bits // 8
        return cls(
            row=d_model * size,
            states=2 * (3 * d_model + d_mlp) * size,
            call=(6 * d_model + 3 * d_mlp) * size,
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One upward pass: some questions under every restoration.

    Attributes:
        questions: which of the trajectories, shortest first.
        prefix: how many tokens that the questions begin with are run once for all.
        num_tokens: positions per row, padding included.
        rows_at_once: restorations per call of a layer.
        room: bytes for the rows that wait; those beyond it wait outside of the memory.
        num_bytes: memory that rows and states need.
    """

    questions: tuple[int, ...]
    prefix: int
    num_tokens: int
    rows_at_once: int
    room: int
    num_bytes: int

    @property
    def is_smallest(self) -> bool:
        """True if nothing smaller could be run."""
        return len(self.questions) == self.rows_at_once == 1 and not self.room


class JobPlanner:
    """Cuts questions into jobs that fit a budget."""

    def __init__(
        self, pair: Pair, trajectories: Sequence[Trajectory], *, padding_side: PaddingSide = "right"
    ) -> None:
        """Note the sizes.

        Args:
            pair: V and U.
            trajectories: the questions.
            padding_side: prefixes are shared where padding stands on the right, by models whose
                layers read nothing of them but keys and values.
        """
        self._pair = pair
        self._trajectories = trajectories
        self._sharing = padding_side == "right"
        self._sizes = Sizes.for_pair(pair)

    def plan_jobs(self, num_rows: int, budget: RowBudget) -> list[Job]:
        """Plan all that there is to do."""
        if not num_rows:
            return []
        together = [list(range(len(self._trajectories)))]
        groups = together
        if self._sharing:
            groups = group_by_prefix(self._trajectories, overhead=GROUP_OVERHEAD)
            if any(map(self._count_prefix, groups)) and not can_share_prefix(self._pair.base.model):
                self._sharing, groups = False, together
        return [job for group in groups for job in self._cut(group, num_rows, budget)]

    def replan(self, jobs: Sequence[Job], num_rows: int, budget: RowBudget) -> list[Job]:
        """Cut jobs again, to fit a smaller budget."""
        return [part for job in jobs for part in self._cut(job.questions, num_rows, budget)]

    def _cut(self, questions: Sequence[int], num_rows: int, budget: RowBudget) -> list[Job]:
        waiting = sorted(questions, key=lambda index: self._trajectories[index].scored.stop)
        jobs = []
        while waiting:
            count = self._count_fitting(waiting, num_rows, budget)
            now, waiting = waiting[:count], waiting[count:]
            jobs.append(self._make_job(now, num_rows, budget))
        return jobs

    def _count_fitting(self, questions: Sequence[int], num_rows: int, budget: RowBudget) -> int:
        """Count how many of the questions, shortest first, go together: at least one."""
        prefix = self._count_prefix(questions)
        count = 1
        for number, index in enumerate(questions, start=1):
            rest = self._trajectories[index].scored.stop - prefix
            num_tokens = prefix + number * rest
            is_filled = FILLED * (num_tokens - rest) >= budget.chunk_tokens
            have_room = num_rows * num_tokens * self._sizes.row <= budget.bytes
            # Where not all rows have room, no more questions than make good calls.
            if num_tokens > budget.chunk_tokens or (is_filled and not have_room):
                break
            count = number
        # Even batches: 12 questions where 11 fit are 6 and 6.
        return math.ceil(len(questions) / math.ceil(len(questions) / count))

    def _make_job(self, questions: Sequence[int], num_rows: int, budget: RowBudget) -> Job:
        prefix = self._count_prefix(questions)
        longest = max(self._trajectories[index].scored.stop for index in questions)
        num_tokens = prefix + len(questions) * (longest - prefix)
        row = num_tokens * self._sizes.row
        filling = budget.chunk_tokens // max(prefix, num_tokens - prefix)
        kept = min(num_rows, budget.bytes // row)
        return Job(
            questions=tuple(questions),
            prefix=prefix,
            num_tokens=num_tokens,
            rows_at_once=max(1, min(num_rows, filling)),
            room=kept * row,
            num_bytes=num_tokens * self._sizes.states + kept * row,
        )

    def _count_prefix(self, questions: Sequence[int]) -> int:
        """Count the shared tokens that are run once for all: 0 where that saves next to nothing."""
        if not self._sharing:
            return 0
        prefix = count_shared_tokens([self._trajectories[index] for index in questions])
        return prefix if prefix * (len(questions) - 1) >= SAVED_TOKENS else 0
