"""Rounding: by hand on small matrices, its bounds, and what of a model is rounded."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from interp import Query
from interp.behaviour.knowledge import measure_knowledge
from interp.behaviour.quantisation import (
    NF4,
    ROUNDINGS,
    Rounding,
    compare_levels,
    measure_robustness,
    quantise_model,
    quantise_with_bitsandbytes,
    round_weights,
)
from interp.figures import plot_accuracy as figure
from tests.helpers.packed_models import needs_bitsandbytes
from tests.helpers.tiny_models import ARCHITECTURES, tiny, wrap

QUERIES = [
    Query(id=f"q{number}", language=code, prompt=f"w{number} w8", answer=f"w{number}", concept="c")
    for code in ("en", "de")
    for number in (5, 6, 7, 9)
]


# Matrices


def test_a_matrix_by_hand():
    """The scales are 4 and 0; in quarters of the first: 4, 1.1, -3.1, 0.9."""
    rounding = Rounding(levels=(-1.0, -0.5, 0.0, 0.5, 1.0))
    weight = torch.tensor([[4.0, 1.1, -3.1, 0.9], [0.0, 0.0, 0.0, 0.0]])
    codes, values = round_weights(weight, rounding)
    assert codes.tolist() == [[4, 3, 0, 2], [2, 2, 2, 2]]
    assert values.tolist() == [[4.0, 2.0, -4.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_eight_bits_by_hand():
    """Steps of 1.27 / 127 = 0.01 in the first row, of 0.02 in the second."""
    weight = torch.tensor([[1.27, 0.004, -0.006, 0.528], [0.009, 0.011, -2.54, 1.031]])
    codes, values = round_weights(weight, ROUNDINGS["int8"])
    assert codes.tolist() == [[127 + 127, 127, 127 - 1, 127 + 53], [127, 127 + 1, 0, 127 + 52]]
    expected = torch.tensor([[1.27, 0.0, -0.01, 0.53], [0.0, 0.02, -2.54, 1.04]])
    torch.testing.assert_close(values, expected)


def test_groups_have_scales_of_their_own():
    """Groups of two inputs with steps of 1 and 0.1; the last has one input alone."""
    rounding = replace(ROUNDINGS["int4"], group=2)
    weight = torch.tensor([[7.0, 1.4, 0.23, -0.7, 0.55]])
    codes, values = round_weights(weight, rounding)
    assert codes.tolist() == [[14, 8, 9, 0, 14]]
    torch.testing.assert_close(values, torch.tensor([[7.0, 1.0, 0.2, -0.7, 0.55]]))


def test_normal_float_has_the_quantiles_of_its_source():
    """Eight steps up and seven down of the normal distribution's tails, the outermost being 1."""
    outermost = ((1 - 1 / 30) + (1 - 1 / 32)) / 2

    def quantiles(number: int) -> list[float]:
        step = (outermost - 0.5) / number
        return [NormalDist().inv_cdf(outermost - index * step) for index in range(number)]

    largest = NormalDist().inv_cdf(outermost)
    values = [-value for value in quantiles(7)] + [0.0] + quantiles(8)[::-1]
    assert pytest.approx([value / largest for value in values], abs=1e-6) == NF4


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_twice_is_rounding_once(name, dtype):
    weight = torch.randn(9, 150, generator=torch.Generator().manual_seed(1)).to(dtype)
    codes, values = round_weights(weight, ROUNDINGS[name])
    again, same = round_weights(values, ROUNDINGS[name])
    assert values.dtype == dtype
    assert torch.equal(again, codes)
    assert torch.equal(same, values)
    assert not torch.equal(values, weight)


@pytest.mark.parametrize(("name", "half"), [("int8", 1 / 254), ("int4", 1 / 14), ("nf4", 0.152)])
def test_no_weight_moves_by_more_than_half_a_step(name, half):
    """NormalFloat's widest step is that from -1 to -0.696."""
    rounding = ROUNDINGS[name]
    weight = torch.randn(50, 192, generator=torch.Generator().manual_seed(2))
    values = round_weights(weight, rounding)[1]
    size = rounding.group or 192
    scale = weight.unflatten(1, (-1, size)).abs().amax(-1, keepdim=True)
    moved = (values - weight).abs().unflatten(1, (-1, size)) / scale
    assert 0.95 * half < moved.max() <= half * (1 + 1e-5)


# Models


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_linear_maps_of_the_layers_are_rounded_and_all_else_is_shared(name):
    model = tiny(name)
    before = model.content_hash()
    copied = quantise_model(model, ROUNDINGS["int4"])
    assert model.content_hash() == before
    layers = [id(part) for each in model.anatomy.layers for part in each.layer.modules()]
    maps = [
        (f"{path}.weight", module)
        for path, module in model.model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and id(module) in layers
    ]
    assert len(maps) >= 4 * model.num_layers
    theirs = dict(copied.model.named_parameters())
    for path, parameter in model.model.named_parameters():
        shared = theirs[path].data_ptr() == parameter.data_ptr()
        assert shared == (path not in dict(maps))
    for path, module in maps:
        # No more than 15 values of an output channel, whose inputs are one group here.
        weight, values = module.weight, theirs[path]
        if isinstance(module, Conv1D):
            weight, values = weight.T, values.T
        assert all(len(row.unique()) <= 15 for row in values)
        step = weight.abs().amax(1, keepdim=True) / 7
        assert ((values - weight).abs() <= step / 2 + 1e-6).all()
        assert not torch.equal(values, weight)
    assert torch.isfinite(copied.model(torch.tensor([[3, 4, 5]])).logits).all()


def test_packed_weights_are_refused():
    model = tiny()
    model.model.config.quantization_config = {}
    with pytest.raises(ValueError, match="'V' has packed weights already"):
        quantise_model(model, ROUNDINGS["int8"])


def pair_by_hand(change):
    """Twice a model whose first down projection has rows of (127, 10, 20, 30, 0, …)."""
    model = tiny()
    weight = model.anatomy.layers[0].values.weight
    weight.zero_()
    weight[:, :4] = torch.tensor([127.0, 10.0, 20.0, 30.0])
    other = wrap(copy.deepcopy(model.model))
    change(other.anatomy.layers[0].values.weight)
    return model, other


def test_what_is_rounded_away_by_hand():
    """Steps are 1. Of three changed weights those of +0.3 and -0.4 keep their level, that of +0.6
    moves by 1: of the change 1 · 0.6 of 0.3² + 0.4² + 0.6² is left.
    """

    def change(weight):
        weight[0, 1] += 0.3
        weight[0, 2] += 0.6
        weight[5, 3] -= 0.4

    models = pair_by_hand(change)
    (row,) = compare_levels(*models, roundings={"8": ROUNDINGS["int8"]}).to_dict("records")
    assert row["quantisation"] == "8"
    # Llama: four maps of attention (16 × 16 and twice 16 × 8), three of 16 × 24, in five layers.
    assert row["num_weights"] == 5 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24)
    assert row["num_changed"] == 3
    assert row["same_level"] == pytest.approx(2 / 3)
    assert row["kept"] == pytest.approx(0.6 / (0.09 + 0.16 + 0.36), rel=1e-4)
    assert row["reason"] == ""


def test_coarser_levels_hide_more():
    def change(weight):
        weight[:, 1] += 2

    models = pair_by_hand(change)
    table = compare_levels(*models).set_index("quantisation")
    assert table["same_level"].to_dict() == {"int8": 0.0, "int4": 1.0, "nf4": 1.0}
    assert table["kept"].to_dict() == {"int8": pytest.approx(1), "int4": 0.0, "nf4": 0.0}


def test_models_that_are_alike_have_nothing_to_round_away():
    row = compare_levels(tiny(), tiny()).iloc[0]
    assert math.isnan(row["same_level"])
    assert math.isnan(row["kept"])
    assert row["reason"] == "no weight of the layers' linear maps differs"


# Tables


def test_before_and_after_by_hand():
    """A weight of 20.6 is 21 in eight bits; in four, with steps of 127 / 7 = 18.1, it is 18.1."""

    def change(weight):
        weight[0, 2] += 0.6

    vanilla, unlearned = pair_by_hand(change)

    def measured(model):
        return {"weight": float(model.anatomy.layers[0].values.weight[0, 2])}

    models = {"vanilla": vanilla, "unlearned": unlearned}
    found = measure_robustness(
        models, measured, roundings={name: ROUNDINGS[name] for name in ("int8", "int4")},
        progress=False,
    )  # fmt: skip
    assert list(found["name"]) == ["weight"] * 6
    rows = found[["quantisation", "model", "value"]].values.tolist()
    assert rows == [
        ["none", "vanilla", 20.0],
        ["none", "unlearned", pytest.approx(20.6)],
        ["int8", "vanilla", pytest.approx(20)],
        ["int8", "unlearned", pytest.approx(21)],
        ["int4", "vanilla", pytest.approx(127 / 7)],
        ["int4", "unlearned", pytest.approx(127 / 7)],
    ]


def test_accuracy_before_and_after_in_every_language():
    model = tiny("gemma3")
    found = measure_robustness({"V": model}, QUERIES, progress=False)
    assert list(dict.fromkeys(found["quantisation"])) == ["none", "int8", "int4", "nf4"]
    for name, table in found.groupby("quantisation", sort=False):
        asked = model if name == "none" else quantise_model(model, ROUNDINGS[str(name)])
        expected = measure_knowledge(asked, QUERIES)
        assert table[list(expected)].values.tolist() == expected.values.tolist()
    drawn = [trace.name for trace in figure(found).data if trace.name != "chance"]
    assert drawn == ["none, V", "int8, V", "int4, V", "nf4, V"]


# bitsandbytes


def test_bitsandbytes_is_refused_where_it_cannot_work(monkeypatch):
    with pytest.raises(ValueError, match="rounds to 4 or 8 bits, not 3"):
        quantise_with_bitsandbytes(tiny(), 3)
    monkeypatch.setattr("interp.models.packed_weights.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs the package bitsandbytes: pip install 'interp\["):
        quantise_with_bitsandbytes(tiny(), 4)


@needs_bitsandbytes
def test_bitsandbytes_has_the_same_four_bits():
    # Its blocks of 64 weights lie in one row each.
    model = tiny("llama", hidden_size=64, intermediate_size=128)
    input_ids = torch.arange(3, 40)[None]
    plain, ours, theirs = (
        each.model(input_ids).logits
        for each in (
            model,
            quantise_model(model, ROUNDINGS["nf4"]),
            quantise_with_bitsandbytes(model, 4),
        )
    )
    assert (theirs - ours).norm() < 0.01 * (ours - plain).norm()
