"""Numerical precision of forwards; final norm and unembedding stay in float32 where it is reduced.

float32, bfloat16 and float16 are the precision of the weights (`load(dtype=)`). The others say what
is done with them, only inside `precision(…)`:

- `tf32`: float32 models whose matrix products keep 10 bits of the mantissa (NVIDIA from Ampere on);
- `bf32`: float32 models whose matrix products keep 7, on a CPU's bfloat16 matrix units;
- `mixed`: bfloat16 models of which the final norm and the unembedding compute in float32.

In the first two as well the final norm and the unembedding are computed in plain float32. Whatever
the process has set for the products of float32 matrices does not count inside the block.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from interp.models.integrity import check_offload

if TYPE_CHECKING:
    from interp.models.language_model import LanguageModel

Dtype = Literal["float32", "bfloat16", "float16", "tf32", "bf32", "mixed"]

WEIGHTS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "tf32": torch.float32,
    "bf32": torch.float32,
    "mixed": torch.bfloat16,
}
"""Precision of the weights that each works on."""


def check_dtype(dtype: str | None) -> None:
    """Raise ValueError unless `dtype` is a known name, or None for the models' own precision."""
    if dtype is not None and dtype not in get_args(Dtype):
        raise ValueError(f"unknown dtype {dtype!r}; valid: {', '.join(get_args(Dtype))}")


def check_possible(dtype: Dtype | None, *models: LanguageModel) -> None:
    """Raise ValueError unless models can be computed with in this precision.

    `dtype` must be of their weights and possible on this machine, and no weight offloaded.
    """
    for model in models:
        check_offload(model.name, model.model)
        if dtype is None:
            continue
        if model.dtype != WEIGHTS[dtype]:
            wanted = _format_dtype(WEIGHTS[dtype])
            raise ValueError(
                f"dtype {dtype!r} needs models in {wanted}, and {model.name!r} is in "
                f"{_format_dtype(model.dtype)}: load it with dtype={wanted!r}"
            )
        place = model.device
        if dtype == "tf32" and not (
            place.type == "cuda" and torch.cuda.get_device_capability(place) >= (8, 0)
        ):
            raise ValueError(
                f"dtype 'tf32' needs an NVIDIA GPU of the Ampere generation or later, and "
                f"{model.name!r} is on {place}: use 'float32'"
            )
        if dtype == "bf32" and not (place.type == "cpu" and has_matrix_units()):
            raise ValueError(
                f"dtype 'bf32' needs a CPU with bfloat16 matrix units (AMX), which "
                f"{model.name!r} on {place} does not have: use 'float32'"
            )


def computes_bfloat16(device: torch.device) -> bool:
    """Return True if a device has instructions for bfloat16.

    A CPU without them emulates each product: with AVX-512 five times, with AVX2 a hundred times
    slower than in float32.
    """
    if device.type != "cpu":
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        # What oneDNN calls supported there may be emulated.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    has_kernels = torch.backends.mkldnn.is_available()
    return has_kernels and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_matrix_units() -> bool:
    """Return whether this CPU multiplies matrices in bfloat16.

    AVX-512 BF16 alone does not count: there oneDNN multiplies float32 matrices as float32.
    """
    return torch.cpu._is_amx_tile_supported()


@contextmanager
def set_precision(dtype: str | None, models: Iterable[LanguageModel]) -> Iterator[None]:
    """Let models compute in a precision inside the block; the settings are as before after it.

    Args:
        dtype: one of `Dtype`, None for the models' own.
        models: those of which the final norm and the unembedding may have to be held in float32.
    """
    products = {"tf32": {"cuda": "tf32"}, "bf32": {"cpu": "bf16"}}.get(dtype or "", {})
    with ExitStack() as stack:
        stack.enter_context(set_matmul_precision(**products))
        if dtype in ("tf32", "bf32", "mixed"):
            readouts = [(*model.anatomy.final, model.anatomy.unembed) for model in models]
            stack.enter_context(
                compute_in_float32([module for readout in readouts for module in readout])
            )
        yield


@contextmanager
def set_matmul_precision(*, cuda: str = "ieee", cpu: str = "ieee") -> Iterator[None]:
    """Set how products of float32 matrices are rounded in the block: by default as float32 is."""
    if not hasattr(torch.backends.mkldnn, "matmul"):  # torch 2.8
        if (cuda, cpu) != ("ieee", "ieee"):
            raise ImportError("tf32 and bf32 need torch 2.9 or later: pip install -U torch")
        yield
        return
    backends: Any = torch.backends
    places = [backends.cuda.matmul, backends.mkldnn.matmul]
    before = [place.fp32_precision for place in places]
    try:
        for place, chosen in zip(places, (cuda, cpu), strict=True):
            place.fp32_precision = chosen
        yield
    finally:
        for place, chosen in zip(places, before, strict=True):
            place.fp32_precision = chosen


@contextmanager
def compute_in_float32(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let modules compute in float32: inputs and parameters are cast for the call alone.

    One module's parameters at a time are held in float32, so that a whole model can be run so.
    """
    running: list[ExitStack] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        stack = ExitStack()
        running.append(stack)
        stack.enter_context(set_matmul_precision())
        own = dict(module._parameters)
        stack.callback(module._parameters.update, own)
        module._parameters.update({name: _cast(value) for name, value in own.items()})
        return tuple(map(_cast, args)), {key: _cast(value) for key, value in kwargs.items()}

    def after(*_call: object) -> None:
        running.pop().close()

    with ExitStack() as hooks:
        for module in dict.fromkeys(modules):
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
            hooks.callback(handle.remove)
            # In front: where blocks are nested, what the inner one cast is undone first.
            handle = module.register_forward_hook(after, prepend=True, always_call=True)
            hooks.callback(handle.remove)
        yield


def compute_model_in_float32(model: LanguageModel):
    """Apply `compute_in_float32` to every module of a model that has parameters."""
    return compute_in_float32(
        [
            module
            for module in model.model.modules()
            if any(value.is_floating_point() for value in module.parameters(recurse=False))
        ]
    )


def _cast(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _format_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
