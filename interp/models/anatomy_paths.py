"""Derivation of a model's anatomy from a forward of four tokens: which module has which role.

Nothing is known beforehand of the architecture. Of what every module was given and returned follows

    the list of layers      modules one after the other, each reading what the one before returned
    the attention block     the block of a layer in which a token changes what a later one gets
    the MLP                 the other one
    their last matrices     the linear maps whose outputs the blocks return
    the MLP's first ones    the linear maps that read what the MLP reads
    the final norm          what leads from the last layer's output to what the unembedding reads

What is found is proven afterwards, on all layers, by `anatomy_proof.check_anatomy`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from interp.models.anatomy_readout import find_readout
from interp.models.anatomy_trace import (
    NUM_TOKENS,
    Call,
    Trace,
    evaluating,
    get_first,
    is_linear,
    is_same,
    make_tokens,
)
from interp.models.causality import check_causal, make_changed_tokens, refusing_encoders
from interp.models.mixture import MixturePaths
from interp.models.mixture_paths import find_experts, find_mixture

# A token's output when an earlier one changes: to the bit, but for the order of sums.
_UNCHANGED = 1e-5


@dataclass(frozen=True, kw_only=True)
class LayerPaths:
    """Module paths of one decoder layer, from the layer.

    Attributes:
        attn: the attention block.
        attn_out: its output projection; its output is the site `attn`.
        mlp: the MLP block, or None where the layer holds its matrices directly.
        keys: the MLP's first matrices (gate and up, both in one, or the one).
        values: the down projection; its input is the site `coef`, its weight the site `value`. In
            a mixture of experts, the module that holds all experts' matrices.
        mixture: the parts of the MLP where it is a mixture of experts; `keys` is then empty.
        attn_adds_residual: the attention block takes the residual stream as an argument of its own
            and adds it itself.
        mlp_adds_residual: the MLP does.
        attn_num_outputs: length of the tuple that the attention block returns; 0 for a tensor.
        mlp_num_outputs: of the tuple that the MLP returns.
    """

    attn: str
    attn_out: str
    mlp: str | None
    keys: tuple[str, ...]
    values: str
    mixture: MixturePaths | None = None
    attn_adds_residual: bool = False
    mlp_adds_residual: bool = False
    attn_num_outputs: int = 2
    mlp_num_outputs: int = 0

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
    with torch.inference_mode(), evaluating(model), refusing_encoders(model):
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
        if any(of_layer.mixture is not None for of_layer in parts):
            _check_cache(model)
        final, scale, cap = find_readout(trace, layers)
        shared = _find_shared_arguments(trace, layers[0])
    return Paths(
        layers=trace.names[layers],
        parts=tuple(parts),
        final=final,
        logit_scale=scale,
        logit_cap=cap,
        additive=additive,
        shared_arguments=shared,
    )


def _find_shared_arguments(trace: Trace, layer: nn.Module) -> frozenset[str | int]:
    """Find the arguments of a layer that do not grow with the number of questions.

    Raises:
        ValueError: the model is an encoder, which the two questions show too.
    """
    seen: list[dict[str | int, Any]] = []

    def keep(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(dict(enumerate(args)) | kwargs)

    with ExitStack() as stack:
        handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
        stack.callback(handle.remove)
        output = trace.model(input_ids=make_changed_tokens(trace.model), use_cache=False)
    check_causal(output.logits)
    call = trace.calls[layer][0]
    alone, (twice,) = dict(enumerate(call.args)) | call.kwargs, seen
    return frozenset(
        key
        for key, value in alone.items()
        if isinstance(value, Tensor)
        and value.ndim > 1
        and value.shape[0] > 1
        and isinstance(twice.get(key), Tensor)
        and twice[key].shape[0] == value.shape[0]
    )


def run_with_known_blocks(
    trace: Trace, layer: nn.Module, paths: LayerPaths, hidden: Tensor
) -> Tensor:
    """Run a layer on a residual stream, with what its attention block and MLP once computed.

    Nothing but their states is given: what else the blocks return is None.
    """
    call = trace.get_only_call(layer)
    assert call is not None
    matrices = (paths.attn, paths.attn_out, paths.attn_adds_residual)
    blocks = [matrices, (paths.mlp or paths.values, paths.mlp_out, paths.mlp_adds_residual)]
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
    """Return whether layer(0; attention and MLP known) + residual = layer(residual).

    Raises:
        ValueError: nor is layer(residual; attention and MLP known).
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


def _check_cache(model: PreTrainedModel) -> None:
    """Raise ValueError unless keys and values are all that a model keeps of its tokens."""
    try:
        model(input_ids=make_tokens(model), past_key_values=DynamicCache(), use_cache=True)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise ValueError("its attention keeps more of its tokens than keys and values") from error


def _is_stream(call: Call) -> bool:
    """Return whether a module was given and returned a residual stream."""
    hidden, output = call.hidden, call.output
    if hidden is None or output is None or hidden.shape != output.shape:
        return False
    return hidden.ndim == 3 and hidden.shape[1] == NUM_TOKENS


def _find_parts(trace: Trace, layer: nn.Module, where: str) -> LayerPaths:
    mixers, points, matrices = [], [], []
    for name, block in layer.named_children():
        call = trace.get_only_call(block)
        if is_linear(block):
            matrices += [block] if call is not None else []
        elif call is not None and _is_block(block, call):
            # One whose matrices are zero mixes nothing.
            mixes = "Attention" in type(block).__name__ or _mixes_tokens(block, call)
            (mixers if mixes else points).append((name, block))
    if len(mixers) != 1:
        named = ", ".join(name for name, _ in mixers) or "none"
        raise ValueError(f"{where}: one block that mixes tokens is wanted, and there are: {named}")
    attn_name, attn = mixers[0]
    kind = type(attn).__name__
    if "Attention" not in kind or "Linear" in kind:
        raise ValueError(f"{where}: tokens are mixed by a {kind}, which is no attention")
    if any(isinstance(module, nn.Conv1d) for module in attn.modules()):
        raise ValueError(f"{where}: its {kind} also convolves, and keeps more than keys and values")
    attn_out, attn_adds = _find_last_matrix(trace, attn, f"{where}: the attention block")
    mlp_name, mlp_adds, mixture, num_outputs = None, False, None, 0
    start = len(trace.names[layer]) + 1
    if len(points) == 1 and find_experts(points[0][1]):
        mlp_name, mlp = points[0]
        mixture = find_mixture(trace, mlp, layer, where)
        values, keys = layer.get_submodule(mixture.experts), []
        num_outputs = trace.calls[mlp][0].num_outputs
    elif len(points) == 1:
        mlp_name, mlp = points[0]
        values, mlp_adds = _find_last_matrix(trace, mlp, f"{where}: the MLP")
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
        attn=attn_name,
        attn_out=trace.names[attn_out][start:],
        mlp=mlp_name,
        keys=tuple(trace.names[key][start:] for key in keys),
        values=trace.names[values][start:],
        mixture=mixture,
        attn_adds_residual=attn_adds,
        mlp_adds_residual=mlp_adds,
        attn_num_outputs=trace.calls[attn][0].num_outputs,
        mlp_num_outputs=num_outputs,
    )


def _is_block(block: nn.Module, call: Call) -> bool:
    """Return whether a module computes a state of every token with matrices of its own."""
    if call.hidden is None or call.output is None or call.hidden.numel() != call.output.numel():
        return False
    return any(parameter.ndim > 1 for parameter in block.parameters())


def _mixes_tokens(block: nn.Module, call: Call) -> bool:
    """Return whether the last token's output changes with the tokens before."""
    assert call.hidden is not None
    hidden = call.hidden.clone()
    # Some layers merge the axes of questions and tokens.
    before = hidden.view(NUM_TOKENS, -1)[:-1]
    before.copy_(before.flip(-1) * 2 + before.abs().mean())
    output = get_first(call.repeat(block, hidden))
    assert output is not None
    assert call.output is not None
    last, other = call.output.view(NUM_TOKENS, -1)[-1], output.view(NUM_TOKENS, -1)[-1]
    return bool((last - other).abs().max() > _UNCHANGED * last.abs().max())


def _find_last_matrix(trace: Trace, block: nn.Module, where: str) -> tuple[nn.Module, bool]:
    """Find the matrix whose output a block returns, and whether it adds the residual stream."""
    call = trace.get_only_call(block)
    assert call is not None
    inside = set(block.modules())
    assert call.output is not None
    for module in reversed([module for module in trace.calls if module in inside]):
        run = trace.get_only_call(module)
        if run is None or not is_linear(module):
            continue
        if is_same(call.output, run.output):
            return module, False
        for residual in call.list_states(call.output.shape):
            if is_same(call.output - residual.to(call.output.device), run.output):
                return module, True
    raise ValueError(f"{where} does not return the output of one of its matrices")


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
