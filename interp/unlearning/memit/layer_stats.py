"""Layer statistics of MEMIT (Meng et al. 2023): second moments C and the update Δ.

    Δ = R Kᵀ (λC + KKᵀ)⁻¹

is the change of a down projection that moves its outputs on the keys K by R, and its outputs on
general text as little as can be: it minimises ‖ΔK − R‖² + λ·tr(ΔCΔᵀ), with C = E[m mᵀ] the
uncentred second moment of its inputs on such text.

C is measured on texts that the caller gives, on every token that the model reads: a special token
in front of a text is one that an edit must leave alone, too. For unlearning, V writes them itself
(`interp.data.sample_tokens`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.pytorch_utils import Conv1D

from interp.files import write_atomically
from interp.models.language_model import LanguageModel
from interp.unlearning.examples import pad_rows

FORMAT = "second-moment-1"


def solve_least_squares(
    keys: Float[Tensor, "key d_mlp"],
    changes: Float[Tensor, "key d_model"],
    moment: Float[Tensor, "d_mlp d_mlp"],
    *,
    regularisation: float,
) -> Float[Tensor, "d_model d_mlp"]:
    """Solve Δ = R Kᵀ (λC + KKᵀ)⁻¹ in float64 (Meng et al. 2023, Eq. 14).

    A coefficient that is zero in all keys and texts (a dead neuron) keeps its value vector.

    Args:
        keys: Kᵀ, inputs of the down projection.
        changes: Rᵀ, by how much its output on each key is to change.
        moment: C.
        regularisation: λ, how much general text counts, in tokens.

    Raises:
        ValueError: λC + KKᵀ has no inverse.
    """
    keys, changes = keys.double(), changes.double()
    system = regularisation * moment.double() + keys.T @ keys
    live = system.diagonal() > 0
    factor, failed = torch.linalg.cholesky_ex(system[live][:, live])
    if failed:
        raise ValueError(
            f"λC + KKᵀ ({len(system)} coefficients) has no inverse: measure C on more varied texts"
        )
    update = changes.new_zeros(changes.shape[1], keys.shape[1])
    update[:, live] = changes.T @ torch.cholesky_solve(keys.T[live], factor).T
    return update


def check_dense(model: LanguageModel, layers: Sequence[int]) -> None:
    """Raise ValueError where an edit layer is a mixture of experts."""
    for layer in layers:
        if model.anatomy.layers[layer].mixture is not None:
            raise ValueError(
                f"layer {layer} of {model.name!r} is a mixture of experts, and MEMIT edits one "
                "down projection: name layers that are dense"
            )


def count_coefficients(values: nn.Module) -> int:
    """Return d_mlp of a down projection."""
    weight = values.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0 if isinstance(values, Conv1D) else 1]


def measure_second_moments(
    model: LanguageModel,
    layers: Sequence[int],
    texts: Sequence[str | Sequence[int]],
    *,
    few: bool = False,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 16,
    max_length: int = 256,
    progress: bool = True,
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """Measure C of several layers, in one pass over the texts that ends at the highest of them.

    Args:
        model: V.
        layers: from 0.
        texts: general text, or its token ids.
        few: allow fewer tokens than coefficients, where C is to be added to another.
        cache: a directory that keeps C, one file per layer, named by the model's content hash, the
            layer and the tokens; layers that are there are not computed again. None: nothing is
            kept.
        batch_size: texts run at once.
        max_length: texts are cut after this many tokens (or after the model's context).
        progress: show a progress bar on standard error.

    Returns:
        By layer, in float64, on the model's device.

    Raises:
        ValueError: a layer that the model lacks or that is a mixture of experts, fewer tokens than
            coefficients, or a damaged file in the cache.
    """
    for layer in layers:
        if not 0 <= layer < model.num_layers:
            raise ValueError(f"layer {layer} is out of range 0 to {model.num_layers - 1}")
    check_dense(model, layers)
    max_length = min(max_length, getattr(model.text_config, "max_position_embeddings", max_length))
    encoded = (model.encode(text) if isinstance(text, str) else tuple(text) for text in texts)
    rows = sorted((ids[:max_length] for ids in encoded if ids), key=len)
    num_tokens = sum(map(len, rows))
    widest = max(count_coefficients(model.anatomy.layers[layer].values) for layer in layers)
    if num_tokens < (1 if few else widest):
        raise ValueError(
            f"the texts have {num_tokens} tokens for {widest} coefficients, so that C has no "
            "inverse: give more text"
        )
    paths = {} if cache is None else _cache_paths(model, layers, rows, Path(cache))
    moments = {
        layer: _read_moment(path, count_coefficients(model.anatomy.layers[layer].values)).to(
            model.device
        )
        for layer, path in paths.items()
        if path.is_file()
    }
    missing = sorted(set(layers) - set(moments))
    if missing:
        computed = _accumulate(model, missing, rows, batch_size=batch_size, progress=progress)
        for layer, total in computed.items():
            moments[layer] = total / num_tokens
            if layer in paths:
                moment = {"moment": moments[layer].contiguous().cpu()}
                write_atomically(paths[layer], partial(save_file, moment))
    return {layer: moments[layer] for layer in layers}


def _read_moment(path: Path, width: int) -> Float[Tensor, "d_mlp d_mlp"]:
    try:
        moment = load_file(path)["moment"]
    except (SafetensorError, OSError, LookupError):
        moment = torch.empty(0)
    if moment.shape != (width, width) or not moment.isfinite().all():
        raise ValueError(f"{path} is damaged: delete it, and it is measured anew")
    return moment


class _HighestLayerReached(Exception):
    """Raised to end a forward at the highest layer that is wanted."""


@torch.no_grad()
def _accumulate(
    model: LanguageModel,
    layers: Sequence[int],
    rows: Sequence[tuple[int, ...]],
    *,
    batch_size: int,
    progress: bool,
) -> dict[int, Tensor]:
    """Add up m mᵀ over all tokens, by layer."""
    anatomy = model.anatomy
    totals: dict[int, Tensor] = {}
    real = torch.empty(0)

    def add(layer: int, _module: nn.Module, args: tuple) -> None:
        block = args[0].reshape(-1, args[0].shape[-1])[real].double()
        totals[layer] = block.T @ block + totals.get(layer, 0.0)
        if layer == layers[-1]:
            raise _HighestLayerReached

    with ExitStack() as stack:
        for layer in layers:
            hook = anatomy.layers[layer].values.register_forward_pre_hook
            stack.callback(hook(partial(add, layer)).remove)
        bar = stack.enter_context(
            tqdm(total=sum(map(len, rows)), desc="C", unit="token", disable=not progress)
        )
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            input_ids, positions = pad_rows(batch, model.device)
            real = positions.flatten()
            try:
                anatomy.body(input_ids=input_ids, use_cache=False)
            except _HighestLayerReached:
                bar.update(sum(map(len, batch)))
    return totals


def _cache_paths(
    model: LanguageModel, layers: Sequence[int], rows: Sequence[tuple[int, ...]], directory: Path
) -> dict[int, Path]:
    content = model.content_hash()
    tokens = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    keys = {
        layer: hashlib.sha256(f"{FORMAT} {content} {layer} {tokens}".encode()) for layer in layers
    }
    return {layer: directory / f"{key.hexdigest()}.safetensors" for layer, key in keys.items()}
