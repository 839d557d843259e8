"""Loading a checkpoint beside a model in memory: tensors with the same bits are held once.

The model starts as one whose every tensor is the other's. Each of the checkpoint's tensors is then
read, compared and dropped where it has the same bits, so that memory never holds more than the one
model and what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from interp.models.configuration import match_name
from interp.models.language_model import select_functional_settings
from interp.models.pairs import copy_with_shared_tensors, have_same_bits
from interp.models.stored_weights import FLOATS, StoredTensor, open_tensors

BLOCK = 1 << 24
"""Bytes that are compared at a time."""

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_with_shared_tensors(
    stored: Mapping[str, StoredTensor],
    directory: Path,
    config: PreTrainedConfig,
    *,
    like: PreTrainedModel,
) -> PreTrainedModel | None:
    """Read a checkpoint's model in the precision of another, on its devices, sharing its memory.

    Args:
        stored: the checkpoint's tensors.
        directory: where they are.
        config: its configuration.
        like: the model in memory; left untouched.

    Returns:
        None where the checkpoint is not tensor for tensor a model like the other: its configuration
        differs in more than names, or the names or shapes of its tensors do.

    Raises:
        OSError, SafetensorError: a file cannot be read.
    """
    if (
        type(like).__name__ not in (config.architectures or ())
        or type(like.config) is not type(config)
        or select_functional_settings(like.config) != select_functional_settings(config)
    ):
        return None
    held = like.state_dict(keep_vars=True)
    names = {
        key: name
        for key in stored
        if (name := match_name(key, held, like.base_model_prefix)) is not None
    }
    counterparts = [held[name] for name in names.values()]
    # Each tensor in memory has one counterpart; tied ones have several names, of which one is kept.
    if (
        len(names) < len(stored)
        or sorted(map(id, counterparts)) != sorted({id(tensor) for tensor in held.values()})
        or any(
            held[name].shape != stored[key].shape
            or (held[name].is_floating_point() and stored[key].dtype not in FLOATS)
            for key, name in names.items()
        )
    ):
        return None
    model = copy_with_shared_tensors(like, own=())
    for key, name in names.items():
        other = held[name].detach()
        blocks = partial(_read_blocks, stored[key], other)
        if not all(have_same_bits(block, other[rows]) for rows, block in blocks()):
            tensor = torch.empty_like(other)
            for rows, block in blocks():
                tensor[rows] = block
            _put(model, name, tensor)
    model.config.name_or_path = str(directory)
    for token in TOKENS:
        setattr(model.config, token, getattr(config, token, None))
    model.generation_config = read_generation_config(directory, config)
    return model


def read_generation_config(directory: Path, config: PreTrainedConfig) -> GenerationConfig:
    """Read how a checkpoint's answers are generated, its end tokens above all."""
    if (directory / "generation_config.json").exists():
        return GenerationConfig.from_pretrained(str(directory), local_files_only=True)
    return GenerationConfig.from_model_config(config)


def _read_blocks(stored: StoredTensor, other: Tensor) -> Iterator[tuple[Any, Tensor]]:
    """Yield a stored tensor, some rows at a time, in the precision of another of its shape.

    The file is opened anew for each, as what was read of an open file stays in memory.
    """
    step = max(1, BLOCK * max(1, len(other)) // max(1, other.nbytes)) if other.ndim else 1
    for start in range(0, len(other) if other.ndim else 1, step):
        rows = slice(start, start + step) if other.ndim else ...
        with open_tensors({"": stored}) as opened:
            yield rows, opened[""][rows].to(dtype=other.dtype, device=other.device)


def _put(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    """Give a parameter or buffer other contents; parameters tied to it have them too."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if own in module._buffers:
        module._buffers[own] = tensor
    elif type(module._parameters[own]) is nn.Parameter:
        module.get_parameter(own).data = tensor
    else:
        module._parameters[own] = nn.Parameter(tensor, requires_grad=False)
