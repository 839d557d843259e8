"""Engine `nnsight`: the same numbers through nnsight, with several windows in one forward.

A window is an invoke of one trace (`nnsight_trace`). No weight is touched: where a site is a
module's parameters, the donor's module is applied to the input. nnsight prepares a model for
tracing for good, so it is given copies that share the weights.

With `remote`, the forwards run on NDIF (`nnsight_remote`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.data.trajectories import Trajectory
from interp.models.conversion import check_installed, copy_modules
from interp.models.language_model import LanguageModel
from interp.recovery.batches import Batch
from interp.recovery.engines.forwards import BatchRunner, Score, measure_by_forwards
from interp.recovery.engines.nnsight_remote import make_remote_runner
from interp.recovery.engines.nnsight_trace import (
    Edit,
    ModuleRestoration,
    group_by_module,
    make_tensor_inputs,
    run_windows,
)
from interp.recovery.measured import Measured
from interp.recovery.module_hooks import get_residual
from interp.recovery.pair import Pair
from interp.recovery.sites import Restoration

INVOKES = 4
"""Windows per forward: more are faster on a CPU, but each needs memory for all its logits."""


def measure(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    *,
    invokes: int = INVOKES,
    remote: bool | str = False,
    **options: Any,
) -> Measured:
    """Measure every restoration on every question.

    Args and result are those of `forwards.measure_by_forwards`, but for:

    Args:
        invokes: windows per forward.
        remote: True runs the forwards on NDIF, "local" simulates that here; see
            `nnsight_remote.make_remote_runner`.

    Raises:
        ImportError: nnsight is not installed, or too old.
        ValueError: the models do not suit `remote`.
    """
    check_installed("nnsight", "0.8", extra="nnsight")
    if remote:
        runs = make_remote_runner(
            pair,
            remote,
            invokes,
            distance=options.get("distance", "logit_mse"),
            own_precision=options.get("own_precision", False),
        )
    else:
        runs = make_local_runner(pair, invokes)
    return measure_by_forwards(runs, pair, trajectories, restorations, **options)


def make_local_runner(pair: Pair, invokes: int) -> BatchRunner:
    """Make the function that runs a batch here: the donor's states in one trace, then windows."""
    base = _make_stacking(pair.base)
    donor = base if pair.donor is pair.base else _make_stacking(pair.donor)

    def runs(batch: Batch, restorations: Sequence[Restoration], score: Score) -> Iterator[Tensor]:
        inputs = make_tensor_inputs(batch, pair.base)
        modules = group_by_module(pair.base, restorations, batch)
        held = [path for path, module in modules.items() if module.inputs or module.outputs]
        states, target = _record(donor, inputs, held, batch.scored)
        if pair.donor is not pair.vanilla:
            _, target = _record(base, inputs, [], batch.scored)
        for start in range(0, len(restorations), invokes):
            windows = restorations[start : start + invokes]
            edits = [
                _make_edit(path, module, states.get(path, ()), pair.donor.model.get_submodule(path))
                for path, module in group_by_module(pair.base, windows, batch).items()
            ]
            yield from run_windows(
                base,
                inputs,
                len(windows),
                edits,
                lambda _window, logits: score(target, logits[batch.scored]),
            )

    return runs


def _make_edit(
    path: str, module: ModuleRestoration, states: Sequence[Tensor], donor: nn.Module
) -> Edit:
    return (
        path,
        {window: (states[0], where) for window, where in module.inputs.items()},
        {window: lambda given, _output: donor(given) for window in module.parameters},
        {window: (states[1], where) for window, where in module.outputs.items()},
    )


def _record(
    model: Any, inputs: Mapping[str, Tensor], paths: Sequence[str], scored: Tensor
) -> tuple[dict[str, tuple[Tensor, Tensor]], Float[Tensor, "scored vocab"]]:
    """Record what modules read and return in one forward, by path, and the scored logits."""
    from nnsight import save

    logits = torch.empty(0)
    with model.trace(**inputs, use_cache=False) as tracer:
        modules = [model.get(path) for path in paths]
        cache = tracer.cache(modules=modules, device=None, include_inputs=True)
        logits = save(model.output.logits[scored])
    entries = {path: cache[f"{model.path}.{path}"] for path in paths}
    states = {path: (entry.input, get_residual(entry.output)) for path, entry in entries.items()}
    return states, logits


def _make_stacking(model: LanguageModel) -> Any:
    """Make a model to trace, with invokes of one shape stacked into a batch."""
    from nnsight import NNsight

    class Stacking(NNsight):
        def _batch_size(self, **inputs: Any) -> int:
            return len(inputs["input_ids"]) if "input_ids" in inputs else 0

        def _batch(self, invokes: list, _fn: Any) -> tuple[tuple, dict]:
            given = [inputs for _, inputs in invokes]
            if len(given) == 1:
                return (), given[0]
            return (), {name: torch.cat([one[name] for one in given]) for name in given[0]}

    return Stacking(copy_modules(model.model))
