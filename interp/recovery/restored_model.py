"""Activation patching in every forward of a model: the donor runs beside it on the same tokens.

In the block, every forward of the base model is R's: before it the donor reads the same tokens, and
its states replace the base model's where the restoration says. With a key-value cache
the donor has one of its own. Its layers are hung behind the base model's in the same cache object,
so that whatever happens to the one (rows dropped, beams reordered, tokens taken back) happens to
the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import DynamicCache

from interp.models.caching import find_cache_support, make_cache
from interp.models.language_model import LanguageModel
from interp.models.module_calls import remove_on_exit
from interp.models.pairs import check_pair
from interp.recovery.engines.full import restore_model
from interp.recovery.hook_points import get_decoder, hook_site
from interp.recovery.hooks import LayerStates
from interp.recovery.module_hooks import blend
from interp.recovery.pair import Pair
from interp.recovery.site_names import translate_site_name
from interp.recovery.sites import (
    STATE_SITES,
    UNIT_SITES,
    Positions,
    Restoration,
    SiteName,
)
from interp.recovery.sweep_config import SweepConfig


@contextmanager
def restore(
    unlearned: LanguageModel,
    vanilla: LanguageModel,
    sites: str | Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    positions: Positions = "all",
    units: Sequence[int] | Mapping[int, Sequence[int]] | None = None,
) -> Iterator[None]:
    """Make every forward inside the block one of this model with the other's parts put in.

    with interp.restore(unlearned, vanilla, "coef+attn", layers=range(11, 16)):
        unlearned.model.generate(**tokens)

    The other model reads the same tokens beside this one, with a key-value cache of its own.
    That is exact with and without a cache, for padded batches, sliding windows and beam search.

    Args:
        unlearned: the model that runs.
        vanilla: the model whose parts are put in.
        sites: sites, activations or parameters, one or several ("coef+attn").
        layers: the layers; all if None, or those that `sites` or `units` name.
        positions: where activation sites are restored: "all", the "prompt" (what the first
            forward of a text reads) or the "answer" (what later forwards read).
        units: single heads or coefficients, the same in each layer or by layer.

    Raises:
        ValueError: the models do not match; a site, layer, unit or position is not there; or,
            inside the block, a forward without token ids, or with a cache that is no
            `DynamicCache` or was filled outside the block, or one for a model that keeps more of
            its tokens than that holds.
    """
    check_pair(vanilla, unlearned)
    given = [sites] if isinstance(sites, str) else sites
    name = SiteName.parse("+".join(translate_site_name(site, unlearned) for site in given))
    SweepConfig(sites=(str(name),), positions=positions).check_models(vanilla, unlearned)
    if name.layer is not None:
        if layers is not None:
            raise ValueError(f"the site {str(name)!r} names its layer: leave `layers` out")
        layers = [name.layer]
    if isinstance(units, Mapping):
        if layers is not None:
            raise ValueError("units given by layer name the layers: leave `layers` out")
        by_layer = {layer: tuple(of) for layer, of in units.items()}
    else:
        shared = name.units if units is None else tuple(units)
        by_layer = dict.fromkeys(range(unlearned.num_layers) if layers is None else layers, shared)
    chosen = [by_layer[layer] for layer in sorted(by_layer)]
    restoration = Restoration(
        sites=name.sites,
        layers=tuple(sorted(by_layer)),
        positions=positions,
        units=tuple(of for of in chosen if of is not None) or None,
    )
    _check_ranges(restoration, unlearned)
    with apply_restoration(Pair(vanilla=vanilla, unlearned=unlearned), restoration):
        yield


def _check_ranges(restoration: Restoration, model: LanguageModel) -> None:
    """Raise ValueError unless the layers and units are in range."""
    for layer in restoration.layers:
        if not 0 <= layer < model.num_layers:
            raise ValueError(f"layer {layer} is out of range 0 to {model.num_layers - 1}")
    if restoration.units is None:
        return
    site = restoration.sites[0]
    count = min(model.anatomy.num_units(site, layer) for layer in restoration.layers)
    for unit in {unit for units in restoration.units for unit in units}:
        if not 0 <= unit < count:
            raise ValueError(
                f"{UNIT_SITES[site]} {unit} is out of range 0 to {count - 1} (in each layer)"
            )


@contextmanager
def apply_restoration(pair: Pair, restoration: Restoration) -> Iterator[None]:
    """Apply a restoration to every forward of the pair's base model inside the block.

    The bare model, its body and its `generate` run restored, with any `DynamicCache` or without a
    cache. The prompt is what the first forward of a text reads; with `positions` other than "all"
    later forwards are told from it by the cache. Beam search works.

    Args:
        pair: the base model that runs, and the donor.
        restoration: what to put back.

    Raises:
        ValueError: at a forward that gives embeddings in place of tokens, a cache that is no
            `DynamicCache` or was filled outside the block, or no cache where `positions` needs one.
    """
    parameters = tuple(site for site in restoration.sites if site not in STATE_SITES)
    activations = tuple(site for site in restoration.sites if site in STATE_SITES)
    for layer in restoration.layers:
        for site in activations:
            # Raises where it is no one tensor.
            pair.base.anatomy.layers[layer].get_pass(site)
    nowhere = torch.zeros(0, 0, dtype=torch.bool)
    with ExitStack() as stack:
        weights = replace(restoration, sites=parameters, units=None)
        no_states = [LayerStates()] * pair.base.num_layers
        stack.enter_context(restore_model(pair, weights, no_states, nowhere))
        if activations:
            donor = _Donor(pair, replace(restoration, sites=activations))
            stack.enter_context(donor.run_alongside())
        yield


class _Donor:
    """Donor of the forward that is under way: its states and its caches."""

    def __init__(self, pair: Pair, restoration: Restoration) -> None:
        self.base, self.donor = pair.base, pair.donor
        self.restoration = restoration
        self.states: dict[tuple[int, str], Tensor] = {}
        self.where: Bool[Tensor, "batch pos"] | None = None
        self.caches: WeakKeyDictionary[DynamicCache, DynamicCache] = WeakKeyDictionary()
        self.donor_runs = False

    @contextmanager
    def run_alongside(self) -> Iterator[None]:
        """Let the donor run before every forward of the base model."""
        runs = get_decoder(self.base)
        for model in (self.base, self.donor):
            # Before there are hooks, which would run in it.
            find_cache_support(model.model)
        with ExitStack() as stack:
            put = stack.enter_context
            put(
                remove_on_exit(
                    runs.register_forward_pre_hook(self._before_forward, with_kwargs=True)
                )
            )
            put(remove_on_exit(runs.register_forward_hook(self._after_forward, with_kwargs=True)))
            for layer in self.restoration.layers:
                for site in self.restoration.sites:
                    put(
                        hook_site(
                            self.base.anatomy.layers[layer],
                            site,
                            partial(self._replace, layer, site),
                        )
                    )
            try:
                yield
            finally:
                for cache in list(self.caches):
                    self._detach(cache)

    def _before_forward(
        self, module: nn.Module, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        if self.donor_runs:
            return None
        # Parameters that were given by place, by name.
        kwargs = (
            dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        )
        self.states.clear()
        cache = self._get_cache(kwargs)
        is_first = cache is None or cache.get_seq_length() == 0
        if cache is not None and is_first:
            self._detach(cache)
            self.caches[cache] = make_cache(self.donor.model)
        if self.restoration.positions != "prompt" or is_first:
            self._run_donor(kwargs, cache)
        if self.restoration.positions == "answer" and is_first:
            self.states.clear()
        return (), kwargs | {"past_key_values": cache}

    def _get_cache(self, kwargs: dict[str, Any]) -> DynamicCache | None:
        """Return the cache that this forward reads and fills."""
        if kwargs.get("input_ids") is None:
            raise ValueError(
                "inside restore, the model must be given input_ids, not inputs_embeds: "
                "the other model has embeddings of its own"
            )
        cache, wanted = kwargs.get("past_key_values"), kwargs.get("use_cache")
        if cache is None:
            if wanted or (wanted is None and self.base.model.config.use_cache):
                return make_cache(self.base.model)
            if self.restoration.positions != "all":
                raise ValueError(
                    f"positions={self.restoration.positions!r} needs the model's cache "
                    "(use_cache=True), which tells the prompt from the answer"
                )
            return None
        if not isinstance(cache, DynamicCache):
            raise ValueError(
                f"inside restore, the cache must be a DynamicCache (the default of generate), "
                f"not a {type(cache).__name__}"
            )
        if cache.get_seq_length() and cache not in self.caches:
            raise ValueError(
                "this cache was filled outside of restore, so that the other model has not read "
                "its tokens; begin the text inside the block"
            )
        return cache

    def _run_donor(self, kwargs: dict[str, Any], cache: DynamicCache | None) -> None:
        input_ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        self.where = torch.ones_like(input_ids, dtype=torch.bool)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self.where = mask[:, -input_ids.shape[1] :].bool()
        own = {"past_key_values": None if cache is None else self.caches[cache]}
        self.donor_runs = True
        try:
            with ExitStack() as stack, torch.no_grad():
                for layer in self.restoration.layers:
                    for site in self.restoration.sites:
                        keep = partial(self._keep, layer, site)
                        stack.enter_context(hook_site(self.donor.anatomy.layers[layer], site, keep))
                get_decoder(self.donor)(**kwargs | own)
        finally:
            self.donor_runs = False

    def _keep(self, layer: int, site: str, value: Tensor) -> None:
        # A copy: some layers add to what a block gave in place (Falcon).
        self.states[layer, site] = value.clone()

    def _replace(self, layer: int, site: str, value: Tensor) -> Tensor | None:
        state = self.states.get((layer, site))
        if self.donor_runs or state is None:
            return None
        assert self.where is not None
        units = self.restoration.units_of(layer)
        channels = None if units is None else self.base.anatomy.channels(site, units, layer)
        return blend(value, state.view(*self.where.shape, -1), self.where, channels)

    def _after_forward(
        self, _module: nn.Module, _args: tuple, kwargs: dict, _output: object
    ) -> None:
        if self.donor_runs:
            return
        self.states.clear()
        cache = kwargs["past_key_values"]
        if cache is not None and self.caches[cache].layers[0] not in cache.layers:
            cache.layers.extend(self.caches[cache].layers)

    def _detach(self, cache: DynamicCache) -> None:
        """Take the donor's layers out of a cache."""
        donor = self.caches.pop(cache, None)
        if donor is not None:
            cache.layers = [layer for layer in cache.layers if layer not in donor.layers]
