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
| `qkv` | what makes queries, keys and values of attention; all else that mixes tokens |
| `attn_out` | attention's output projection, or another token mixer's |
| `key`, `value` | the MLP's first matrices (gate and up), and its down projection; all experts' |
| `router` | in a mixture of experts, what chooses the experts and their weights |
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

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.registry import metric
from interp.models.language_model import LanguageModel
from interp.models.pairs import check_pair

DRIFT_COLUMNS = ("layer", "group", "cosine", "relative_change", "effective_rank", "num_parameters")
DRIFT_COLUMNS += ("reason",)

WHOLE_MODEL = -1
"""Layer of groups that belong to none."""

CHUNK = 2**22
"""Numbers in float64 at a time."""


@torch.no_grad()
def measure_drift(
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
        `DRIFT_COLUMNS`; a group without parameters has none. Equal weights have the cosine 1, the
        change 0 and the rank 0. Biases and norms are vectors: they count in cosine and change but
        not in the rank, which is NaN where only vectors changed. `reason` says why a value is NaN.

    Raises:
        ValueError: the models do not match, or their weights are packed (quantised).
    """
    check_pair(vanilla, unlearned)
    for model in (vanilla, unlearned):
        if model.has_packed_weights:
            raise ValueError(
                f"{model.name!r} has packed quantised weights, which cannot be subtracted; load "
                "it with dequantise=True"
            )
    before, after = _group_parameters(vanilla), _group_parameters(unlearned)
    known: dict[tuple[int, ...], dict[str, object]] = {}
    rows = []
    bar = tqdm(before.items(), desc="drift", unit="group", disable=not progress, delay=2)
    for (layer, group), old in bar:
        new = after[layer, group]
        # Weights that are tied in both are compared once.
        tensors = tuple(map(id, (*old, *new)))
        if tensors not in known:
            known[tensors] = _compare(old, new)
        rows.append({"layer": layer, "group": group, **known[tensors]})
    return pd.DataFrame(rows, columns=list(DRIFT_COLUMNS))


@metric("drift", needs=("vanilla",))
def tabulate_drift(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Measure how far the weights moved, by group and layer.

    Parameters are in no language; their group stands where the concept does elsewhere.
    """
    assert evaluated.vanilla is not None
    table = measure_drift(evaluated.vanilla.model, evaluated.model, progress=evaluated.progress)
    parts = [
        table.rename(columns={"group": "concept", name: "value", "num_parameters": "n"}).assign(
            metric=f"drift_{name}"
        )
        for name in ("cosine", "relative_change", "effective_rank")
    ]
    return pd.concat(parts).assign(language="")


def compute_effective_rank(singular_values: Float[Tensor, " value"]) -> float:
    """Compute exp of the entropy of singular values (Roy & Vetterli 2007); 0 of zeros."""
    positive = singular_values[singular_values > 0].double()
    if not len(positive):
        return 0.0
    shares = positive / positive.sum()
    return math.exp(-float((shares * shares.log()).sum()))


def _group_parameters(model: LanguageModel) -> dict[tuple[int, str], list[Tensor]]:
    """Return all parameters by layer and group; what no module below holds is in `embed`."""
    groups: dict[tuple[int, str], list[Tensor]] = {}
    for key, module, names in _iterate_modules(model):
        own = module._parameters
        chosen = own.values() if names is None else [own.get(name) for name in names]
        groups.setdefault(key, []).extend(tensor for tensor in chosen if tensor is not None)
    held = {id(tensor) for tensors in groups.values() for tensor in tensors}
    rest = [tensor for tensor in model.model.parameters() if id(tensor) not in held]
    groups[WHOLE_MODEL, "embed"] += rest
    return {key: tensors for key, tensors in groups.items() if tensors}


def _iterate_modules(
    model: LanguageModel,
) -> Iterator[tuple[tuple[int, str], nn.Module, tuple[str, ...] | None]]:
    """Yield groups and modules, with the names of the parameters meant, None for all."""
    anatomy = model.anatomy
    for layer, parts in enumerate(anatomy.layers):
        for module in parts.attn_weights:
            is_last = any(module is mixer.out for mixer in parts.mixers)
            yield (layer, "attn_out" if is_last else "qkv"), module, None
        for group, site in (("key", "key"), ("value", "value"), ("router", "router_weights")):
            for module, names in parts.list_weights(site):
                yield (layer, group), module, names
        for module in parts.norms:
            yield (layer, "norms"), module, None
    yield (WHOLE_MODEL, "embed"), model.model.get_input_embeddings(), None
    for module in anatomy.final:
        group = "final_norm" if module in anatomy.final_norms else "unembed"
        yield (WHOLE_MODEL, group), module, None
    yield (WHOLE_MODEL, "unembed"), anatomy.unembed, None


def _compare(before: list[Tensor], after: list[Tensor]) -> dict[str, object]:
    """Compare one group of tensors."""
    row: dict[str, object] = {"num_parameters": sum(tensor.numel() for tensor in before)}
    pairs = list(zip(before, after, strict=True))
    changed = [pair for pair in pairs if not _is_equal(*pair)]
    if not changed:
        return row | {"cosine": 1.0, "relative_change": 0.0, "effective_rank": 0.0, "reason": ""}
    square, product, change = 0.0, 0.0, 0.0
    for old, new in pairs:
        for w, delta in _split_rows(old.reshape(-1, 1), new.reshape(-1, 1)):
            square += float(w.square().sum())
            product += float((w * delta).sum())
            change += float(delta.square().sum())
    cosine = relative = rank = math.nan
    reasons = []
    # A mixture's experts are matrices in one tensor.
    matrices = [pair for pair in changed if pair[0].ndim == 2]
    matrices += [
        pair for old, new in changed if old.ndim == 3 for pair in zip(old, new, strict=True)
    ]
    if not math.isfinite(square + change):
        reasons.append("weights are not finite")
    else:
        if square > 0:
            relative = math.sqrt(change / square)
        if square > 0 and square + 2 * product + change > 0:
            cosine = 1 - _compute_cosine_distance(square, product, change)
        else:
            reasons.append("weights that are all zero have no direction")
        if matrices:
            rank = compute_effective_rank(
                torch.cat([_compute_singular_values(*pair) for pair in matrices])
            )
        else:
            reasons.append("vectors have no effective rank")
    measures = {"cosine": cosine, "relative_change": relative, "effective_rank": rank}
    return row | measures | {"reason": "; ".join(reasons)}


def _compute_cosine_distance(square: float, product: float, change: float) -> float:
    """Compute 1 − cosine of w and w + δ from ‖w‖², ⟨w, δ⟩ and ‖δ‖², without cancellation.

    ‖u‖‖v‖ − ⟨u, v⟩ = (‖δ‖² − (‖v‖ − ‖u‖)²) / 2, and ‖v‖ − ‖u‖ = (2⟨u, δ⟩ + ‖δ‖²) / (‖u‖ + ‖v‖).
    """
    old, new = math.sqrt(square), math.sqrt(square + 2 * product + change)
    longer = (2 * product + change) / (old + new)
    return max(0.0, change - longer**2) / (2 * old * new)


def _compute_singular_values(before: Tensor, after: Tensor) -> Tensor:
    """Compute the singular values of a matrix's change, from its Gram matrix on the small side.

    Eigenvalues within rounding of 0 are 0.
    """
    if before.shape[0] < before.shape[1]:
        before, after = before.T, after.T
    gram = torch.zeros((), dtype=torch.float64)
    for _, delta in _split_rows(before, after):
        gram = gram.to(delta.device) + delta.T @ delta
    values = torch.linalg.eigvalsh(gram)
    smallest = max(before.shape) * torch.finfo(gram.dtype).eps * values[-1]
    return values.where(values > smallest, 0.0).sqrt().cpu()


def _split_rows(before: Tensor, after: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of a matrix and of its change, in float64."""
    # Apple's GPUs have no float64.
    device = "cpu" if before.device.type == "mps" else before.device
    count = max(1, CHUNK // before.shape[1])
    for old, new in zip(before.split(count), after.split(count), strict=True):
        precise = old.to(device, torch.float64)
        yield precise, new.to(device, torch.float64) - precise


def _is_equal(before: Tensor, after: Tensor) -> bool:
    if before.data_ptr() == after.data_ptr() and before.stride() == after.stride():
        return True
    return torch.equal(before, after.to(before.device))
