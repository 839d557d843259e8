"""The layered engine's pass: a batch of questions under all restorations, up the layers once.

Questions that begin with the same tokens are two segments: the prefix, one row for all of them, and
the rest, whose attention reads the prefix's keys and values. Under a restoration the prefix has one
course too, whatever follows it.

Layers may live on several devices: rows go where a layer lives, known states where they are put in.
Nothing between the start of a pass and its end looks at a value, so that the CPU queues the layers
of a GPU without waiting for them; the losses are fetched once. Layers are not compiled and not
captured as CUDA graphs: both want the same shapes at every call, and here rows join and leave at
every layer, while the hooks and swapped forwards that restore a site are Python. What a graph would
save, the launches of kernels, is small beside chunks that fill a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.data.trajectories import Trajectory
from interp.models.anatomy import LayerParts
from interp.models.low_rank import sums_held
from interp.recovery.batches import Batch, PaddingSide, make_batch, prefix_batch
from interp.recovery.engines.course import Course, KeysAndValues, PartialRun, call_layer, device_of
from interp.recovery.engines.shelf import Shelf
from interp.recovery.pair import Pair
from interp.recovery.scoring import Scorer, check_answered
from interp.recovery.sites import ACTIVATION_SITES, Positions, Restoration
from interp.recovery.states import (
    blend,
    forward_replaced,
    known,
    parameters_swapped,
    restored,
)


@dataclass(frozen=True, kw_only=True)
class _History:
    """What has been restored in a row so far; equal histories are one row."""

    sites: frozenset[str]
    positions: Positions
    layers: tuple[int, ...]
    units: tuple[tuple[int, ...], ...] | None

    @property
    def below(self) -> _History:
        """The history without its last layer."""
        units = None if self.units is None else self.units[:-1]
        return replace(self, layers=self.layers[:-1], units=units)


@dataclass(frozen=True, kw_only=True)
class _Treatment:
    """How a layer is run for a row; `fresh` rows come straight from the base model's run."""

    sites: frozenset[str] = frozenset()
    positions: Positions = "all"
    fresh: bool = False
    units: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Segment:
    """A stretch of the questions' tokens, and what the two models computed there."""

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
            batches.insert(0, prefix_batch(trajectories, prefix, device=device))
        self.num_questions = len(trajectories)
        self.rows_at_once = rows_at_once
        self.room = room
        wanted = {site for item in restorations for site in item.layer_sites}
        own = {"attn", "coef"}
        if any(item.units is not None for item in restorations):
            own.add("head")
        self.courses = Course(self.base, batches, own), Course(self.donor, batches, wanted)
        runs = zip(batches, *(course.runs for course in self.courses), strict=True)
        self.segments = [
            _Segment(batch=batch, base_run=base, donor_run=donor) for batch, base, donor in runs
        ]

    def losses(
        self, scorer: Scorer, layer_done: Callable[[], object]
    ) -> Float[Tensor, "restoration batch"]:
        """Go up, and score every restoration.

        Args:
            scorer: the distance from V's logits.
            layer_done: called after each layer.
        """
        with Shelf(self.room) as shelf:
            for layer in range(self.base.num_layers):
                # The weights of an adapter are merged while their layer runs.
                with sums_held(self.base.layers[layer].layer, self.donor.layers[layer].layer):
                    self._up(layer, shelf)
                layer_done()
            return self._score(scorer, shelf).cpu()

    def _history(self, restoration: Restoration, layer: int) -> _History | None:
        """The row of a restoration after a layer, None while it is the base model's own."""
        layers = tuple(index for index in restoration.layers if index <= layer)
        if not layers or not restoration.layer_sites:
            return None
        return _History(
            sites=restoration.layer_sites,
            positions=restoration.positions,
            layers=layers,
            units=None if restoration.units is None else restoration.units[: len(layers)],
        )

    def _up(self, layer: int, shelf: Shelf) -> None:
        """Run a layer: the rows before it leave the shelf, those after it come there."""
        for course in self.courses:
            course.up(layer)
        resid_in = tuple(known(item.base_run.layers[layer].resid_in) for item in self.segments)
        # Of each row its history after this layer and, if it had one, before.
        work: dict[_Treatment, list[tuple[_History, _History | None]]] = {}
        uses: Counter[_History | None] = Counter()
        for history in dict.fromkeys(self._history(item, layer) for item in self.restorations):
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
                    resid_in if below is None else shelf.get((layer - 1, below))
                    for _, below in chunk
                ]
                cache = KeysAndValues(self.num_questions)
                hidden = [
                    self._run_layer(layer, treatment, place, [row[place] for row in rows], cache)
                    for place in range(len(self.segments))
                ]
                for _, below in chunk:
                    uses[below] -= 1
                    if below is not None and not uses[below]:
                        shelf.drop((layer - 1, below))
                after = zip(*hidden, strict=True)
                shelf.put(
                    {(layer, history): row for (history, _), row in zip(chunk, after, strict=True)}
                )

    def _run_layer(
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
        batch, device = segment.batch, device_of(parts.layer)
        sites, where = treatment.sites, batch.restored(treatment.positions)
        everywhere = treatment.positions == "all"
        if "resid" in sites and everywhere:
            return [known(donor_states.resid).to(device)] * len(rows)
        # They come from where the layer below lives.
        rows = [row.to(device) for row in rows]
        attn, mlp_out = None, None
        if everywhere or not sites & set(ACTIVATION_SITES):
            attn, mlp_out = self._known_outputs(layer, treatment, segment)
        if attn is not None:
            sites = sites - {"attn", "head"}
        if mlp_out is not None:
            sites = sites - {"coef", "mlp_out", "value"}
        with ExitStack() as stack:
            put = stack.enter_context
            if layer == self.base.num_layers - 1:
                for module in _position_wise(parts):
                    put(_only_at(module, batch.scored_at, batch.num_tokens))
            channels = self._channels(treatment)
            put(restored(parts, donor_parts, donor_states, sites, where, channels))
            if attn is not None:
                put(_attn_known(parts, attn, adds_residual=self.base.family.adds_residual))
            if mlp_out is not None:
                put(_mlp_known(parts, mlp_out, adds_residual=self.base.family.adds_residual))
            if attn is not None and mlp_out is not None and self.base.additive:
                added = self._call(layer, segment, torch.zeros_like(rows[0]), cache)
                return [row + added for row in rows]
            hidden = rows[0] if len(rows) == 1 else torch.cat(list(rows))
            return self._call(layer, segment, hidden, cache).split(rows[0].shape[0])

    def _known_outputs(
        self, layer: int, treatment: _Treatment, segment: _Segment
    ) -> tuple[Tensor | None, Tensor | None]:
        """The attention state and the MLP's output, where they are the same for every row."""
        sites, fresh = treatment.sites, treatment.fresh
        parts, donor_parts = self.base.layers[layer], self.donor.layers[layer]
        states, donor_states = segment.base_run.layers[layer], segment.donor_run.layers[layer]
        real = segment.batch.real
        attn, mlp_out = None, None
        channels = self._channels(treatment)
        # Some units are the donor's, the others what the row itself computes.
        own_too = channels is not None and not fresh
        if "attn" in sites:
            attn = donor_states.attn
        elif "head" in sites and not own_too:
            with ExitStack() as stack:
                if "attn_weights" in sites:
                    stack.enter_context(parameters_swapped(parts.attn_out, donor_parts.attn_out))
                heads = _restored_state(known(donor_states.head), states.head, real, channels)
                attn = parts.attn_out(heads.to(device_of(parts.layer)))
        elif fresh and not sites & {"head", "attn_weights", "norms"}:
            attn = states.attn
        if "mlp_out" in sites:
            mlp_out = donor_states.mlp_out
        elif ("coef" in sites and not own_too) or (fresh and sites == {"value"}):
            coef = known(states.coef)
            if "coef" in sites:
                coef = _restored_state(known(donor_states.coef), coef, real, channels)
            with ExitStack() as stack:
                if "value" in sites:
                    stack.enter_context(parameters_swapped(parts.values, donor_parts.values))
                mlp_out = parts.values(coef.to(device_of(parts.layer)))
        return attn, mlp_out

    def _channels(self, treatment: _Treatment) -> list[int] | None:
        if treatment.units is None:
            return None
        (site,) = treatment.sites
        return self.base.channels(site, treatment.units)

    def _call(
        self,
        layer: int,
        segment: _Segment,
        hidden: Float[Tensor, "row_batch pos d_model"],
        cache: KeysAndValues,
    ) -> Float[Tensor, "row_batch pos d_model"]:
        """The base model's layer, on its own arguments repeated for every row."""
        call = segment.base_run.calls[layer]
        batch_size = segment.batch.input_ids.shape[0]
        module = self.base.layers[layer].layer
        return call_layer(module, call, hidden, cache, batch_size=batch_size)

    def _score(self, scorer: Scorer, shelf: Shelf) -> Tensor:
        """Mean losses of the rows above the last layer."""
        segment, last = self.segments[-1], self.base.num_layers - 1
        batch = segment.batch
        base_final = batch.at_scored(known(segment.base_run.final))
        donor_final = batch.at_scored(known(segment.donor_run.final))
        target = donor_final if self.pair.direction == "restore" else base_final
        check_answered(scorer.distance, batch.all_answered)
        next_ids = batch.at_scored(batch.next_ids)
        own, other = "vanilla", "unlearned"
        if self.pair.direction == "restore":
            own, other = other, own
        found = []
        for item in self.restorations:
            history = self._history(item, last)
            with ExitStack() as stack:
                if "norms" in item.sites and last in item.layers:
                    for module, donor in zip(
                        self.base.final_norms, self.donor.final_norms, strict=True
                    ):
                        stack.enter_context(parameters_swapped(module, donor))
                if history is None:
                    state = base_final
                else:
                    row = shelf.get((last, history))[-1]
                    state = self.base.readout_state(batch.at_scored(row))
            readout = other if "unembed" in item.sites else own
            losses = scorer.losses(target, state[None], next_ids, readout=readout)[0]
            # The two models' unembeddings may live on different devices.
            found.append(losses.to(found[0].device if found else losses.device))
        return batch.mean_per_question(torch.stack(found))


def _restored_state(
    donor: Tensor, own: Tensor | None, where: Tensor, channels: list[int] | None
) -> Tensor:
    """A site's state with the donor's channels in it; all are the donor's where None."""
    return donor if channels is None else blend(known(own), donor, where, channels)


def _position_wise(parts: LayerParts) -> Iterator[nn.Module]:
    """The modules of a layer that treat every position alone, past the mixing of positions."""
    yield parts.attn_out
    yield from parts.keys
    yield parts.values


@contextmanager
def _only_at(module: nn.Module, positions: Tensor, num_tokens: int) -> Iterator[None]:
    """Compute a position-wise module at some positions of every row; elsewhere it gives zeros."""
    forward = module.forward

    def at_positions(values: Tensor) -> Tensor:
        flat = values.reshape(-1, num_tokens, values.shape[-1])
        places = positions.to(values.device)
        computed = forward(flat[:, places])
        output = computed.new_zeros(*flat.shape[:2], computed.shape[-1])
        output[:, places] = computed
        return output.view(*values.shape[:-1], -1)

    with forward_replaced(module, at_positions):
        yield


@contextmanager
def _attn_known(parts: LayerParts, attn: Tensor, *, adds_residual: bool) -> Iterator[None]:
    """Let the attention block give a known state without running."""

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        hidden = args[0] if args else kwargs["hidden_states"]
        output = attn.to(hidden.device).repeat(hidden.shape[0] // attn.shape[0], 1, 1)
        return (output + args[1] if adds_residual else output), None

    with forward_replaced(parts.attn, forward):
        yield


@contextmanager
def _mlp_known(parts: LayerParts, mlp_out: Tensor, *, adds_residual: bool) -> Iterator[None]:
    """Let the MLP give a known output without running."""

    def known(hidden: Tensor, *residual: Tensor) -> Tensor:
        repeats = hidden.numel() // hidden.shape[-1] // (mlp_out.shape[0] * mlp_out.shape[1])
        output = mlp_out.to(hidden.device).repeat(repeats, 1, 1).view(*hidden.shape[:-1], -1)
        return output + residual[0] if adds_residual else output

    with ExitStack() as stack:
        if parts.mlp is not None:
            stack.enter_context(forward_replaced(parts.mlp, known))
        else:
            for key in parts.keys:
                stack.enter_context(forward_replaced(key, lambda hidden: hidden))
            stack.enter_context(forward_replaced(parts.values, known))
        yield
