"""Layers below the first that is trained: what leaves them is computed once for each text.

They are V's all through a run, and give a text the same states at every step. Where only the upper
layers are trained, most of a step's forward falls away. A forward then begins at the first trained
layer: those below hand on what they are given, and the last of them gives what was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from interp.models.language_model import LanguageModel
from interp.models.module_calls import get_residual, replace_forward, split_call
from interp.unlearning.examples import Tokens, TrainingBatch, make_batch
from interp.unlearning.forwards import run_body, run_to_layer

_ROOM = 2**30
"""Bytes of states that are kept at most; of further texts they are computed at every step."""

_TOLERANCE = 1e-3
"""By how much, relative to the largest, states may differ in the proof: bfloat16 rounds so."""


class FrozenLayers:
    """States that enter the first trained layer, by text.

    Args:
        model: the model in training.
        number: how many layers are not trained, from the lowest on.
    """

    def __init__(self, model: LanguageModel, number: int) -> None:
        self.number = number
        self._model = model
        self._layers = [parts.layer for parts in model.anatomy.layers[:number]]
        self._states: dict[Tokens, Tensor] = {}
        self._size = 0
        self._is_tuple = False

    @classmethod
    def find(cls, model: LanguageModel, rows: Sequence[Tokens]) -> FrozenLayers | None:
        """Find the layers that are not trained; None where beginning above them is not the same.

        So it is where something is drawn at random (dropout), or layers above read more of those
        below than the residual stream. Tried on the shortest and the longest row.
        """
        number = next(
            (
                index
                for index, parts in enumerate(model.anatomy.layers)
                if any(parameter.requires_grad for parameter in parts.layer.parameters())
            ),
            0,
        )
        if not number or not rows:
            return None
        ordered = sorted(rows, key=lambda row: len(row.ids))
        tried = list(dict.fromkeys((ordered[0], ordered[-1])))
        frozen = cls(model, number)
        batch = make_batch(tried, model.device)
        with torch.no_grad(), torch.random.fork_rng():
            wanted = run_body(model, batch)
            try:
                found = frozen.run(tried, batch)
            # Layers that cannot do without what others below compute.
            except Exception:  # noqa: BLE001
                return None
        real = batch.positions
        gap = (found[real] - wanted[real]).abs().max()
        return frozen if gap <= _TOLERANCE * wanted[real].abs().max() else None

    def run(self, rows: Sequence[Tokens], batch: TrainingBatch) -> Tensor:
        """Run the model's body on a batch of rows [sequence pos d], from its trained layers on."""
        entering = self._gather(rows, batch)

        def hand_on(*args: object, **kwargs: object) -> Tensor | tuple:
            return self._give(split_call(args, kwargs)[0])

        def give_entering(*_args: object, **_kwargs: object) -> Tensor | tuple:
            return self._give(entering)

        forwards: list[Callable] = [hand_on] * (self.number - 1) + [give_entering]
        with ExitStack() as stack:
            for layer, forward in zip(self._layers, forwards, strict=True):
                stack.enter_context(replace_forward(layer, forward))
            return run_body(self._model, batch)

    def _give(self, states: Tensor) -> Tensor | tuple:
        return (states,) if self._is_tuple else states

    @torch.no_grad()
    def _gather(self, rows: Sequence[Tokens], batch: TrainingBatch) -> Tensor:
        """Gather what enters the first trained layer [sequence pos d], zeros at the padding."""
        known = {row: self._states[row] for row in rows if row in self._states}
        new = [row for row in dict.fromkeys(rows) if row not in known]
        if new:
            for row, states in zip(new, self._compute(new), strict=True):
                known[row] = states[: len(row.ids)].clone()
                size = known[row].numel() * known[row].element_size()
                if self._size + size <= _ROOM:
                    self._states[row] = known[row]
                    self._size += size
        some = known[rows[0]]
        entering = some.new_zeros(*batch.input_ids.shape, some.shape[-1])
        for number, row in enumerate(rows):
            entering[number, : len(row.ids)] = known[row]
        return entering

    def _compute(self, rows: Sequence[Tokens]) -> Tensor:
        """Compute what leaves the layers that are not trained [row pos d]."""
        output = run_to_layer(self._model, make_batch(rows, self._model.device), self.number - 1)
        self._is_tuple = isinstance(output, tuple)
        return get_residual(output)
