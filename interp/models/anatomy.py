"""Module paths of each site in each architecture family.

A `Family` is a table of module paths, one per architecture. `find_anatomy` resolves it on a model;
`anatomy_proof.check_anatomy` proves that the table is true of that very model.

Paths are relative to the decoder layer unless said otherwise. To add a family, add a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.models.multimodal import suggest_text_model


@dataclass(frozen=True, kw_only=True)
class Family:
    """Module paths of one architecture family.

    Attributes:
        layers: path of the list of decoder layers, from the model.
        final: modules between the last layer's residual stream and the unembedding, from the
            model, in order; those that a configuration leaves out (None) are skipped.
        attn: the attention block.
        attn_out: its output projection; its output is the site `attn`.
        mlp: the MLP block, or None where the layer holds its matrices directly.
        keys: the MLP's first matrices (gate and up, or the one).
        values: the down projection; its input is the site `coef`, its weight the site `value`.
        adds_residual: the attention and MLP blocks take the residual stream as their second
            argument and add it themselves.
    """

    layers: str = "model.layers"
    final: tuple[str, ...] = ("model.norm",)
    attn: str = "self_attn"
    attn_out: str = "self_attn.o_proj"
    mlp: str | None = "mlp"
    keys: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    values: str = "mlp.down_proj"
    adds_residual: bool = False


PASSES: dict[str, tuple[str, Literal["input", "output"]]] = {
    "coef": ("values", "input"),
    "attn": ("attn_out", "output"),
    "head": ("attn_out", "input"),
    "mlp_out": ("values", "output"),
    "resid": ("layer", "output"),
}
"""Module that a layer's state passes, by its role (`LayerParts`), and on which side of it."""

GATED = Family()

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": GATED,
    "MistralForCausalLM": GATED,
    "Qwen2ForCausalLM": GATED,
    "Qwen3ForCausalLM": GATED,
    "Gemma2ForCausalLM": GATED,
    "Gemma3ForCausalLM": GATED,
    "OlmoForCausalLM": GATED,
    "Olmo2ForCausalLM": GATED,
    "PhiForCausalLM": Family(
        final=("model.final_layernorm",),
        attn_out="self_attn.dense",
        keys=("mlp.fc1",),
        values="mlp.fc2",
    ),
    "GPT2LMHeadModel": Family(
        layers="transformer.h",
        final=("transformer.ln_f",),
        attn="attn",
        attn_out="attn.c_proj",
        keys=("mlp.c_fc",),
        values="mlp.c_proj",
    ),
    "GPTNeoXForCausalLM": Family(
        layers="gpt_neox.layers",
        final=("gpt_neox.final_layer_norm",),
        attn="attention",
        attn_out="attention.dense",
        keys=("mlp.dense_h_to_4h",),
        values="mlp.dense_4h_to_h",
    ),
    "BloomForCausalLM": Family(
        layers="transformer.h",
        final=("transformer.ln_f",),
        attn="self_attention",
        attn_out="self_attention.dense",
        keys=("mlp.dense_h_to_4h",),
        values="mlp.dense_4h_to_h",
        adds_residual=True,
    ),
    "XGLMForCausalLM": Family(
        final=("model.layer_norm",),
        attn_out="self_attn.out_proj",
        mlp=None,
        keys=("fc1",),
        values="fc2",
    ),
    "OPTForCausalLM": Family(
        layers="model.decoder.layers",
        final=("model.decoder.final_layer_norm", "model.decoder.project_out"),
        attn_out="self_attn.out_proj",
        mlp=None,
        keys=("fc1",),
        values="fc2",
    ),
}


@dataclass(frozen=True, kw_only=True)
class LayerParts:
    """Modules of one decoder layer, by role.

    `mlp` is None where the layer holds the MLP's matrices directly. `attn_weights` are the
    projections inside the attention block, `norms` every normalisation inside the layer.
    """

    layer: nn.Module
    attn: nn.Module
    attn_out: nn.Module
    mlp: nn.Module | None
    keys: tuple[nn.Module, ...]
    values: nn.Module
    attn_weights: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Parts of one loaded model.

    `body` maps token ids to final hidden states (after `final`), without the unembedding.
    `num_heads` is the number of attention heads. `logit_cap` is c in z := c·tanh(z / c), None where
    logits are not capped. `additive` says that a layer only adds to the residual stream, never
    normalises it (OPT-350M does).
    """

    family: Family
    body: nn.Module
    layers: tuple[LayerParts, ...]
    final: tuple[nn.Module, ...]
    unembed: nn.Linear
    num_heads: int
    logit_cap: float | None
    additive: bool

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self.layers)

    def num_units(self, site: str) -> int:
        """Count the units of the site `coef` (coefficients) or `head` (heads) in a layer."""
        return self.num_heads if site == "head" else _count_inputs(self.layers[0].values)

    def channels(self, site: str, units: Sequence[int]) -> list[int]:
        """Return units' indices in a site's last axis: one per coefficient, d_head per head."""
        width = 1
        if site == "head":
            width = _count_inputs(self.layers[0].attn_out) // self.num_heads
        return [unit * width + place for unit in units for place in range(width)]

    @property
    def final_norms(self) -> tuple[nn.Module, ...]:
        """Normalisation between the last layer and the unembedding, where there is one."""
        return tuple(module for module in self.final if is_norm(module))

    def readout_state(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d"]:
        """Apply the final norm to the residual stream, which gives what the unembedding reads."""
        for module in self.final:
            residual = module(residual)
        return residual

    def logits(self, state: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows vocab"]:
        """Compute raw logits of `readout_state`'s output, capped where the architecture does."""
        return self.cap(self.unembed(state))

    def cap(self, logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
        """Cap logits where the architecture does: z := c·tanh(z / c)."""
        if self.logit_cap is None:
            return logits
        return torch.tanh(logits / self.logit_cap) * self.logit_cap


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """Resolve the module paths of a model's family.

    Raises:
        ValueError: the architecture is not in `FAMILIES`, it is a mixture of experts, or modules
            of this model were replaced by others.
    """
    name = type(model).__name__
    if any("Experts" in type(module).__name__ for module in model.modules()):
        raise ValueError(
            f"{name} is a mixture of experts: its coefficients depend on the router, so that "
            "restoring them is not defined; dense architectures are supported"
        )
    if name not in FAMILIES:
        hint = suggest_text_model(name, model.config) or f"valid: {', '.join(sorted(FAMILIES))}"
        raise ValueError(f"unknown architecture {name}; {hint}")
    family = FAMILIES[name]
    unembed = model.get_output_embeddings()
    if not isinstance(unembed, nn.Linear):
        raise ValueError(
            f"the unembedding of this {name} is a {type(unembed).__name__}, not a Linear: put back "
            "the module that its class has there"
        )
    try:
        layers = model.get_submodule(family.layers)
        assert isinstance(layers, nn.ModuleList)
        layer_parts = tuple(_find_layer_parts(layer, family) for layer in layers)
        final = tuple(module for path in family.final if (module := _get_optional(model, path)))
    except AttributeError as error:
        raise ValueError(
            f"this {name} has other modules than its class ({error}): put back those that were "
            "replaced or wrapped"
        ) from error
    return Anatomy(
        family=family,
        body=model.base_model,
        layers=layer_parts,
        final=final,
        unembed=unembed,
        num_heads=model.config.num_attention_heads,
        logit_cap=getattr(model.config, "final_logit_softcapping", None),
        additive=getattr(model.config, "do_layer_norm_before", True)
        and not getattr(model.config, "apply_residual_connection_post_layernorm", False),
    )


def _find_layer_parts(layer: nn.Module, family: Family) -> LayerParts:
    attn = layer.get_submodule(family.attn)
    return LayerParts(
        layer=layer,
        attn=attn,
        attn_out=layer.get_submodule(family.attn_out),
        mlp=None if family.mlp is None else layer.get_submodule(family.mlp),
        keys=tuple(layer.get_submodule(path) for path in family.keys),
        values=layer.get_submodule(family.values),
        attn_weights=tuple(
            module for module in attn.modules() if module._parameters and not is_norm(module)
        ),
        norms=tuple(module for module in layer.modules() if is_norm(module)),
    )


def _count_inputs(projection: nn.Module) -> int:
    """Return the width of a projection's input; GPT-2's Conv1D holds its weight transposed."""
    width = getattr(projection, "in_features", None)
    return projection.get_parameter("weight").shape[0] if width is None else width


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalisation, by its class's name."""
    return type(module).__name__.endswith("Norm")


def _get_optional(model: nn.Module, path: str) -> nn.Module | None:
    parent, _, name = path.rpartition(".")
    return getattr(model.get_submodule(parent), name, None)
