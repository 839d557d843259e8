"""PEFT adapters: an adapter and its base model become a plain model.

Either the adapter is merged, or, where the base is another model's memory, LoRA's matrices stand
beside the weights (`low_rank`): the same numbers without a second model.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from interp.models.low_rank import LowRankSum
from interp.models.tokenizers import UNREADABLE

if TYPE_CHECKING:
    from peft import PeftConfig


def read_adapter_config(directory: Path) -> PeftConfig:
    """Read the configuration of an adapter directory.

    Raises:
        ImportError: peft is not installed.
        ValueError: the configuration is broken, or this kind of adapter cannot be merged.
    """
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise ImportError(
            f"{str(directory)!r} is a PEFT adapter, and peft is not installed: "
            'pip install "interp[unlearning]"'
        ) from error
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except UNREADABLE as error:
        raise ValueError(
            f"the adapter_config.json in {str(directory)!r} cannot be read: {error}"
        ) from error
    if config.is_prompt_learning:
        raise ValueError(
            f"{str(directory)!r} is a {config.peft_type} adapter, which adds tokens instead of "
            "changing weights and cannot be merged: a LoRA adapter can"
        )
    return config


def list_written_parameters(directory: Path, model: PreTrainedModel) -> set[str] | None:
    """List the base's own parameters that an adapter has values for: biases, embeddings.

    Returns None where the adapter is a pickle.

    Raises:
        ValueError: the file is damaged.
    """
    file = directory / "adapter_model.safetensors"
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            keys = opened.keys()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(file)!r} cannot be read: {error}") from error
    names = {key.removeprefix("base_model.model.").replace(".base_layer.", ".") for key in keys}
    # Tied parameters have several names, of which one is listed.
    every = model.named_parameters(remove_duplicate=False)
    written = {id(parameter) for name, parameter in every if name in names}
    return {name for name, parameter in model.named_parameters() if id(parameter) in written}


def add_adapter(
    directory: Path,
    config: PeftConfig,
    *,
    model: PreTrainedModel,
    base_name: str,
    shares_memory: bool = False,
) -> PreTrainedModel:
    """Add an adapter to the weights of `model`, in place (for LoRA: W + scale * B A).

    Args:
        directory: holds the adapter.
        config: what it says about itself.
        model: the base.
        base_name: what it is called in an error.
        shares_memory: the base's weights are another model's, but for `list_written_parameters`.
            What plain LoRA changes is kept as W, A and B, where that is less than the merged
            weight; all else is merged into memory of its own.

    Raises:
        ValueError: the adapter was made for another model.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # Between the two libraries: nothing that a reader of it could do.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            adapted = PeftModel(model, config)
        report = adapted.load_adapter(str(directory), "default", torch_device=str(model.device))
        strangers = [*report.missing_keys, *report.unexpected_keys]
        if strangers:
            raise ValueError(f"{len(strangers)} weights have no counterpart, first {strangers[0]}")
        if shares_memory:
            _keep_low_rank(model)
        # Checked and written into a copy of each weight, never into the base's own memory.
        return adapted.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
    except (*UNREADABLE, SafetensorError) as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        raise ValueError(
            f"the adapter {str(directory)!r} does not fit {base_name!r}, was it trained on another "
            f"model, or is it damaged? ({lines[-1].strip()[:300]})"
        ) from error


def _keep_low_rank(model: PreTrainedModel) -> None:
    """Put the modules that LoRA changes back, with A and B beside their weights."""
    from peft.tuners.lora.layer import Linear

    embeddings = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    layers: list[tuple[str, Any]] = [
        (path, module) for path, module in model.named_modules() if type(module) is Linear
    ]
    for path, adapted in layers:
        if adapted.lora_variant or any(adapted.lora_bias.values()):
            continue
        module = adapted.get_base_layer()
        a, b = (half["default"].weight.detach() for half in (adapted.lora_A, adapted.lora_B))
        if (
            type(module) not in (nn.Linear, Conv1D)
            or {id(adapted), id(module)} & embeddings
            or a.numel() + b.numel() >= module.weight.numel()
        ):
            continue
        module._parameters["weight"] = LowRankSum.from_matrices(
            module.weight,
            a.float(),
            b.float(),
            scale=adapted.scaling["default"],
            transposed=adapted.fan_in_fan_out,
        )
        model.set_submodule(path, module)
