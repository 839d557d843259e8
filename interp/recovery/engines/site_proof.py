"""Proof that another library restores the sites of these very models, on the questions themselves.

    its logits = the model's own                                                 at every batch
    the state that it shows = the site's state, in every layer
    the donor's site put into all layers at once: its logits = those with plain hooks

The last two are proven once for a pair of models and a site. Where one fails, the engine refuses:
TransformerLens computes some blocks itself, with weights that it cut out of the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from interp.models.conversion import check_same
from interp.recovery.batches import Batch
from interp.recovery.engines.full import restore_model
from interp.recovery.hooks import record, require_state
from interp.recovery.pair import Pair
from interp.recovery.sites import ACTIVATION_SITES, Restoration

ADVICE = "use the engine layered or full"
"""What a refusal ends with."""


def check_logits(library: str, pair: Pair, batch: Batch, base: Tensor, vanilla: Tensor) -> None:
    """Check that a library computes the scored logits, [scored, vocab], that the models do.

    Args:
        library: its name.
        pair: the models.
        batch: the questions.
        base: what it computes of the base model.
        vanilla: of V.

    Raises:
        ValueError: they are others.
    """
    message = f"{library} gives other logits for this {type(pair.base.model).__name__} ({ADVICE})"
    for model, logits in ((pair.base, base), (pair.vanilla, vanilla)):
        own = batch.at_scored(model.model(**batch.inputs(model.anatomy.body)).logits)
        check_same(own, logits, message)


def check_states(
    library: str, pair: Pair, batch: Batch, states: Mapping[tuple[str, int], Tensor]
) -> None:
    """Check the donor's states that a library shows, by site and layer.

    Raises:
        ValueError: one is another tensor than the site's.
    """
    donor_run = record(pair.donor.anatomy, batch, {site for site, _ in states})
    kind = type(pair.base.model).__name__
    for (site, layer), state in states.items():
        expected = require_state(getattr(donor_run.layers[layer], site))
        message = f"{library} shows another tensor than the site {site!r} of this {kind} ({ADVICE})"
        if state.numel() != expected.numel():
            raise ValueError(message)
        check_same(expected[batch.real], state.reshape(expected.shape)[batch.real], message)


def check_restorations(
    library: str,
    pair: Pair,
    batch: Batch,
    sites: Collection[str],
    run: Callable[[Restoration], Tensor],
) -> None:
    """Check that a library restores sites as plain hooks do, each in all layers at once.

    Args:
        library: its name.
        pair: the models.
        batch: some questions.
        sites: names of sites.
        run: runs the base model under a restoration; returns the scored logits.

    Raises:
        ValueError: its logits are others.
    """
    donor_run = record(
        pair.donor.anatomy, batch, [site for site in ACTIVATION_SITES if site in sites]
    )
    layers = tuple(range(pair.base.anatomy.num_layers))
    inputs = batch.inputs(pair.base.anatomy.body)
    kind = type(pair.base.model).__name__
    for site in sites:
        restoration = Restoration(sites=(site,), layers=layers)
        with restore_model(pair, restoration, donor_run.layers, batch.real):
            expected = batch.at_scored(pair.base.model(**inputs).logits)
        message = f"{library} does not restore the site {site!r} of this {kind} ({ADVICE})"
        check_same(expected, run(restoration), message)
