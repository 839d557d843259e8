"""Trainable model: a copy of V, the part of it that is trained, and θ₀ beside it.

All weights that are not trained are V's memory. Under LoRA they all are, and θ₀ is the same model
with its adapters off: no second copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.models.anatomy import Anatomy
from interp.models.anatomy_trace import is_linear
from interp.models.integrity import check_runnable
from interp.models.language_model import LanguageModel
from interp.models.low_rank_linear import LowRankLinear
from interp.models.packed_weights import is_packed
from interp.models.pairs import copy_with_shared_tensors
from interp.unlearning.checkpoints import Adapter
from interp.unlearning.objective_inputs import Reference
from interp.unlearning.objectives.task_vector import negate_task_vector

PARAMETERS = ("layers", "mlp", "attn", "lora")
"""Groups of parameters that may be trained."""


def check_trained_part(
    vanilla: LanguageModel, parameters: str, *, layers: Sequence[int] | None, lora_rank: int
) -> None:
    """Raise ValueError unless a model has the part that is to be trained.

    Raises:
        ValueError: an unknown group of parameters, layers that the model lacks, a rank below 1, or
            packed weights without LoRA.
    """
    if parameters not in PARAMETERS:
        raise ValueError(f"unknown parameter group {parameters!r}; valid: {', '.join(PARAMETERS)}")
    if vanilla.has_packed_weights and parameters != "lora":
        raise ValueError(
            f"{vanilla.name!r} has packed weights, which cannot be trained; use lora, or load "
            "it with dequantise=True"
        )
    if layers is not None and not layers:
        raise ValueError("layers is empty; name at least one, or None for all")
    for layer in layers or ():
        if not 0 <= layer < vanilla.num_layers:
            last = vanilla.num_layers - 1
            raise ValueError(f"layer {layer} is out of range 0 to {last} ({vanilla.name!r})")
    if lora_rank < 1:
        raise ValueError(f"lora_rank must be at least 1, not {lora_rank}")


class TrainableModel:
    """θ, with θ₀.

    Attributes:
        model: θ, in training mode.
        trained: its trained parameters by name.
        reference: θ₀.
    """

    def __init__(
        self,
        vanilla: LanguageModel,
        parameters: str,
        *,
        layers: Sequence[int] | None = None,
        lora_rank: int = 128,
        lora_alpha: int | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        check_runnable(vanilla, adapters=False)
        check_trained_part(vanilla, parameters, layers=layers, lora_rank=lora_rank)
        chosen = range(vanilla.num_layers) if layers is None else layers
        names = _find_names(vanilla, parameters, chosen)
        own = set() if parameters == "lora" else names
        copied = copy_with_shared_tensors(vanilla.model, own).train()
        for name, parameter in copied.named_parameters():
            parameter.requires_grad_(name in own)
        self.model = LanguageModel(copied, vanilla.tokenizer, name=f"{vanilla.name} unlearned")
        self.reference = Reference(vanilla)
        self._lora: Any = None
        self._vanilla_parameters = dict(vanilla.model.named_parameters())
        if parameters == "lora":
            # The anatomy is looked up while its modules are still there by their own names.
            assert self.model.anatomy
            self._lora = _add_adapters(
                copied, names, rank=lora_rank, alpha=lora_alpha or 2 * lora_rank, seed=seed
            )
            self._lora.base_model_name_or_path = vanilla.name
            self.reference = Reference(self.model, self._disable_adapters)
        if gradient_checkpointing:
            # Not reentrant: gradients reach adapters although no input has one.
            # Later versions of transformers renamed the method.
            enable = getattr(copied, "activation_checkpointing_enable", None)
            (enable or copied.gradient_checkpointing_enable)({"use_reentrant": False})
        self.trained = {
            name: parameter
            for name, parameter in copied.named_parameters()
            if parameter.requires_grad
        }

    def finish(self) -> LanguageModel:
        """Return θ in evaluation mode; it cannot be trained further.

        Its adapters are merged, or lie beside weights that are packed.
        """
        modules: list[tuple[str, Any]] = list(self.model.model.named_modules())
        for name, module in modules:
            if _is_adapted(module):
                base = module.get_base_layer()
                if is_packed(base):
                    kept = LowRankLinear.from_adapted(module)
                    assert kept is not None
                    _replace_module(self.model.model, name, kept)
                    continue
                # Its weight is V's memory until here, and merging changes it in place.
                base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
                module.merge()
                _replace_module(self.model.model, name, base)
        self.model.model.requires_grad_(False)
        self.model.model.eval()
        return LanguageModel(self.model.model, self.model.tokenizer, name=self.model.name)

    @contextmanager
    def evaluate_as_made(self, negated: float | None) -> Iterator[None]:
        """Put θ into evaluation mode, negated where α is given; afterwards it is as before."""
        kept = copy_weights(self.trained) if negated is not None else {}
        if negated is not None:
            self.negate(negated)
        self.model.model.eval()
        try:
            yield
        finally:
            self.model.model.train()
            self.restore(kept)

    @torch.no_grad()
    def negate(self, alpha: float) -> None:
        """Make θ what it should not be: θ₀ − α·(θ − θ₀), a task vector subtracted."""
        if self._lora is not None:
            # Of W₀ + B A, the part B A.
            for name, parameter in self.trained.items():
                if "lora_B" in name:
                    parameter.mul_(-alpha)
            return
        before = {name: self._vanilla_parameters[name] for name in self.trained}
        self.restore(negate_task_vector(before, self.trained, alpha=alpha))

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights into the trained parameters, by name."""
        for name, tensor in weights.items():
            self.trained[name].copy_(tensor)

    def extract_adapter(self) -> Adapter | None:
        """Return the adapters as they are; None where weights themselves are trained."""
        if self._lora is None:
            return None
        tensors = {
            f"base_model.model.{name.replace('.default.', '.')}": parameter.detach().contiguous()
            for name, parameter in self.trained.items()
        }
        return Adapter(config=self._lora, tensors=tensors)

    @contextmanager
    def _disable_adapters(self) -> Iterator[None]:
        adapted: list[Any] = [m for m in self.model.model.modules() if _is_adapted(m)]
        for module in adapted:
            module.enable_adapters(False)
        try:
            yield
        finally:
            for module in adapted:
                module.enable_adapters(True)


def _find_names(vanilla: LanguageModel, parameters: str, layers: Sequence[int]) -> set[str]:
    """Find the names of weights to be trained; for LoRA, of the linear maps that get an adapter."""
    anatomy: Anatomy = vanilla.anatomy
    if anatomy.has_mixtures and parameters == "lora":
        raise ValueError(
            f"{vanilla.name!r} is a mixture of experts, whose matrices are one tensor and take no "
            "LoRA adapters: train the parameters mlp, attn or layers"
        )
    modules: list[nn.Module] = []
    for layer in layers:
        parts = anatomy.layers[layer]
        if parameters == "mlp":
            weights = (*parts.list_weights("key"), *parts.list_weights("value"))
            modules += [module for module, _ in weights]
        elif parameters == "attn":
            modules += parts.attn_weights
        elif parameters == "lora":
            # Adapters change what linear maps return. A state space, the module with the skip
            # connection D, may read its output projection's weight without calling it.
            unused = [mixer.out for mixer in parts.mixers if "D" in mixer.block._parameters]
            projections = [m for m in parts.attn_weights if is_linear(m) and m not in unused]
            modules += [*parts.keys, parts.values, *projections]
        else:
            modules.append(parts.layer)
    if parameters == "layers":
        modules += anatomy.final_norms
    wanted = {id(module) for module in modules}
    if parameters == "lora":
        return {name for name, module in vanilla.model.named_modules() if id(module) in wanted}
    inside = {id(p) for module in modules for p in module.parameters()}
    return {name for name, p in vanilla.model.named_parameters() if id(p) in inside}


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "enable_adapters")


def _add_adapters(model: nn.Module, names: set[str], *, rank: int, alpha: int, seed: int) -> Any:
    """Add low-rank adapters (Hu et al. 2022), A random from the seed, B zero."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError(
            "training with LoRA needs the package peft: pip install 'interp[unlearning]'"
        ) from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=sorted(names),
        task_type="CAUSAL_LM",
    )
    inject_adapter_in_model(config, model)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            # In lower precision small steps are lost.
            parameter.data = parameter.data.float()
        if "lora_A" in name:
            # As torch initialises a linear map: uniform within 1/√(inputs).
            bound = 1 / math.sqrt(parameter.shape[-1])
            values = torch.rand(parameter.shape, generator=generator) * 2 * bound - bound
            parameter.data.copy_(values)
    return config


def _replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def copy_weights(trained: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copy the trained weights."""
    return {name: parameter.detach().clone() for name, parameter in trained.items()}
