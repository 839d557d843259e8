"""Full models read from disk: every stored tensor has its place, every place its tensor."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from interp.models.checkpoint_files import INDEX, WHOLE
from interp.models.configuration import check_announced, read_config
from interp.models.gguf import summarize_error
from interp.models.language_model import LanguageModel
from interp.models.multimodal import is_multimodal, take_out_text_model
from interp.models.packed_weights import (
    PACKINGS,
    describe_packing,
    forget_packing,
    make_packing,
    unpack_weights,
)
from interp.models.pairs import have_same_bits
from interp.models.sharing import read_generation_config, read_with_shared_tensors
from interp.models.stored_weights import FLOATS, StoredTensor, find_stored_tensors, open_tensors
from interp.models.tokenizers import UNREADABLE

HARMLESS = re.compile(
    r"(attn|attention)\.(masked_)?bias$"  # causal masks
    r"|(rotary_emb\.inv_freq|embed_positions\.weights)$"  # tables that are computed
    r"|decoder\.version$"  # fairseq's
    r"|^v_head\."  # a value head, which reads the states and changes no logit
)
"""Ends of stored names without a place in a model, which old checkpoints and trainers leave."""


UNPACKED_BY_READER = ("compressed-tensors", "fp8", "metal", "mxfp4", "mxfp8")
"""Methods whose weights transformers can make plain while it reads them."""


def read_full_model(
    spec: str,
    directory: Path,
    *,
    like: LanguageModel | None,
    can_share: bool,
    device: torch.device,
    device_map: str | dict[str, Any] | None,
    dtype: torch.dtype | None,
    packing: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> PreTrainedModel:
    """Read a full model from a directory.

    Args:
        spec: what it is called in an error.
        directory: the checkpoint.
        like: the vanilla model.
        can_share: hold the vanilla model's tensors where they are the same.
        device: where the model goes.
        device_map: where its parts go, instead.
        dtype: precision of the weights, None for the checkpoint's own.
        packing: what to pack weights to, "none" to unpack packed ones; see `LanguageModel`.
        trust_remote_code: run code that comes with it.
        allow_pickle: read pickles where there are no safetensors.

    Raises:
        ValueError: it is no causal language model, or configuration and weights do not agree.
    """
    config = read_config(spec, directory, trust_remote_code=trust_remote_code)
    named = getattr(config, "transformers_weights", None)
    if named not in (None, WHOLE, INDEX):
        raise ValueError(
            f"{spec!r} has a config.json that names its weights {str(named)[:40]!r}, and only "
            f"{WHOLE} or {INDEX} is read"
        )
    stored = find_stored_tensors(spec, directory, allow_pickle=allow_pickle)
    if is_multimodal(config):
        config, stored = take_out_text_model(spec, config, stored)
    packed = _is_packed(config)
    packs = packing in PACKINGS and not packed
    if packed and packing == "none":
        _ask_for_plain_weights(config)
    chosen: Any = dtype or config.dtype or _find_dtype(stored)
    method = describe_packing(config)
    with _explain(spec):
        if like is not None and can_share and not packs:
            shared = read_with_shared_tensors(stored, directory, config, like=like.model)
            if shared is not None:
                return shared
    if not (trust_remote_code and _has_code(config)):
        check_announced(spec, config, stored)
    with _explain(spec, method):
        model, report = _read(
            directory,
            config,
            stored,
            dtype=chosen,
            packing=packing if packs else None,
            trust_remote_code=trust_remote_code,
            device=device,
            device_map=device_map,
        )
        if packed and not _is_packed(model.config):
            # It was made plain as it was read.
            model = model.to(chosen)  # pyright: ignore
            forget_packing(model)
        elif packed and packing == "none":
            model = unpack_weights(model, chosen)
        model.generation_config = read_generation_config(directory, config)
    _check_report(spec, report)
    _check_ties(spec, model)
    model.config.name_or_path = model.name_or_path = str(directory)
    if device_map is None:
        return model if packed or packs else model.to(device)  # pyright: ignore
    if any(value.is_meta for value in model.parameters()):
        raise ValueError(
            f"{spec!r} does not fit on the GPUs here: load it with dtype='bfloat16', on more GPUs, "
            "or with device='cpu'"
        )
    return model


@contextmanager
def _explain(spec: str, method: str | None = None) -> Iterator[None]:
    """Turn what the readers of a checkpoint raise inside the block into a sentence.

    `method` is what its weights are packed by, None where they are plain.
    """
    try:
        yield
    except (*UNREADABLE, StrictDataclassError, SafetensorError) as error:
        reason = summarize_error(error)
        if method is None:
            raise ValueError(f"{spec!r} could not be loaded: {reason}") from error
        if isinstance(error, ModuleNotFoundError) and error.name:
            reason += f" (pip install {error.name})"
        raise ValueError(
            f"{spec!r} has weights packed by {method}, which could not be loaded: {reason}; a "
            "checkpoint that is not quantised needs no package"
        ) from error


def _read(
    directory: Path,
    config: PreTrainedConfig,
    stored: dict[str, StoredTensor],
    *,
    dtype: torch.dtype,
    packing: str | None,
    trust_remote_code: bool,
    device: torch.device,
    device_map: str | dict[str, Any] | None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Make the model; return it and what transformers says of the tensors' names and shapes."""
    settings: dict[str, Any] = {
        "dtype": dtype,
        "local_files_only": True,
        "output_loading_info": True,
        # Reported by name instead of by a table on stderr.
        "ignore_mismatched_sizes": True,
    }
    packs = packing is not None
    if packing is not None:
        settings["quantization_config"] = make_packing(packing, dtype)
    # Packed weights cannot be moved once they are loaded.
    if packs or _is_packed(config):
        device_map = device_map or {"": device}
    is_plain = not _is_packed(config) and not (trust_remote_code and _has_code(config))
    # In such a directory transformers would read something else.
    is_special = (directory / "adapter_config.json").exists() or any(
        name != tensor.key for name, tensor in stored.items()
    )
    if is_plain and (is_special or device_map is None or packs):
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        with open_tensors(stored) as tensors:
            return model_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                device_map=device_map,
                trust_remote_code=trust_remote_code,
                **settings,
            )
    if is_special:
        raise ValueError(
            "packed weights and code of its own need a directory without adapter_config.json, and "
            "the names of a model that is not wrapped"
        )
    return AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportReturnType]
        str(directory),
        config=config,
        trust_remote_code=trust_remote_code,
        use_safetensors=all(tensor.value is None for tensor in stored.values()),
        device_map=device_map,
        **settings,
    )


def _has_code(config: PreTrainedConfig) -> bool:
    return "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def _is_packed(config: PreTrainedConfig) -> bool:
    return getattr(config, "quantization_config", None) is not None


def _ask_for_plain_weights(config: PreTrainedConfig) -> None:
    """Let transformers make plain weights as it reads them, by the methods for which it can."""
    settings: Any = config.quantization_config
    if settings.get("quant_method") in UNPACKED_BY_READER:
        settings["dequantize"] = True


def _find_dtype(stored: dict[str, StoredTensor]) -> torch.dtype:
    known = (FLOATS[tensor.dtype] for tensor in stored.values() if tensor.dtype in FLOATS)
    return next(known, torch.float32)


def _check_report(spec: str, report: dict[str, Any]) -> None:
    """Refuse a model to which its files give too few weights, too many, or others."""
    missing = report["missing_keys"]
    homeless = {key for key in report["unexpected_keys"] if not HARMLESS.search(key)}
    if missing and homeless:
        raise ValueError(
            f"{spec!r} lacks weights for {len(missing)} of its model's parameters, the first "
            f"{min(missing)}, and holds {len(homeless)} that have no place in it, the first "
            f"{min(homeless)}: save the whole model, unwrapped, with save_pretrained"
        )
    if missing:
        raise ValueError(
            f"{spec!r} lacks weights for {len(missing)} of its model's parameters, the first "
            f"{min(missing)}: save the whole model with save_pretrained"
        )
    if homeless:
        raise ValueError(
            f"{spec!r} holds {len(homeless)} weights for which its config.json has no place, the "
            f"first {min(homeless)}: save model and configuration together, with save_pretrained"
        )
    if report["mismatched_keys"]:
        name, shape, expected = min(report["mismatched_keys"])
        raise ValueError(
            f"{spec!r} has weights of another shape than its config.json says: {name} is "
            f"{tuple(shape)} instead of {tuple(expected)}"
        )


def _check_ties(spec: str, model: PreTrainedModel) -> None:
    """Let the configuration say that the unembedding is apart, where the stored one is."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    embedding, unembedding = (
        getattr(module, "weight", None)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    if embedding is None or unembedding is None or unembedding is embedding:
        return
    if not have_same_bits(unembedding.to(embedding.device), embedding):
        warnings.warn(
            f"{spec!r} holds an unembedding that differs from its embedding, which is taken, "
            "although its config.json says that they are tied",
            stacklevel=5,
        )
        model.config.tie_word_embeddings = False
