"""Cost estimate of a sweep, before it begins: rows, memory, expected time.

The time is arithmetic over speed: the multiplications that the engine will do, at the pace of one
forward of U on some of the questions, which is run and timed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from interp.data.trajectories import Trajectory
from interp.models.memory import count_bytes, measure_free_memory
from interp.recovery.batches import make_batch
from interp.recovery.distances import have_same_unembedding
from interp.recovery.engines.layered.row_budget import Job, JobPlanner, RowBudget
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, Restoration
from interp.recovery.sweep import NUM_SELF_PATCHED
from interp.recovery.sweep_config import SweepConfig

UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"))


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """Cost of a sweep.

    Attributes:
        num_questions: over all cells.
        num_rows: restorations of each question, and the base model's own run.
        num_forwards: upward passes of the engine `layered`, forwards of the others.
        vanilla_bytes: V's weights.
        unlearned_bytes: what U's weights take beside them.
        row_bytes: what the largest pass takes for rows and states; 0 where it is not known.
        free_bytes: what is free on the device now, the models being loaded.
        seconds: the expected time; None where the work is done elsewhere.
    """

    num_questions: int
    num_rows: int
    num_forwards: int
    vanilla_bytes: int
    unlearned_bytes: int
    row_bytes: int
    free_bytes: int
    seconds: float | None

    def times(self, number: int) -> CostEstimate:
        """Return the cost of as much work so many times, in the same memory."""
        seconds = None if self.seconds is None else self.seconds * number
        return replace(self, num_forwards=self.num_forwards * number, seconds=seconds)

    def __str__(self) -> str:
        memory = f"V {_format_size(self.vanilla_bytes)} + U {_format_size(self.unlearned_bytes)}"
        if self.row_bytes:
            memory += f" + rows {_format_size(self.row_bytes)}"
        text = (
            f"plan: {self.num_questions} questions × {self.num_rows} rows in {self.num_forwards} "
            f"passes; memory: {memory}, {_format_size(self.free_bytes)} free"
        )
        return text if self.seconds is None else f"{text}; about {_format_duration(self.seconds)}"


def estimate_cost(
    pair: Pair, cells: Sequence[Sequence[Trajectory]], config: SweepConfig
) -> CostEstimate:
    """Estimate what measuring some cells will take. One forward of U is run and timed.

    Args:
        pair: V and U.
        cells: the questions that are measured together, cell by cell.
        config: what is measured.
    """
    cells = [scored for cell in cells if (scored := [item for item in cell if item.scored])]
    num_questions = sum(map(len, cells))
    restorations = [NOTHING, *config.restorations(pair.base.num_layers)]
    budget = RowBudget.for_pair(pair)
    vanilla_bytes, unlearned_bytes = count_bytes(pair.vanilla, pair.unlearned)
    counter = _OperationCounter(pair, config)
    if config.engine == "layered":
        jobs = [
            (cell, job)
            for cell in cells
            for job in JobPlanner(pair, cell).plan_jobs(len(restorations), budget)
        ]
        num_forwards, row_bytes = len(jobs), max((job.num_bytes for _, job in jobs), default=0)
        total = sum(counter.count_job(job, cell, restorations) for cell, job in jobs)
        total += counter.count_gram() + sum(counter.count_noise_floor(cell) for cell in cells)
    else:
        num_forwards, row_bytes = num_questions * len(restorations), 0
        total = sum(
            counter.count_forward(item.scored.stop) + counter.count_logits(len(item.scored))
            for cell in cells
            for item in cell
        )
        total *= len(restorations) + 1
    seconds = None
    if config.remote is not True and cells:
        seconds = total / _measure_speed(pair, cells[0], counter, budget.chunk_tokens)
    return CostEstimate(
        num_questions=num_questions,
        num_rows=len(restorations),
        num_forwards=num_forwards,
        vanilla_bytes=vanilla_bytes,
        unlearned_bytes=unlearned_bytes,
        row_bytes=row_bytes,
        free_bytes=min(map(measure_free_memory, pair.base.devices)),
        seconds=seconds,
    )


class _OperationCounter:
    """Counter of the multiplications that parts of a sweep take."""

    def __init__(self, pair: Pair, config: SweepConfig) -> None:
        anatomy = pair.base.anatomy
        self._num_layers = anatomy.num_layers
        mixers = [_count_weights(parts.attn_weights) for parts in anatomy.layers]
        self._attn = sum(mixers) / anatomy.num_layers
        self._mlp = sum(map(_count_mlp, anatomy.layers)) / anatomy.num_layers
        self._vocab_size, self._d = anatomy.unembed.weight.shape
        self._gram = config.distance == "logit_mse" and anatomy.logit_cap is None
        shared = have_same_unembedding(pair.vanilla.anatomy.unembed, pair.unlearned.anatomy.unembed)
        self._num_grams = 1 if shared else 3
        self._num_sites = len(config.sites)

    def count_forward(self, num_tokens: float) -> float:
        """Count those of one model's layers."""
        return num_tokens * self._num_layers * (self._attn + self._mlp)

    def count_logits(self, num_tokens: float) -> float:
        return num_tokens * self._vocab_size * self._d

    def count_gram(self) -> float:
        """Count those of the matrices that are made once; half of a symmetric one is mirrored."""
        return self._gram * 0.6 * self._num_grams * self.count_logits(self._d)

    def count_job(
        self, job: Job, cell: Sequence[Trajectory], restorations: Sequence[Restoration]
    ) -> float:
        """Count those of an upward pass: both models' own runs, the rows, their scores."""
        rows = sum(map(self._count_row, restorations))
        scored = sum(len(cell[index].scored) for index in job.questions)
        # Two products in float64, or V's logits and the row's.
        score = 4 * self._d * scored * self._d if self._gram else 2 * self.count_logits(scored)
        return (
            2 * self.count_forward(job.num_tokens)
            + job.num_tokens * rows
            + len(restorations) * score
        )

    def count_noise_floor(self, cell: Sequence[Trajectory]) -> float:
        """Count V into V, for some questions and each site's middle window: half the layers."""
        num_tokens = sum(item.scored.stop for item in cell[:NUM_SELF_PATCHED])
        return self.count_forward(num_tokens) * (2 + self._num_sites / 2)

    def _count_row(self, restoration: Restoration) -> float:
        """Count per token: nothing below the window, what is not known inside it, all above."""
        if not restoration.layers or not restoration.layer_sites:
            return 0
        sites, inside = set(restoration.sites), float(self._attn + self._mlp)
        if restoration.positions == "all" and restoration.units is None:
            inside -= self._attn * bool(sites & {"attn", "head", "resid"})
            inside -= self._mlp * bool(sites & {"coef", "mlp_out", "resid"})
        above = self._num_layers - restoration.layers[0] - len(restoration.layers)
        return len(restoration.layers) * inside + above * (self._attn + self._mlp)


def _count_mlp(parts: LayerParts) -> float:
    """Count an MLP's weights, of a mixture those that a token meets."""
    mixture = parts.mixture
    if mixture is None:
        return _count_weights((*parts.keys, parts.values))
    total = 0.0
    for module, names in (*mixture.list_keys(), *mixture.list_values()):
        share = mixture.top_k / mixture.num_experts if module is mixture.experts else 1
        held = [module._parameters.get(name) for name in names]
        total += share * sum(tensor.numel() for tensor in held if tensor is not None)
    return total


def _count_weights(modules: Sequence[nn.Module]) -> int:
    """Count the entries of the modules' own matrices, of packed ones as many as they stand for.

    The packed map below a low-rank one lies inside it.
    """
    maps = {id(part): part for module in modules for part in module.modules()}
    total = 0
    for part in maps.values():
        sizes = getattr(part, "in_features", 0), getattr(part, "out_features", 0)
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if name == "weight" and (size := sizes[0] * sizes[1]):
                total += size
            elif parameter.ndim > 1:
                total += parameter.numel()
    return total


def _measure_speed(
    pair: Pair, cell: Sequence[Trajectory], counter: _OperationCounter, most_tokens: int
) -> float:
    """Measure multiplications per second in a forward of U on some of the questions."""
    body, device = pair.unlearned.anatomy.body, pair.base.device
    questions = [cell[0]]
    for item in cell[1:]:
        if (len(questions) + 1) * max(one.scored.stop for one in [*questions, item]) > most_tokens:
            break
        questions.append(item)
    batch = make_batch(questions, device=device)
    with torch.inference_mode():
        # A GPU's first forward also sets it up.
        for _ in range(1 + (device.type == "cuda")):
            start = time.perf_counter()
            body(**batch.inputs(body))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
    return counter.count_forward(batch.num_tokens) / seconds


def _format_size(num_bytes: int) -> str:
    for unit, name in UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes / 1024:.1f} KiB"


def _format_duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
