"""Engine `layered`, the default: activation patching of all restorations in one upward pass.

A restoration that starts at layer s leaves the layers below as the base model ran them. So for each
batch of questions that fits in memory (`row_budget`):

1. Run the embeddings of both models, and note what they give to their layers (`layerwise_run`).
2. At every layer, from the first to the last:
   a. Run it in both models on their own residual streams, and record the sites restored there.
   b. Let the rows (restoration × question) that start there join from the base model's residual
      stream. Restorations that agree up to this layer are one row until they part.
   c. Run the base model's layer on all rows, the donor's sites put in (`upward_pass`).
   d. Keep the rows for the next layer, outside of memory if need be (`disk_offload`), and forget
      this layer's states: one layer's are in memory at a time.
3. Score the rows above the last layer by their distance from V's logits (`distances`).

Work whose result is known is not done:

- with `coef` restored, the MLP's output is the donor's coefficients times the value vectors, one
  tensor whatever the row;
- with `attn` restored, the attention block does not run;
- with both, the layer adds a known tensor to the residual stream;
- at a restoration's first layer the input is the base model's own, and so are the attention state
  and the coefficients that it does not replace;
- what all questions begin with (few-shot examples, a chat preamble) is run once per restoration;
- in the last layer the MLP and the output projection run at scored positions only, and logits
  are not formed where the distance has a Gram form (`distances`).

Everything else is done by the library's own layer code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from interp.data.trajectories import Trajectory
from interp.recovery.batches import PaddingSide
from interp.recovery.distances import Distance
from interp.recovery.engines.layered.row_budget import JobPlanner, RowBudget
from interp.recovery.engines.layered.upward_pass import UpwardPass
from interp.recovery.measured import Measured
from interp.recovery.pair import Pair
from interp.recovery.sites import Restoration


def measure(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    *,
    distance: Distance = "logit_mse",
    own_precision: bool = False,
    padding_side: PaddingSide = "right",
    budget: RowBudget | None = None,
    answers: bool = True,
    advance: Callable[[float], object] = lambda _questions: None,
) -> Measured:
    """Measure every restoration on every question.

    Args and result are those of the reference engine (`full.measure`), but for:

    Args:
        budget: how much is computed at once; what suits the device's free memory if None. It is
            halved when memory runs out, and what was measured by then is kept.
    """
    budget = budget or RowBudget.for_pair(pair)
    scorer = pair.get_scorer(distance, own_precision=own_precision)
    losses = torch.empty(len(restorations), len(trajectories), dtype=torch.float64)
    answered = torch.empty(losses.shape, dtype=torch.bool) if answers else None
    planner = JobPlanner(pair, trajectories, padding_side=padding_side)
    waiting = planner.plan_jobs(len(restorations), budget)[::-1]
    with torch.inference_mode():
        for readout in ("vanilla", "unlearned"):
            if _is_read_by(pair, restorations, readout):
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
                ).run(scorer, layer_done, answers=answers)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or job.is_smallest:
                    raise
                budget = budget.halve()
                advance(-done * share)
                # What was measured so far stays; what is left is cut anew.
                waiting = planner.replan([*waiting, job], len(restorations), budget)
                continue
            questions = list(job.questions)
            losses[:, questions] = result.losses
            if answered is not None and result.answered is not None:
                answered[:, questions] = result.answered
    return Measured(losses=losses, answered=answered)


def _is_read_by(pair: Pair, restorations: Sequence[Restoration], readout: str) -> bool:
    """Return True if some run's final states are read by that model's unembedding."""
    own = "unlearned" if pair.direction == "restore" else "vanilla"
    return any(("unembed" in item.sites) != (readout == own) for item in restorations)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )
