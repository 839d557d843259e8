"""Model loading: `load(spec)` turns a specification into a model.

A specification is an embedded name (`gemma-3-270m`), a directory in Hugging Face format (a full
model or a PEFT adapter), a `.gguf` file, or a Hub id, optionally with `@revision`. The network is
used for Hub ids only.
"""

from __future__ import annotations

import copy
import json
import os
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import __version__ as transformers_version

from interp.models import gguf
from interp.models.adapters import add_adapter, list_written_parameters, read_adapter_config
from interp.models.language_model import LanguageModel
from interp.models.pairs import check_pair, copy_with_shared_tensors, share_identical_tensors
from interp.models.sharing import read_with_shared_tensors
from interp.models.specs import find_checkpoint
from interp.models.tokenizers import UNREADABLE, read_tokenizer

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
            without one, and sets the device and dtype. The pair must match. Tensors that are
            identical share the vanilla model's memory, and a weight under LoRA is the vanilla
            model's with two thin matrices beside it (`low_rank`), so train neither afterwards.
        device: where to put the model; a GPU if there is one, else the CPU. "auto" spreads the
            layers over all GPUs, and needs the package accelerate.
        dtype: "float32", "bfloat16" or "float16"; float32 on the CPU, else the checkpoint's own.
        trust_remote_code: run model code that comes with the checkpoint.
        allow_pickle: read weights from pickled files where there are no safetensors.

    Raises:
        ValueError: nothing loadable is there, it is not a known decoder-only language model, its
            weights are incomplete or not finite, or it does not match `like`. One sentence says
            which.
        ImportError: an extra is missing; the sentence names it.
    """
    from interp.models.anatomy import check_anatomy

    if like is not None and not isinstance(like, LanguageModel):
        raise ValueError(f"like= takes a loaded model, load({like!r}), not {type(like).__name__}")
    if isinstance(spec, LanguageModel):
        loaded = spec
        if loaded.model.training:
            raise ValueError(f"{loaded.name!r} is in training mode: call model.eval() first")
        _check_finite(loaded.name, loaded.model)
    else:
        place = like.device if like and device is None else _choose_device(device)
        spread = getattr(like.model, "hf_device_map", {}) if like and device is None else {}
        loaded = _read_model(
            os.fspath(spec),
            like=like,
            device=place,
            device_map="auto" if device == "auto" else spread if len(spread) > 1 else None,
            dtype=like.dtype if like and dtype is None else _choose_dtype(dtype, device=place),
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
    check_anatomy(loaded.model, loaded.anatomy)
    if like is not None:
        check_pair(like, loaded)
        # A model that a person holds stays untouched.
        if loaded is not spec:
            share_identical_tensors(like, loaded)
    return loaded


def _read_model(
    spec: str,
    *,
    like: LanguageModel | None,
    device: torch.device,
    device_map: str | dict[str, Any] | None,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> LanguageModel:
    settings: dict[str, Any] = {
        "device": device,
        "device_map": device_map,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
    }
    directory = find_checkpoint(
        spec, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    directory = _find_last_checkpoint(spec, directory)
    base = like
    if (directory / "adapter_config.json").exists():
        _check_safetensors(spec, directory, stems=("adapter_model",), allow_pickle=allow_pickle)
        config = read_adapter_config(directory)
        base = _find_base(spec, config, like=like, settings=settings)
        model = base.model
        written = None
        if _can_share_memory(like, device=device, device_map=device_map, dtype=dtype):
            written = list_written_parameters(directory, model)
        if written is not None:
            model = copy_with_shared_tensors(model, own=written)
        elif like is not None:
            model = copy.deepcopy(model)
            model.to(device=None if device_map else device, dtype=dtype)  # pyright: ignore
        model = add_adapter(
            directory,
            config,
            model=model,
            base_name=base.name,
            shares_memory=written is not None,
        )
    else:
        settings["config"] = _check_config(spec, directory, trust_remote_code=trust_remote_code)
        model = _read_weights(spec, directory, like=like, **settings)
    _check_finite(spec, model)
    tokenizer = read_tokenizer(spec, directory, base=base, trust_remote_code=trust_remote_code)
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
        like is not None
        and device_map is None
        and not like.has_packed_weights
        and (like.devices, like.dtype) == ({device}, dtype)
    )


def _find_last_checkpoint(spec: str, directory: Path) -> Path:
    """Find the last checkpoint of a trainer's output directory that holds nothing else."""
    if any((directory / name).exists() for name in ("config.json", "adapter_config.json")):
        return directory
    steps = {
        int(entry.name.removeprefix("checkpoint-")): entry
        for entry in directory.iterdir()
        if re.fullmatch(r"checkpoint-\d+", entry.name) and entry.is_dir()
    }
    if not steps:
        return directory
    last = steps[max(steps)]
    warnings.warn(
        f"{spec!r} holds {len(steps)} checkpoints and no model beside them: {last.name} is taken",
        stacklevel=4,
    )
    return last


def _find_base(
    spec: str, config: PeftConfig, *, like: LanguageModel | None, settings: dict[str, Any]
) -> LanguageModel:
    recorded = str(config.base_model_name_or_path or "")
    if like is not None:
        known = {Path(name).name for name in (like.name, str(like.model.config.name_or_path))}
        if recorded and Path(recorded).name not in known:
            warnings.warn(
                f"the adapter {spec!r} was trained on {recorded!r} and is merged into "
                f"{like.name!r}",
                stacklevel=4,
            )
        return like
    if not recorded:
        raise ValueError(f"{spec!r} does not name the model it was trained on: pass it as like=")
    if config.revision and not Path(recorded).exists():
        recorded = f"{recorded}@{config.revision}"
    try:
        return _read_model(recorded, like=None, **settings)
    except ValueError as error:
        raise ValueError(
            f"the model that the adapter {spec!r} was trained on could not be loaded, pass it as "
            f"like=: {error}"
        ) from error


def _check_config(spec: str, directory: Path, *, trust_remote_code: bool) -> PreTrainedConfig:
    """Refuse, before any weight is read, what is not a decoder-only language model."""
    file = directory / "config.json"
    if not file.exists():
        loadable = sorted(
            entry
            for entry in directory.iterdir()
            if entry.suffix == ".gguf"
            or (entry / "config.json").exists()
            or (entry / "adapter_config.json").exists()
        )
        hint = (
            f"give one of those in it: {', '.join(repr(str(entry)) for entry in loadable)}"
            if loadable
            else "a model is a directory written by save_pretrained"
        )
        raise ValueError(f"{spec!r} holds neither config.json nor adapter_config.json: {hint}")
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is not valid JSON: {error}") from error
    if not isinstance(written, dict):
        raise ValueError(f"{str(file)!r} must hold an object, not {type(written).__name__}")
    attention = str(written.get("_attn_implementation", written.get("attn_implementation")))
    if "/" in attention and not trust_remote_code:
        raise ValueError(
            f"{spec!r} names code for its attention ({attention[:40]!r}), which is run only with "
            "trust_remote_code=True"
        )
    try:
        config = AutoConfig.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (*UNREADABLE, StrictDataclassError) as error:
        if "auto_map" in written and not trust_remote_code:
            raise ValueError(
                f"{spec!r} comes with its own code, which is run only with trust_remote_code=True"
            ) from error
        raise ValueError(
            f"{spec!r} has a configuration (model_type {str(written.get('model_type'))[:40]!r}) "
            f"that transformers {transformers_version} cannot read: {gguf.summarize_error(error)}"
        ) from error
    names = config.architectures or []
    if config.is_encoder_decoder or (
        names and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    ):
        raise ValueError(
            f"{spec!r} holds a {' and '.join(names) or type(config).__name__}, and only text "
            "models with a decoder alone can be loaded (such as LlamaForCausalLM)"
        )
    return config


def _read_weights(
    spec: str,
    directory: Path,
    *,
    config: PreTrainedConfig,
    like: LanguageModel | None,
    device: torch.device,
    device_map: str | dict[str, Any] | None,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> PreTrainedModel:
    _check_safetensors(spec, directory, stems=("model", "pytorch_model"), allow_pickle=allow_pickle)
    packed = getattr(config, "quantization_config", None) is not None
    try:
        shareable = _can_share_memory(like, device=device, device_map=device_map, dtype=dtype)
        if like is not None and shareable and not allow_pickle:
            shared = read_with_shared_tensors(directory, config, like=like.model)
            if shared is not None:
                return shared
        model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore
            str(directory),
            dtype=dtype or "auto",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            # Reported below, by name, instead of by a table on stderr.
            ignore_mismatched_sizes=True,
            # Packed weights cannot be moved once they are loaded.
            device_map=device_map or ({"": device} if packed else None),
        )
    except (*UNREADABLE, SafetensorError) as error:
        raise ValueError(f"{spec!r} could not be loaded: {gguf.summarize_error(error)}") from error
    if report["missing_keys"]:
        raise ValueError(
            f"{spec!r} lacks weights for {len(report['missing_keys'])} of its model's parameters, "
            f"the first {min(report['missing_keys'])}: save the whole model with save_pretrained"
        )
    if report["mismatched_keys"]:
        name, shape, expected = min(report["mismatched_keys"])
        raise ValueError(
            f"{spec!r} has weights of another shape than its config.json says: {name} is "
            f"{tuple(shape)} instead of {tuple(expected)}"
        )
    if device_map is None:
        return model if packed else model.to(device)
    if any(value.is_meta for value in model.parameters()):
        raise ValueError(
            f"{spec!r} does not fit on the GPUs here: load it with dtype='bfloat16', on more GPUs, "
            "or with device='cpu'"
        )
    return model


def _check_safetensors(
    spec: str, directory: Path, *, stems: tuple[str, ...], allow_pickle: bool
) -> None:
    def holds(*endings: str) -> bool:
        return any((directory / (stem + ending)).exists() for stem in stems for ending in endings)

    for index in (directory / f"{stem}.safetensors.index.json" for stem in stems):
        if index.exists():
            _check_index(index)
    if holds(".safetensors", ".safetensors.index.json"):
        return
    if not holds(".bin", ".bin.index.json"):
        raise ValueError(f"{spec!r} holds no weights: {stems[0]}.safetensors is missing")
    if not allow_pickle:
        raise ValueError(
            f"{spec!r} holds its weights as a pickle, which can run code when opened: save it as "
            "safetensors, or pass allow_pickle=True if you trust it"
        )


def _check_index(index: Path) -> None:
    """Refuse an index that names anything but safetensors files beside it."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except UNREADABLE:
        names = {""}
    for name in names:
        if not re.fullmatch(r"[^/\\\0]+\.safetensors", str(name)):
            raise ValueError(
                f"{str(index)!r} is damaged: it must name safetensors files beside it, not "
                f"{str(name)[:40]!r}"
            )


def _check_finite(spec: str, model: PreTrainedModel) -> None:
    for name, tensor in model.named_parameters():
        if not tensor.is_floating_point() or tensor.element_size() == 1:
            continue
        # A sum is fast and is finite only if every entry is; large entries may overflow it.
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise ValueError(f"{spec!r} has NaN or infinite weights, the first in {name}")


def _choose_device(device: str | torch.device | None) -> torch.device:
    if device == "auto" and find_spec("accelerate") is None:
        raise ImportError("device='auto' needs the package accelerate: pip install accelerate")
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {str(device)!r} cannot be used here ({gguf.summarize_error(error)}): "
            "use 'cpu', or 'cuda' where there is a GPU"
        ) from error


def _choose_dtype(dtype: str | torch.dtype | None, *, device: torch.device) -> torch.dtype | None:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    chosen = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise ValueError(f"unknown dtype {str(dtype)!r}; valid: {', '.join(DTYPES)}")
    return chosen  # pyright: ignore[reportReturnType]
