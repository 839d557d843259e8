"""Derivation of a model's anatomy from a forward of four tokens: which module has which role.

Nothing is known beforehand of the architecture. Of what every module was given and returned follows

    the list of layers      modules one after the other, each reading what the one before returned
    the token mixer         the block of a layer in which a token changes what a later one gets
                            (attention, linear attention, a state-space layer, a convolution)
    the MLP                 the other one
    their last matrices     the linear maps whose outputs the blocks return
    the MLP's first ones    the linear maps that read what the MLP reads
    the final norm          what leads from the last layer's output to what the unembedding reads

What is found is proven afterwards, on all layers, by `anatomy_proof.check_anatomy`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.models.anatomy_blocks import (
    MixerPaths,
    find_last_matrix,
    find_mixers,
    split_blocks,
)
from interp.models.anatomy_readout import find_readout
from interp.models.anatomy_trace import (
    NUM_TOKENS,
    Call,
    Trace,
    evaluating,
    get_first,
    is_linear,
    is_same,
)
from interp.models.causality import check_causal, make_changed_tokens, refusing_encoders
from interp.models.mixture import MixturePaths
from interp.models.mixture_paths import find_experts, find_mixture
from interp.models.packed_weights import ignore_outliers


@dataclass(frozen=True, kw_only=True)
class LayerPaths:
    """Module paths of one decoder layer, from the layer.

    Attributes:
        mixers: the block that mixes tokens, or those that do so side by side.
        mlp: the MLP block, or None where the layer holds its matrices directly.
        keys: the MLP's first matrices (gate and up, both in one, or the one).
        values: the down projection; its input is the site `coef`, its weight the site `value`. In
            a mixture of experts, the module that holds all experts' matrices.
        mixture: the parts of the MLP where it is a mixture of experts; `keys` is then empty.
        mlp_adds_residual: the MLP takes the residual stream as an argument of its own and adds it
            itself.
        mlp_num_outputs: length of the tuple that the MLP returns; 0 for a tensor.
    """

    mixers: tuple[MixerPaths, ...]
    mlp: str | None
    keys: tuple[str, ...]
    values: str
    mixture: MixturePaths | None = None
    mlp_adds_residual: bool = False
    mlp_num_outputs: int = 0

    @property
    def attn_out(self) -> str:
        """Return the module whose output is the site `attn`.

        Raises:
            ValueError: two mixers stand side by side, each with a last matrix of its own.
        """
        mixer, *others = self.mixers
        if others:
            raise ValueError(f"the site attn is {', '.join(mixer.out for mixer in self.mixers)}")
        return mixer.out

    @property
    def mlp_out(self) -> str:
        """Return the module whose output is the site `mlp_out`."""
        return self.mlp if self.mixture is not None and self.mlp is not None else self.values


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Module paths of a model's parts.

    Attributes:
        layers: the list of decoder layers.
        parts: of every layer.
        final: the modules between the last layer's residual stream and the unembedding, in order.
        logit_scale: by what the unembedding's outputs are multiplied.
        logit_cap: c in z := c·tanh(z / c) of these; None where logits are not capped.
        additive: a layer only adds to the residual stream.
        shared_arguments: of the layers, by name or place: tensors that are the same for any number
            of questions, though their first axis is longer than one (MPT's biases, one per head).
    """

    layers: str
    parts: tuple[LayerPaths, ...]
    final: tuple[str, ...]
    logit_scale: float = 1.0
    logit_cap: float | None = None
    additive: bool = True
    shared_arguments: frozenset[str | int] = frozenset()


def derive_paths(model: PreTrainedModel) -> Paths:
    """Derive the module paths of a model's parts.

    Raises:
        ValueError: a part cannot be told; the sentence says which.
    """
    if model.config.is_encoder_decoder:
        raise ValueError("it is an encoder with a decoder, and a decoder alone is wanted")
    with (
        torch.inference_mode(),
        evaluating(model),
        ignore_outliers(model),
        refusing_encoders(model),
    ):
        trace = Trace(model, probe=True)
        layers = _find_layers(trace)
        _check_streams(trace, layers)
        # Layers of the same modules have the same parts.
        kinds = [
            tuple((name, type(module)) for name, module in layer.named_modules())
            for layer in layers
        ]
        known: dict[tuple, LayerPaths] = {}
        additive = True
        for kind in dict.fromkeys(kinds):
            alike = [index for index, other in enumerate(kinds) if other == kind]
            known[kind] = _find_parts(trace, layers[alike[0]], f"layer {alike[0]}")
            # The last layer of some models ends otherwise.
            for index in {alike[0], alike[-1]}:
                additive &= _only_adds(trace, layers[index], known[kind])
        parts = [known[kind] for kind in kinds]
        final, scale, cap = find_readout(trace, layers)
        shared = _find_shared_arguments(trace, [layers[kinds.index(kind)] for kind in known])
    return Paths(
        layers=trace.names[layers],
        parts=tuple(parts),
        final=final,
        logit_scale=scale,
        logit_cap=cap,
        additive=additive,
        shared_arguments=shared,
    )


def _find_shared_arguments(trace: Trace, layers: Sequence[nn.Module]) -> frozenset[str | int]:
    """Find the arguments of layers, one of each kind, that questions do not make longer.

    Raises:
        ValueError: the model is an encoder, which the two questions show too.
    """
    seen: dict[nn.Module, dict[str | int, Any]] = {}

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen[module] = dict(enumerate(args)) | kwargs

    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
            stack.callback(handle.remove)
        output = trace.model(input_ids=make_changed_tokens(trace.model), use_cache=False)
    check_causal(output.logits)
    found = set()
    for layer, twice in seen.items():
        call = trace.calls[layer][0]
        alone = dict(enumerate(call.args)) | call.kwargs
        found |= {
            key
            for key, value in alone.items()
            if isinstance(value, Tensor)
            and value.ndim > 1
            and value.shape[0] > 1
            and isinstance(twice.get(key), Tensor)
            and twice[key].shape[0] == value.shape[0]
        }
    return frozenset(found)


def run_with_known_blocks(
    trace: Trace, layer: nn.Module, paths: LayerPaths, hidden: Tensor
) -> Tensor:
    """Run a layer on a residual stream, with what its token mixer and MLP once computed.

    Nothing but their states is given: what else the blocks return is None.
    """
    call = trace.get_only_call(layer)
    assert call is not None
    blocks = [(mixer.block, mixer.out, mixer.adds_residual) for mixer in paths.mixers]
    blocks.append((paths.mlp or paths.values, paths.mlp_out, paths.mlp_adds_residual))
    if paths.mixture is not None and paths.mixture.shared_block is not None:
        assert paths.mixture.shared_values is not None
        blocks.append((paths.mixture.shared_block, paths.mixture.shared_values, False))
    with ExitStack() as stack:
        for block, matrix, adds_residual in blocks:
            computed = trace.calls[layer.get_submodule(matrix)][0].output
            put = _make_replacement(computed, adds_residual)
            handle = layer.get_submodule(block).register_forward_hook(put, with_kwargs=True)
            stack.callback(handle.remove)
        output = get_first(call.repeat(layer, hidden))
    assert output is not None
    return output


def _make_replacement(computed: Tensor | None, adds_residual: bool) -> Callable[..., Any]:
    assert computed is not None

    def put(_module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        first = get_first(output)
        assert first is not None
        # A block that adds the residual stream was given it: here zeros, or of their norm.
        residuals = Call(args, kwargs, None, None).list_states(first.shape) if adds_residual else ()
        state = computed.view_as(first)
        for residual in residuals[:1]:
            state = state + residual.to(state.device)
        # Nothing else that a block returns may be needed: it is not there where it does not run.
        return (state, *[None] * (len(output) - 1)) if isinstance(output, tuple) else state

    return put


def _only_adds(trace: Trace, layer: nn.Module, paths: LayerPaths) -> bool:
    """Return whether layer(0; mixer and MLP known) + residual = layer(residual).

    Raises:
        ValueError: nor is layer(residual; mixer and MLP known).
    """
    call = trace.get_only_call(layer)
    assert call is not None
    hidden = call.hidden
    assert hidden is not None
    try:
        added = run_with_known_blocks(trace, layer, paths, torch.zeros_like(hidden))
        if is_same(call.output, hidden + added.to(hidden.device)):
            return True
        if is_same(call.output, run_with_known_blocks(trace, layer, paths, hidden)):
            return False
    except (TypeError, AttributeError):
        pass
    raise ValueError(f"{trace.names[layer]} needs more of its blocks than one state of each")


def _find_layers(trace: Trace) -> nn.ModuleList:
    """Find the list of decoder layers: the one with the most weights that reads as one."""
    found, size = None, 0
    for module in trace.names:
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        calls = [trace.get_only_call(layer) for layer in module]
        if not all(call is not None and _is_stream(call) for call in calls):
            continue
        num_weights = sum(parameter.numel() for parameter in module.parameters())
        if num_weights > size:
            found, size = module, num_weights
    if found is None:
        raise ValueError("no list of layers is found in it that read one another's outputs")
    return found


def _check_streams(trace: Trace, layers: nn.ModuleList) -> None:
    """Raise ValueError where a layer needs more of the one below than the residual stream."""
    for index, (below, layer) in enumerate(pairwise(layers), start=1):
        call = trace.calls[layer][0]
        assert call.hidden is not None
        cut = call.without(trace.calls[below][0].others)
        if all(map(is_, (*cut.args, *cut.kwargs.values()), (*call.args, *call.kwargs.values()))):
            continue
        try:
            output = get_first(cut.repeat(layer, call.hidden))
        except (TypeError, ValueError, AttributeError):
            output = None
        if not is_same(call.output, output):
            raise ValueError(
                f"layer {index} reads more of layer {index - 1} than its residual stream"
            )


def _is_stream(call: Call) -> bool:
    """Return whether a module was given and returned a residual stream."""
    hidden, output = call.hidden, call.output
    if hidden is None or output is None or hidden.shape != output.shape:
        return False
    return hidden.ndim == 3 and hidden.shape[1] == NUM_TOKENS


def _find_parts(trace: Trace, layer: nn.Module, where: str) -> LayerPaths:
    blocks, points, matrices = split_blocks(trace, layer)
    mixers = find_mixers(trace, layer, blocks, where)
    if not points and not matrices:
        named = ", ".join(type(block).__name__ for _, block in blocks)
        raise ValueError(f"{where}: there is no MLP beside its {named}")
    mlp_name, mlp_adds, mixture, num_outputs = None, False, None, 0
    start = len(trace.names[layer]) + 1
    with_experts = [(name, block) for name, block in points if find_experts(block)]
    beside = [pair for pair in points if pair not in with_experts]
    if len(with_experts) == 1 and len(beside) <= 1:
        ((mlp_name, mlp),) = with_experts
        mixture = find_mixture(trace, mlp, layer, where)
        if beside:
            mixture = _add_shared_block(trace, layer, mlp, mixture, beside[0], where)
        values, keys = layer.get_submodule(mixture.experts), []
        num_outputs = trace.calls[mlp][0].num_outputs
    elif len(points) == 1:
        mlp_name, mlp = points[0]
        values, mlp_adds = find_last_matrix(trace, mlp, f"{where}: the MLP")
        keys = _find_first_matrices(trace, mlp, values)
    elif not points and len(matrices) > 1:
        order = [module for module in trace.calls if module in matrices]
        *keys, values = order
    else:
        named = ", ".join(name for name, _ in points) or "none"
        raise ValueError(f"{where}: one MLP is wanted, and there are: {named}")
    if not keys and mixture is None:
        raise ValueError(f"{where}: no matrix of the MLP reads what the MLP reads")
    return LayerPaths(
        mixers=mixers,
        mlp=mlp_name,
        keys=tuple(trace.names[key][start:] for key in keys),
        values=trace.names[values][start:],
        mixture=mixture,
        mlp_adds_residual=mlp_adds,
        mlp_num_outputs=num_outputs,
    )


def _add_shared_block(
    trace: Trace,
    layer: nn.Module,
    mlp: nn.Module,
    mixture: MixturePaths,
    beside: tuple[str, nn.Module],
    where: str,
) -> MixturePaths:
    """Add the MLP that stands beside a mixture of experts: it is their shared expert."""
    name, block = beside
    values, adds_residual = find_last_matrix(trace, block, f"{where}: {name}")
    keys = _find_first_matrices(trace, block, values)
    order = list(trace.calls)
    if (
        mixture.shared_values is not None
        or adds_residual
        or not keys
        or order.index(block) < order.index(mlp)
        or not is_same(trace.calls[mlp][0].hidden, trace.calls[block][0].hidden)
    ):
        raise ValueError(f"{where}: {name} is no shared expert beside {trace.names[mlp]}")
    start = len(trace.names[layer]) + 1
    return replace(
        mixture,
        shared_keys=tuple(trace.names[key][start:] for key in keys),
        shared_values=trace.names[values][start:],
        shared_block=name,
    )


def _find_first_matrices(trace: Trace, mlp: nn.Module, values: nn.Module) -> list[nn.Module]:
    """Find the matrices that read what the MLP reads."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set(values.modules())
    for module in mlp.modules():
        # Those of an adapter lie inside the one that it changes.
        if module in inside or not is_linear(module) or not _reads_the_same(trace, module, mlp):
            continue
        found.append(module)
        inside |= set(module.modules())
    return found


def _reads_the_same(trace: Trace, module: nn.Module, block: nn.Module) -> bool:
    call, whole = trace.get_only_call(module), trace.get_only_call(block)
    return call is not None and whole is not None and is_same(call.hidden, whole.hidden)
