"""Upward pass of the layered engine: a batch of questions under all restorations, once.

Questions that begin with the same tokens are two segments: the prefix, one row for all of them, and
the rest, whose attention reads the prefix's keys and values. Under a restoration the prefix is one
row too, whatever follows it.

Layers may live on several devices: rows go where a layer lives, known states where they are put in.
Nothing between the start of a pass and its end looks at a value, so that the CPU queues the layers
of a GPU without waiting for them; the losses are fetched once. Layers are not compiled and not
captured as CUDA graphs: both want the same shapes at every call, and here rows join and leave at
every layer, while the hooks and swapped forwards that restore a site are Python. What a graph would
save, the launches of kernels, is small beside chunks that fill a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.trajectories import Trajectory
from interp.models.low_rank import hold_sums
from interp.recovery.batches import Batch, PaddingSide, make_batch, make_prefix_batch
from interp.recovery.distances import DistanceScorer, Readout, check_answered
from interp.recovery.engines.layered.answer_finder import AnswerFinder
from interp.recovery.engines.layered.disk_offload import OffloadedRows
from interp.recovery.engines.layered.known_outputs import (
    compute_only_at,
    iterate_position_wise,
    replace_mixers,
    replace_mlp,
)
from interp.recovery.engines.layered.layerwise_run import (
    KeysAndValues,
    LayerwiseRun,
    PartialRun,
    call_layer,
    get_device,
)
from interp.recovery.hooks import require_state, restore_sites
from interp.recovery.measured import Measured
from interp.recovery.mixture_hooks import restore_output
from interp.recovery.module_hooks import blend, swap_parameters
from interp.recovery.pair import Pair
from interp.recovery.sites import STATE_SITES, Positions, Restoration


@dataclass(frozen=True, kw_only=True)
class _History:
    """Sites restored in a row so far; equal histories are one row."""

    sites: frozenset[str]
    positions: Positions
    layers: tuple[int, ...]
    units: tuple[tuple[int, ...], ...] | None

    @property
    def below(self) -> _History:
        """History without its last layer."""
        units = None if self.units is None else self.units[:-1]
        return replace(self, layers=self.layers[:-1], units=units)


@dataclass(frozen=True, kw_only=True)
class _Treatment:
    """Treatment of a row in a layer; `fresh` rows come straight from the base model's run."""

    sites: frozenset[str] = frozenset()
    positions: Positions = "all"
    fresh: bool = False
    units: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Segment:
    """Stretch of the questions' tokens, and what the two models computed there."""

    batch: Batch
    base_run: PartialRun
    donor_run: PartialRun


class UpwardPass:
    """One upward pass of one batch of questions."""

    def __init__(
        self,
        pair: Pair,
        trajectories: Sequence[Trajectory],
        restorations: Sequence[Restoration],
        *,
        rows_at_once: int,
        room: int,
        padding_side: PaddingSide,
        prefix: int,
    ) -> None:
        """Prepare both models' runs.

        Args:
            pair: the base model and the donor.
            trajectories: the questions.
            restorations: what to put back.
            rows_at_once: restorations per call of a layer.
            room: bytes for the rows that wait for their next layer where they were computed.
            padding_side: where shorter questions are padded.
            prefix: how many tokens that all questions begin with are run once for all.
        """
        self.pair = pair
        self.base, self.donor = pair.base.anatomy, pair.donor.anatomy
        self.restorations = restorations
        device = pair.base.device
        batches = [make_batch(trajectories, device=device, padding_side=padding_side, start=prefix)]
        if prefix:
            batches.insert(0, make_prefix_batch(trajectories, prefix, device=device))
        self.num_questions = len(trajectories)
        self.rows_at_once = rows_at_once
        self.room = room
        wanted = {site for item in restorations for site in item.layer_sites}
        own = {"attn", "coef"}
        if any(item.units is not None for item in restorations):
            own.add("head")
        self.own_runs = (
            LayerwiseRun(self.base, batches, own),
            LayerwiseRun(self.donor, batches, wanted),
        )
        runs = zip(batches, *(own_run.runs for own_run in self.own_runs), strict=True)
        self.segments = [
            _Segment(batch=batch, base_run=base, donor_run=donor) for batch, base, donor in runs
        ]

    def run(
        self, scorer: DistanceScorer, layer_done: Callable[[], object], *, answers: bool = True
    ) -> Measured:
        """Go up the layers, and score every restoration.

        Args:
            scorer: the distance from V's logits.
            layer_done: called after each layer.
            answers: find also whether a restoration gives V's answer.
        """
        with OffloadedRows(self.room) as waiting:
            for layer in range(self.base.num_layers):
                # The weights of an adapter are merged while their layer runs.
                with hold_sums(self.base.layers[layer].layer, self.donor.layers[layer].layer):
                    self._run_layer(layer, waiting)
                layer_done()
            return self._score(scorer, waiting, answers)

    def _get_history(self, restoration: Restoration, layer: int) -> _History | None:
        """Return a restoration's row after a layer, None while it is the base model's own."""
        layers = tuple(index for index in restoration.layers if index <= layer)
        if not layers or not restoration.layer_sites:
            return None
        return _History(
            sites=restoration.layer_sites,
            positions=restoration.positions,
            layers=layers,
            units=None if restoration.units is None else restoration.units[: len(layers)],
        )

    def _run_layer(self, layer: int, waiting: OffloadedRows) -> None:
        """Run a layer: the rows before it are dropped, those after it wait."""
        for own_run in self.own_runs:
            own_run.run_layer(layer)
        resid_in = tuple(
            require_state(item.base_run.layers[layer].resid_in) for item in self.segments
        )
        # Of each row its history after this layer and, if it had one, before.
        work: dict[_Treatment, list[tuple[_History, _History | None]]] = {}
        uses: Counter[_History | None] = Counter()
        for history in dict.fromkeys(self._get_history(item, layer) for item in self.restorations):
            if history is None:
                continue
            inside = history.layers[-1] == layer
            below = history.below if inside else history
            treatment = _Treatment()
            if inside:
                treatment = _Treatment(
                    sites=history.sites,
                    positions=history.positions,
                    fresh=not below.layers,
                    units=None if history.units is None else history.units[-1],
                )
            before = below if below.layers else None
            work.setdefault(treatment, []).append((history, before))
            uses[before] += 1
        for treatment, jobs in work.items():
            for start in range(0, len(jobs), self.rows_at_once):
                chunk = jobs[start : start + self.rows_at_once]
                rows = [
                    resid_in if below is None else waiting.get((layer - 1, below))
                    for _, below in chunk
                ]
                cache = KeysAndValues(self.num_questions)
                hidden = [
                    self._run_rows(layer, treatment, place, [row[place] for row in rows], cache)
                    for place in range(len(self.segments))
                ]
                for _, below in chunk:
                    uses[below] -= 1
                    if below is not None and not uses[below]:
                        waiting.drop((layer - 1, below))
                after = zip(*hidden, strict=True)
                waiting.put(
                    {(layer, history): row for (history, _), row in zip(chunk, after, strict=True)}
                )

    def _run_rows(
        self,
        layer: int,
        treatment: _Treatment,
        place: int,
        rows: Sequence[Tensor],
        cache: KeysAndValues,
    ) -> Sequence[Float[Tensor, "batch pos d_model"]]:
        """Run a layer on some rows of the segment in a place, all treated alike."""
        segment = self.segments[place]
        parts, donor_parts = self.base.layers[layer], self.donor.layers[layer]
        donor_states = segment.donor_run.layers[layer]
        batch, device = segment.batch, get_device(parts.layer)
        sites, where = treatment.sites, batch.select_positions(treatment.positions)
        everywhere = treatment.positions == "all"
        if "resid" in sites and everywhere:
            return [require_state(donor_states.resid).to(device)] * len(rows)
        # They come from where the layer below lives.
        rows = [row.to(device) for row in rows]
        attn, mlp_out = None, None
        if everywhere or not sites & STATE_SITES:
            attn, mlp_out = self._compute_known_outputs(layer, treatment, segment)
        if attn is not None:
            sites = sites - {"attn", "head"}
        if mlp_out is not None:
            sites = sites - {"coef", "mlp_out", "value", "router", "router_weights"}
        with ExitStack() as stack:
            put = stack.enter_context
            if layer == self.base.num_layers - 1:
                for module in iterate_position_wise(parts):
                    put(compute_only_at(module, batch.scored_at, batch.num_tokens))
            channels = self._get_channels(layer, treatment)
            put(restore_sites(parts, donor_parts, donor_states, sites, where, channels))
            if attn is not None:
                put(replace_mixers(parts, attn))
            if mlp_out is not None:
                put(replace_mlp(parts, mlp_out))
            if attn is not None and mlp_out is not None and self.base.additive:
                added = self._call_layer(layer, segment, torch.zeros_like(rows[0]), cache)
                return [row + added for row in rows]
            hidden = rows[0] if len(rows) == 1 else torch.cat(list(rows))
            return self._call_layer(layer, segment, hidden, cache).split(rows[0].shape[0])

    def _compute_known_outputs(
        self, layer: int, treatment: _Treatment, segment: _Segment
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the attention state and the MLP's output where they are the same in every row."""
        sites, fresh = treatment.sites, treatment.fresh
        parts, donor_parts = self.base.layers[layer], self.donor.layers[layer]
        states, donor_states = segment.base_run.layers[layer], segment.donor_run.layers[layer]
        real = segment.batch.real
        attn, mlp_out = None, None
        channels = self._get_channels(layer, treatment)
        # Some units are the donor's, the others what the row itself computes.
        own_too = channels is not None and not fresh
        if "attn" in sites:
            attn = donor_states.attn
        elif "head" in sites and not own_too:
            with ExitStack() as stack:
                if "attn_weights" in sites:
                    stack.enter_context(swap_parameters(parts.attn_out, donor_parts.attn_out))
                heads = _restore_state(
                    require_state(donor_states.head), states.head, real, channels
                )
                attn = parts.attn_out(heads.to(get_device(parts.layer)))
        elif fresh and not sites & {"head", "attn_weights", "norms"}:
            attn = states.attn
        if "mlp_out" in sites:
            mlp_out = donor_states.mlp_out
        elif ("coef" in sites and not own_too) or (fresh and sites == {"value"}):
            with ExitStack() as stack:
                if "value" in sites:
                    pairs = zip(
                        parts.list_weights("value"), donor_parts.list_weights("value"), strict=True
                    )
                    for (module, names), (other, _) in pairs:
                        stack.enter_context(swap_parameters(module, other, names))
                if parts.mixture is not None:
                    donor = donor_states.mixture if "coef" in sites else None
                    mlp_out = restore_output(parts, states.mixture, donor, channels)
                else:
                    coef = require_state(states.coef)
                    if "coef" in sites:
                        donor = require_state(donor_states.coef)
                        coef = _restore_state(donor, coef, real, channels)
                    mlp_out = parts.values(coef.to(get_device(parts.layer)))
        return attn, mlp_out

    def _get_channels(self, layer: int, treatment: _Treatment) -> list[int] | None:
        if treatment.units is None:
            return None
        (site,) = treatment.sites
        return self.base.channels(site, treatment.units, layer)

    def _call_layer(
        self,
        layer: int,
        segment: _Segment,
        hidden: Float[Tensor, "row_batch pos d_model"],
        cache: KeysAndValues,
    ) -> Float[Tensor, "row_batch pos d_model"]:
        """Call the base model's layer, on its own arguments repeated for every row."""
        call = segment.base_run.calls[layer]
        batch_size = segment.batch.input_ids.shape[0]
        return call_layer(self.base, layer, call, hidden, cache, batch_size=batch_size)

    def _score(self, scorer: DistanceScorer, waiting: OffloadedRows, answers: bool) -> Measured:
        """Average the losses of the rows above the last layer, and find those that answer."""
        segment, last = self.segments[-1], self.base.num_layers - 1
        batch = segment.batch
        base_final = batch.at_scored(require_state(segment.base_run.final))
        donor_final = batch.at_scored(require_state(segment.donor_run.final))
        target = donor_final if self.pair.direction == "restore" else base_final
        check_answered(scorer.distance, batch.all_answered)
        next_ids = batch.at_scored(batch.next_ids)
        own: Readout = "vanilla"
        other: Readout = "unlearned"
        if self.pair.direction == "restore":
            own, other = other, own
        unlearned = base_final if self.pair.direction == "restore" else donor_final
        finder = AnswerFinder(scorer, batch, unlearned) if answers else None
        losses = []
        for item in self.restorations:
            history = self._get_history(item, last)
            with ExitStack() as stack:
                if "norms" in item.sites and last in item.layers:
                    for module, donor in zip(
                        self.base.final_norms, self.donor.final_norms, strict=True
                    ):
                        stack.enter_context(swap_parameters(module, donor))
                if history is None:
                    state = base_final
                else:
                    row = waiting.get((last, history))[-1]
                    state = self.base.readout_state(batch.at_scored(row))
            readout = other if "unembed" in item.sites else own
            row_losses = scorer.compute_losses(target, state[None], next_ids, readout=readout)[0]
            # The two models' unembeddings may live on different devices.
            losses.append(row_losses.to(losses[0].device if losses else row_losses.device))
            if finder is not None:
                finder.add(state, readout)
        means = batch.average_per_question(torch.stack(losses)).cpu()
        return Measured(losses=means, answered=None if finder is None else finder.find_all())


def _restore_state(
    donor: Tensor, own: Tensor | None, where: Tensor, channels: list[int] | None
) -> Tensor:
    """Put the donor's channels into a site's state; all are the donor's where None."""
    return donor if channels is None else blend(require_state(own), donor, where, channels)
