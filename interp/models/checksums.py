"""Checksums of a model's weights, cheap enough to prove at every load that a model is unchanged.

They tell a write into a model's memory, of whatever size. Who names weights by their contents
needs `LanguageModel.content_hash`, which is a cryptographic hash and takes four times as long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from interp.models.language_model import LanguageModel

COLUMNS = 4096
"""Words of eight bytes that are summed each for itself."""


@contextmanager
def check_unchanged(model: LanguageModel | None, what: str) -> Iterator[None]:
    """Raise ValueError after the block, however it ends, if it has changed a model's weights.

    Args:
        model: the model; None is not looked at.
        what: what is done in the block, such as "loading 'adapter'".

    Raises:
        ValueError: a parameter or buffer has other contents, another shape or another precision,
            or is gone; the sentence names the first.
    """
    if model is None:
        yield
        return
    before = compute_checksums(model)
    try:
        yield
    finally:
        after = compute_checksums(model)
        for name in before | after:
            if before.get(name) != after.get(name):
                raise ValueError(
                    f"{what} has changed {name} of {model.name!r}: load both anew, the second one "
                    "without like=, and report this as a fault of interp"
                )


def compute_checksums(model: LanguageModel) -> dict[str, str]:
    """Compute a checksum of every parameter and buffer, by name; tied ones count once.

    It takes 0.15 s per GB on one core.
    """
    state = dict(model.model.named_parameters(remove_duplicate=False))
    state |= dict(model.model.named_buffers(remove_duplicate=False))
    if model.has_packed_weights:
        # The scales of packed weights are neither.
        state = dict(model.model.state_dict(keep_vars=True)) | state
    first = {id(tensor): name for name, tensor in reversed(state.items())}
    sums = {name: f"{_sum(state[name].detach())} {name}" for name in first.values()}
    return {name: sums[first[id(tensor)]] for name, tensor in state.items()}


def _sum(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.contiguous().reshape(-1)
    if flat.numel() == 0:
        return digest.hexdigest()
    words = flat.view(torch.uint8)
    whole = len(words) // (8 * COLUMNS) * (8 * COLUMNS)
    if whole and words.data_ptr() % 8 == 0:
        # Overflow wraps around, so that no change of a word is lost.
        columns = words[:whole].view(torch.int64).view(-1, COLUMNS).sum(0)
        digest.update(columns.cpu().numpy().tobytes())
        words = words[whole:]
    digest.update(words.cpu().numpy().tobytes())
    return digest.hexdigest()
