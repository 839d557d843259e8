"""Traced forwards with nnsight: what is restored at which module, and several windows at once.

Every window is an invoke: its own rows of one batch. What a module reads or returns is edited in an
invoke without input, which sees the rows of all windows; as each waits for its own module, they
need not stand in the order in which the modules run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from interp.models.anatomy_trace import Call, Trace
from interp.models.language_model import LanguageModel
from interp.recovery.batches import Batch
from interp.recovery.sites import PARAMETER_SITES, Restoration


@dataclass(kw_only=True)
class ModuleRestoration:
    """Restoration of one module, by window.

    Attributes:
        inputs: where the donor's input is put in, [query, pos, 1 or channel].
        outputs: the same of its output.
        parameters: the windows in which the module has the donor's parameters.
    """

    inputs: dict[int, Bool[Tensor, "query pos channel"]] = field(default_factory=dict)
    outputs: dict[int, Bool[Tensor, "query pos channel"]] = field(default_factory=dict)
    parameters: set[int] = field(default_factory=set)


Put = tuple[Tensor | int, Tensor]
"""State of the donor (or the row that it is computed in), and where it is put in."""

Edit = tuple[str, dict[int, Put], dict[int, Callable[[Tensor, Tensor], Tensor]], dict[int, Put]]
"""Changes at a module, by its path: to its input, to its output given both, to its output."""


def group_by_module(
    model: LanguageModel, restorations: Sequence[Restoration], batch: Batch
) -> dict[str, ModuleRestoration]:
    """Group what is restored by the module's path; windows count the restorations.

    Raises:
        ValueError: a site has parameters that are not applied to one module's input.
    """
    anatomy = model.anatomy
    paths = {module: path for path, module in model.model.named_modules()}
    by_path: defaultdict[str, ModuleRestoration] = defaultdict(ModuleRestoration)
    for window, restoration in enumerate(restorations):
        modules: list[tuple[str, nn.Module]] = []
        for layer in restoration.layers:
            parts = anatomy.layers[layer]
            for site in restoration.layer_sites:
                if site in PARAMETER_SITES:
                    modules += [(site, module) for module, _ in parts.list_weights(site)]
                    continue
                where = batch.select_positions(restoration.positions)[..., None]
                units = restoration.units_of(layer)
                if units is not None:
                    every = anatomy.channels(site, range(anatomy.num_units(site, layer)), layer)
                    chosen = where.new_zeros(len(every))
                    chosen[anatomy.channels(site, units, layer)] = True
                    where = where & chosen
                passed, side = parts.get_pass(site)
                module = by_path[paths[passed]]
                (module.inputs if side == "input" else module.outputs)[window] = where
        if "norms" in restoration.sites and anatomy.num_layers - 1 in restoration.layers:
            modules += [("norms", module) for module in anatomy.final_norms]
        if "unembed" in restoration.sites:
            modules.append(("unembed", anatomy.unembed))
        for site, module in modules:
            if _is_applied(model, module, site, paths[module]):
                by_path[paths[module]].parameters.add(window)
    return dict(by_path)


_CALLS: WeakKeyDictionary[LanguageModel, dict[nn.Module, list[Call]]] = WeakKeyDictionary()
"""How models call their modules."""


def _is_applied(model: LanguageModel, module: nn.Module, site: str, path: str) -> bool:
    """Return whether a module is applied to one tensor in a forward; False if it does not run.

    Raises:
        ValueError: it runs otherwise, so that another's parameters cannot be applied in its place.
    """
    if model not in _CALLS:
        with torch.inference_mode():
            _CALLS[model] = Trace(model.model).calls
    calls = _CALLS[model].get(module, [])
    if not calls or not any(value is not None for value in module._parameters.values()):
        return False
    call = calls[0]
    if len(calls) > 1 or call.kwargs or len(call.args) != 1 or call.num_outputs:
        kind = type(model.model).__name__
        raise ValueError(
            f"the engine nnsight cannot restore the site {site!r} of this {kind}: its {path} is "
            "no module that is applied to one tensor, once: use the engine layered or full"
        )
    return True


def make_tensor_inputs(batch: Batch, model: LanguageModel) -> dict[str, Tensor]:
    """Make the inputs that an invoke gives to the model."""
    inputs = batch.inputs(model.anatomy.body)
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def run_windows(
    model: Any,
    inputs: Mapping[str, Tensor],
    num_windows: int,
    edits: Sequence[Edit],
    read: Callable[[int, Tensor], Tensor],
) -> list[Tensor]:
    """Run several windows in one forward; return what is read off each window's logits.

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

    def compute(given, output, changes):
        rows = list(output.unflatten(0, (num_windows, -1)))
        for window, change in changes.items():
            rows[window] = change(given.unflatten(0, (num_windows, -1))[window], rows[window])
        return torch.cat(rows)

    results = []
    with model.trace(use_cache=False) as tracer:
        for window in range(num_windows):
            with tracer.invoke(**inputs):
                results.append(read(window, model.output.logits))
        for path, into, through, out_of in edits:
            with tracer.invoke():
                module = model.get(path)
                if into:
                    module.input = put(module.input, into)
                if through:
                    module.output = compute(module.input, module.output, through)
                if out_of:
                    module.output = put(module.output, out_of)
    return results
