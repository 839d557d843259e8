"""Names of sites in other libraries, translated.

TransformerLens' hook points (`blocks.3.mlp.hook_post`), parameters (`blocks.3.mlp.W_out`) and
dotted module paths (`model.layers.3.mlp.down_proj.input`, as in transformers and nnsight) become
names of sites (`coef@3`). A name is known only where it is that very tensor: `hook_attn_out` is the
site `attn` in Llama, and in Gemma-2, whose attention is followed by a norm, it is none.
"""

from __future__ import annotations

import re
from difflib import get_close_matches

from interp.models.anatomy import LayerParts
from interp.models.anatomy_paths import LayerPaths
from interp.models.integrity import check_runnable
from interp.models.language_model import LanguageModel
from interp.recovery.sites import MIXTURE_SITES, SITES

# The library's own names, which need no model.
SITE = re.compile(rf"({'|'.join((*SITES, *MIXTURE_SITES))})(@\d+)?(\[[\d,]*\])?$")

HOOK_POINTS: dict[str, tuple[str, ...]] = {
    "coef": ("mlp.out.hook_in", "mlp.hook_post"),
    "attn": ("attn.o.hook_out", "attn.hook_out", "hook_attn_out"),
    "head": ("attn.o.hook_in", "attn.hook_z"),
    "mlp_out": ("mlp.out.hook_out", "mlp.hook_out", "hook_mlp_out"),
    "resid": ("hook_out", "hook_resid_post"),
}
"""TransformerLens' hook points in a block; the first is that tensor in every architecture."""

AFTER_RESIDUAL = ("attn.hook_out", "mlp.hook_out")
"""Blocks' outputs, which hold the residual stream where the block adds it itself (BLOOM)."""

AFTER_NORM = ("hook_attn_out", "hook_mlp_out")
"""Terms added to the residual stream: normalised before that in Gemma-2 and -3 and OLMo-2."""


def translate_site_name(name: str, model: LanguageModel) -> str:
    """Translate "blocks.3.mlp.hook_post[17]" to "coef@3[17]"; names of sites stay as they are.

    Args:
        name: one name, or several joined by "+".
        model: the model whose parts are named.

    Raises:
        ValueError: a hook point or module path that is no site of this model.
    """
    if all(SITE.match(part) for part in name.split("+")):
        return name
    check_runnable(model, adapters=False)
    known = _list_names(model)
    parts = []
    for part in name.split("+"):
        path, bracket, units = part.partition("[")
        if path not in known and "." in path:
            close = get_close_matches(path, known, n=3, cutoff=0)
            raise ValueError(
                f"{path!r} is no site of this {type(model.model).__name__} with the layers 0 to "
                f"{model.num_layers - 1}; close to it are {', '.join(close)}, and sites have "
                "names of their own (coef, coef@3)"
            )
        parts.append(known.get(path, path) + bracket + units)
    return "+".join(parts)


def _list_names(model: LanguageModel) -> dict[str, str]:
    """List every name of every layer."""
    unembed = _find_unembed(model)
    known = dict.fromkeys((unembed, f"{unembed}.weight", "unembed.W_U"), "unembed")
    for layer, parts in enumerate(model.anatomy.layers):
        # A mixture's coefficients and value vectors are no one module's here or there.
        names = _list_names_in_block(parts)
        known |= {f"blocks.{layer}.{name}": f"{site}@{layer}" for name, site in names.items()}
        path = f"{model.anatomy.path}.{layer}"
        names = _list_names_in_layer(parts.paths)
        known |= {f"{path}{name}": f"{site}@{layer}" for name, site in names.items()}
        if layer:
            inputs = (f"blocks.{layer}.hook_in", f"blocks.{layer}.hook_resid_pre", f"{path}.input")
            known |= dict.fromkeys(inputs, f"resid@{layer - 1}")
    root = f"{model.model.base_model_prefix}."
    return known | {path.removeprefix(root): site for path, site in known.items()}


def _list_names_in_block(parts: LayerParts) -> dict[str, str]:
    """List TransformerLens' names of a layer's sites, without the block."""
    elsewhere: tuple[str, ...] = ()
    adds_residual = any(mixer.adds_residual for mixer in parts.paths.mixers)
    if adds_residual or parts.paths.mlp_adds_residual:
        elsewhere = AFTER_RESIDUAL
    elif hasattr(parts.layer, "post_feedforward_layernorm"):
        elsewhere = AFTER_NORM
    names = {hook: site for site, hooks in HOOK_POINTS.items() for hook in hooks}
    names |= {"mlp.W_out": "value"}
    return {
        hook: site
        for hook, site in names.items()
        if hook not in elsewhere
        and (
            parts.mixture is None or (site not in ("coef", "value") and hook != "mlp.out.hook_out")
        )
    }


def _list_names_in_layer(paths: LayerPaths) -> dict[str, str]:
    """List the modules of a layer's sites, as paths from the layer."""
    outputs = {"": "resid"}
    heads = {}
    if len(paths.mixers) == 1:
        (mixer,) = paths.mixers
        outputs |= {f".{mixer.out}": "attn"}
        outputs |= {} if mixer.adds_residual else {f".{mixer.block}": "attn"}
        heads = {f".{mixer.out}.input": "head"} if mixer.kind == "attention" else {}
    if paths.mixture is None or paths.mixture.shared_block is None:
        outputs |= {f".{paths.mlp_out}": "mlp_out"}
        if paths.mlp is not None and not paths.mlp_adds_residual:
            outputs |= {f".{paths.mlp}": "mlp_out"}
    names = {name + end: site for name, site in outputs.items() for end in ("", ".output")}
    if paths.mixture is None:
        names |= {f".{paths.values}.input": "coef", f".{paths.values}.weight": "value"}
    return names | heads


def _find_unembed(model: LanguageModel) -> str:
    unembed = model.anatomy.unembed
    return next(path for path, module in model.model.named_modules() if module is unembed)
