"""Names of sites in other libraries, translated.

TransformerLens' hook points (`blocks.3.mlp.hook_post`), parameters (`blocks.3.mlp.W_out`) and
dotted module paths (`model.layers.3.mlp.down_proj.input`, as in transformers and nnsight) become
names of sites (`coef@3`). A name is known only where it is that very tensor: `hook_attn_out` is the
site `attn` in Llama, and in Gemma-2, whose attention is followed by a norm, it is none.
"""

from __future__ import annotations

from difflib import get_close_matches

from interp.models.language_model import LanguageModel

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
    for layer in range(model.num_layers):
        for pattern, site in _list_patterns(model).items():
            known[pattern.replace(".L", f".{layer}", 1)] = f"{site}@{layer}"
        if layer:
            known |= dict.fromkeys(
                (
                    f"blocks.{layer}.hook_in",
                    f"blocks.{layer}.hook_resid_pre",
                    f"{model.anatomy.family.layers}.{layer}.input",
                ),
                f"resid@{layer - 1}",
            )
    root = f"{model.model.base_model_prefix}."
    return known | {path.removeprefix(root): site for path, site in known.items()}


def _list_patterns(model: LanguageModel) -> dict[str, str]:
    """List the names of a layer's sites, the layer being L."""
    family, layer = model.anatomy.family, model.anatomy.layers[0].layer
    elsewhere: tuple[str, ...] = ()
    if family.adds_residual:
        elsewhere = AFTER_RESIDUAL
    elif hasattr(layer, "post_feedforward_layernorm"):
        elsewhere = AFTER_NORM
    patterns = {
        f"blocks.L.{hook}": site
        for site, hooks in HOOK_POINTS.items()
        for hook in hooks
        if hook not in elsewhere
    } | {"blocks.L.mlp.W_out": "value"}
    outputs = {"": "resid", f".{family.attn_out}": "attn", f".{family.values}": "mlp_out"}
    if not family.adds_residual:
        outputs |= {f".{family.attn}": "attn"}
        outputs |= {} if family.mlp is None else {f".{family.mlp}": "mlp_out"}
    path = f"{family.layers}.L"
    for module, site in outputs.items():
        patterns |= {f"{path}{module}": site, f"{path}{module}.output": site}
    return patterns | {
        f"{path}.{family.values}.input": "coef",
        f"{path}.{family.values}.weight": "value",
        f"{path}.{family.attn_out}.input": "head",
    }


def _find_unembed(model: LanguageModel) -> str:
    unembed = model.anatomy.unembed
    return next(path for path, module in model.model.named_modules() if module is unembed)
