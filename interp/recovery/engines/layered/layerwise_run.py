"""Layerwise forward of a model over the questions, one layer at a time.

What a layer computes is needed while the rows of the upward pass are at that layer, so that one
layer's states are alive at a time, however deep the model is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from interp.models.anatomy import Anatomy
from interp.models.module_calls import get_residual, remove_on_exit, replace_forward, split_call
from interp.recovery.batches import Batch
from interp.recovery.hooks import LayerStates, make_recording_hooks


class KeysAndValues(DynamicCache):
    """One layer's keys and values: those of the prefix are kept and put before the others."""

    def __init__(self, num_questions: int) -> None:
        super().__init__()
        self._num_questions = num_questions
        self._prefix: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Return what attention reads: the prefix's alone, then the prefix's before the others'."""
        if self._prefix is None:
            self._prefix = key_states, value_states
            return self._prefix
        keys, values = (
            torch.cat([before.repeat_interleave(self._num_questions, dim=0), new], dim=-2)
            for before, new in zip(self._prefix, (key_states, value_states), strict=True)
        )
        return keys, values


@dataclass(kw_only=True)
class PartialRun:
    """One model's run of a segment, as far as it has come.

    Attributes:
        calls: every layer's arguments, without the residual stream.
        hidden: the residual stream after the layer that ran last, [batch, pos, d_model].
        layers: every layer's states; those of the layer that ran last are there.
        final: what the unembedding reads, after the last layer.
    """

    calls: list[tuple[tuple, dict]]
    hidden: Tensor
    layers: list[LayerStates]
    final: Tensor | None = None


class LayerwiseRun:
    """One model's run through segments of the questions' tokens; the later read the earlier.

    Attributes:
        runs: one per segment.
    """

    def __init__(self, anatomy: Anatomy, batches: Sequence[Batch], names: Collection[str]) -> None:
        """Learn what the model gives to its layers.

        Args:
            anatomy: of the model.
            batches: the segments, or the only one.
            names: the states to keep, out of the fields of `LayerStates`.
        """
        self._anatomy, self._batches, self._names = anatomy, batches, names
        self.runs: list[PartialRun] = []
        example: Tensor | tuple | None = None
        for batch in batches:
            past = _make_past(anatomy, batches, batch)
            run, example = _capture_calls(anatomy, batch, past, example)
            self.runs.append(run)

    def run_layer(self, layer: int) -> None:
        """Run a layer; the states of the one below are forgotten."""
        parts = self._anatomy.layers[layer]
        cache = KeysAndValues(self._batches[-1].input_ids.shape[0])
        for batch, run in zip(self._batches, self.runs, strict=True):
            shape = batch.input_ids.shape
            if layer:
                run.layers[layer - 1] = LayerStates()
            # It comes from where the layer below lives.
            hidden = run.hidden.to(get_device(parts.layer))
            run.layers[layer] = states = LayerStates(resid_in=hidden)
            with ExitStack() as stack:
                for hook in make_recording_hooks(parts, states, self._names, shape):
                    stack.enter_context(hook)
                run.hidden = call_layer(
                    self._anatomy, layer, run.calls[layer], hidden, cache, batch_size=shape[0]
                )
            if layer == self._anatomy.num_layers - 1:
                run.final = self._anatomy.readout_state(run.hidden)


def call_layer(
    anatomy: Anatomy,
    layer: int,
    call: tuple[tuple, dict],
    hidden: Tensor,
    cache: Cache,
    *,
    batch_size: int,
) -> Tensor:
    """Run the library's own layer, on the model's arguments repeated for every row.

    Args:
        anatomy: of the model.
        layer: the decoder layer's number.
        call: its arguments for one row.
        hidden: the rows' residual streams, [row_batch, pos, d_model].
        cache: takes the place of the cache in the arguments, if there is one.
        batch_size: questions per row.
    """
    args, kwargs = call
    num_rows = hidden.shape[0] // batch_size

    def repeat(value: object) -> object:
        """Repeat what belongs to the questions once per row: masks, positions, biases."""
        if isinstance(value, tuple):
            return tuple(repeat(item) for item in value)
        if isinstance(value, Cache):
            return cache
        if num_rows == 1 or not isinstance(value, Tensor) or value.ndim < 2:
            return value
        # One for all questions broadcasts, but for a mask of one question: XGLM wants it whole.
        shared = value.shape[0] == 1 and not (batch_size == 1 and value.ndim == 4)
        if shared or value.shape[0] % batch_size:
            return value
        return value.repeat(num_rows, *[1] * (value.ndim - 1))

    shared, module = anatomy.shared_arguments, anatomy.layers[layer].layer
    kwargs = {key: v if key in shared else repeat(v) for key, v in kwargs.items()}
    # The first is the residual stream.
    rest = [v if place in shared else repeat(v) for place, v in enumerate(args, start=1)]
    return get_residual(module(hidden, *rest, **kwargs))


def get_device(module: nn.Module) -> torch.device:
    """Return where a module lives: a large model's layers are spread over several devices."""
    return next(module.parameters()).device


def _capture_calls(
    anatomy: Anatomy, batch: Batch, past: Cache | None, example: Tensor | tuple | None
) -> tuple[PartialRun, Tensor | tuple]:
    """Capture the layers' arguments in a forward in which layers return what they were given.

    They do so in the form of `example`, a layer's output. Where there is none yet, the first layer
    runs for that alone.
    """
    entered: list[tuple[Tensor, tuple[tuple, dict]]] = []
    outputs = [] if example is None else [example]

    def keep(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        entered.append(split_call(args, kwargs))

    def skipped(*args: object, **kwargs: object) -> Tensor | tuple:
        hidden, _ = split_call(args, kwargs)
        return (hidden, *outputs[0][1:]) if isinstance(outputs[0], tuple) else hidden

    with ExitStack() as stack:
        for index, parts in enumerate(anatomy.layers):
            layer, put = parts.layer, stack.enter_context
            put(remove_on_exit(layer.register_forward_pre_hook(keep, with_kwargs=True)))
            if index or outputs:
                put(replace_forward(layer, skipped))
            else:
                put(
                    remove_on_exit(
                        layer.register_forward_hook(lambda *run: outputs.append(run[-1]))
                    )
                )
        anatomy.body(**(batch.inputs(anatomy.body) | batch.make_past_inputs(past)))
    run = PartialRun(
        calls=[call for _, call in entered],
        hidden=entered[0][0],
        layers=[LayerStates() for _ in anatomy.layers],
    )
    return run, outputs[0]


def _make_past(anatomy: Anatomy, batches: Sequence[Batch], batch: Batch) -> Cache | None:
    """Make a cache that says how many tokens precede a segment, for masks and positions alone."""
    if len(batches) == 1:
        return None
    past = DynamicCache()
    if batch is not batches[0]:
        length = batches[0].input_ids.shape[1]
        nothing = torch.empty(1, 1, length, 1, device=batch.input_ids.device)
        for layer in range(anatomy.num_layers):
            past.update(nothing, nothing, layer)
    return past
