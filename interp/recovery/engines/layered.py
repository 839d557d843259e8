"""All restorations in one upward pass: the default engine.

A restoration that starts at layer s leaves the layers below as the base model ran them. So the base
model runs once, its residual stream kept at every layer's input; then the layers are gone up
once with a batch of rows (restoration × question). At layer s the rows that start there join from
the kept residual stream; two restorations that agree up to a layer are one row until they part.

Work whose result is known is not done:

- with `coef` restored, the MLP's output is the donor's coefficients times the value vectors, one
  tensor whatever the row;
- with `attn` restored, the attention block does not run;
- with both, the layer adds a known tensor to the residual stream;
- at a restoration's first layer the input is the base model's own, and so are the attention state
  and the coefficients that it does not replace;
- what all questions begin with (few-shot examples, a chat preamble) is run once per restoration;
- in the last layer the MLP and the output projection run at scored positions only, and logits
  are not formed where the distance has a Gram form (`scoring`).

Everything else is done by the library's own layer code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.trajectories import Trajectory
from interp.recovery.batches import PaddingSide, grouped_by_prefix, shared_prefix
from interp.recovery.engines.upward import UpwardPass
from interp.recovery.pair import Pair
from interp.recovery.scoring import Distance
from interp.recovery.sites import Restoration

BUDGET_FRACTION = 0.4
"""Share of a GPU's free memory that rows and recorded states may take."""

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
        bytes: memory for the rows' residual streams and the recorded states.
    """

    chunk_tokens: int
    bytes: int

    @classmethod
    def of(cls, device: torch.device) -> RowBudget:
        """What suits a device now."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            return cls(chunk_tokens=1 << 15, bytes=int(free * BUDGET_FRACTION))
        return cls(chunk_tokens=1800, bytes=1 << 30)

    def halved(self) -> RowBudget:
        """Half of everything."""
        return RowBudget(chunk_tokens=max(1, self.chunk_tokens // 2), bytes=self.bytes // 2)


def losses(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    *,
    distance: Distance = "logit_mse",
    own_precision: bool = False,
    padding_side: PaddingSide = "right",
    budget: RowBudget | None = None,
    advance: Callable[[float], object] = lambda _questions: None,
) -> Float[Tensor, "restoration query"]:
    """Losses of every restoration on every question.

    Args and result are those of the reference engine (`full.losses`), but for:

    Args:
        budget: how much is computed at once; what suits the device if None. It halves itself when
            memory runs out.
    """
    device = pair.base.device
    budget = budget or RowBudget.of(device)
    scorer = pair.scorer(distance, own_precision=own_precision)
    found = torch.empty(len(restorations), len(trajectories), dtype=torch.float64)
    lengths = [item.scored.stop for item in trajectories]
    sharing = padding_side == "right"
    groups = [list(range(len(trajectories)))]
    if sharing:
        groups = grouped_by_prefix(trajectories, overhead=GROUP_OVERHEAD)
    waiting = [
        (sorted(group, key=lambda index: lengths[index]), list(range(len(restorations))))
        for group in reversed(groups)
        if restorations
    ]
    with torch.inference_mode():
        for readout in ("vanilla", "unlearned"):
            if _reads(pair, restorations, readout):
                scorer.prepare(readout)
        while waiting:
            questions, rows = waiting.pop()
            if not questions:
                continue
            asked = [trajectories[index] for index in questions]
            prefix = _shared(asked) if sharing else 0
            count = _num_questions(pair, asked, prefix, len(rows), budget)
            if count == 0 and len(rows) > 1:
                waiting += [
                    (questions, rows[len(rows) // 2 :]),
                    (questions, rows[: len(rows) // 2]),
                ]
                continue
            now, later = questions[: max(1, count)], questions[max(1, count) :]
            waiting.append((later, rows))
            asked = asked[: len(now)]
            share = len(now) * len(rows) / len(restorations) / pair.base.num_layers
            done = 0

            def layer_done(share: float = share) -> None:
                nonlocal done
                done += 1
                advance(share)

            try:
                result = UpwardPass(
                    pair,
                    asked,
                    [restorations[row] for row in rows],
                    chunk_tokens=budget.chunk_tokens,
                    padding_side=padding_side,
                    prefix=_shared(asked) if sharing else 0,
                ).losses(scorer, layer_done)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or (len(now) == len(rows) == 1):
                    raise
                budget = budget.halved()
                advance(-done * share)
                waiting[-1] = (questions, rows)
                continue
            found[torch.tensor(rows)[:, None], torch.tensor(now)] = result
    return found


def _reads(pair: Pair, restorations: Sequence[Restoration], readout: str) -> bool:
    """Whether some run's final states are read by that model's unembedding."""
    own = "unlearned" if pair.direction == "restore" else "vanilla"
    return any(("unembed" in item.sites) != (readout == own) for item in restorations)


def _shared(trajectories: Sequence[Trajectory]) -> int:
    """How long a prefix is run once for all: none where that would save next to nothing."""
    prefix = shared_prefix(trajectories)
    return prefix if prefix * (len(trajectories) - 1) >= SAVED_TOKENS else 0


def _num_questions(
    pair: Pair, asked: Sequence[Trajectory], prefix: int, num_rows: int, budget: RowBudget
) -> int:
    """How many questions, shortest first, the budget holds with so many rows."""
    layers = pair.base.anatomy.layers
    d_mlp = max(layers[0].values.get_parameter("weight").shape)
    d_model = pair.base.model.config.hidden_size
    # Rows before and after a layer; the two models' recorded states.
    per_token = (2 * num_rows * d_model + len(layers) * 2 * (2 * d_model + d_mlp)) * (
        torch.finfo(pair.base.dtype).bits // 8
    )
    count = 0
    for number, item in enumerate(asked, start=1):
        if (prefix + number * (item.scored.stop - prefix)) * per_token > budget.bytes:
            break
        count = number
    if count == 0:
        return 0
    # Even batches: 12 questions where 11 fit are 6 and 6.
    return math.ceil(len(asked) / math.ceil(len(asked) / count))


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )
