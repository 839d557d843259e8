"""Drift: how far unlearning moved the weights, for every layer and group of parameters.

U against V, with ΔW = W_U − W_V:

    cosine            ⟨W_V, W_U⟩ / (‖W_V‖ ‖W_U‖), all numbers of a group as one vector
    relative change   ‖ΔW‖_F / ‖W_V‖_F
    effective rank    exp(−Σ pᵢ ln pᵢ), pᵢ = σᵢ / Σ σ, σ the singular values of ΔW

The effective rank is that of Roy & Vetterli 2007: 1 where ΔW has rank one, k where k singular
values are equal and the others 0. The matrices of a group count as blocks of one block-diagonal
matrix, whose singular values are those of all of them. Hong et al. 2024 find cosines above 0.999
for the unembedding and the norms.

| group | parameters |
|---|---|
| `qkv` | what makes queries, keys and values of attention |
| `attn_out` | attention's output projection |
| `key`, `value` | the MLP's first matrices (gate and up), and its down projection |
| `norms` | every normalisation inside the layer |
| `embed` | the embedding of tokens, and of positions; a norm or a projection after it |
| `final_norm` | between the last layer and the unembedding |
| `unembed` | the unembedding, and a projection before it; tied weights are in `embed` too |
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp.models.language_model import LanguageModel
from interp.models.pairs import check_pair

COLUMNS = ("layer", "group", "cosine", "relative_change", "effective_rank", "num_parameters")
COLUMNS += ("reason",)

WHOLE_MODEL = -1
"""The layer of groups that belong to none."""

CHUNK = 2**22
"""Numbers in float64 at a time."""


@torch.no_grad()
def drift(
    vanilla: LanguageModel, unlearned: LanguageModel, *, progress: bool = True
) -> pd.DataFrame:
    """Compare every parameter of two models.

    Sums are in float64 and run over ΔW, so that a cosine of 1 − 1e-12 is told from 1. A matrix with
    m rows and n columns, n ≤ m, costs m·n² multiplications for its Gram matrix and about n³ for the
    singular values; equal tensors cost next to nothing.

    Args:
        vanilla: V.
        unlearned: U, of the same architecture and tokenizer.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        One row per layer and group, then one per group of the whole model (layer −1), with
        `COLUMNS`; a group without parameters has none. Equal weights have the cosine 1, the change
        0 and the rank 0. Biases and norms are vectors: they count in cosine and change but not in
        the rank, which is NaN where only vectors changed. `reason` says why a value is NaN.

    Raises:
        ValueError: the models do not match, or their weights are packed (quantised).
    """
    for model in (vanilla, unlearned):
        if model.has_packed_weights:
            raise ValueError(
                f"{model.name!r} has packed quantised weights, which cannot be subtracted; load "
                "it dequantised"
            )
    check_pair(vanilla, unlearned)
    before, after = _groups(vanilla), _groups(unlearned)
    known: dict[tuple[int, ...], dict[str, object]] = {}
    rows = []
    bar = tqdm(before.items(), desc="drift", unit="group", disable=not progress, delay=2)
    for (layer, group), old in bar:
        # Tied weights are compared once.
        tensors = tuple(map(id, old))
        if tensors not in known:
            known[tensors] = _compared(old, after[layer, group])
        rows.append({"layer": layer, "group": group, **known[tensors]})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def effective_rank(singular_values: Float[Tensor, " value"]) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 of zeros."""
    positive = singular_values[singular_values > 0].double()
    if not len(positive):
        return 0.0
    shares = positive / positive.sum()
    return math.exp(-float((shares * shares.log()).sum()))


def _groups(model: LanguageModel) -> dict[tuple[int, str], list[Tensor]]:
    """All parameters by layer and group; what no module below holds stands at the embedding."""
    found: dict[tuple[int, str], list[Tensor]] = {}
    for key, module in _modules(model):
        found.setdefault(key, []).extend(t for t in module._parameters.values() if t is not None)
    held = {id(tensor) for tensors in found.values() for tensor in tensors}
    rest = [tensor for tensor in model.model.parameters() if id(tensor) not in held]
    found[WHOLE_MODEL, "embed"] += rest
    return {key: tensors for key, tensors in found.items() if tensors}


def _modules(model: LanguageModel) -> Iterator[tuple[tuple[int, str], nn.Module]]:
    anatomy = model.anatomy
    for layer, parts in enumerate(anatomy.layers):
        for module in parts.attn_weights:
            yield (layer, "attn_out" if module is parts.attn_out else "qkv"), module
        for module in parts.keys:
            yield (layer, "key"), module
        yield (layer, "value"), parts.values
        for module in parts.norms:
            yield (layer, "norms"), module
    yield (WHOLE_MODEL, "embed"), model.model.get_input_embeddings()
    for module in anatomy.final:
        yield (WHOLE_MODEL, "final_norm" if module in anatomy.final_norms else "unembed"), module
    yield (WHOLE_MODEL, "unembed"), anatomy.unembed


def _compared(before: list[Tensor], after: list[Tensor]) -> dict[str, object]:
    """The measures of one group of tensors."""
    row: dict[str, object] = {"num_parameters": sum(tensor.numel() for tensor in before)}
    pairs = list(zip(before, after, strict=True))
    changed = [pair for pair in pairs if not _equal(*pair)]
    if not changed:
        return row | {"cosine": 1.0, "relative_change": 0.0, "effective_rank": 0.0, "reason": ""}
    square, product, change = 0.0, 0.0, 0.0
    for old, new in pairs:
        for w, delta in _chunks(old.reshape(-1, 1), new.reshape(-1, 1)):
            square += float(w.square().sum())
            product += float((w * delta).sum())
            change += float(delta.square().sum())
    cosine = relative = rank = math.nan
    reasons = []
    matrices = [(old, new) for old, new in changed if old.ndim == 2]
    if not math.isfinite(square + change):
        reasons.append("weights are not finite")
    else:
        if square > 0:
            relative = math.sqrt(change / square)
        if square > 0 and square + 2 * product + change > 0:
            cosine = 1 - _cosine_distance(square, product, change)
        else:
            reasons.append("weights that are all zero have no direction")
        if matrices:
            rank = effective_rank(torch.cat([_singular_values(*pair) for pair in matrices]))
        else:
            reasons.append("vectors have no effective rank")
    found = {"cosine": cosine, "relative_change": relative, "effective_rank": rank}
    return row | found | {"reason": "; ".join(reasons)}


def _cosine_distance(square: float, product: float, change: float) -> float:
    """1 − cosine of w and w + δ, from ‖w‖², ⟨w, δ⟩ and ‖δ‖², without a difference of large numbers.

    ‖u‖‖v‖ − ⟨u, v⟩ = (‖δ‖² − (‖v‖ − ‖u‖)²) / 2, and ‖v‖ − ‖u‖ = (2⟨u, δ⟩ + ‖δ‖²) / (‖u‖ + ‖v‖).
    """
    old, new = math.sqrt(square), math.sqrt(square + 2 * product + change)
    longer = (2 * product + change) / (old + new)
    return max(0.0, change - longer**2) / (2 * old * new)


def _singular_values(before: Tensor, after: Tensor) -> Tensor:
    """Of the change of a matrix: roots of the eigenvalues of its Gram matrix on the small side.

    Eigenvalues within rounding of 0 are 0.
    """
    if before.shape[0] < before.shape[1]:
        before, after = before.T, after.T
    gram = torch.zeros((), dtype=torch.float64)
    for _, delta in _chunks(before, after):
        gram = gram.to(delta.device) + delta.T @ delta
    values = torch.linalg.eigvalsh(gram)
    smallest = max(before.shape) * torch.finfo(gram.dtype).eps * values[-1]
    return values.where(values > smallest, 0.0).sqrt().cpu()


def _chunks(before: Tensor, after: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of a matrix and of its change, in float64."""
    # Apple's GPUs have no float64.
    device = "cpu" if before.device.type == "mps" else before.device
    count = max(1, CHUNK // before.shape[1])
    for old, new in zip(before.split(count), after.split(count), strict=True):
        precise = old.to(device, torch.float64)
        yield precise, new.to(device, torch.float64) - precise


def _equal(before: Tensor, after: Tensor) -> bool:
    if before.data_ptr() == after.data_ptr() and before.stride() == after.stride():
        return True
    return torch.equal(before, after.to(before.device))
