"""Conversion of models to TransformerLens and nnsight, and back.

    bridge = interp.to_transformer_lens(model)
    logits, cache = bridge.run_with_cache("The capital of France is")

    traced = interp.to_nnsight(model)
    model = interp.from_model(bridge)

Both libraries write into the modules that they wrap: TransformerLens replaces them, nnsight gives
each another `forward`. So they get a copy of the model with weights of its own, and whatever is
done with the bridge, the model that it came from stays as it was. A copy takes the model's memory
once more.
"""

from __future__ import annotations

import copy
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.models.integrity import check_runnable
from interp.models.language_model import LanguageModel
from interp.models.loading import load
from interp.models.pairs import copy_model

if TYPE_CHECKING:
    from nnsight import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge


def to_transformer_lens(model: LanguageModel) -> TransformerBridge:
    """Build a TransformerBridge that computes what the model does, on a copy of its weights.

    It is the bridge as TransformerLens builds it, without `enable_compatibility_mode`, which folds
    norms into weights and so moves every state. It reads texts as `model.encode` does.

    Raises:
        ValueError: TransformerLens does not run this architecture, or gives other logits.
        ImportError: TransformerLens is missing or older than 4.
    """
    check_runnable(model, adapters=False)
    bridge = build_bridge(copy_model(model.model), name=model.name)
    from transformer_lens.model_bridge.sources import detect_tokenizer_bos_eos

    # Handed to the builder, a tokenizer would be read anew from where it came, with other settings.
    tokenizer = copy.deepcopy(model.tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    prepends, appends = detect_tokenizer_bos_eos(tokenizer)
    bridge.cfg.default_prepend_bos = bridge.cfg.tokenizer_prepends_bos = prepends
    bridge.cfg.tokenizer_appends_eos = appends
    bridge.tokenizer = tokenizer
    return bridge


def to_nnsight(model: LanguageModel) -> TransformersModel:
    """Build an nnsight `TransformersModel` on a copy of the model's weights.

    Raises:
        ImportError: nnsight is missing or older than 0.8.
    """
    check_installed("nnsight", "0.8", extra="nnsight")
    from nnsight import TransformersModel

    # nnsight sets the tokenizer's padding.
    check_runnable(model, adapters=False)
    return TransformersModel(copy_model(model.model), tokenizer=copy.deepcopy(model.tokenizer))


def from_model(
    model: object, tokenizer: PreTrainedTokenizerBase | None = None, *, name: str | None = None
) -> LanguageModel:
    """Make a LanguageModel of another library's model.

    Args:
        model: a TransformerBridge (the LanguageModel gets a copy of its weights in plain
            transformers modules), an nnsight model or a transformers model (the LanguageModel
            holds that very model), or a LanguageModel, which is given back.
        tokenizer: its tokenizer; that of the bridge or the nnsight model if None.
        name: what the model is called in tables.

    Raises:
        ValueError: it is none of these, its weights are folded or not loaded, it has no
            tokenizer, or it is not a language model that can be restored.
    """
    if isinstance(model, LanguageModel):
        return model
    plain: Any = model
    is_bridge = _is_instance(model, "transformer_lens", "TransformerBridge")
    if is_bridge:
        check_installed("transformer-lens", "4", extra="lens")
        plain = plain.original_model
        name = name or model.cfg.model_name  # pyright: ignore[reportAttributeAccessIssue]
    elif _is_instance(model, "nnsight", "Envoy"):
        plain = plain._module
    if not isinstance(plain, PreTrainedModel):
        held = "" if plain is model else f" around a {type(plain).__name__}"
        raise ValueError(
            "a LanguageModel is made of a transformers model, a TransformerBridge or an nnsight "
            f"TransformersModel, not of {type(model).__name__}{held}"
        )
    if any(parameter.is_meta for parameter in plain.parameters()):
        raise ValueError(
            f"this {type(model).__name__} has not loaded its weights, which nnsight does with "
            "dispatch=True"
        )
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            f"this {type(model).__name__} comes without its tokenizer: pass tokenizer="
        )
    if is_bridge:
        plain = _rebuild_plain_model(model)
    return load(LanguageModel(plain, tokenizer, name=name))


def copy_modules(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model's modules, holding the very parameters of the original.

    Modules can be replaced and hooked in it, and parameters put in place of others; parameters
    themselves must not be written to. Hooks go along, such as those that set a run's precision:
    unlike those of `pairs.copy_model`, its copies stand for the very model, in one run.
    """
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def build_bridge(model: PreTrainedModel, *, name: str) -> TransformerBridge:
    """Turn a model into a TransformerBridge, in place, and prove that its logits stay.

    Raises:
        ValueError: TransformerLens does not run this architecture, or gives other logits.
        ImportError: TransformerLens is missing or older than 4.
    """
    check_installed("transformer-lens", "4", extra="lens")
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    architecture = type(model).__name__
    expected = _compute_some_logits(model)
    try:
        bridge = build_bridge_from_module(
            model, architecture, hf_config=model.config, model_name=name
        )
        logits = _compute_some_logits(bridge)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).partition(". ")[0].rstrip(".")
        raise ValueError(
            f"TransformerLens {version('transformer-lens')} does not run this {architecture}: "
            f"{reason}"
        ) from error
    check_same(expected, logits, f"TransformerLens gives other logits for this {architecture}")
    return bridge


def check_same(expected: Tensor, actual: Tensor, message: str) -> None:
    """Raise ValueError where a tensor is another, by more than rounding.

    What is not finite in the first proves nothing.
    """
    tolerance = 1e-4 if expected.dtype == torch.float32 else 8 * torch.finfo(expected.dtype).eps
    known = expected.isfinite()
    expected, actual = expected[known].float(), actual.to(expected.device)[known].float()
    if not len(expected):
        return
    scale, error = expected.abs().max(), (expected - actual).abs().max()
    if not error <= tolerance * scale:
        raise ValueError(f"{message} (largest difference {error:.3g} of {scale:.3g})")


def check_installed(package: str, oldest: str, *, extra: str) -> None:
    """Raise ImportError, with what to install, unless a package is there and new enough."""
    try:
        installed = version(package)
    except PackageNotFoundError as error:
        raise ImportError(
            f"this needs the package {package}: pip install 'interp[{extra}]'"
        ) from error
    if Version(installed) < Version(oldest):
        raise ImportError(
            f"this needs {package} {oldest} or newer, not {installed}: "
            f"pip install --upgrade 'interp[{extra}]'"
        )


def _rebuild_plain_model(bridge: Any) -> PreTrainedModel:
    """Build the transformers model inside a bridge anew, with a copy of the weights."""
    if bridge.compatibility_mode or bridge._weights_processed:
        raise ValueError(
            "this TransformerBridge is in compatibility mode, in which its weights are folded and "
            "its states are others: give one that enable_compatibility_mode was not called on"
        )
    from accelerate import init_empty_weights

    wrapped = bridge.original_model
    config = copy.deepcopy(wrapped.config)
    # TransformerLens may have chosen the slow one, whose states it shows; here it is the usual one.
    config._attn_implementation = None
    with init_empty_weights(include_buffers=False):
        plain = type(wrapped)(config)
    # The bridge's own modules stand between those of the model, which keep their names.
    tensors = {
        key.replace("._original_component", ""): tensor for key, tensor in _list_tensors(wrapped)
    }
    # One copy for all, so that tied weights stay tied.
    copies = copy.deepcopy({key: tensors[key] for key, _ in _list_tensors(plain)})
    for key, tensor in copies.items():
        parent, _, leaf = key.rpartition(".")
        setattr(plain.get_submodule(parent), leaf, tensor)
    plain.generation_config = copy.deepcopy(wrapped.generation_config)
    plain.eval()
    check_same(
        _compute_some_logits(bridge),
        _compute_some_logits(plain),
        "this TransformerBridge gives other logits than its weights in plain modules: weights "
        "were changed that only the bridge holds",
    )
    return plain


def _list_tensors(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """List parameters and buffers, by every name that they have."""
    parameters = model.named_parameters(remove_duplicate=False)
    return [*parameters, *model.named_buffers(remove_duplicate=False)]


def _compute_some_logits(model: Any) -> Tensor:
    """Compute the logits of four tokens, without the model's cache."""
    vocab_size = getattr(model, "original_model", model).config.get_text_config().vocab_size
    device = next(model.parameters()).device
    input_ids = (torch.arange(4, device=device) * 7 + 11)[None] % vocab_size
    with torch.inference_mode():
        output = model(input_ids, use_cache=False)
    return output if isinstance(output, Tensor) else output.logits


def _is_instance(model: object, package: str, name: str) -> bool:
    """Return whether an object is of a package's class, without importing the package."""
    return any(
        kind.__name__ == name and kind.__module__.startswith(f"{package}.")
        for kind in type(model).__mro__
    )
