"""Proof of a model's anatomy: the table of its family is true of that very model.

On a forward of four tokens `check_anatomy` compares the model with what is computed of its weights
at the places that the table names:

    W_unembed · final(residual) = logits
    every layer reads what the layer below returns
    the output projection's output = the attention block's
    coefficients · value vectors (+ bias) = the MLP's output
    layer(0; attention and MLP known) + residual = layer(residual)     where layers only add

That is what the engines rely on: the last lets `layered` run restorations that share a layer's
attention and MLP once, the first lets distances be computed without logits.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from interp.models.anatomy import Anatomy, LayerParts

Call = tuple[tuple, dict[str, Any], Any]
"""Arguments of a module and what it returned."""


def check_anatomy(model: PreTrainedModel, anatomy: Anatomy, *, tolerance: float = 1e-4) -> None:
    """Prove on a forward of four tokens that the anatomy is true of this model.

    Entries that are not finite prove nothing and are left out.

    Raises:
        ValueError: one of the equations does not hold, by more than `tolerance` relative to the
            largest entry (float32; wider in half precision), or a module does not run.
    """
    name = type(model).__name__
    with torch.inference_mode():
        calls, logits = _record_calls(model, anatomy)
        if logits.dtype != torch.float32:
            tolerance = max(tolerance, 8 * torch.finfo(logits.dtype).eps)
        final = anatomy.readout_state(_get_first(calls[anatomy.layers[-1].layer][2]))
        packed = getattr(model.config, "quantization_config", None) is not None
        rebuilt = anatomy.unembed(final) if packed else _apply_weights(anatomy.unembed, final)
        _check_close(
            logits,
            anatomy.cap(rebuilt),
            f"{name}: unembed(final norm(residual)) is not the logits",
            tolerance,
        )
        below = None
        for index, parts in enumerate(anatomy.layers):
            where = f"{name}, layer {index}"
            hidden, result = _get_hidden(calls[parts.layer]), calls[parts.layer][2]
            if below is not None:
                message = f"{where}: it does not read what the layer below returns"
                _check_close(below, hidden, message, tolerance)
            below = _get_first(result)
            attn = _subtract_residual(calls[parts.attn], anatomy)
            message = f"{where}: the attention block does not return its output projection's output"
            _check_close(attn, _get_first(calls[parts.attn_out][2]), message, tolerance)
            coef = calls[parts.values][0][0]
            value_sum = parts.values(coef) if packed else _apply_weights(parts.values, coef)
            mlp = _subtract_residual(calls[_get_mlp(parts)], anatomy)
            message = f"{where}: the coefficients times the value vectors are not the MLP's output"
            _check_close(mlp, value_sum, message, tolerance)
            if anatomy.additive:
                added = _run_on_nothing(parts, calls, anatomy)
                message = f"{where}: it does not add its blocks to the residual stream"
                _check_close(below, hidden + added.to(hidden.device), message, tolerance)


def _record_calls(model: PreTrainedModel, anatomy: Anatomy) -> tuple[dict[nn.Module, Call], Tensor]:
    """Run four tokens, and keep what the modules of the table were given and returned."""
    calls: dict[nn.Module, Call] = {}

    def keep(module: nn.Module, args: tuple, kwargs: dict, result: object) -> None:
        calls[module] = args, kwargs, result

    wanted = [
        module
        for parts in anatomy.layers
        for module in (parts.layer, parts.attn, parts.attn_out, _get_mlp(parts), parts.values)
    ]
    vocab_size = anatomy.unembed.weight.shape[0]
    device = next(model.parameters()).device
    input_ids = (torch.arange(4, device=device) * 7 + 11)[None] % vocab_size
    with ExitStack() as stack:
        for module in dict.fromkeys(wanted):
            handle = module.register_forward_hook(keep, with_kwargs=True)
            stack.callback(handle.remove)
        logits = model(input_ids=input_ids, use_cache=False).logits
    for module in wanted:
        if module not in calls:
            path = next(path for path, other in model.named_modules() if other is module)
            raise ValueError(
                f"{type(model).__name__}: {path} does not run in a forward; this checkpoint's code "
                "differs from the architecture known under this name"
            )
    return calls, logits


def _run_on_nothing(parts: LayerParts, calls: dict[nn.Module, Call], anatomy: Anatomy) -> Tensor:
    """Run a layer on a residual stream of zeros, its attention block and MLP as they were."""
    args, kwargs, _ = calls[parts.layer]

    def put(module: nn.Module, now: tuple, output: Any) -> Any:
        state = _subtract_residual(calls[module], anatomy)
        if anatomy.family.adds_residual:
            state = state + now[1]
        state = state.view_as(_get_first(output))
        return (state, *output[1:]) if isinstance(output, tuple) else state

    with ExitStack() as stack:
        for module in (parts.attn, _get_mlp(parts)):
            stack.callback(module.register_forward_hook(put).remove)
        if args:
            result = parts.layer(torch.zeros_like(args[0]), *args[1:], **kwargs)
        else:
            nothing = torch.zeros_like(kwargs["hidden_states"])
            result = parts.layer(**kwargs | {"hidden_states": nothing})
    return _get_first(result)


def _get_mlp(parts: LayerParts) -> nn.Module:
    return parts.values if parts.mlp is None else parts.mlp


def _get_hidden(call: Call) -> Tensor:
    args, kwargs, _ = call
    return args[0] if args else kwargs["hidden_states"]


def _get_first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def _subtract_residual(call: Call, anatomy: Anatomy) -> Tensor:
    """Return what a block computed, without the residual stream that it may have added."""
    args, _, result = call
    output = _get_first(result)
    return output - args[1].to(output.device) if anatomy.family.adds_residual else output


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
