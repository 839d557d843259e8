"""Engine `nnsight`: the same numbers through nnsight, with several windows in one forward.

A window is an invoke of one trace (`nnsight_trace`). No weight is touched: where a site is a
module's parameters, the donor's module is applied to the input. nnsight prepares a model for
tracing for good, so it is given copies that share the weights.

With `remote`, the forwards run on NDIF (`nnsight_remote`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.data.trajectories import Trajectory
from interp.models.conversion import check_installed, copy_modules
from interp.models.language_model import LanguageModel
from interp.models.module_calls import get_residual
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
from interp.recovery.engines.site_proof import check_restorations
from interp.recovery.measured import Measured
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


_PROVEN: WeakKeyDictionary[Pair, set[str]] = WeakKeyDictionary()
"""Sites that are proven to be restored, by the pairs in use."""


def make_local_runner(pair: Pair, invokes: int) -> BatchRunner:
    """Make the function that runs a batch here: the donor's states in one trace, then windows."""
    base = _make_stacking(pair.base)
    donor = base if pair.donor is pair.base else _make_stacking(pair.donor)
    proven = _PROVEN.setdefault(pair, set())

    def runs(batch: Batch, restorations: Sequence[Restoration], score: Score) -> Iterator[Tensor]:
        inputs = make_tensor_inputs(batch, pair.base)

        def run(windows: Sequence[Restoration], read: Callable[[Tensor], Tensor]) -> list[Tensor]:
            edits = [
                _make_edit(path, module, states.get(path, {}), pair.donor.model.get_submodule(path))
                for path, module in group_by_module(pair.base, windows, batch).items()
            ]
            return run_windows(
                base,
                inputs,
                len(windows),
                edits,
                lambda _window, logits: read(logits[batch.scored]),
            )

        new = sorted({site for item in restorations for site in item.sites} - proven)
        layers = tuple(range(pair.base.anatomy.num_layers))
        everywhere = [Restoration(sites=(site,), layers=layers) for site in new]
        modules = group_by_module(pair.base, [*restorations, *everywhere], batch)
        states, target = _record(donor, inputs, modules, batch.scored)
        if pair.donor is not pair.vanilla:
            _, target = _record(base, inputs, {}, batch.scored)
        check_restorations(
            "nnsight", pair, batch, new, lambda item: run([item], lambda logits: logits)[0]
        )
        proven.update(new)
        for start in range(0, len(restorations), invokes):
            windows = restorations[start : start + invokes]
            yield from run(windows, lambda logits: score(target, logits))

    return runs


def _make_edit(
    path: str, module: ModuleRestoration, states: Mapping[str, Tensor], donor: nn.Module
) -> Edit:
    return (
        path,
        {window: (states["input"], where) for window, where in module.inputs.items()},
        {window: lambda given, _output: donor(given) for window in module.parameters},
        {window: (states["output"], where) for window, where in module.outputs.items()},
    )


def _record(
    model: Any,
    inputs: Mapping[str, Tensor],
    modules: Mapping[str, ModuleRestoration],
    scored: Tensor,
) -> tuple[dict[str, dict[str, Tensor]], Float[Tensor, "scored vocab"]]:
    """Record what modules read or return in one forward, by path, and the scored logits."""
    states: dict[str, dict[str, Tensor]] = {}
    kept: list[Tensor] = []
    with model.trace(use_cache=False) as tracer:
        with tracer.invoke(**inputs):
            kept.append(model.output.logits[scored])
        for path, module in modules.items():
            # Copies: some layers add to what a block gave in place.
            if module.inputs:
                with tracer.invoke():
                    states.setdefault(path, {})["input"] = model.get(path).input.clone()
            if module.outputs:
                with tracer.invoke():
                    output = get_residual(model.get(path).output).clone()
                    states.setdefault(path, {})["output"] = output
    return states, kept[0]


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
