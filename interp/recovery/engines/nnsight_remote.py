"""Forwards on NDIF: V is a model that is hosted there, U is V plus a LoRA adapter.

One request runs all windows of a batch of questions. In each forward the first row block runs V
as it is; the others run U, by adding the adapter's low-rank matrices to what its modules return
(not where a parameter site restores the module), and V's states are put in at activation sites.
Distances are computed there, and two numbers per scored position come back.

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

from interp.models.conversion import copy_modules
from interp.models.language_model import LanguageModel
from interp.models.ndif import LowRank, parse_hub_id, read_low_rank_deltas
from interp.recovery.batches import Batch
from interp.recovery.distances import Distance, compare_logits
from interp.recovery.engines.forwards import BatchRunner, Score
from interp.recovery.engines.nnsight_trace import (
    Edit,
    ModuleRestoration,
    group_by_module,
    make_tensor_inputs,
    run_windows,
)
from interp.recovery.pair import Pair
from interp.recovery.sites import Restoration

Forward = tuple[int, list[Edit]]
"""Number of row blocks of one forward, and what is done at its modules."""


def make_remote_runner(
    pair: Pair, remote: bool | str, invokes: int, *, distance: Distance, own_precision: bool
) -> BatchRunner:
    """Make the function that runs a batch on NDIF (True) or in its simulation ("local").

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
    deltas = read_low_rank_deltas(pair.vanilla, pair.unlearned)
    hosted = make_hosted_model(pair.vanilla, remote)

    def runs(batch: Batch, restorations: Sequence[Restoration], score: Score) -> Iterator[Tensor]:
        del score  # Distances are computed there.
        # Row blocks before the windows: V, and U where it is the donor.
        first = 1 if pair.donor is pair.vanilla else 2
        forwards: list[Forward] = []
        for start in range(0, len(restorations), invokes):
            windows = restorations[start : start + invokes]
            edits = _make_edits(
                group_by_module(pair.vanilla, windows, batch), deltas, first, len(windows)
            )
            forwards.append((first + len(windows), edits))
        scored, next_ids = batch.scored, batch.next_ids[batch.scored]
        target: list[Tensor] = []

        def read(row: int, logits: Tensor) -> Tensor:
            logits = logits[scored.to(logits.device)]
            if not own_precision:
                logits = logits.float()
            if row == 0:
                target[:] = [logits]
            return compare_logits(distance, target[0], logits, next_ids.to(logits.device)).cpu()

        inputs = make_tensor_inputs(batch, pair.vanilla)
        for compared in _run_session(hosted, remote, inputs, forwards, read):
            yield from (item.to(batch.scored.device) for item in compared[first:])

    return runs


def make_hosted_model(vanilla: LanguageModel, remote: bool | str) -> Any:
    """Wrap V as nnsight names it in a request: by Hub id, revision and task.

    Raises:
        ValueError: V's name is no Hub id, and it is to run on NDIF.
    """
    from nnsight import TransformersModel

    repository, revision = parse_hub_id(vanilla) if remote is True else (vanilla.name, None)
    spread = getattr(vanilla.model, "hf_device_map", None) is not None
    model = TransformersModel(
        copy_modules(vanilla.model),
        # Its padding settings are changed.
        tokenizer=copy.deepcopy(vanilla.tokenizer),
        task="text-generation",
        revision=revision,
        # Or else it would be moved to a GPU.
        device=None if spread else vanilla.device,
    )
    model.repo_id = repository
    return model


def _make_edits(
    modules: Mapping[str, ModuleRestoration],
    deltas: Mapping[str, LowRank],
    first: int,
    num_windows: int,
) -> list[Edit]:
    """Make the edits of each module: U's part added, the donor's states put in.

    The row blocks are V, U where it is the donor (`first` is 2 then), and the windows.
    """
    edits: list[Edit] = []
    is_restoring = first == 1
    for path in dict.fromkeys((*modules, *deltas)):
        module = modules.get(path, ModuleRestoration())
        unlearned = set() if is_restoring else {1}
        for window in range(num_windows):
            if (window in module.parameters) != is_restoring:
                unlearned.add(first + window)
        added = make_low_rank_change(*deltas[path]) if path in deltas else None
        donor = first - 1
        edits.append(
            (
                path,
                {first + window: (donor, where) for window, where in module.inputs.items()},
                {} if added is None else dict.fromkeys(sorted(unlearned), added),
                {first + window: (donor, where) for window, where in module.outputs.items()},
            )
        )
    return edits


def make_low_rank_change(a: Tensor, b: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Make the function (input, output) → output + B A input."""

    def added(given: Tensor, output: Tensor) -> Tensor:
        delta = given.to(a.dtype) @ a.to(given.device).T @ b.to(given.device).T
        return (output + delta).to(output.dtype)

    return added


def _run_session(
    model: Any,
    remote: bool | str,
    inputs: Mapping[str, Tensor],
    forwards: Sequence[Forward],
    read: Callable[[int, Tensor], Tensor],
) -> list[list[Tensor]]:
    """Run all forwards in one request, and return what is read in each."""
    from nnsight import save

    distances: list[list[Tensor]] = []
    with _send_by_value(), model.session(remote=remote):
        distances = []
        with torch.no_grad():
            for num_rows, edits in forwards:
                distances.append(run_windows(model, inputs, num_rows, edits, read))
        save(distances)
    return distances


@contextmanager
def _send_by_value() -> Iterator[None]:
    """Let a request hold the source of what it calls, as this library is not installed there.

    The simulation hides this library for a moment, and would leave the import path in another
    order.
    """
    from cloudpickle import register_pickle_by_value, unregister_pickle_by_value

    modules = [
        sys.modules[called.__module__]
        for called in (run_windows, make_low_rank_change, compare_logits)
    ]
    path = list(sys.path)
    for module in modules:
        register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            unregister_pickle_by_value(module)
        sys.path[:] = path
