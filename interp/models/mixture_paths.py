"""Derivation of a mixture of experts' parts from a forward of four tokens.

    the experts             the module that holds their matrices, one tensor for all
    g                       what it is called with: chosen experts and their weights
    the shared expert       the linear map whose output is what the block adds to the experts'
    its gate                the linear map by whose sigmoid that is multiplied
    the router              what else the block holds

`anatomy_proof` then proves Σ m v = the block's output on all layers.
"""

from __future__ import annotations

from torch import Tensor, nn

from interp.models.anatomy_trace import Call, Trace, is_linear, is_same
from interp.models.mixture import MixturePaths, get_key_names


def find_experts(block: nn.Module) -> list[nn.Module]:
    """Find the modules in a block that hold several experts' matrices."""
    return [
        module
        for module in block.modules()
        if "Experts" in type(module).__name__
        and any(
            parameter.ndim == 3
            for parameter in module._parameters.values()
            if parameter is not None
        )
    ]


def find_mixture(trace: Trace, block: nn.Module, layer: nn.Module, where: str) -> MixturePaths:
    """Find the parts of a mixture of experts.

    Raises:
        ValueError: a part cannot be told; the sentence says which.
    """
    experts, call = _find_called_experts(trace, block, where)
    whole = trace.get_only_call(block)
    assert whole is not None
    assert whole.output is not None
    if not is_same(call.hidden, whole.hidden):
        raise ValueError(f"{where}: its experts do not read what the MLP reads")
    assert call.output is not None
    start = len(trace.names[layer]) + 1
    shared: list[nn.Module] = []
    gate, keys = None, []
    if not is_same(whole.output, call.output):
        rest = whole.output.flatten() - call.output.to(whole.output.device).flatten()
        values, gate = _find_shared_values(trace, block, experts, rest, where)
        keys = _find_shared_keys(trace, block, values, where)
        shared = [*keys, values]
    taken = {module for part in (experts, *shared) for module in part.modules()}
    routers = [
        module
        for module in block.modules()
        if module not in taken
        and "Norm" not in type(module).__name__
        and (module._parameters or set(module._buffers) - module._non_persistent_buffers_set)
    ]
    if not routers:
        raise ValueError(f"{where}: its router holds no weights")
    return MixturePaths(
        experts=trace.names[experts][start:],
        top_k=call.args[1].shape[-1],
        routers=tuple(trace.names[module][start:] for module in routers),
        shared_keys=tuple(trace.names[key][start:] for key in keys),
        shared_values=trace.names[shared[-1]][start:] if shared else None,
        shared_gate=None if gate is None else trace.names[gate][start:],
    )


def _find_called_experts(trace: Trace, block: nn.Module, where: str) -> tuple[nn.Module, Call]:
    found = find_experts(block)
    if len(found) != 1:
        raise ValueError(f"{where}: one module of experts is wanted, and there are {len(found)}")
    experts = found[0]
    kind = type(experts).__name__
    call = trace.get_only_call(experts)
    if call is None or not hasattr(experts, "_apply_gate") or not hasattr(experts, "has_gate"):
        raise ValueError(f"{where}: its {kind} are not run as transformers runs experts")
    known = {*get_key_names(experts), "down_proj", "down_proj_bias"}
    if {name for name, value in experts._parameters.items() if value is not None} - known:
        raise ValueError(f"{where}: its {kind} hold more than two matrices of each expert")
    if getattr(experts, "has_post_expert_norm", False):
        raise ValueError(f"{where}: its {kind} normalise what each expert gives")
    given = call.args[1:]
    tensors = [value for value in given if isinstance(value, Tensor)]
    if call.kwargs or len(tensors) != len(given) or len(tensors) != 2:
        raise ValueError(f"{where}: its {kind} are not called with chosen experts and weights")
    chosen, weights = tensors
    if chosen.is_floating_point() or chosen.ndim != 2 or chosen.shape != weights.shape:
        raise ValueError(f"{where}: its {kind} are not called with chosen experts and weights")
    return experts, call


def _find_shared_values(
    trace: Trace, block: nn.Module, experts: nn.Module, rest: Tensor, where: str
) -> tuple[nn.Module, nn.Module | None]:
    """Find the matrix whose output is what the block adds to its experts', and that one's gate."""
    inside = set(block.modules()) - set(experts.modules())
    matrices = [
        (module, run.output)
        for module in trace.calls
        if module in inside
        and is_linear(module)
        and (run := trace.get_only_call(module)) is not None
        and run.output is not None
    ]
    for module, output in reversed(matrices):
        if output.numel() != rest.numel():
            continue
        if is_same(rest, output):
            return module, None
        for gate, value in matrices:
            if value.shape[-1] != 1:
                continue
            scaled = value.reshape(-1, 1).sigmoid() * output.reshape(value.numel(), -1)
            if is_same(rest, scaled):
                return module, gate
    raise ValueError(
        f"{where}: the MLP's output is not that of its experts and one shared expert added up"
    )


def _find_shared_keys(
    trace: Trace, block: nn.Module, values: nn.Module, where: str
) -> list[nn.Module]:
    """Find the matrices beside the shared expert's down projection; it holds nothing else."""
    name = trace.names[values].rpartition(".")[0]
    expert = trace.model.get_submodule(name)
    whole = trace.get_only_call(block)
    assert whole is not None
    keys = []
    for module in expert.modules():
        if module is values or not module._parameters:
            continue
        run = trace.get_only_call(module)
        if not is_linear(module) or run is None or not is_same(run.hidden, whole.hidden):
            keys = []
            break
        keys.append(module)
    if expert is block or not keys:
        raise ValueError(f"{where}: the first matrices of its shared expert cannot be told")
    return keys
