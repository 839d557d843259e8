"""Parts of a model, by the role that each module has, and the sites that lie at them.

`anatomy_paths` derives the roles from a forward; `find_anatomy` looks the modules up;
`anatomy_proof.check_anatomy` proves that they do what their roles say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from interp.models.anatomy_blocks import MixerPaths
from interp.models.anatomy_paths import LayerPaths, Paths, derive_paths
from interp.models.mixture import Mixture, MixturePaths
from interp.models.multimodal import suggest_text_model

PASSES: dict[str, tuple[str, Literal["input", "output"]]] = {
    "coef": ("values", "input"),
    "attn": ("attn_out", "output"),
    "head": ("attn_out", "input"),
    "mlp_out": ("values", "output"),
    "resid": ("layer", "output"),
}
"""Module that a layer's state passes, by its role (`LayerParts`), and on which side of it."""

Weights = Sequence[tuple[nn.Module, tuple[str, ...] | None]]
"""Modules, and the names of the parameters in them that are meant, None for all."""


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Modules of a token mixer: the block and its output projection."""

    paths: MixerPaths
    block: nn.Module
    out: nn.Module


@dataclass(frozen=True, kw_only=True)
class LayerParts:
    """Modules of one decoder layer, by role; `paths` are theirs, from the layer.

    `mixers` are the token mixer, or those that stand side by side, in the order in which they run.
    In a mixture of experts `values` holds all experts' matrices, `keys` is empty, and `mixture` has
    the parts. `mlp` is None where the layer holds the MLP's matrices directly. `attn_weights` are
    all that token mixers hold but norms, `norms` every normalisation inside the layer.
    """

    paths: LayerPaths
    layer: nn.Module
    mixers: tuple[Mixer, ...]
    mlp: nn.Module | None
    keys: tuple[nn.Module, ...]
    values: nn.Module
    attn_weights: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    mixture: Mixture | None = None

    @property
    def attn_out(self) -> nn.Module:
        """Return the output projection of the only token mixer.

        Raises:
            ValueError: two mixers stand side by side.
        """
        mixer, *others = self.mixers
        if others:
            named = " and ".join(mixer.paths.block for mixer in self.mixers)
            raise ValueError(
                f"the site attn of two token mixers side by side ({named}) is no one tensor: "
                "measure it with interp.sweep, by the engine layered or full"
            )
        return mixer.out

    @property
    def kind(self) -> str:
        """Return what mixes tokens: "attention", or the name of another kind, such as MambaMixer.

        Those that stand side by side are joined by "+".
        """
        return "+".join(mixer.paths.kind for mixer in self.mixers)

    @property
    def shared_block(self) -> nn.Module | None:
        """Return the block of a mixture's shared expert that stands beside the mixture's own."""
        return None if self.mixture is None else self.mixture.shared_block

    @property
    def num_units(self) -> int:
        """Return the number of coefficients."""
        return _count_inputs(self.values) if self.mixture is None else self.mixture.num_units

    @property
    def stored_width(self) -> int:
        """Return how many numbers a token's coefficients are, as the engines keep them."""
        return _count_inputs(self.values) if self.mixture is None else self.mixture.stored_width

    def get_pass(self, site: str) -> tuple[nn.Module, Literal["input", "output"]]:
        """Return the module that a state passes, and on which side of it.

        Raises:
            ValueError: a mixture's coefficients and router pass no one module, nor do the states of
                two blocks side by side.
        """
        if self.mixture is not None and site == "mlp_out" and self.shared_block is None:
            return self.layer.get_submodule(self.paths.mlp_out), "output"
        several = self.mixture is not None and site in ("coef", "mlp_out")
        if site not in PASSES or several:
            raise ValueError(
                f"the site {site} of a mixture of experts is no one tensor: measure it with "
                "interp.sweep, by the engine layered or full"
            )
        role, side = PASSES[site]
        return getattr(self, role), side

    def list_weights(self, site: str) -> Weights:
        """List the parameters of a site that lies in layers; a dense layer has no router's."""
        if self.mixture is not None and site in ("value", "key", "router_weights"):
            return {
                "value": self.mixture.list_values,
                "key": self.mixture.list_keys,
                "router_weights": self.mixture.list_router_weights,
            }[site]()
        modules: dict[str, tuple[nn.Module, ...]] = {
            "value": (self.values,),
            "key": self.keys,
            "router_weights": (),
            "attn_weights": self.attn_weights,
            "norms": self.norms,
        }
        return [(module, None) for module in modules[site]]


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Parts of one loaded model.

    `path` is that of the list of layers. `body` maps token ids to final hidden states (after
    `final`), without the unembedding. `num_heads` is the number of heads in attention layers. The
    unembedding's outputs are multiplied by `logit_scale`; `logit_cap` is then c in
    z := c·tanh(z / c), None where logits are not capped. `additive` says that a layer only adds to
    the residual stream, never normalises it (OPT-350M does). `shared_arguments` of layers are the
    same for any number of questions.
    """

    path: str
    body: nn.Module
    layers: tuple[LayerParts, ...]
    final: tuple[nn.Module, ...]
    unembed: nn.Linear
    num_heads: int
    logit_scale: float
    logit_cap: float | None
    additive: bool
    shared_arguments: frozenset[str | int] = frozenset()

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self.layers)

    @property
    def has_mixtures(self) -> bool:
        """Return whether some layers are mixtures of experts."""
        return any(parts.mixture is not None for parts in self.layers)

    @property
    def attention_layers(self) -> list[int]:
        """Return the layers whose only token mixer is attention, all of them but in hybrids."""
        return [layer for layer, parts in enumerate(self.layers) if parts.kind == "attention"]

    def num_units(self, site: str, layer: int | None = None) -> int:
        """Count the units of the site `coef` (coefficients) or `head` (heads) in a layer.

        Where no layer is named, those that every layer has.
        """
        if site == "head":
            return self.num_heads
        layers = self.layers if layer is None else (self.layers[layer],)
        return min(parts.num_units for parts in layers)

    def channels(self, site: str, units: Sequence[int], layer: int) -> list[int]:
        """Return units' indices in a site's last axis: one per coefficient, d_head per head."""
        width = 1
        if site == "head":
            width = _count_inputs(self.layers[layer].attn_out) // self.num_heads
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
        """Compute logits of `readout_state`'s output, scaled and capped as the model does."""
        return self.finish_logits(self.unembed(state))

    def finish_logits(self, logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
        """Scale and cap the unembedding's outputs as the model does: z := c·tanh(s·z / c)."""
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        if self.logit_cap is None:
            return logits
        return torch.tanh(logits / self.logit_cap) * self.logit_cap


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """Find the parts of a model.

    They are derived once for a model: adapters and other changes inside leave its paths as they
    are.

    Raises:
        ValueError: a part cannot be told.
    """
    name = type(model).__name__
    unembed = model.get_output_embeddings()
    if not isinstance(unembed, nn.Linear):
        raise ValueError(
            f"the unembedding of this {name} is a {type(unembed).__name__}, not a Linear: "
            + (suggest_text_model(name, model.config) or "put back what its class has there")
        )
    paths = _PATHS.get(model)
    if paths is None:
        kind = _describe_kind(model)
        try:
            paths = _PATHS[model] = _KNOWN.get(kind) or derive_paths(model)
        except ValueError as error:
            raise ValueError(f"{name} cannot be opened: {error}") from error
        _KNOWN[kind] = paths
    try:
        layers = model.get_submodule(paths.layers)
        assert isinstance(layers, nn.ModuleList)
        layer_parts = tuple(
            _find_layer_parts(layer, of_layer)
            for layer, of_layer in zip(layers, paths.parts, strict=True)
        )
        final = tuple(model.get_submodule(path) for path in paths.final)
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"this {name} has other modules than its class ({error}): put back those that were "
            "replaced or wrapped"
        ) from error
    return Anatomy(
        path=paths.layers,
        body=model.base_model,
        layers=layer_parts,
        final=final,
        unembed=unembed,
        num_heads=get_setting(model.config.get_text_config(), "num_attention_heads") or 0,
        logit_scale=paths.logit_scale,
        logit_cap=paths.logit_cap,
        additive=paths.additive,
        shared_arguments=paths.shared_arguments,
    )


def get_setting(config: PreTrainedConfig, name: str) -> Any:
    """Return a setting of a configuration; None where there is none, or layers have their own."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        # Of layers that differ, the library knows no common one.
        return None


# Paths of models, derived before anything inside was changed.
_PATHS: MutableMapping[PreTrainedModel, Paths] = WeakKeyDictionary()

# And by the kind of model: of one whose weights are not finite, nothing could be derived.
_KNOWN: dict[str, Paths] = {}


def _describe_kind(model: PreTrainedModel) -> str:
    """Return a digest of a model's modules and configuration, which is the same for V and U."""
    modules = [(name, type(module).__qualname__) for name, module in model.named_modules()]
    config = model.config.to_dict()
    for key in ("_name_or_path", "transformers_version", "architectures"):
        config.pop(key, None)
    written = json.dumps([type(model).__qualname__, modules, config], default=str, sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()


def _find_layer_parts(layer: nn.Module, paths: LayerPaths) -> LayerParts:
    mixers = tuple(
        Mixer(paths=of, block=layer.get_submodule(of.block), out=layer.get_submodule(of.out))
        for of in paths.mixers
    )
    return LayerParts(
        paths=paths,
        layer=layer,
        mixers=mixers,
        mlp=None if paths.mlp is None else layer.get_submodule(paths.mlp),
        keys=tuple(layer.get_submodule(path) for path in paths.keys),
        values=layer.get_submodule(paths.values),
        attn_weights=tuple(
            module
            for mixer in mixers
            for module in mixer.block.modules()
            if module._parameters and not is_norm(module)
        ),
        norms=tuple(module for module in layer.modules() if is_norm(module)),
        mixture=None if paths.mixture is None else _find_mixture(layer, paths.mixture),
    )


def _find_mixture(layer: nn.Module, paths: MixturePaths) -> Mixture:
    experts = layer.get_submodule(paths.experts)
    if experts._parameters.get("down_proj") is None:
        raise ValueError(f"{paths.experts} is a {type(experts).__name__} without down_proj")

    def find(path: str | None) -> nn.Module | None:
        return None if path is None else layer.get_submodule(path)

    return Mixture(
        experts=experts,
        top_k=paths.top_k,
        routers=tuple(layer.get_submodule(path) for path in paths.routers),
        shared_keys=tuple(layer.get_submodule(path) for path in paths.shared_keys),
        shared_values=find(paths.shared_values),
        shared_gate=find(paths.shared_gate),
        shared_block=find(paths.shared_block),
    )


def _count_inputs(projection: nn.Module) -> int:
    """Return the width of a projection's input; GPT-2's Conv1D holds its weight transposed."""
    width = getattr(projection, "in_features", None)
    return projection.get_parameter("weight").shape[0] if width is None else width


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalisation, by its class's name."""
    return "Norm" in type(module).__name__ and not list(module.children())
