"""Integrity of models in memory: they compute what their architecture does with their weights.

States and weights are read, put in and compared where the architecture has them. A hook, a forward
of its own, a compiled or parametrized module or an adapter changes what a model computes beside
that, and a copy would carry it along. `check_runnable` is called by every function that runs a
model: it refuses these in one sentence, and proves the rest on a tiny forward (`check_anatomy`),
once for as long as the model has the same modules.

Not refused are the hooks of `interp.hooks` and `interp.restore`, transformers' own, and those of
accelerate that move states between devices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from interp.models.anatomy import is_norm
from interp.models.anatomy_proof import check_anatomy
from interp.models.gguf import summarize_error
from interp.models.packed_weights import check_layout

if TYPE_CHECKING:
    from interp.models.language_model import LanguageModel

METHODS = ("forward", "generate", "_call_impl", "_wrapped_call_impl")
"""Methods that a module may hold in place of its class's."""

QUANTISERS = ("bitsandbytes", "compressed_tensors", "gptqmodel", "optimum", "torchao")
"""Packages whose hooks and forwards are those of packed weights."""

PRECISION = "interp.models.precision"
"""Module whose hooks belong to a run, so that a copy made in it needs them."""


def check_runnable(model: LanguageModel, *, adapters: bool = True) -> None:
    """Raise ValueError unless a model computes what its architecture does with its weights.

    Args:
        model: the model; inside `interp.hooks` or `interp.restore` it is what they make of it.
        adapters: allow LoRA modules inside and `torch.autocast` around, which are no matter where
            weights are not looked at and numbers not compared.

    Raises:
        ValueError: it is in training mode, hooked, compiled, parametrized or offloaded, has a
            forward of its own, adapters or weights in several precisions or that are no plain
            tensors, or is not the architecture known under its name; or torch is set to compute
            in another precision.
    """
    name, plain = model.name, model.model
    check_offload(name, plain)
    check_layout(name, plain)
    _check_torch(model, autocast=adapters)
    _check_modules(name, plain)
    is_adapted = _find_adapter(plain) is not None
    if is_adapted and not adapters:
        _refuse_adapters(name, plain)
    _check_evaluation_mode(name, plain)
    _check_settings(name, plain)
    if is_adapted or _find_own_hook(plain) is not None:
        return
    if not model.has_packed_weights:
        _check_weights(name, plain)
        _check_precision(name, plain)
    modules = tuple((id(module), type(module)) for module in plain.modules())
    if model.proven != modules:
        # A module may have taken another's place since they were looked up.
        model.__dict__.pop("anatomy", None)
        try:
            check_anatomy(plain, model.anatomy)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{name!r} computes no logits, is its configuration damaged? "
                f"({summarize_error(error)})"
            ) from error
        if model.num_layers != model.anatomy.num_layers:
            raise ValueError(
                f"{name!r} has {model.anatomy.num_layers} layers, and its configuration says "
                f"{model.num_layers}: set model.config.num_hidden_layers to what it has"
            )
        model.proven = modules


def check_known_by_weights(model: LanguageModel) -> None:
    """Raise ValueError unless the content hash says all that a model computes.

    Results that are kept under the hash, or that compare engines and weights, need that.

    Raises:
        ValueError: it is inside `interp.hooks` or `interp.restore`, or has adapters.
    """
    path = _find_own_hook(model.model)
    if path is not None:
        raise ValueError(
            f"{model.name!r} is inside interp.hooks or interp.restore (at {path}), which its "
            "content hash does not know: call this outside of the block"
        )
    _refuse_adapters(model.name, model.model)


def check_readout(model: LanguageModel) -> None:
    """Raise ValueError where the unembedding is hooked; what reads its weights passes the hook.

    Raises:
        ValueError: `interp.hooks` is on the unembedding.
    """
    unembed = model.anatomy.unembed
    for function in (*unembed._forward_hooks.values(), *unembed._forward_pre_hooks.values()):
        if _find_origin(function) != PRECISION and _is_own(function):
            raise ValueError(
                f"{model.name!r} is inside interp.hooks on its unembedding, whose weights are read "
                "here one by one: hook the final norm in its place, or generate answers"
            )


def check_copyable(model: PreTrainedModel) -> None:
    """Raise ValueError where a copy of a model would carry along what is bound to the model.

    Raises:
        ValueError: it is hooked, compiled or parametrized, or has a forward of its own.
    """
    name = f"the {type(model).__name__} to be copied"
    _check_modules(name, model)
    path = _find_own_hook(model)
    if path is not None:
        raise ValueError(
            f"{name} is inside interp.hooks or interp.restore (at {path}), and a copy would not "
            "be: call this outside of the block"
        )


def check_offload(name: str, model: nn.Module) -> None:
    """Raise ValueError where weights, or the code that fetches them, are elsewhere."""
    hooks = [hook for module in model.modules() for hook in _list_accelerate_hooks(module)]
    moved = any(
        getattr(hook, "offload", type(hook).__name__ != "AlignDevicesHook") for hook in hooks
    )
    if moved or any(value.is_meta for value in model.parameters()):
        raise ValueError(
            f"{name!r} has weights that are offloaded from the device that computes: "
            "load it where it fits, such as on more GPUs with device='auto', or on the CPU"
        )


def check_finite(name: str, model: nn.Module) -> None:
    """Raise ValueError where a weight is NaN or infinite."""
    for path, tensor in model.named_parameters():
        if not tensor.is_floating_point() or tensor.element_size() == 1:
            continue
        # A sum is fast and is finite only if every entry is; large entries may overflow it.
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise ValueError(f"{name!r} has NaN or infinite weights, the first in {path}")


def _check_evaluation_mode(name: str, model: nn.Module) -> None:
    for path, module in model.named_modules():
        if module.training:
            where = f" ({path})" if path else ""
            raise ValueError(f"{name!r} is in training mode{where}: call model.eval() first")


def _check_modules(name: str, model: nn.Module) -> None:
    """Refuse what was done to modules by anyone but the libraries known here."""
    named = repr(name) if not name.startswith("the ") else name
    for path, module in model.named_modules():
        where = path or "the model itself"
        if _is_compiled(module):
            raise ValueError(
                f"{named} is compiled (at {where}), and what is put into it would not be seen: "
                "give it as it was before torch.compile"
            )
        for hook in _list_hooks(module):
            if not _is_known(hook):
                raise ValueError(
                    f"{named} has a hook of {_find_origin(hook)!r} (at {where}): remove it, or "
                    "hook the model with interp.hooks, which every function here knows of"
                )
        for method in METHODS:
            if method in vars(module) and not _is_plain_method(module, method):
                raise ValueError(
                    f"{named} has a {method} of its own (at {where}) in place of that of "
                    f"{type(module).__name__}: give it as it was, and change states with "
                    "interp.hooks"
                )
        if "parametrizations" in module._modules:
            raise ValueError(
                f"{named} has parametrized weights (at {where}): make them plain ones with "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )
    for hook in _list_global_hooks():
        if not _is_known(hook) and not _find_origin(hook).startswith("torch."):
            raise ValueError(
                f"a hook of {_find_origin(hook)!r} is on all modules of this process "
                f"(torch.nn.modules.module), {named} too: remove it, or use interp.hooks"
            )


def _check_torch(model: LanguageModel, *, autocast: bool) -> None:
    """Refuse settings of torch in which numbers are others than the weights give."""
    default = torch.get_default_dtype()
    if default != torch.float32:
        raise ValueError(
            f"torch makes new tensors in {_format(default)} (torch.set_default_dtype), and scores "
            "would be rounded to it: set it back to torch.float32, and give models their "
            "precision with dtype="
        )
    kind = model.device.type
    if not autocast and torch.is_autocast_enabled(kind):
        raise ValueError(
            f"{model.name!r} would compute in {_format(torch.get_autocast_dtype(kind))}, as "
            "torch.autocast is on: leave the block, and load models with dtype= where another "
            "precision is wanted"
        )


def _check_settings(name: str, model: PreTrainedModel) -> None:
    """Refuse settings by which a model returns something else, or changes as it computes."""
    if getattr(model.config, "return_dict", True) is False:
        raise ValueError(
            f"{name!r} returns tuples (return_dict is False): set model.config.return_dict = True"
        )
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            raise ValueError(
                f"{name!r} changes its embedding whenever it runs (max_norm of {path}): set "
                "max_norm to None"
            )


def _check_weights(name: str, model: nn.Module) -> None:
    """Refuse weights that are no parameters with memory of their own."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and "weight" not in module._parameters:
            raise ValueError(
                f"{name!r} has a weight that is no parameter (at {path}): make it one with "
                "torch.nn.Parameter"
            )
    for path, value in model.named_parameters():
        kind = _find_overriding_class(value)
        if kind is not None:
            raise ValueError(
                f"{name!r} has a weight of the class {kind.__module__}.{kind.__name__} ({path}), "
                "which computes what no plain tensor does: make it one with torch.nn.Parameter"
            )
        if (
            value.layout != torch.strided
            or value.is_neg()
            or value.is_complex()
            or any(
                not step and size > 1
                for step, size in zip(value.stride(), value.shape, strict=True)
            )
        ):
            raise ValueError(
                f"{name!r} has a weight that is sparse, complex or a view that repeats its memory "
                f"({path}): give it memory of its own, as weight.to_dense() or weight.clone() does"
            )


def _find_overriding_class(tensor: torch.Tensor) -> type | None:
    """Return the class that says what operations on a tensor do, unless it is a library's here."""
    for kind in type(tensor).__mro__:
        if {"__torch_function__", "__torch_dispatch__"} & vars(kind).keys():
            top = kind.__module__.partition(".")[0]
            known = ("torch", "interp", "transformers", "accelerate", *QUANTISERS)
            return None if top in known else kind
    return None


def _check_precision(name: str, model: PreTrainedModel) -> None:
    """Refuse weights in another precision, but for those that transformers keeps in float32."""
    kept = {
        part
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        for part in getattr(model, attribute, None) or ()
    }
    dtype = model.dtype
    for path, module in model.named_modules():
        for own, value in module._parameters.items():
            if value is None or not value.is_floating_point() or value.dtype == dtype:
                continue
            full = f"{path}.{own}"
            is_kept = is_norm(module) or any(re.search(part, full) for part in kept)
            if value.dtype != torch.float32 or not is_kept:
                raise ValueError(
                    f"{name!r} has weights in several precisions ({full} is "
                    f"{_format(value.dtype)}, the first {_format(dtype)}): convert it with "
                    f"model.to(torch.{_format(dtype)})"
                )


def _refuse_adapters(name: str, model: nn.Module) -> None:
    path = _find_adapter(model)
    if path is not None:
        raise ValueError(
            f"{name!r} has the modules of an adapter inside (at {path}): merge it with "
            "merge_and_unload(), or save it and load its directory with interp.load"
        )


def _find_adapter(model: nn.Module) -> str | None:
    """Return the path of the first module of peft's."""
    for path, module in model.named_modules():
        if any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__):
            return path or "the model itself"
    return None


def _find_own_hook(model: nn.Module) -> str | None:
    """Return the path of the first module inside `interp.hooks`, `interp.restore` or the like."""
    for path, module in model.named_modules():
        for hook in _list_hooks(module):
            if _is_own(hook) and _find_origin(hook) != PRECISION:
                return path or "the model itself"
    return None


def _list_hooks(module: nn.Module) -> Iterator[Any]:
    yield from module._forward_hooks.values()
    yield from module._forward_pre_hooks.values()


def _list_global_hooks() -> Iterator[Any]:
    for kind in ("_global_forward_hooks", "_global_forward_pre_hooks"):
        yield from getattr(torch.nn.modules.module, kind, {}).values()


def _list_accelerate_hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def _is_compiled(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return (
        getattr(module, "_compiled_call_impl", None) is not None
        or type(module).__name__ == "OptimizedModule"
        or hasattr(forward, "_torchdynamo_orig_callable")
        or isinstance(module, torch.jit.ScriptModule)
    )


def _is_plain_method(module: nn.Module, method: str) -> bool:
    """Return whether a module's own method is its class's, or that of a library known here."""
    function = vars(module)[method]
    if _is_class_method(module, method, function):
        return True
    top = _find_origin(function).partition(".")[0]
    if top == "accelerate":
        # It moves what the module is given, and calls what was there before.
        previous = vars(module).get("_old_forward")
        return bool(_list_accelerate_hooks(module)) and _is_class_method(module, method, previous)
    return top in ("interp", "nnsight", *QUANTISERS)


def _is_class_method(module: nn.Module, method: str, function: Any) -> bool:
    return getattr(function, "__self__", None) is module and getattr(
        function, "__func__", None
    ) is getattr(type(module), method, None)


def _is_own(function: Any) -> bool:
    return _find_origin(function).partition(".")[0] == "interp"


def _is_known(function: Any) -> bool:
    return _find_origin(function).partition(".")[0] in ("interp", "transformers", *QUANTISERS)


def _find_origin(function: Any) -> str:
    """Return the name of the module that holds a function's code."""
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    where = getattr(function, "__globals__", None)
    origin = type(function).__module__ if where is None else str(where.get("__name__"))
    # Tests check the types of what functions of this library are given.
    is_checked = origin.partition(".")[0] in ("jaxtyping", "beartype")
    return _find_origin(function.__wrapped__) if is_checked else origin


def _format(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
