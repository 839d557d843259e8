"""Configuration of a checkpoint, checked before anything is made of it.

A `config.json` decides how much memory a model takes and may name code. What it announces is
compared with what the files hold; what names code is refused unless it is trusted.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers import __version__ as transformers_version

from interp.files import list_files
from interp.models.gguf import summarize_error
from interp.models.multimodal import (
    CONDITIONAL,
    has_text_model_without_class,
    is_multimodal,
    suggest_text_model,
)
from interp.models.stored_weights import FLOATS, StoredTensor
from interp.models.tokenizers import UNREADABLE

MAX_BYTES = 1 << 24
"""Size of a configuration file; the largest known have less than a hundredth."""

COUNTS: dict[str, int] = {
    "num_hidden_layers": 2_000,
    "num_layers": 2_000,
    "n_layer": 2_000,
    "n_layers": 2_000,
    "layer_types": 2_000,
    "num_labels": 1_000_000,
}
"""Numbers and lists on which transformers works as soon as it reads a configuration; limits."""

KERNELS = {
    prefix + kind + suffix
    for prefix in ("", "_")
    for kind in ("attn_implementation", "experts_implementation")
    for suffix in ("", "_internal")
}
"""Settings in which a slash names code on the Hub."""

RENAMED = {"embed_out.weight": "lm_head.weight"}
"""Names in checkpoints for which transformers has others: GPT-NeoX's."""


def read_config(spec: str, directory: Path, *, trust_remote_code: bool) -> PreTrainedConfig:
    """Read a full model's configuration; refuse what is not a decoder-only language model.

    Raises:
        ValueError: it is missing, damaged, of another kind of model, or names code.
    """
    file = directory / "config.json"
    if not file.exists():
        raise ValueError(
            f"{spec!r} holds neither config.json nor adapter_config.json: "
            f"{_suggest_model(directory)}"
        )
    written = read_settings(file)
    _check_settings(spec, file, written, trust_remote_code=trust_remote_code)
    generation = directory / "generation_config.json"
    if generation.exists():
        _check_settings(
            spec, generation, read_settings(generation), trust_remote_code=trust_remote_code
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
            f"that transformers {transformers_version} cannot read: {summarize_error(error)}"
        ) from error
    _check_kind(spec, config)
    # Old ones may say that tuples are returned, which changes no number.
    config.return_dict = True
    return config


def check_announced(
    spec: str,
    config: PreTrainedConfig,
    stored: Mapping[str, StoredTensor],
) -> None:
    """Refuse a configuration that announces another model than the files hold.

    A model without memory is made of it, and its tensors compared by name and shape with the
    stored ones; packed (quantised) ones, by their numbers.

    Raises:
        ValueError: it has more layers or weights than there are, or tensors of other shapes.
    """
    layers = getattr(config, "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > len(stored):
        raise ValueError(
            f"{spec!r} has a config.json that announces {str(layers)[:40]} layers, and its files "
            f"hold {len(stored)} tensors"
        )
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # It is thrown away; what there is to say is said when it is made.
            warnings.simplefilter("ignore")
            # Settings of attention and precision are written into what is handed over.
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    except (*UNREADABLE, StrictDataclassError) as error:
        raise ValueError(
            f"{spec!r} has a config.json of which no model can be made: {summarize_error(error)}"
        ) from error
    announced = model.state_dict()
    names: dict[str, str] = {}
    num_stored = sum(math.prod(tensor.shape) for tensor in stored.values())
    if getattr(config, "quantization_config", None) is not None:
        # At least a bit for each weight, at most eight bytes for each entry.
        if model.num_parameters() > 64 * num_stored:
            raise _describe_excess(spec, model.num_parameters(), num_stored)
        return
    for key, tensor in stored.items():
        name = match_name(key, announced, model.base_model_prefix)
        if name is None:
            continue
        if names.setdefault(name, key) != key:
            raise ValueError(
                f"{spec!r} holds two tensors for {name}: {names[name]} and {key}; remove one"
            )
        expected = announced[name]
        if tensor.shape != tuple(expected.shape):
            raise ValueError(
                f"{spec!r} has weights of another shape than its config.json says: {name} is "
                f"{tensor.shape} instead of {tuple(expected.shape)}"
            )
        if expected.is_floating_point() and tensor.dtype not in FLOATS and "F8" not in tensor.dtype:
            raise ValueError(
                f"{spec!r} holds {name} in {tensor.dtype}, and its config.json has no "
                "quantization_config that says how to read it"
            )
    # Old checkpoints hold tables that are computed today; what is computed is bounded as well.
    num_announced = sum(value.numel() for value in {id(v): v for v in model.parameters()}.values())
    num_computed = sum(value.numel() for value in model.buffers())
    if num_announced > 2 * num_stored + 1 or num_computed > num_stored + (1 << 24):
        raise _describe_excess(spec, num_announced + num_computed, num_stored)


def match_name(key: str, held: Mapping[str, object], prefix: str) -> str | None:
    """Match a stored tensor's name to the model's: the same, with the body's prefix, or renamed."""
    for name in (key, f"{prefix}.{key}", RENAMED.get(key)):
        if name in held:
            return name
    return None


def _suggest_model(directory: Path) -> str:
    loadable = sorted(
        entry
        for entry in list_files(directory, "*")
        if entry.suffix == ".gguf"
        or (entry / "config.json").exists()
        or (entry / "adapter_config.json").exists()
    )
    if not loadable:
        return "a model is a directory written by save_pretrained"
    return f"give one of those in it: {', '.join(repr(str(entry)) for entry in loadable[:4])}"


def read_settings(file: Path) -> dict[str, object]:
    """Read the JSON object in a configuration file.

    Raises:
        ValueError: it is missing, too large, damaged or no object.
    """
    if not file.is_file() or file.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{str(file)!r} must be a JSON file of at most {MAX_BYTES >> 20} MB: write it anew "
            "with save_pretrained"
        )
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{str(file)!r} cannot be read: {summarize_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is not valid JSON: {summarize_error(error)}") from error
    if not isinstance(written, dict):
        raise ValueError(f"{str(file)!r} must hold an object, not {type(written).__name__}")
    return written


def _check_settings(
    spec: str, file: Path, written: Mapping[str, object], *, trust_remote_code: bool
) -> None:
    """Refuse settings that name code, that are no numbers, or that make lists without end."""
    for key, value in _walk(written):
        if key in KERNELS and "/" in str(value) and not trust_remote_code:
            raise ValueError(
                f"{spec!r} names code for its attention ({str(value)[:40]!r}), which is run only "
                "with trust_remote_code=True"
            )
        # transformers writes NaN and infinity as {"__float__": "NaN"}.
        if key == "__float__" or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(
                f"{str(file)!r} has {str(value)[:40]} for {key[:40]!r}, which must be finite"
            )
        count = len(value) if isinstance(value, list) else value
        if isinstance(count, int | float) and count > COUNTS.get(key, math.inf):
            raise ValueError(
                f"{str(file)!r} has {count} for {key!r}, which must be at most {COUNTS[key]}"
            )


def _walk(written: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield every key and value, at whatever depth; those of a list under the list's key."""
    waiting: list[tuple[str, object]] = list(written.items())
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, entry) for entry in value]


def _check_kind(spec: str, config: PreTrainedConfig) -> None:
    names = config.architectures or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{spec!r} has a config.json whose architectures are {str(names)[:40]!r}, not a list "
            "of names"
        )
    is_known = all(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    if is_known and not config.is_encoder_decoder:
        return
    if is_multimodal(config) and all(name.endswith(CONDITIONAL) for name in names):
        return
    name = " and ".join(names) or type(config).__name__
    if has_text_model_without_class(config) and all(name.endswith(CONDITIONAL) for name in names):
        raise ValueError(
            f"{spec!r} holds a {name}, whose text model has no class of its own in transformers: "
            "load the whole one there, and wrap it with interp.from_model(model, tokenizer)"
        )
    hint = suggest_text_model(name, config)
    hint = f": {hint}, and save that" if hint else " (such as LlamaForCausalLM)"
    raise ValueError(
        f"{spec!r} holds a {name}, and only text models with a decoder alone can be loaded{hint}"
    )


def _describe_excess(spec: str, announced: int, stored: int) -> ValueError:
    return ValueError(
        f"{spec!r} has a config.json that announces {announced} weights, and its files hold "
        f"{stored}"
    )
