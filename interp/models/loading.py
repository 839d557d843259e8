"""Model loading: `load(spec)` turns a specification into a model.

A specification is an embedded name (`gemma-3-270m`), a directory in Hugging Face format (a full
model or a PEFT adapter), a `.gguf` file, or a Hub id, optionally with `@revision`. The network is
used for Hub ids only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from interp.files import check_digests
from interp.models import gguf
from interp.models.adapter_base import check_chain, get_recorded_base, warn_of_other_base
from interp.models.adapters import (
    add_adapter,
    is_plain_lora,
    list_written_parameters,
    read_adapter_config,
)
from interp.models.checkpoint_files import (
    check_adapter_weights,
    find_last_checkpoint,
    find_tokenizer,
    is_adapter,
)
from interp.models.checksums import check_unchanged
from interp.models.full_model import read_full_model
from interp.models.integrity import check_finite, check_offload, check_runnable
from interp.models.language_model import LanguageModel, check_language_model
from interp.models.packed_weights import check_packing, keep_layout
from interp.models.pairs import (
    check_pair,
    copy_model,
    copy_with_shared_tensors,
    share_identical_tensors,
)
from interp.models.specs import find_checkpoint
from interp.models.tokenizers import read_tokenizer
from interp.models.vocabulary import match_vocabulary

if TYPE_CHECKING:
    from peft import PeftConfig

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load(
    spec: str | os.PathLike[str] | LanguageModel,
    *,
    like: LanguageModel | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantise: str | None = None,
    dequantise: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> LanguageModel:
    """Load a model and its tokenizer, in evaluation mode and without gradients.

    Args:
        spec: an embedded name, a directory (a full model or a PEFT adapter, which becomes a part
            of the weights; a trainer's output directory, of which the last checkpoint is taken if
            there is no model beside), a `.gguf` file, or a Hub id, optionally with `@revision`. A
            LanguageModel is checked and returned as it is.
        like: the vanilla model. It is the base of an adapter, lends its tokenizer to a directory
            without one, and sets the device, the dtype and what is done with packed weights. The
            pair must match. Tensors that are identical share the vanilla model's memory, and a
            weight under LoRA is the vanilla model's with two thin matrices beside it (`low_rank`),
            so train neither afterwards.
        device: where to put the model; a GPU if there is one, else the CPU. "auto" spreads the
            layers over all GPUs, and needs the package accelerate.
        dtype: "float32", "bfloat16" or "float16"; float32 on the CPU, else the checkpoint's own.
        quantise: pack the weights with bitsandbytes: "4bit" (NF4) or "8bit" (LLM.int8). Those
            of a checkpoint that is packed stay as they are.
        dequantise: make plain weights of those of a packed checkpoint, for the parameter sites.
        trust_remote_code: run model code that comes with the checkpoint.
        allow_pickle: read weights from pickled files where there are no safetensors.

    Raises:
        ValueError: nothing loadable is there, or more than one model; it is not a known
            decoder-only language model; its weights are incomplete, not finite, or have no place
            in it; or it does not match `like`, or has changed it. One sentence says which.
        ImportError: an extra is missing; the sentence names it.
    """
    if like is not None and not isinstance(like, LanguageModel):
        raise ValueError(f"like= takes a loaded model, load({like!r}), not {type(like).__name__}")
    if not isinstance(spec, str | os.PathLike):
        check_language_model(spec, "spec", also="a specification or ")
    packing = _choose_packing(quantise, dequantise, like)
    with _leave_autocast():
        if like is not None:
            check_runnable(like, adapters=False)
        if isinstance(spec, LanguageModel):
            check_offload(spec.name, spec.model)
            check_finite(spec.name, spec.model)
            check_runnable(spec, adapters=False)
            if like is not None:
                check_pair(like, spec)
            # A model that a person holds stays untouched.
            return spec
    place = like.device if like and device is None else _choose_device(device)
    spread = getattr(like.model, "hf_device_map", {}) if like and device is None else {}
    with _leave_autocast(), check_unchanged(like, f"loading {os.fspath(spec)!r}"):
        loaded = _read_model(
            os.fspath(spec),
            like=like,
            device=place,
            device_map="auto" if device == "auto" else spread if len(spread) > 1 else None,
            dtype=like.dtype if like and dtype is None else _choose_dtype(dtype, device=place),
            packing=packing,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        check_runnable(loaded, adapters=False)
        if like is not None:
            loaded = match_vocabulary(like, loaded)
            check_pair(like, loaded)
            share_identical_tensors(like, loaded)
    loaded.packing = packing
    return loaded


def _read_model(
    spec: str,
    *,
    like: LanguageModel | None,
    device: torch.device,
    device_map: str | dict[str, Any] | None,
    dtype: torch.dtype | None,
    packing: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    above: tuple[str, ...] = (),
) -> LanguageModel:
    settings: dict[str, Any] = {
        "device": device,
        "device_map": device_map,
        "dtype": dtype,
        "packing": packing,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
    }
    directory = find_checkpoint(
        spec, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    directory = find_last_checkpoint(spec, directory)
    check_digests(directory)
    base = like
    if is_adapter(spec, directory):
        check_adapter_weights(spec, directory, allow_pickle=allow_pickle)
        above = (*above, check_chain(spec, directory, above))
        config = read_adapter_config(directory)
        base = _find_base(spec, config, like=like, settings=settings, above=above)
        model = base.model
        written = None
        # An adapter that begins with a change of the base's weights has a base of its own.
        if is_plain_lora(config) and _can_share_memory(
            like, device=device, device_map=device_map, dtype=dtype
        ):
            written = list_written_parameters(directory, model)
        if written is not None:
            model = copy_with_shared_tensors(model, own=written)
        elif like is not None:
            _check_movable(spec, like, device=device, dtype=dtype)
            model = copy_model(model)
            if not like.has_packed_weights:
                model.to(device=None if device_map else device, dtype=dtype)  # pyright: ignore
        model = add_adapter(
            directory,
            config,
            model=model,
            base_name=base.name,
            shares_memory=written is not None,
        )
    else:
        can_share = not (like and like.has_packed_weights) and _can_share_memory(
            like, device=device, device_map=device_map, dtype=dtype
        )
        model = read_full_model(spec, directory, like=like, can_share=can_share, **settings)
    check_finite(spec, model)
    keep_layout(model)
    tokenizer = read_tokenizer(
        spec, find_tokenizer(directory), base=base, trust_remote_code=trust_remote_code
    )
    model.requires_grad_(False).eval()
    return LanguageModel(model, tokenizer, name=spec)


def _can_share_memory(
    like: LanguageModel | None,
    *,
    device: torch.device,
    device_map: str | dict[str, Any] | None,
    dtype: torch.dtype | None,
) -> bool:
    """Return whether a model to be loaded can hold the vanilla model's tensors from the start.

    One that is spread over devices is read apart: the hooks that move its states are bound to it.
    """
    return (
        like is not None and device_map is None and (like.devices, like.dtype) == ({device}, dtype)
    )


def _find_base(
    spec: str,
    config: PeftConfig,
    *,
    like: LanguageModel | None,
    settings: dict[str, Any],
    above: tuple[str, ...],
) -> LanguageModel:
    if like is not None:
        warn_of_other_base(spec, config, like)
        return like
    recorded = get_recorded_base(config)
    if not recorded:
        raise ValueError(f"{spec!r} does not name the model it was trained on: pass it as like=")
    try:
        return _read_model(recorded, like=None, **settings, above=above)
    except ValueError as error:
        # Of those that stand on one another, the one that was asked for.
        if len(above) > 1:
            raise
        raise ValueError(
            f"the model that the adapter {spec!r} was trained on could not be loaded, pass it as "
            f"like=: {error}"
        ) from error


@contextmanager
def _leave_autocast() -> Iterator[None]:
    """Compute in the weights' own precision inside the block, as what is loaded is proven in it."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def _choose_device(device: str | torch.device | None) -> torch.device:
    if device == "auto" and find_spec("accelerate") is None:
        raise ImportError("device='auto' needs the package accelerate: pip install accelerate")
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        # What follows torch's first sentence is for its developers.
        reason = gguf.summarize_error(error).partition(". ")[0]
        raise ValueError(
            f"device {str(device)!r} cannot be used here ({reason}): "
            "use 'cpu', or 'cuda' where there is a GPU"
        ) from error
    if place.type == "meta":
        raise ValueError("device 'meta' holds no weights: use 'cpu', or 'cuda' if there is a GPU")
    return place


def _choose_packing(
    quantise: str | None, dequantise: bool, like: LanguageModel | None
) -> str | None:
    if quantise is not None and dequantise:
        raise ValueError("quantise= packs weights and dequantise=True unpacks them: give one")
    check_packing(quantise)
    if quantise is None and not dequantise and like is not None:
        return like.packing
    return "none" if dequantise else quantise


def _check_movable(
    spec: str, like: LanguageModel, *, device: torch.device, dtype: torch.dtype | None
) -> None:
    """Raise ValueError where packed weights would have to be moved, or converted."""
    if like.has_packed_weights and (like.devices, like.dtype) != ({device}, dtype):
        raise ValueError(
            f"{spec!r} goes where the packed weights of {like.name!r} are and computes in their "
            "precision: leave out device= and dtype="
        )


def _choose_dtype(dtype: str | torch.dtype | None, *, device: torch.device) -> torch.dtype | None:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    chosen = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise ValueError(f"unknown dtype {str(dtype)!r}; valid: {', '.join(DTYPES)}")
    return chosen  # pyright: ignore[reportReturnType]
