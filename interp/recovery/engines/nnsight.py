"""The same numbers through nnsight, with several windows in one forward.

Every window is an invoke: its own rows of one batch. What a module reads or returns is edited in an
invoke without input, which sees the rows of all windows; as each waits for its own module, they
need not stand in the order in which the modules run. No weight is touched: where a site is a
module's parameters, the donor's module is applied to the input. nnsight prepares a model for
tracing for good, so it is given copies that share the weights.

With `remote`, the forwards run on NDIF (`nnsight_remote`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.data.trajectories import Trajectory
from interp.models.anatomy import PASSES
from interp.models.bridges import check_installed, view
from interp.models.language_model import LanguageModel
from interp.recovery.batches import Batch
from interp.recovery.engines.forwards import Runs, Score, losses_by_forwards
from interp.recovery.pair import Pair
from interp.recovery.sites import Restoration
from interp.recovery.states import residual_of

INVOKES = 4
"""Windows per forward: more are faster on a CPU, but each needs memory for all its logits."""


@dataclass(kw_only=True)
class Place:
    """What is restored at one module, by window.

    Attributes:
        inputs: where the donor's input is put in, [query, pos, 1 or channel].
        outputs: the same of its output.
        parameters: the windows in which the module has the donor's parameters.
    """

    inputs: dict[int, Bool[Tensor, "query pos channel"]] = field(default_factory=dict)
    outputs: dict[int, Bool[Tensor, "query pos channel"]] = field(default_factory=dict)
    parameters: set[int] = field(default_factory=set)


Put = tuple[Tensor | int, Tensor]
"""A donor's state (or the row that it is computed in), and where it is put in."""

Edit = tuple[str, dict[int, Put], dict[int, Callable[[Tensor, Tensor], Tensor]], dict[int, Put]]
"""What is done at a module, by its path: to its input, to its output given both, to its output."""


def losses(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    *,
    invokes: int = INVOKES,
    remote: bool | str = False,
    **options: Any,
) -> Float[Tensor, "restoration query"]:
    """Losses of every restoration on every question.

    Args and result are those of `forwards.losses_by_forwards`, but for:

    Args:
        invokes: windows per forward.
        remote: True runs the forwards on NDIF, "local" simulates that here; see
            `nnsight_remote.remote_runs`.

    Raises:
        ImportError: nnsight is not installed, or too old.
        ValueError: the models do not suit `remote`.
    """
    check_installed("nnsight", "0.8", extra="nnsight")
    if remote:
        from interp.recovery.engines.nnsight_remote import remote_runs

        runs = remote_runs(
            pair,
            remote,
            invokes,
            distance=options.get("distance", "logit_mse"),
            own_precision=options.get("own_precision", False),
        )
    else:
        runs = runs_here(pair, invokes)
    return losses_by_forwards(runs, pair, trajectories, restorations, **options)


def places(
    model: LanguageModel, restorations: Sequence[Restoration], batch: Batch
) -> dict[str, Place]:
    """What is restored where, by the module's path; windows count the restorations."""
    anatomy = model.anatomy
    paths = {module: path for path, module in model.model.named_modules()}
    found: defaultdict[str, Place] = defaultdict(Place)
    for window, restoration in enumerate(restorations):
        modules: list[nn.Module] = []
        for layer in restoration.layers:
            parts = anatomy.layers[layer]
            parameters = {
                "value": [parts.values],
                "key": parts.keys,
                "attn_weights": parts.attn_weights,
                "norms": parts.norms,
            }
            for site in restoration.layer_sites:
                if site in parameters:
                    modules += parameters[site]
                    continue
                where = batch.restored(restoration.positions)[..., None]
                units = restoration.units_of(layer)
                if units is not None:
                    every = anatomy.channels(site, range(anatomy.num_units(site)))
                    chosen = where.new_zeros(len(every))
                    chosen[anatomy.channels(site, units)] = True
                    where = where & chosen
                role, side = PASSES[site]
                place = found[paths[getattr(parts, role)]]
                (place.inputs if side == "input" else place.outputs)[window] = where
        if "norms" in restoration.sites and anatomy.num_layers - 1 in restoration.layers:
            modules += anatomy.final_norms
        if "unembed" in restoration.sites:
            modules.append(anatomy.unembed)
        for module in modules:
            found[paths[module]].parameters.add(window)
    return dict(found)


def tensors_of(batch: Batch, model: LanguageModel) -> dict[str, Tensor]:
    """What an invoke gives to the model."""
    inputs = batch.inputs(model.anatomy.body)
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def run_windows(
    model: Any,
    inputs: Mapping[str, Tensor],
    num_windows: int,
    edits: Sequence[Edit],
    read: Callable[[int, Tensor], Tensor],
) -> list[Tensor]:
    """One forward of several windows; what is read off each window's logits.

    It is also sent to where this library is not installed, so it names nothing but torch.
    """

    def put(value, changes):
        whole = value[0] if isinstance(value, tuple) else value
        # The first axis may have positions merged into it, but windows always come first.
        rows = list(whole.unflatten(0, (num_windows, -1)))
        for window, (new, where) in changes.items():
            new = (rows[new] if isinstance(new, int) else new).to(whole.device)
            where = where.to(whole.device)
            split = (*where.shape[:2], -1)
            blended = torch.where(where, new.reshape(split), rows[window].reshape(split))
            rows[window] = blended.view(rows[window].shape)
        whole = torch.cat(rows)
        return (whole, *value[1:]) if isinstance(value, tuple) else whole

    def computed(given, output, changes):
        rows = list(output.unflatten(0, (num_windows, -1)))
        for window, change in changes.items():
            rows[window] = change(given.unflatten(0, (num_windows, -1))[window], rows[window])
        return torch.cat(rows)

    found = []
    with model.trace(use_cache=False) as tracer:
        for window in range(num_windows):
            with tracer.invoke(**inputs):
                found.append(read(window, model.output.logits))
        for path, into, through, out_of in edits:
            with tracer.invoke():
                module = model.get(path)
                if into:
                    module.input = put(module.input, into)
                if through:
                    module.output = computed(module.input, module.output, through)
                if out_of:
                    module.output = put(module.output, out_of)
    return found


def runs_here(pair: Pair, invokes: int) -> Runs:
    """How a batch is run in this process: the donor's states in one trace, then the windows."""
    base = _stacking(pair.base)
    donor = base if pair.donor is pair.base else _stacking(pair.donor)

    def runs(batch: Batch, restorations: Sequence[Restoration], score: Score) -> Iterator[Tensor]:
        inputs = tensors_of(batch, pair.base)
        wanted = places(pair.base, restorations, batch)
        held = [path for path, place in wanted.items() if place.inputs or place.outputs]
        states, target = _record(donor, inputs, held, batch.scored)
        if pair.donor is not pair.vanilla:
            _, target = _record(base, inputs, [], batch.scored)
        for start in range(0, len(restorations), invokes):
            windows = restorations[start : start + invokes]
            edits = [
                _edit(path, place, states.get(path, ()), pair.donor.model.get_submodule(path))
                for path, place in places(pair.base, windows, batch).items()
            ]
            yield from run_windows(
                base,
                inputs,
                len(windows),
                edits,
                lambda _window, logits: score(target, logits[batch.scored]),
            )

    return runs


def _edit(path: str, place: Place, states: Sequence[Tensor], donor: nn.Module) -> Edit:
    return (
        path,
        {window: (states[0], where) for window, where in place.inputs.items()},
        {window: lambda given, _output: donor(given) for window in place.parameters},
        {window: (states[1], where) for window, where in place.outputs.items()},
    )


def _record(
    model: Any, inputs: Mapping[str, Tensor], paths: Sequence[str], scored: Tensor
) -> tuple[dict[str, tuple[Tensor, Tensor]], Float[Tensor, "scored vocab"]]:
    """What modules read and returned in one forward, by their paths, and the scored logits."""
    from nnsight import save

    logits = torch.empty(0)
    with model.trace(**inputs, use_cache=False) as tracer:
        modules = [model.get(path) for path in paths]
        cache = tracer.cache(modules=modules, device=None, include_inputs=True)
        logits = save(model.output.logits[scored])
    entries = {path: cache[f"{model.path}.{path}"] for path in paths}
    states = {path: (entry.input, residual_of(entry.output)) for path, entry in entries.items()}
    return states, logits


def _stacking(model: LanguageModel) -> Any:
    """A model to trace, with invokes of one shape stacked into a batch."""
    from nnsight import NNsight

    class Stacking(NNsight):
        def _batch_size(self, **inputs: Any) -> int:
            return len(inputs["input_ids"]) if "input_ids" in inputs else 0

        def _batch(self, invokes: list, _fn: Any) -> tuple[tuple, dict]:
            given = [inputs for _, inputs in invokes]
            if len(given) == 1:
                return (), given[0]
            return (), {name: torch.cat([one[name] for one in given]) for name in given[0]}

    return Stacking(view(model.model))
