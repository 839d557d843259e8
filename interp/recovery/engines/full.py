"""Engine `full`, the reference: one whole forward per restoration, plain hooks, own logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from interp.data.trajectories import Trajectory
from interp.recovery.batches import Batch
from interp.recovery.engines.forwards import Score, measure_by_forwards
from interp.recovery.hooks import LayerStates, record, restore_sites
from interp.recovery.measured import Measured
from interp.recovery.module_hooks import swap_parameters
from interp.recovery.pair import Pair
from interp.recovery.sites import Restoration


def measure(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    **options: Any,
) -> Measured:
    """Measure every restoration on every question, by one forward each.

    Args and result are those of `forwards.measure_by_forwards`.
    """

    def runs(batch: Batch, restorations: Sequence[Restoration], score: Score) -> Iterator[Tensor]:
        inputs = batch.inputs(pair.base.anatomy.body)
        wanted = {site for restoration in restorations for site in restoration.sites}
        donor_run = record(pair.donor.anatomy, batch, wanted)
        theirs = batch.inputs(pair.vanilla.anatomy.body)
        target = batch.at_scored(pair.vanilla.model(**theirs).logits)
        for restoration in restorations:
            where = batch.select_positions(restoration.positions)
            with restore_model(pair, restoration, donor_run.layers, where):
                logits = batch.at_scored(pair.base.model(**inputs).logits)
            yield score(target.to(logits.device), logits)

    return measure_by_forwards(runs, pair, trajectories, restorations, **options)


@contextmanager
def restore_model(
    pair: Pair,
    restoration: Restoration,
    donor_states: Sequence[LayerStates],
    where: Bool[Tensor, "batch pos"],
):
    """Put a restoration into every layer concerned, the final norm and the unembedding."""
    base, donor = pair.base.anatomy, pair.donor.anatomy
    with ExitStack() as stack:
        for layer in restoration.layers:
            units = restoration.units_of(layer)
            channels = None if units is None else base.channels(restoration.sites[0], units, layer)
            stack.enter_context(
                restore_sites(
                    base.layers[layer],
                    donor.layers[layer],
                    donor_states[layer],
                    restoration.sites,
                    where,
                    channels,
                )
            )
        if "norms" in restoration.sites and base.num_layers - 1 in restoration.layers:
            for module, other in zip(base.final_norms, donor.final_norms, strict=True):
                stack.enter_context(swap_parameters(module, other))
        if "unembed" in restoration.sites:
            stack.enter_context(swap_parameters(base.unembed, donor.unembed))
        yield
