"""NDIF, where forwards run remotely: V by its Hub id, U by what its adapter adds to V's modules.

A loaded adapter is a plain model (`adapters`). Where V is hosted and cannot be changed, U is V
with two thin matrices beside each changed module.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from interp.models.adapters import read_adapter_config
from interp.models.language_model import LanguageModel

LowRank = tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]
"""A and B with W_U = W_V + B A; the adapter's scale is in B."""

_NAME = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<half>[AB])\.weight")


def parse_hub_id(model: LanguageModel) -> tuple[str, str | None]:
    """Return the Hub id that a model was loaded by, and its revision, where one was named.

    Raises:
        ValueError: it was not loaded from the Hub.
    """
    repository, _, revision = model.name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or Path(repository).exists():
        raise ValueError(
            "remote=True runs a model that NDIF hosts, known by its Hub id (owner/name), and "
            f"{model.name!r} is not one"
        )
    return repository, revision or None


def read_low_rank_deltas(vanilla: LanguageModel, unlearned: LanguageModel) -> dict[str, LowRank]:
    """Read U minus V, for every module that the adapter changes, by the module's path.

    U must have been loaded from the directory of a LoRA adapter on V: its name says which. That V
    and the adapter make up U is checked on the weights. Empty where U is V itself.

    Raises:
        ValueError: U has another origin, its adapter changes more than what modules compute from
            their input, or V is not what the adapter was trained on.
        ImportError: peft is not installed.
    """
    if unlearned is vanilla:
        return {}
    directory = Path(unlearned.name).expanduser()
    file = directory / "adapter_model.safetensors"
    if not file.is_file():
        raise ValueError(
            "remote= needs an unlearned model that was loaded from the directory of a LoRA adapter "
            f"on {vanilla.name!r}, and {unlearned.name!r} is not one"
        )
    config = read_adapter_config(directory)
    halves: dict[str, dict[str, Tensor]] = {}
    for name, weight in load_file(file).items():
        if name.endswith(".base_layer.weight"):
            # V's own, which peft adds for a changed unembedding.
            continue
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"remote= needs an adapter of plain LoRA matrices, and {str(directory)!r} also "
                f"has {name!r}"
            )
        halves.setdefault(match["path"], {})[match["half"]] = weight.float()
    from peft import LoraConfig
    from peft.utils.other import get_pattern_key

    assert isinstance(config, LoraConfig)
    deltas = {}
    for path, half in halves.items():
        rank = len(half["A"])
        alphas = config.alpha_pattern or {}
        alpha = alphas.get(get_pattern_key(tuple(alphas), path), config.lora_alpha)
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        deltas[path] = (half["A"], scale * half["B"])
    _check_sum(vanilla, unlearned, deltas)
    return deltas


def _check_sum(
    vanilla: LanguageModel, unlearned: LanguageModel, deltas: dict[str, LowRank]
) -> None:
    """Raise ValueError unless V's weights plus the deltas are U's."""
    theirs = dict(vanilla.model.named_parameters(remove_duplicate=False))
    for name, weight in unlearned.model.named_parameters():
        expected = theirs[name]
        path = name.removesuffix(".weight")
        if path in deltas:
            a, b = deltas[path]
            delta = b @ a
            # GPT-2's Conv1D holds its weight transposed.
            linear = isinstance(vanilla.model.get_submodule(path), nn.Linear)
            expected = expected.float() + (delta if linear else delta.T).to(expected.device)
        tolerance = max(1e-5, 4 * torch.finfo(weight.dtype).eps)
        difference = (weight.to(expected.device).float() - expected.float()).abs().max()
        if difference > tolerance * expected.abs().max():
            raise ValueError(
                f"remote= needs an unlearned model that is {vanilla.name!r} plus its adapter, "
                f"and {name} of {unlearned.name!r} is not"
            )
