"""Forwards of a training batch through a model's layers, all of them or up to one."""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor, nn

from interp.models.language_model import LanguageModel
from interp.models.module_calls import get_residual, remove_on_exit
from interp.unlearning.examples import TrainingBatch


def run_body(model: LanguageModel, batch: TrainingBatch) -> Tensor:
    """Run all layers and the final norm [sequence pos d_model]."""
    return model.anatomy.body(input_ids=batch.input_ids, use_cache=False).last_hidden_state


def read_residual(model: LanguageModel, batch: TrainingBatch, layer: int) -> Tensor:
    """Read the residual stream after a layer [sequence pos d_model]; layers above are not run."""
    return get_residual(run_to_layer(model, batch, layer))


def run_to_layer(model: LanguageModel, batch: TrainingBatch, layer: int) -> Tensor | tuple:
    """Run a model up to a layer, and return what the layer returns."""
    kept: list[Tensor | tuple] = []

    def hook(_module: nn.Module, _args: object, output: Tensor | tuple) -> None:
        kept.append(output)
        raise _LayerReached

    reached = model.anatomy.layers[layer].layer.register_forward_hook(hook)
    with remove_on_exit(reached), suppress(_LayerReached):
        run_body(model, batch)
    return kept[0]


class _LayerReached(Exception):
    """Raised where the layer has run."""
