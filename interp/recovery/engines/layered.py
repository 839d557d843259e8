"""All restorations in one upward pass: the default engine.

A restoration that starts at layer s leaves the layers below as the base model ran them. So the base
model runs once, its residual stream kept at every layer's input; then the layers are gone up
once with a batch of rows (restoration × question). At layer s the rows that start there join from
the kept residual stream; two restorations that agree up to a layer are one row until they part.

Work whose result is known is not done:

- with `coef` restored, the MLP's output is the donor's coefficients times the value vectors, one
  tensor whatever the row;
- with `attn` restored, the attention block does not run;
- with both, the layer adds a known tensor to the residual stream;
- at a restoration's first layer the input is the base model's own, and so are the attention state
  and the coefficients that it does not replace;
- in the last layer the MLP and the output projection run at scored positions only, and logits
  are not formed where the distance has a Gram form (`scoring`).

Everything else is done by the library's own layer code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.data.trajectories import Trajectory
from interp.models.anatomy import LayerParts
from interp.recovery.batches import Batch, PaddingSide, make_batch
from interp.recovery.pair import Pair
from interp.recovery.scoring import Distance, Scorer
from interp.recovery.sites import ACTIVATION_SITES, Positions, Restoration
from interp.recovery.states import (
    blend,
    forward_replaced,
    known,
    parameters_swapped,
    record,
    residual_of,
    restored,
)

BUDGET_FRACTION = 0.4
"""Share of a GPU's free memory that rows and recorded states may take."""


@dataclass(frozen=True, kw_only=True)
class RowBudget:
    """How much is computed at once.

    Attributes:
        chunk_tokens: tokens per call of a layer. On a CPU what its cache holds, on a GPU what fills
            it.
        bytes: memory for the rows' residual streams and the recorded states.
    """

    chunk_tokens: int
    bytes: int

    @classmethod
    def of(cls, device: torch.device) -> RowBudget:
        """What suits a device now."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            return cls(chunk_tokens=1 << 15, bytes=int(free * BUDGET_FRACTION))
        return cls(chunk_tokens=1800, bytes=1 << 30)

    def halved(self) -> RowBudget:
        """Half of everything."""
        return RowBudget(chunk_tokens=max(1, self.chunk_tokens // 2), bytes=self.bytes // 2)


def losses(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    restorations: Sequence[Restoration],
    *,
    distance: Distance = "logit_mse",
    own_precision: bool = False,
    padding_side: PaddingSide = "right",
    budget: RowBudget | None = None,
    advance: Callable[[float], object] = lambda _questions: None,
) -> Float[Tensor, "restoration query"]:
    """Losses of every restoration on every question.

    Args and result are those of the reference engine (`full.losses`), but for:

    Args:
        budget: how much is computed at once; what suits the device if None. It halves itself when
            memory runs out.
    """
    device = pair.base.device
    budget = budget or RowBudget.of(device)
    scorer = pair.scorer(distance, own_precision=own_precision)
    found = torch.empty(len(restorations), len(trajectories), dtype=torch.float64)
    lengths = [item.scored.stop for item in trajectories]
    order = sorted(range(len(trajectories)), key=lambda index: lengths[index])
    waiting = [(order, list(range(len(restorations))))] if restorations else []
    with torch.inference_mode():
        for readout in ("vanilla", "unlearned"):
            if _reads(pair, restorations, readout):
                scorer.prepare(readout)
        while waiting:
            questions, rows = waiting.pop()
            if not questions:
                continue
            count = _num_questions(pair, questions, rows, lengths, budget)
            if count == 0 and len(rows) > 1:
                waiting += [
                    (questions, rows[len(rows) // 2 :]),
                    (questions, rows[: len(rows) // 2]),
                ]
                continue
            now, later = questions[: max(1, count)], questions[max(1, count) :]
            waiting.append((later, rows))
            batch = make_batch(
                [trajectories[index] for index in now], device=device, padding_side=padding_side
            )
            share = len(now) * len(rows) / len(restorations) / pair.base.num_layers
            done = 0

            def layer_done(share: float = share) -> None:
                nonlocal done
                done += 1
                advance(share)

            try:
                result = _Pass(pair, batch, [restorations[row] for row in rows], budget).losses(
                    scorer, layer_done
                )
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or (len(now) == len(rows) == 1):
                    raise
                budget = budget.halved()
                advance(-done * share)
                waiting[-1] = (questions, rows)
                continue
            found[torch.tensor(rows)[:, None], torch.tensor(now)] = result
    return found


def _reads(pair: Pair, restorations: Sequence[Restoration], readout: str) -> bool:
    """Whether some run's final states are read by that model's unembedding."""
    own = "unlearned" if pair.direction == "restore" else "vanilla"
    return any(("unembed" in item.sites) != (readout == own) for item in restorations)


def _num_questions(
    pair: Pair, questions: list[int], rows: list[int], lengths: list[int], budget: RowBudget
) -> int:
    """How many questions, shortest first, the budget holds with these rows."""
    layers = pair.base.anatomy.layers
    d_mlp = max(layers[0].values.get_parameter("weight").shape)
    d_model = pair.base.model.config.hidden_size
    # Rows before and after a layer; the two models' recorded states.
    per_token = (2 * len(rows) * d_model + len(layers) * 2 * (2 * d_model + d_mlp)) * (
        torch.finfo(pair.base.dtype).bits // 8
    )
    count = 0
    while count < len(questions) and (count + 1) * lengths[questions[count]] * per_token <= (
        budget.bytes
    ):
        count += 1
    if count == 0:
        return 0
    # Even batches: 12 questions where 11 fit are 6 and 6.
    return math.ceil(len(questions) / math.ceil(len(questions) / count))


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
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


class _Pass:
    """One upward pass of one batch of questions."""

    def __init__(
        self, pair: Pair, batch: Batch, restorations: Sequence[Restoration], budget: RowBudget
    ) -> None:
        self.pair = pair
        self.base, self.donor = pair.base.anatomy, pair.donor.anatomy
        self.batch = batch
        self.restorations = restorations
        self.rows_at_once = max(1, budget.chunk_tokens // batch.num_tokens)
        wanted = {site for item in restorations for site in item.layer_sites}
        own = {"resid_in", "call", "attn", "coef"}
        if any(item.units is not None for item in restorations):
            own.add("head")
        self.base_run = record(self.base, batch, own)
        self.donor_run = record(self.donor, batch, wanted)
        self.scored = batch.scored.flatten().nonzero()[:, 0]

    def losses(
        self, scorer: Scorer, layer_done: Callable[[], object]
    ) -> Float[Tensor, "restoration batch"]:
        rows: dict[_History, Tensor] = {}
        for layer in range(self.base.num_layers):
            rows = self._up(layer, rows)
            layer_done()
        return self._score(scorer, rows).cpu()

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

    def _up(self, layer: int, rows: dict[_History, Tensor]) -> dict[_History, Tensor]:
        """The rows after a layer, from the rows before it."""
        work: dict[_Treatment, list[tuple[_History, Tensor]]] = {}
        for history in dict.fromkeys(self._history(item, layer) for item in self.restorations):
            if history is None:
                continue
            inside = history.layers[-1] == layer
            below = history.below if inside else history
            resid_in = known(self.base_run.layers[layer].resid_in)
            before = rows[below] if below.layers else resid_in
            treatment = _Treatment()
            if inside:
                treatment = _Treatment(
                    sites=history.sites,
                    positions=history.positions,
                    fresh=not below.layers,
                    units=None if history.units is None else history.units[-1],
                )
            work.setdefault(treatment, []).append((history, before))
        after: dict[_History, Tensor] = {}
        for treatment, jobs in work.items():
            for start in range(0, len(jobs), self.rows_at_once):
                chunk = jobs[start : start + self.rows_at_once]
                hidden = self._run_layer(layer, treatment, [before for _, before in chunk])
                after.update(zip((history for history, _ in chunk), hidden, strict=True))
        return after

    def _run_layer(
        self, layer: int, treatment: _Treatment, rows: list[Tensor]
    ) -> Sequence[Float[Tensor, "batch pos d_model"]]:
        """Run a layer on some rows, all treated alike."""
        parts, donor_parts = self.base.layers[layer], self.donor.layers[layer]
        donor_states = self.donor_run.layers[layer]
        sites, where = treatment.sites, self.batch.restored(treatment.positions)
        everywhere = treatment.positions == "all"
        if "resid" in sites and everywhere:
            return [known(donor_states.resid)] * len(rows)
        attn, mlp_out = None, None
        if everywhere or not sites & set(ACTIVATION_SITES):
            attn, mlp_out = self._known_outputs(layer, treatment)
        if attn is not None:
            sites = sites - {"attn", "head"}
        if mlp_out is not None:
            sites = sites - {"coef", "mlp_out", "value"}
        with ExitStack() as stack:
            put = stack.enter_context
            if layer == self.base.num_layers - 1:
                for module in _position_wise(parts):
                    put(_only_at(module, self.scored, self.batch.num_tokens))
            channels = self._channels(treatment)
            put(restored(parts, donor_parts, donor_states, sites, where, channels))
            if attn is not None:
                put(_attn_known(parts, attn, adds_residual=self.base.family.adds_residual))
            if mlp_out is not None:
                put(_mlp_known(parts, mlp_out, adds_residual=self.base.family.adds_residual))
            if attn is not None and mlp_out is not None and self.base.additive:
                added = self._call(layer, torch.zeros_like(rows[0]), num_rows=1)
                return [row + added for row in rows]
            hidden = rows[0] if len(rows) == 1 else torch.cat(rows)
            return self._call(layer, hidden, num_rows=len(rows)).split(rows[0].shape[0])

    def _known_outputs(
        self, layer: int, treatment: _Treatment
    ) -> tuple[Tensor | None, Tensor | None]:
        """The attention state and the MLP's output, where they are the same for every row."""
        sites, fresh = treatment.sites, treatment.fresh
        parts, donor_parts = self.base.layers[layer], self.donor.layers[layer]
        states, donor_states = self.base_run.layers[layer], self.donor_run.layers[layer]
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
                attn = parts.attn_out(self._restored_state(layer, "head", channels))
        elif fresh and not sites & {"head", "attn_weights", "norms"}:
            attn = states.attn
        if "mlp_out" in sites:
            mlp_out = donor_states.mlp_out
        elif ("coef" in sites and not own_too) or (fresh and sites == {"value"}):
            coef = known(states.coef)
            if "coef" in sites:
                coef = self._restored_state(layer, "coef", channels)
            with ExitStack() as stack:
                if "value" in sites:
                    stack.enter_context(parameters_swapped(parts.values, donor_parts.values))
                mlp_out = parts.values(coef)
        return attn, mlp_out

    def _channels(self, treatment: _Treatment) -> list[int] | None:
        if treatment.units is None:
            return None
        (site,) = treatment.sites
        return self.base.channels(site, treatment.units)

    def _restored_state(self, layer: int, site: str, channels: list[int] | None) -> Tensor:
        """A site's state with the donor's channels in it; all are the donor's where None."""
        donor = known(getattr(self.donor_run.layers[layer], site))
        if channels is None:
            return donor
        own = known(getattr(self.base_run.layers[layer], site))
        return blend(own, donor, self.batch.real, channels)

    def _call(
        self, layer: int, hidden: Float[Tensor, "row_batch pos d_model"], *, num_rows: int
    ) -> Float[Tensor, "row_batch pos d_model"]:
        """The library's own layer, on the base model's arguments repeated for every row."""
        args, kwargs = self.base_run.layers[layer].call
        batch_size = self.batch.input_ids.shape[0]

        def repeat(value: object) -> object:
            """Tensors that belong to the questions, once per row: masks, positions, biases."""
            if isinstance(value, tuple):
                return tuple(repeat(item) for item in value)
            if num_rows == 1 or not isinstance(value, Tensor) or value.ndim < 2:
                return value
            # One for all questions broadcasts, but for a mask of one question: XGLM wants it whole.
            shared = value.shape[0] == 1 and not (batch_size == 1 and value.ndim == 4)
            if shared or value.shape[0] % batch_size:
                return value
            return value.repeat(num_rows, *[1] * (value.ndim - 1))

        kwargs = {key: repeat(value) for key, value in kwargs.items()}
        return residual_of(
            self.base.layers[layer].layer(hidden, *(repeat(arg) for arg in args), **kwargs)
        )

    def _score(self, scorer: Scorer, rows: dict[_History, Tensor]) -> Tensor:
        """Mean losses of the rows above the last layer."""
        batch, last = self.batch, self.base.num_layers - 1
        base_final = self.base_run.final.flatten(0, 1)[self.scored]
        donor_final = self.donor_run.final.flatten(0, 1)[self.scored]
        target = donor_final if self.pair.direction == "restore" else base_final
        next_ids = batch.next_ids[batch.scored]
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
                    state = self.base.readout_state(rows[history].flatten(0, 1)[self.scored])
            readout = other if "unembed" in item.sites else own
            found.append(scorer.losses(target, state[None], next_ids, readout=readout)[0])
        return batch.mean_per_question(torch.stack(found))


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
        computed = forward(flat[:, positions])
        output = computed.new_zeros(*flat.shape[:2], computed.shape[-1])
        output[:, positions] = computed
        return output.view(*values.shape[:-1], -1)

    with forward_replaced(module, at_positions):
        yield


@contextmanager
def _attn_known(parts: LayerParts, attn: Tensor, *, adds_residual: bool) -> Iterator[None]:
    """Let the attention block give a known state without running."""

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        hidden = args[0] if args else kwargs["hidden_states"]
        output = attn.repeat(hidden.shape[0] // attn.shape[0], 1, 1)
        return (output + args[1] if adds_residual else output), None

    with forward_replaced(parts.attn, forward):
        yield


@contextmanager
def _mlp_known(parts: LayerParts, mlp_out: Tensor, *, adds_residual: bool) -> Iterator[None]:
    """Let the MLP give a known output without running."""

    def known(hidden: Tensor, *residual: Tensor) -> Tensor:
        repeats = hidden.numel() // hidden.shape[-1] // (mlp_out.shape[0] * mlp_out.shape[1])
        output = mlp_out.repeat(repeats, 1, 1).view(*hidden.shape[:-1], -1)
        return output + residual[0] if adds_residual else output

    with ExitStack() as stack:
        if parts.mlp is not None:
            stack.enter_context(forward_replaced(parts.mlp, known))
        else:
            for key in parts.keys:
                stack.enter_context(forward_replaced(key, lambda hidden: hidden))
            stack.enter_context(forward_replaced(parts.values, known))
        yield
