"""All restorations in one upward pass: the default engine.

A restoration that starts at layer s leaves the layers below as the base model ran them. So both
models go up the layers once, and with them a batch of rows (restoration × question). At layer s the
rows that start there join from the base model's residual stream; two restorations that agree up to
a layer are one row until they part. One layer's states are in memory at a time.

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

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.trajectories import Trajectory
from interp.recovery.batches import PaddingSide
from interp.recovery.engines.budget import Planner, RowBudget
from interp.recovery.engines.upward import UpwardPass
from interp.recovery.pair import Pair
from interp.recovery.scoring import Distance
from interp.recovery.sites import Restoration


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
        budget: how much is computed at once; what suits the device's free memory if None. It is
            halved when memory runs out, and what was found by then is kept.
    """
    budget = budget or RowBudget.of(pair)
    scorer = pair.scorer(distance, own_precision=own_precision)
    found = torch.empty(len(restorations), len(trajectories), dtype=torch.float64)
    planner = Planner(pair, trajectories, padding_side=padding_side)
    waiting = planner.jobs(len(restorations), budget)[::-1]
    with torch.inference_mode():
        for readout in ("vanilla", "unlearned"):
            if _reads(pair, restorations, readout):
                scorer.prepare(readout)
        while waiting:
            job = waiting.pop()
            share = len(job.questions) / pair.base.num_layers
            done = 0

            def layer_done(share: float = share) -> None:
                nonlocal done
                done += 1
                advance(share)

            try:
                result = UpwardPass(
                    pair,
                    [trajectories[index] for index in job.questions],
                    restorations,
                    rows_at_once=job.rows_at_once,
                    room=job.room,
                    padding_side=padding_side,
                    prefix=job.prefix,
                ).losses(scorer, layer_done)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or job.is_smallest:
                    raise
                budget = budget.halved()
                advance(-done * share)
                # What was found so far stays; what is left is cut anew.
                waiting = planner.again([*waiting, job], len(restorations), budget)
                continue
            found[:, list(job.questions)] = result
    return found


def _reads(pair: Pair, restorations: Sequence[Restoration], readout: str) -> bool:
    """Whether some run's final states are read by that model's unembedding."""
    own = "unlearned" if pair.direction == "restore" else "vanilla"
    return any(("unembed" in item.sites) != (readout == own) for item in restorations)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )
