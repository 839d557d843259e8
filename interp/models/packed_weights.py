"""Packed (quantised) weights: packing and unpacking at loading, and copies that share them.

Linear maps of bitsandbytes hold 4-bit (NF4, QLoRA; Dettmers et al. 2023) or 8-bit codes (LLM.int8;
Dettmers et al. 2022) and scales beside them: no matrix that could be put into another model. They
are known by their class's module, so that nothing is imported where there are none.

LLM.int8 also rounds what a map reads (`rounds_inputs`), each token by its own largest entry. But an
input feature that reaches the threshold in one token of a batch is an outlier in all of them, and
is not rounded: what a token gives then depends on its neighbours.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

PACKINGS = ("4bit", "8bit")
"""What weights can be packed to while they are loaded."""

PACKAGE = "bitsandbytes"


def check_packing(packing: str | None) -> None:
    """Raise unless weights can be packed so, or None for not at all.

    Raises:
        ValueError: an unknown name.
        ImportError: a package is missing.
    """
    if packing is None:
        return
    if packing not in PACKINGS:
        raise ValueError(f"unknown quantise={packing!r}; valid: {', '.join(PACKINGS)}")
    missing = [package for package in (PACKAGE, "accelerate") if find_spec(package) is None]
    if missing:
        raise ImportError(
            f"quantise={packing!r} needs the package {missing[0]}: "
            "pip install 'interp[quantisation]'"
        )


def make_packing(packing: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Make the configuration that packs while loading: NF4 with packed scales, or LLM.int8.

    Args:
        packing: one of `PACKINGS`.
        dtype: what is computed in.
    """
    if packing == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def describe_packing(config: PreTrainedConfig) -> str | None:
    """Name how weights are packed, such as "bitsandbytes, 4 bits"; None if they are not.

    Models packed by one method with other settings have the same name.
    """
    packing = getattr(config, "quantization_config", None)
    if packing is None:
        return None
    settings = packing if isinstance(packing, dict) else packing.to_dict()
    method = settings.get("quant_method") or "an unknown method"
    method = str(getattr(method, "value", method))
    known = (("load_in_4bit", 4), ("load_in_8bit", 8))
    bits = next((number for key, number in known if settings.get(key)), settings.get("bits"))
    return f"{method}, {bits} bits" if bits else method


def is_packed(module: nn.Module) -> bool:
    """Return whether a module is a linear map with packed weights of bitsandbytes."""
    weight = module._parameters.get("weight")
    return weight is not None and _is_of_package(weight)


def unpack_weights(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Replace packed linear maps by plain ones of the numbers that their codes stand for, in place.

    Args:
        model: the model, packed by bitsandbytes.
        dtype: precision of the plain weights, in which codes times scales are rounded once.

    Raises:
        ValueError: the weights are packed by another method.
    """
    maps = [(path, module) for path, module in model.named_modules() if is_packed(module)]
    if not maps:
        raise ValueError(
            f"weights packed by {describe_packing(model.config)} cannot be made plain here: give a "
            "checkpoint that is not quantised"
        )
    for path, module in maps:
        model.set_submodule(path, _make_plain(module, dtype))
    quantiser: Any = getattr(model, "hf_quantizer", None)
    if quantiser is not None:
        quantiser.remove_quantization_config(model)
    forget_packing(model)
    return model


def forget_packing(model: PreTrainedModel) -> None:
    """Leave out of a model of plain weights what transformers noted when it read packed ones."""
    changed: Any = model
    # By these it would pack them again, to save them.
    changed._weight_conversions = [
        conversion
        for conversion in getattr(model, "_weight_conversions", None) or ()
        if not any(hasattr(step, "hf_quantizer") for step in getattr(conversion, "operations", ()))
    ]
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        model.__dict__.pop(name, None)
    model.config._is_quantized = False


def _make_plain(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    packed: Any = module
    weight = unpack_weight(packed, dtype)
    num_outputs, num_inputs = weight.shape
    is_transposed = issubclass(getattr(packed, "source_cls", nn.Linear), Conv1D)
    with torch.device("meta"):
        plain: Any = (
            Conv1D(num_outputs, num_inputs)
            if is_transposed
            else nn.Linear(num_inputs, num_outputs, bias=packed.bias is not None)
        )
    plain.weight = nn.Parameter(weight.T.contiguous() if is_transposed else weight, False)
    if packed.bias is not None:
        plain.bias = nn.Parameter(packed.bias.data.to(dtype), False)
    return plain.train(packed.training)


@torch.no_grad()
def unpack_weight(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """Return what the codes of a packed linear map stand for, [out, in]."""
    from bitsandbytes import functional  # pyright: ignore[reportMissingImports]

    packed: Any = module
    state = getattr(packed.weight, "quant_state", None)
    if state is not None:
        own = copy.copy(state)
        # In this precision, and not in that of the weights before they were packed.
        own.dtype = dtype
        return functional.dequantize_4bit(packed.weight.data, own)
    scales = packed.weight.SCB if packed.weight.SCB is not None else packed.state.SCB
    return functional.int8_vectorwise_dequant(packed.weight.data, scales).to(dtype)


def keep_layout(model: nn.Module) -> None:
    """Let 4-bit weights stay as they are stored on every CPU, see `check_layout`."""
    for module in model.modules():
        if is_packed(module) and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # pyright: ignore


def check_layout(name: str, model: nn.Module) -> None:
    """Raise ValueError where running a model would change its weights.

    On CPUs with AVX-512 BF16 bitsandbytes puts 4-bit weights into another order at their first
    use, and rounds their scales to bfloat16, for good. What it says at every use of 8-bit weights
    is no longer shown.
    """
    if rounds_inputs(model):
        logging.getLogger(f"{PACKAGE}.autograd._functions").addFilter(_is_news)
    for path, module in model.named_modules():
        weight: Any = module._parameters.get("weight")
        if (
            getattr(module, "support_avx512bf16_for_cpu", False)
            and is_packed(module)
            and weight.device.type == "cpu"
        ):
            raise ValueError(
                f"{name!r} has 4-bit weights ({path}) that bitsandbytes rounds again when they "
                "are first used on this CPU: load it with interp.load, or set "
                "support_avx512bf16_for_cpu = False in its modules before it runs"
            )


def _is_news(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in record.msg


def rounds_inputs(model: nn.Module) -> bool:
    """Return whether some linear maps round what they read, as those of LLM.int8 do."""
    return any(_is_of_package(getattr(module, "state", None)) for module in model.modules())


@contextmanager
def ignore_outliers(model: nn.Module) -> Iterator[None]:
    """Round all input features in the block, so that every token is computed for itself."""
    modules: list[Any] = [module for module in model.modules() if _get_threshold(module) > 0]
    states = [(module.state, module.state.threshold) for module in modules]
    try:
        for state, _ in states:
            state.threshold = 0.0
        yield
    finally:
        for state, threshold in states:
            state.threshold = threshold


@contextmanager
def compute_packed_in_float32(model: nn.Module) -> Iterator[None]:
    """Multiply by packed weights as by float32 matrices in the block, and round no inputs."""
    modules: list[Any] = [module for module in model.modules() if is_packed(module)]
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = partial(_multiply_in_float32, module)
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _multiply_in_float32(module: Any, x: Tensor) -> Tensor:
    bias = None if module.bias is None else module.bias.float()
    return nn.functional.linear(x.float(), unpack_weight(module, torch.float32), bias)


def share_packed_weights(model: nn.Module, memo: dict[int, Any]) -> None:
    """Add to a deep copy's memo what it holds of packed weights: the same memory.

    Codes and scales are the model's; the objects around them are the copy's own.

    Args:
        model: what is to be copied.
        memo: as `copy.deepcopy` takes it. It holds a list under its own id, and no other memo may
            be made of it.
    """
    packed: list[Any] = [module for module in model.modules() if is_packed(module)]
    for module in packed:
        holders = [module.weight, *(v for v in vars(module).values() if _is_of_package(v))]
        for tensor in _iterate_tensors(holders):
            memo[id(tensor)] = tensor
    for module in packed:
        memo[id(module.weight)] = alias_packed_weight(module.weight, memo)


def alias_packed_weight(
    weight: nn.Parameter, memo: dict[int, Any], *, data: Tensor | None = None
) -> nn.Parameter:
    """Return another parameter of the same codes, or `data`, and of what `memo` has of the rest."""
    data = weight.detach().as_subclass(Tensor) if data is None else data
    alias = Tensor._make_subclass(type(weight), data, False)
    for name, value in vars(weight).items():
        # A module that is to be packed; it is the original's.
        setattr(alias, name, None if name == "module" else copy.deepcopy(value, memo))
    return alias  # pyright: ignore[reportReturnType]


def _iterate_tensors(values: list[Any]) -> Iterator[Tensor]:
    """Yield the tensors that objects of bitsandbytes hold, parameters themselves left out."""
    for value in values:
        if _is_of_package(value):
            yield from _iterate_tensors(list(vars(value).values()))
        elif isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            yield value


def _is_of_package(value: object) -> bool:
    if isinstance(value, nn.Module):
        return False
    return type(value).__module__.partition(".")[0] == PACKAGE


def _get_threshold(module: nn.Module) -> float:
    state = getattr(module, "state", None)
    return getattr(state, "threshold", 0.0) if _is_of_package(state) else 0.0
