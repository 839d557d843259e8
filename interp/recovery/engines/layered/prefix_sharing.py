"""Proof that questions can share a prefix: keys and values are all that layers read of it.

That is so in attention. A recurrent layer keeps a state, a convolution its last inputs, an indexer
keys of its own: a model with any such layer is run on whole questions.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from interp.models.anatomy import find_anatomy
from interp.models.anatomy_trace import NUM_TOKENS, evaluating, is_same, make_tokens
from interp.recovery.batches import make_unscored_batch
from interp.recovery.engines.layered.layerwise_run import LayerwiseRun

# Of attention states in float32: sums in another order.
_TOLERANCE = 1e-4

_PROVEN: MutableMapping[PreTrainedModel, bool] = WeakKeyDictionary()


def can_share_prefix(model: PreTrainedModel) -> bool:
    """Return whether every layer mixes tokens as ever where a prefix was run before.

    Two questions of four tokens that begin with the same two are run whole, and as the engine runs
    a prefix and what follows it. It is computed once for a model.
    """
    if model not in _PROVEN:
        with torch.inference_mode(), evaluating(model):
            _PROVEN[model] = _compare_runs(model)
    return _PROVEN[model]


def _compare_runs(model: PreTrainedModel) -> bool:
    anatomy = find_anatomy(model)
    length = NUM_TOKENS // 2
    tokens = make_tokens(model)
    tokens = torch.cat([tokens, torch.cat([tokens[:, :length], tokens[:, :length]], dim=1)])
    parts = tokens[:1, :length], tokens[:, length:]
    whole = LayerwiseRun(anatomy, [make_unscored_batch(tokens)], {"attn"})
    try:
        split = LayerwiseRun(anatomy, [make_unscored_batch(part) for part in parts], {"attn"})
        for layer in range(anatomy.num_layers):
            whole.run_layer(layer)
            split.run_layer(layer)
            expected = whole.runs[0].layers[layer].attn
            actual = split.runs[1].layers[layer].attn
            assert expected is not None
            if not is_same(expected[:, length:], actual, _TOLERANCE):
                return False
    # The cache has no place for what the layer keeps.
    except (AttributeError, IndexError, TypeError, ValueError):
        return False
    return True
