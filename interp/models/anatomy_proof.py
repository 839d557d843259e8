"""Proof of a model's anatomy: the table of its family is true of that very model.

On a forward of four tokens `check_anatomy` compares the model with what is computed of its weights
at the places that the table names:

    W_unembed · final(residual) = logits
    every layer reads what the layer below returns
    the output projection's output = the token mixer's
    coefficients · value vectors (+ bias) = the MLP's output
    Σ g a v (+ g · bias, + shared experts) = the MLP's output          in mixtures of experts
    layer(0; mixer and MLP known) + residual = layer(residual)     where layers only add
    layer(residual; mixer and MLP known) = layer(residual)         elsewhere

That is what the engines rely on: the last lets `layered` run restorations that share a layer's
mixer and MLP once, the first lets distances be computed without logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from interp.models.anatomy import Anatomy, LayerParts
from interp.models.anatomy_paths import run_with_known_blocks
from interp.models.anatomy_trace import Call, Trace
from interp.models.mixture import Mixture, compute_activations, compute_routed


def check_anatomy(model: PreTrainedModel, anatomy: Anatomy, *, tolerance: float = 1e-4) -> None:
    """Prove on a forward of four tokens that the anatomy is true of this model.

    Entries that are not finite prove nothing and are left out.

    Raises:
        ValueError: one of the equations does not hold, by more than `tolerance` relative to the
            largest entry (float32; wider in half precision), or a module does not run.
    """
    name = type(model).__name__
    with torch.inference_mode():
        trace = Trace(model)
        calls = _get_calls(trace, anatomy)
        if trace.logits.dtype != torch.float32:
            tolerance = max(tolerance, 8 * torch.finfo(trace.logits.dtype).eps)
        final = anatomy.readout_state(_get(calls[anatomy.layers[-1].layer].output))
        packed = getattr(model.config, "quantization_config", None) is not None
        rebuilt = anatomy.unembed(final) if packed else _apply_weights(anatomy.unembed, final)
        _check_close(
            trace.logits,
            anatomy.finish_logits(rebuilt),
            f"{name}: unembed(final norm(residual)) is not the logits",
            tolerance,
        )
        message = f"{name}: final norm(residual) is not what the body returns"
        _check_close(_get(trace.get_body_output()), final, message, tolerance)
        below = None
        for index, parts in enumerate(anatomy.layers):
            where = f"{name}, layer {index}"
            call = calls[parts.layer]
            hidden, output = _get(call.hidden), _get(call.output)
            if below is not None:
                message = f"{where}: it does not read what the layer below returns"
                _check_close(below, hidden, message, tolerance)
            below = output
            for mixer in parts.mixers:
                projected = _get(calls[mixer.out].output)
                attn = _subtract_residual(calls[mixer.block], mixer.paths.adds_residual, projected)
                kind = mixer.paths.kind
                message = (
                    f"{where}: the {kind} block does not return its output projection's output"
                )
                _check_close(attn, projected, message, tolerance)
            if parts.mixture is not None:
                value_sum = _compute_mixture(parts.mixture, trace, calls[parts.values])
            else:
                coef = _get(calls[parts.values].hidden)
                value_sum = parts.values(coef) if packed else _apply_weights(parts.values, coef)
            mlp = _subtract_residual(
                calls[_get_mlp(parts)], parts.paths.mlp_adds_residual, value_sum
            )
            if parts.shared_block is not None:
                mlp = mlp + _get(calls[parts.shared_block].output).to(mlp.device)
            message = f"{where}: the coefficients times the value vectors are not the MLP's output"
            _check_close(mlp, value_sum, message, tolerance)
            given = torch.zeros_like(hidden) if anatomy.additive else hidden
            known = run_with_known_blocks(trace, parts.layer, parts.paths, given)
            if anatomy.additive:
                known = hidden + known.to(hidden.device)
                message = f"{where}: it does not add its blocks to the residual stream"
            else:
                message = f"{where}: it needs more of its blocks than one state of each"
            _check_close(output, known, message, tolerance)


def _get_calls(trace: Trace, anatomy: Anatomy) -> dict[nn.Module, Call]:
    """Return the calls of the modules that have a role."""
    calls = {}
    for parts in anatomy.layers:
        blocks = [module for mixer in parts.mixers for module in (mixer.block, mixer.out)]
        blocks += [] if parts.shared_block is None else [parts.shared_block]
        for module in (parts.layer, *blocks, _get_mlp(parts), parts.values):
            call = trace.get_only_call(module)
            if call is None:
                raise ValueError(
                    f"{type(trace.model).__name__}: {trace.names.get(module)} does not run once in "
                    "a forward; this checkpoint's code differs from the architecture known under "
                    "this name"
                )
            calls[module] = call
    return calls


def _compute_mixture(mixture: Mixture, trace: Trace, call: Call) -> Tensor:
    """Compute a mixture's output of its weights, what its experts read, and g."""
    hidden = _get(call.hidden)
    chosen, weights = call.args[1:]
    activations = compute_activations(mixture.experts, hidden, chosen)
    output = compute_routed(mixture.experts, chosen, weights, activations)
    if mixture.shared_values is None:
        return output
    run = trace.calls[mixture.shared_values][0]
    shared = _apply_weights(mixture.shared_values, _get(run.hidden).reshape(len(hidden), -1))
    if mixture.shared_gate is not None:
        gate = _get(trace.calls[mixture.shared_gate][0].output).reshape(len(hidden), 1)
        shared = gate.sigmoid() * shared
    return output + shared.to(output.device)


def _get_mlp(parts: LayerParts) -> nn.Module:
    return parts.values if parts.mlp is None else parts.mlp


def _get(state: Tensor | None) -> Tensor:
    assert state is not None
    return state


def _subtract_residual(call: Call, adds_residual: bool, computed: Tensor) -> Tensor:
    """Return what a block computed, without the residual stream that it may have added."""
    output = _get(call.output)
    if not adds_residual:
        return output
    # The one of its arguments that leaves what the block's last matrix gave.
    rests = [output - given.to(output.device) for given in call.list_states(output.shape)]
    return min(rests, key=lambda rest: (rest - computed.view_as(rest)).abs().max())


def _apply_weights(module: nn.Module, state: Tensor) -> Tensor:
    """Compute a linear map of its weight and bias themselves, whatever its forward does."""
    weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
    if isinstance(module, Conv1D):
        return state @ weight if bias is None else state @ weight + bias
    return nn.functional.linear(state, weight, bias)


def _check_close(expected: Tensor, actual: Tensor, message: str, tolerance: float) -> None:
    # On a model spread over devices the two may be made on different ones.
    expected, actual = expected.float(), actual.to(expected.device).float().view_as(expected)
    known = expected.isfinite() & actual.isfinite()
    if not known.any():
        return
    expected, actual = expected[known], actual[known]
    scale, error = expected.abs().max(), (expected - actual).abs().max()
    if not error <= tolerance * scale:
        raise ValueError(
            f"{message} (largest difference {error:.3g} of {scale:.3g}); "
            "this checkpoint's code differs from the architecture known under this name"
        )
