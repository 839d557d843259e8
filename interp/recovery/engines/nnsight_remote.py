"""Forwards on NDIF: V is a model that is hosted there, U is V plus a LoRA adapter.

One request runs all windows of a batch of questions. In each forward the first row block runs V
as it is; the others run U, by adding the adapter's low-rank matrices to what its modules return
(not where a parameter site restores the module), and V's states are put in at activation sites.
Distances are computed there, and one number per scored position comes back.

This needs an NDIF key (`nnsight.login()`), and the precision is that of the hosted model.
`remote="local"` runs the same round trip here: the request is serialised, read back without this
library, and run on V.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from interp.models.bridges import view
from interp.models.hosted import LowRank, hub_id, low_rank_deltas
from interp.models.language_model import LanguageModel
from interp.recovery.batches import Batch
from interp.recovery.engines.forwards import Runs, Score
from interp.recovery.engines.nnsight import Edit, Place, places, run_windows, tensors_of
from interp.recovery.pair import Pair
from interp.recovery.scoring import Distance, distance_of
from interp.recovery.sites import Restoration

Forward = tuple[int, list[Edit]]
"""The number of row blocks of one forward, and what is done at its modules."""


def remote_runs(
    pair: Pair, remote: bool | str, invokes: int, *, distance: Distance, own_precision: bool
) -> Runs:
    """How a batch is run on NDIF (True) or in its simulation ("local").

    Args:
        pair: V, named by its Hub id (with True), and U, loaded from an adapter's directory.
        remote: where.
        invokes: windows per forward.
        distance: what is computed there.
        own_precision: compute it in the hosted model's precision.

    Raises:
        ValueError: U is no LoRA adapter on V, or V is not known by a Hub id.
        ImportError: peft is not installed.
    """
    deltas = low_rank_deltas(pair.vanilla, pair.unlearned)
    hosted = hosted_model(pair.vanilla, remote)

    def runs(batch: Batch, restorations: Sequence[Restoration], score: Score) -> Iterator[Tensor]:
        del score  # Distances are computed there.
        # Row blocks before the windows: V, and U where it is the donor.
        first = 1 if pair.donor is pair.vanilla else 2
        forwards: list[Forward] = []
        for start in range(0, len(restorations), invokes):
            windows = restorations[start : start + invokes]
            edits = _edits(places(pair.vanilla, windows, batch), deltas, first, len(windows))
            forwards.append((first + len(windows), edits))
        scored, next_ids = batch.scored, batch.next_ids[batch.scored]
        target: list[Tensor] = []

        def read(row: int, logits: Tensor) -> Tensor:
            logits = logits[scored.to(logits.device)]
            if not own_precision:
                logits = logits.float()
            if row == 0:
                target[:] = [logits]
            return distance_of(distance, target[0], logits, next_ids.to(logits.device)).cpu()

        inputs = tensors_of(batch, pair.vanilla)
        for found in _session(hosted, remote, inputs, forwards, read):
            yield from (item.to(batch.scored.device) for item in found[first:])

    return runs


def hosted_model(vanilla: LanguageModel, remote: bool | str) -> Any:
    """V as nnsight names it in a request: by Hub id, revision and task.

    Raises:
        ValueError: V's name is no Hub id, and it is to run on NDIF.
    """
    from nnsight import TransformersModel

    repository, revision = hub_id(vanilla) if remote is True else (vanilla.name, None)
    spread = getattr(vanilla.model, "hf_device_map", None) is not None
    model = TransformersModel(
        view(vanilla.model),
        # Its padding settings are changed.
        tokenizer=copy.deepcopy(vanilla.tokenizer),
        task="text-generation",
        revision=revision,
        # Or else it would be moved to a GPU.
        device=None if spread else vanilla.device,
    )
    model.repo_id = repository
    return model


def _edits(
    wanted: Mapping[str, Place], deltas: Mapping[str, LowRank], first: int, num_windows: int
) -> list[Edit]:
    """What is done at each module: U's part added, the donor's states put in.

    The row blocks are V, U where it is the donor (`first` is 2 then), and the windows.
    """
    edits: list[Edit] = []
    restoring = first == 1
    for path in dict.fromkeys((*wanted, *deltas)):
        place = wanted.get(path, Place())
        unlearned = set() if restoring else {1}
        for window in range(num_windows):
            if (window in place.parameters) != restoring:
                unlearned.add(first + window)
        added = low_rank(*deltas[path]) if path in deltas else None
        donor = first - 1
        edits.append(
            (
                path,
                {first + window: (donor, where) for window, where in place.inputs.items()},
                {} if added is None else dict.fromkeys(sorted(unlearned), added),
                {first + window: (donor, where) for window, where in place.outputs.items()},
            )
        )
    return edits


def low_rank(a: Tensor, b: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """(input, output) → output + B A input."""

    def added(given: Tensor, output: Tensor) -> Tensor:
        delta = given.to(a.dtype) @ a.to(given.device).T @ b.to(given.device).T
        return (output + delta).to(output.dtype)

    return added


def _session(
    model: Any,
    remote: bool | str,
    inputs: Mapping[str, Tensor],
    forwards: Sequence[Forward],
    read: Callable[[int, Tensor], Tensor],
) -> list[list[Tensor]]:
    """What is read in each forward, all of them in one request."""
    from nnsight import save

    found: list[list[Tensor]] = []
    with _sent_by_value(), model.session(remote=remote):
        found = []
        with torch.no_grad():
            for num_rows, edits in forwards:
                found.append(run_windows(model, inputs, num_rows, edits, read))
        save(found)
    return found


@contextmanager
def _sent_by_value() -> Iterator[None]:
    """Let a request hold the source of what it calls, as this library is not installed there.

    The simulation hides this library for a moment, and would leave the import path in another
    order.
    """
    from cloudpickle import register_pickle_by_value, unregister_pickle_by_value

    modules = [sys.modules[called.__module__] for called in (run_windows, low_rank, distance_of)]
    path = list(sys.path)
    for module in modules:
        register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            unregister_pickle_by_value(module)
        sys.path[:] = path
