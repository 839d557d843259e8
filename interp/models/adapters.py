"""PEFT adapters: an adapter and its base model become a plain model.

Either the adapter is merged, or, where the base is another model's memory, LoRA's matrices stand
beside the weights (`low_rank`): the same numbers without a second model. Beside packed weights they
always do (`low_rank_linear`): merged, they would be rounded to the weights' few levels.

The numbers are those of the adapter as PEFT serves it, unmerged. Two things need care. Some kinds
begin with a change of the base's weights (PiSSA, OLoRA, LoftQ), made again at every load: the base
is then a copy, and a start that chance or data decided is refused, as it cannot be made again. And
an adapter on one of two tied embeddings changes one of them alone: they are untied before.
"""

from __future__ import annotations

import copy
import re
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from interp.models.adapter_limits import check_settings, check_shapes
from interp.models.configuration import read_settings
from interp.models.low_rank import LowRankSum
from interp.models.low_rank_linear import LowRankLinear
from interp.models.packed_weights import is_packed
from interp.models.pairs import copy_model, have_same_bits
from interp.models.tokenizers import UNREADABLE

if TYPE_CHECKING:
    from peft import PeftConfig


LEAST_PEFT = "0.20"
"""Version of PEFT from which an adapter cannot name a module to import."""

MAX_NAME = 4096
"""Characters of a path, as long as systems allow."""

NOT_MERGED = {
    "ADAPTION_PROMPT": "adds attention over trained tokens instead of changing weights",
    "LILY": "shares matrices by what a layer is given instead of changing weights",
    "POLY": "mixes its matrices by the task of each text instead of changing weights",
    "SHADOW": "adds a second model instead of changing weights",
    "XLORA": "mixes other adapters by what each text is instead of changing weights",
}
"""Kinds that compute what no change of weights does."""

SHARED = re.compile(r"^base_model\.model\..*\.vblora_vector_bank\.")
"""Weights that an adapter holds once and peft names in every module."""

NOT_STATIC = {
    "alora_invocation_tokens": "acts on a part of each text alone",
    "arrow_config": "chooses among other adapters for each token",
    "sample_at_inference": "draws its weights anew for each text",
}
"""Settings by which an adapter of any kind does so."""

PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Starts of LoRA that leave the base's weights as they are."""


def read_adapter_config(directory: Path) -> PeftConfig:
    """Read the configuration of an adapter directory.

    Raises:
        ImportError: peft is not installed, or an old one.
        ValueError: the configuration is broken, names code, or is of a kind that cannot be merged.
    """
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise ImportError(
            f"{str(directory)!r} is a PEFT adapter, and peft is not installed: "
            'pip install "interp[unlearning]"'
        ) from error
    if Version(version("peft")) < Version(LEAST_PEFT):
        raise ImportError(
            f"{str(directory)!r} is a PEFT adapter, which is read with peft {LEAST_PEFT} or later, "
            f"not {version('peft')}: pip install --upgrade peft"
        )
    _check_config_file(directory / "adapter_config.json")
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except UNREADABLE as error:
        raise ValueError(
            f"the adapter_config.json in {str(directory)!r} cannot be read: {error}"
        ) from error
    kind = get_kind(config)
    reason = next((NOT_STATIC[field] for field in NOT_STATIC if getattr(config, field, None)), None)
    if config.is_prompt_learning:
        reason = "adds tokens instead of changing weights"
    reason = NOT_MERGED.get(kind, reason)
    if reason:
        raise ValueError(
            f"{str(directory)!r} is an adapter of the kind {kind} that {reason} and cannot be "
            "merged: a plain LoRA adapter can"
        )
    return config


def get_kind(config: PeftConfig) -> str:
    """Return the name of an adapter's kind, such as "LORA"."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def _check_config_file(file: Path) -> None:
    """Refuse what a configuration must not say, before peft reads it."""
    written = read_settings(file)
    for field in ("base_model_name_or_path", "revision"):
        value = written.get(field)
        if value is not None and not (isinstance(value, str) and len(value) <= MAX_NAME):
            raise ValueError(
                f"{str(file)!r} has {str(value)[:40]!r} for {field!r}, which must be the "
                "path or Hub id, or the revision, of the model that the adapter was trained on"
            )
    # What peft writes into every file.
    harmless = (None, "megatron.core")
    for field in ("megatron_core", "megatron_config"):
        if written.get(field) not in harmless:
            raise ValueError(
                f"{str(file)!r} names code to be imported ({field}: "
                f"{str(written[field])[:40]!r}): remove the field, if the adapter is not Megatron's"
            )
    if written.get("layer_replication"):
        raise ValueError(
            f"{str(file)!r} repeats layers (layer_replication), so that the model has others than "
            "its base: an adapter of the base's own layers can be read"
        )


def is_plain_lora(config: PeftConfig) -> bool:
    """Return True if an adapter's start leaves the base's weights as they are."""
    start = getattr(config, "init_lora_weights", None)
    return get_kind(config) == "LORA" and start in PLAIN_STARTS


def list_written_parameters(directory: Path, model: PreTrainedModel) -> set[str] | None:
    """List the base's own parameters that an adapter has values for: biases, embeddings.

    Returns None where the adapter is a pickle.

    Raises:
        ValueError: the file is damaged.
    """
    shapes = _read_shapes(directory)
    if shapes is None:
        return None
    names = {key.removeprefix("base_model.model.").replace(".base_layer.", ".") for key in shapes}
    # Tied parameters have several names, of which one is listed.
    every = model.named_parameters(remove_duplicate=False)
    written = {id(parameter) for name, parameter in every if name in names}
    return {name for name, parameter in model.named_parameters() if id(parameter) in written}


def _read_shapes(directory: Path) -> dict[str, tuple[int, ...]] | None:
    """Read the shapes of an adapter's weights by their names; None where it is a pickle."""
    file = directory / "adapter_model.safetensors"
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            return {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(file)!r} cannot be read: {error}") from error


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
        ValueError: the adapter was made for another model, or its start cannot be made again.
    """
    if not is_plain_lora(config) and any(map(is_packed, model.modules())):
        raise _refuse_packed(directory, config, base_name)
    _resize_embeddings(directory, model)
    if is_plain_lora(config):
        return _merge_adapter(
            directory, config, model=model, base_name=base_name, shares_memory=shares_memory
        )
    again = copy_model(model)
    # What chance decides differs between the two.
    merged = [
        _merge_adapter(directory, config, model=base, base_name=base_name, seed=seed)
        for seed, base in enumerate((model, again))
    ]
    tensors = dict(merged[1].state_dict())
    for name, tensor in merged[0].state_dict().items():
        if not have_same_bits(tensor, tensors[name]):
            start = getattr(config, "init_lora_weights", None) or config.peft_type
            raise ValueError(
                f"the adapter {str(directory)!r} begins with a change of {name} that differs at "
                f"every load ({start}): merge it where it was trained, with merge_and_unload(), "
                "and save the whole model, or save it with "
                "path_initial_model_for_weight_conversion"
            )
    return merged[0]


def _merge_adapter(
    directory: Path,
    config: PeftConfig,
    *,
    model: PreTrainedModel,
    base_name: str,
    shares_memory: bool = False,
    seed: int = 0,
) -> PreTrainedModel:
    from peft import PeftModel

    # Each takes away what it has read from its configuration.
    config = copy.deepcopy(config)
    try:
        shapes = _read_shapes(directory)
        check_settings(config, model, shapes)
        check_shapes(config, model, shapes)
        with warnings.catch_warnings(), torch.random.fork_rng():
            torch.manual_seed(seed)
            # Between the two libraries: nothing that a reader of it could do.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            adapted = PeftModel(model, config)
        report = adapted.load_adapter(str(directory), "default", torch_device=str(model.device))
        strangers = [
            name
            for name in (*report.missing_keys, *report.unexpected_keys)
            if not SHARED.search(name)
        ]
        if strangers:
            raise ValueError(f"{len(strangers)} weights have no counterpart, first {strangers[0]}")
        _untie_adapted_embeddings(model)
        keeps = _keep_beside_packed(model)
        if shares_memory:
            _keep_low_rank(model)
    except (*UNREADABLE, SafetensorError) as error:
        raise ValueError(
            f"the adapter {str(directory)!r} does not fit {base_name!r}, was it trained on another "
            f"model, or is it damaged? ({_get_last_line(error)})"
        ) from error
    if not keeps:
        raise _refuse_packed(directory, config, base_name)
    try:
        # Checked and written into a copy of each weight, never into the base's own memory.
        merged: Any = adapted.merge_and_unload(safe_merge=True)  # pyright: ignore
    except UNREADABLE as error:
        raise ValueError(
            f"the adapter {str(directory)!r} ({get_kind(config)}) cannot be merged into the "
            f"weights of {base_name!r}: {_get_last_line(error)}"
        ) from error
    # It is no longer the base, on which another adapter would do something else.
    merged.config.name_or_path = merged.name_or_path = str(directory)
    return merged


def _refuse_packed(directory: Path, config: PeftConfig, base_name: str) -> ValueError:
    return ValueError(
        f"the adapter {str(directory)!r} ({get_kind(config)}) does more than add B A to the packed "
        f"weights of {base_name!r}, and would be rounded to their levels: load the base with "
        "dequantise=True"
    )


def _get_last_line(error: BaseException) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return lines[-1].strip()[:300]


def _resize_embeddings(directory: Path, model: PreTrainedModel) -> None:
    """Give the base as many rows as the whole embeddings in an adapter's file have.

    Whoever adds tokens before training saves the embedding and the unembedding with the adapter.
    Where a row would be left to chance, nothing is done, and the shapes do not fit.
    """
    shapes = _read_shapes(directory) or {}
    parts: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    if None in parts or getattr(parts[1], "bias", None) is not None:
        return
    modules: list[tuple[str, Any]] = list(model.named_modules())
    whole = {
        id(module.weight): shapes[key]
        for path, module in modules
        if module in parts
        for key in (f"base_model.model.{path}{kind}.weight" for kind in ("", ".base_layer"))
        if shapes.get(key, ())[1:] == tuple(module.weight.shape[1:])
    }
    rows = {shape[0] for shape in whole.values()}
    is_whole = whole.keys() == {id(part.weight) for part in parts}
    if is_whole and len(rows) == 1 and rows != {len(parts[0].weight)}:
        with torch.random.fork_rng():
            model.resize_token_embeddings(rows.pop(), mean_resizing=False)


def _untie_adapted_embeddings(model: PreTrainedModel) -> None:
    """Give two tied embeddings weights of their own where an adapter is on one of them."""
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    if None in parts:
        return
    layers = [_get_base_layer(part) for part in parts]
    if layers[0].weight is not layers[1].weight or layers == [*parts]:
        return
    for layer in layers:
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def _get_base_layer(module: Any) -> Any:
    while True:
        inner = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if inner is None:
            return module
        module = inner


def _keep_beside_packed(model: PreTrainedModel) -> bool:
    """Put A and B beside the packed weights that LoRA changes; False where that is not all."""
    layers: list[tuple[str, Any]] = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(inner := getattr(module, "base_layer", None), nn.Module) and is_packed(inner)
    ]
    for path, adapted in layers:
        kept = LowRankLinear.from_adapted(adapted) if hasattr(adapted, "lora_A") else None
        if kept is None:
            return False
        model.set_submodule(path, kept)
    return True


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
