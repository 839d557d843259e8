"""Quantisation: does rounding the weights undo what unlearning did to them?

    robustness({"vanilla": V, "unlearned": U}, corpus.queries)
    same_levels(V, U)

Unlearning that spares what else a model knows moves its weights by little. Rounded to a few levels,
many of them are what V's are (Zhang et al. 2024, "Catastrophic Failure of LLM Unlearning via
Quantization").

Rounding is simulated: weights are replaced by the values that their codes stand for, and computed
with as before, on any machine. Rounded are the linear maps of the layers (attention and MLP);
embedding, norms, biases and unembedding stay. Activations are not rounded, which 8-bit kernels
do too: torch's own dynamic int8 (`torch.ao.quantization`, deprecated) rounds the same matrices to
levels 0.4 % closer together. `quantise_with_bitsandbytes` has the real kernels.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.knowledge import Measured, measure_knowledge
from interp.behaviour.probing import collect_candidates, name_conditions
from interp.behaviour.registry import metric
from interp.models.integrity import check_runnable
from interp.models.language_model import LanguageModel
from interp.models.packed_weights import check_packing, keep_layout, make_packing
from interp.models.pairs import check_pair, copy_with_shared_tensors

UNROUNDED = "none"
"""Quantisation of a model as it is."""

NF4 = (
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
)
"""4-bit NormalFloat: quantiles of the normal distribution (Dettmers et al. 2023, QLoRA)."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Rounding of weights to the nearest level times the largest weight of their group.

    Attributes:
        levels: from -1 to 1, rising.
        group: how many inputs of an output channel share a scale; all of them if None.
    """

    levels: tuple[float, ...]
    group: int | None = None


ROUNDINGS: Mapping[str, Rounding] = MappingProxyType(
    {
        "int8": Rounding(levels=tuple(code / 127 for code in range(-127, 128))),
        "int4": Rounding(levels=tuple(code / 7 for code in range(-7, 8)), group=64),
        "nf4": Rounding(levels=NF4, group=64),
    }
)
"""Symmetric 8 bits per output channel; 4 bits in groups of 64, evenly spaced or NormalFloat."""


def measure_robustness(
    models: Mapping[str, LanguageModel],
    measured: Measured,
    *,
    roundings: Mapping[str, Rounding] = ROUNDINGS,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what models know before and after their weights are rounded.

    Args:
        models: by name, left untouched.
        measured: see `interp.behaviour.knowledge`.
        roundings: by name.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        A row per quantisation (`none` is before), model and cell: `quantisation`, `model`, and what
        `measure_knowledge` gives.

    Raises:
        ValueError: packed weights, or queries that cannot be probed.
    """
    every = [(kind, name) for kind in (None, *roundings) for name in models]
    tables = []
    for kind, name in tqdm(every, desc="quantisation", delay=2, disable=not progress):
        model = models[name]
        table = measure_knowledge(
            model if kind is None else quantise_model(model, roundings[kind]), measured
        )
        table.insert(0, "quantisation", UNROUNDED if kind is None else kind)
        table.insert(1, "model", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


@torch.no_grad()
def quantise_model(model: LanguageModel, rounding: Rounding) -> LanguageModel:
    """Return a copy with rounded weights, which shares all others with the model.

    Raises:
        ValueError: the model's weights are packed already.
    """
    check_runnable(model, adapters=False)
    maps = _find_linear_maps(model)
    copied = copy_with_shared_tensors(model.model, [f"{name}.weight" for name in maps])
    for name in maps:
        module = copied.get_submodule(name)
        assert isinstance(module.weight, Tensor)
        values = round_weights(_orient_weight(module), rounding)[1]
        module.weight.copy_(values.T if isinstance(module, Conv1D) else values)
    return LanguageModel(copied, model.tokenizer, name=f"{model.name} quantised")


def round_weights(
    weight: Float[Tensor, "output input"], rounding: Rounding
) -> tuple[Int[Tensor, "output input"], Float[Tensor, "output input"]]:
    """Round a matrix: return each weight's level, from 0, and the value it stands for.

    The largest weight of a group keeps its value, so that rounding twice is rounding once.
    """
    num_inputs = weight.shape[1]
    size = rounding.group or num_inputs
    # Zeros do not change the largest of a last group that is shorter.
    groups = pad(weight.float().contiguous(), (0, -num_inputs % size)).unflatten(1, (-1, size))
    scales = groups.abs().amax(-1, keepdim=True)
    levels = torch.tensor(rounding.levels, device=weight.device)
    middles = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(groups / scales.where(scales > 0, 1.0), middles, out_int32=True)
    values = (levels[codes] * scales).to(weight.dtype)
    return codes.flatten(1)[:, :num_inputs], values.flatten(1)[:, :num_inputs]


@torch.no_grad()
def compare_levels(
    vanilla: LanguageModel,
    unlearned: LanguageModel,
    *,
    roundings: Mapping[str, Rounding] = ROUNDINGS,
) -> pd.DataFrame:
    """Measure how much of what unlearning changed is rounded away.

    Returns:
        A row per quantisation: `quantisation`; `num_weights` of the linear maps of the layers;
        `num_changed`, those in which U differs from V; `same_level`, the share of these that have
        the same level in both, which is Zhang's explanation; `kept`, what is left of the change in
        its own direction, ⟨Q(U) − Q(V), U − V⟩ / ‖U − V‖². The few weights that reach another level
        move by a whole step, so that both may be near 1. NaN with a `reason` where no weight
        differs.

    Raises:
        ValueError: the models do not match, or their weights are packed.
    """
    check_pair(vanilla, unlearned)
    theirs, ours = _find_linear_maps(vanilla), _find_linear_maps(unlearned)
    rows = []
    for kind, rounding in roundings.items():
        total = changed = same = 0
        kept = size = 0.0
        for name, module in theirs.items():
            before, after = _orient_weight(module), _orient_weight(ours[name])
            (level, value), (new_level, new_value) = (
                round_weights(weight, rounding) for weight in (before, after)
            )
            differs, change = before != after, (after - before).double()
            total += differs.numel()
            changed += int(differs.sum())
            same += int((differs & (level == new_level)).sum())
            kept += float(((new_value - value).double() * change).sum())
            size += float(change.square().sum())
        rows.append(
            {
                "quantisation": kind,
                "num_weights": total,
                "num_changed": changed,
                "same_level": same / changed if changed else math.nan,
                "kept": kept / size if size else math.nan,
                "reason": "" if changed else "no weight of the layers' linear maps differs",
            }
        )
    return pd.DataFrame(rows)


def check_quantisation(evaluated: EvaluatedModel) -> None:
    """Refuse queries that cannot be probed, and packed weights."""
    collect_candidates(evaluated.queries)
    _check_unpacked(evaluated.model)


@metric("quantisation", needs=("answer",), check=check_quantisation)
def tabulate_quantisation(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Measure accuracy with weights rounded to 8 and to 4 bits."""
    models = {evaluated.model.name: evaluated.model}
    table = measure_robustness(models, evaluated.queries, progress=evaluated.progress)
    table = table.query("quantisation != @UNROUNDED")
    return name_conditions(table, table["quantisation"].tolist())


def quantise_with_bitsandbytes(model: LanguageModel, bits: int) -> LanguageModel:
    """Return a copy with bitsandbytes' kernels: NF4 or LLM.int8 (Dettmers et al. 2022).

    LLM.int8 rounds activations, too, and leaves outlying features as they are.

    Args:
        model: left untouched; the copy is on its device.
        bits: 4 or 8.

    Raises:
        ValueError: other bits, or packed weights.
        ImportError: the package bitsandbytes is missing.
    """
    if bits not in (4, 8):
        raise ValueError(f"bitsandbytes rounds to 4 or 8 bits, not {bits}")
    packing = f"{bits}bit"
    check_packing(packing)
    _check_unpacked(model)
    _check_dense(model)
    config = make_packing(packing, model.dtype)
    # Their scales are not rounded here, either.
    config.bnb_4bit_use_double_quant = False
    with tempfile.TemporaryDirectory() as folder:
        model.model.save_pretrained(folder)
        copied = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=model.dtype,
            quantization_config=config,
            device_map={"": model.device},
            trust_remote_code=False,
        )
    copied.requires_grad_(False).eval()
    keep_layout(copied)
    return LanguageModel(copied, model.tokenizer, name=f"{model.name} in {bits} bits")


def _find_linear_maps(model: LanguageModel) -> dict[str, nn.Module]:
    """Return the linear maps of the layers, by name."""
    _check_unpacked(model)
    _check_dense(model)
    inside = {id(part) for parts in model.anatomy.layers for part in parts.layer.modules()}
    return {
        name: module
        for name, module in model.model.named_modules()
        if id(module) in inside and isinstance(module, (nn.Linear, Conv1D))
    }


def _orient_weight(module: nn.Module) -> Float[Tensor, "output input"]:
    """Return a linear map's weight; GPT-2 has it the other way round."""
    assert isinstance(module.weight, Tensor)
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def _check_dense(model: LanguageModel) -> None:
    if model.anatomy.has_mixtures:
        raise ValueError(
            f"{model.name!r} is a mixture of experts, whose matrices are no linear maps of their "
            "own and would stay as they are: only dense models are rounded"
        )


def _check_unpacked(model: LanguageModel) -> None:
    if model.has_packed_weights:
        raise ValueError(f"{model.name!r} has packed weights already: load it with dequantise=True")
