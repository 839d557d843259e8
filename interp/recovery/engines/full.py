"""The reference: one whole forward per restoration, plain hooks, the model's own logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.data.trajectories import Trajectory
from interp.recovery.batches import PaddingSide, make_batch
from interp.recovery.pair import Pair
from interp.recovery.scoring import Distance, distance_of
from interp.recovery.sites import Restoration
from interp.recovery.states import LayerStates, parameters_swapped, record, restored


def losses(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    *,
    distance: Distance = "logit_mse",
    own_precision: bool = False,
    padding_side: PaddingSide = "right",
    batch_size: int = 8,
    advance: Callable[[float], object] = lambda _questions: None,
) -> Float[Tensor, "restoration query"]:
    """Losses of every restoration on every question, by one forward each.

    Args:
        pair: the base model that runs, the donor, and V.
        trajectories: the questions with V's answers, each with at least one scored position.
        restorations: what to put back; the empty one gives the base model's own loss.
        distance: `logit_mse`, `kl` or `answer_logprob`.
        own_precision: compute the distance in the models' own precision.
        padding_side: where shorter questions are padded.
        batch_size: questions per forward.
        advance: told after each forward how many questions' worth of work is done.

    Returns:
        float64 on the CPU.
    """
    base, donor, vanilla = pair.base, pair.donor, pair.vanilla
    wanted = {site for restoration in restorations for site in restoration.sites}
    found = torch.empty(len(restorations), len(trajectories), dtype=torch.float64)
    with torch.inference_mode():
        for start in range(0, len(trajectories), batch_size):
            here = slice(start, start + batch_size)
            batch = make_batch(trajectories[here], device=base.device, padding_side=padding_side)
            inputs = batch.inputs(base.anatomy.body)
            next_ids = batch.next_ids[batch.scored]
            donor_run = record(donor.anatomy, batch, wanted)
            target = vanilla.model(**inputs).logits[batch.scored]
            for row, restoration in enumerate(restorations):
                where = batch.restored(restoration.positions)
                with whole_model_restored(pair, restoration, donor_run.layers, where):
                    logits = base.model(**inputs).logits[batch.scored]
                if own_precision:
                    scored = distance_of(distance, target, logits, next_ids)
                else:
                    scored = distance_of(distance, target.float(), logits.float(), next_ids)
                found[row, here] = batch.mean_per_question(scored.double()).cpu()
                advance(len(trajectories[here]) / len(restorations))
    return found


@contextmanager
def whole_model_restored(
    pair: Pair,
    restoration: Restoration,
    donor_states: Sequence[LayerStates],
    where: Bool[Tensor, "batch pos"],
):
    """Put a restoration into every layer concerned, the final norm and the unembedding."""
    base, donor = pair.base.anatomy, pair.donor.anatomy
    with ExitStack() as stack:
        for layer in restoration.layers:
            stack.enter_context(
                restored(
                    base.layers[layer],
                    donor.layers[layer],
                    donor_states[layer],
                    restoration.sites,
                    where,
                )
            )
        if "norms" in restoration.sites and base.num_layers - 1 in restoration.layers:
            for module, other in zip(base.final_norms, donor.final_norms, strict=True):
                stack.enter_context(parameters_swapped(module, other))
        if "unembed" in restoration.sites:
            stack.enter_context(parameters_swapped(base.unembed, donor.unembed))
        yield
