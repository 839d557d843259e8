"""Drift: a few numbers by hand, all against plain arithmetic; every parameter in a group."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.behaviour import drift as module
from interp.behaviour.drift import DRIFT_COLUMNS, WHOLE_MODEL, compute_effective_rank, measure_drift
from tests.helpers.tiny_models import ARCHITECTURES, NUM_LAYERS, tiny, tiny_model, wrap


def two(name: str = "llama"):
    """A model and its copy, which share nothing."""
    vanilla = tiny_model(name)
    return vanilla, copy.deepcopy(vanilla)


def rows_of(vanilla, unlearned):
    """The table as a dictionary by layer and group."""
    table = measure_drift(wrap(vanilla, name="V"), wrap(unlearned, name="U"), progress=False)
    assert list(table.columns) == list(DRIFT_COLUMNS)
    rows = table.to_dict("records")
    assert len({(row["layer"], row["group"]) for row in rows}) == len(rows)
    return {(row["layer"], row["group"]): row for row in rows}


def test_a_change_by_hand():
    """(3, 4, 0) becomes (3, 4, 12): lengths 5 and 13, product 25."""
    vanilla, unlearned = two()
    for model, third in ((vanilla, 0.0), (unlearned, 12.0)):
        weight = model.model.layers[1].mlp.down_proj.weight
        weight.zero_()
        weight[0, 0], weight[0, 1], weight[1, 2] = 3.0, 4.0, third
    rows = rows_of(vanilla, unlearned)
    row = rows.pop((1, "value"))
    assert row["cosine"] == pytest.approx(25 / (5 * 13), abs=1e-15)
    assert row["relative_change"] == 12 / 5
    assert row["effective_rank"] == pytest.approx(1, abs=1e-12)
    assert row["num_parameters"] == 16 * 24
    assert row["reason"] == ""
    for other in rows.values():
        unchanged = other["cosine"], other["relative_change"], other["effective_rank"]
        assert (*unchanged, other["reason"]) == (1, 0, 0, "")


def test_effective_rank_by_hand():
    """Of 3 and 1: p = 3/4, 1/4, entropy 3/4 ln(4/3) + 1/4 ln 4 = ln(4 / 3^(3/4))."""
    assert compute_effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(4 / 3**0.75, abs=1e-12)
    assert compute_effective_rank(torch.tensor([2.0, 2.0, 0.0, 2.0])) == pytest.approx(3, abs=1e-12)
    assert compute_effective_rank(torch.tensor([0.0, 0.0])) == 0


def test_the_matrices_of_a_group_stand_side_by_side():
    """One singular value of 3 in the gate and one of 1 in the up projection."""
    vanilla, unlearned = two()
    for name, size in (("gate_proj", 3.0), ("up_proj", 1.0)):
        for model, change in ((vanilla, 0.0), (unlearned, size)):
            weight = model.model.layers[0].mlp.get_submodule(name).weight
            weight.zero_()
            weight[0, 0], weight[5, 7] = 1.0, change
    row = rows_of(vanilla, unlearned)[0, "key"]
    assert row["effective_rank"] == pytest.approx(4 / 3**0.75, abs=1e-12)
    # ‖W‖² = 2, ‖ΔW‖² = 10.
    assert row["relative_change"] == pytest.approx(math.sqrt(10 / 2), abs=1e-15)
    assert row["cosine"] == pytest.approx(2 / math.sqrt(2 * 12), abs=1e-15)


INTEGERS = st.integers(-8, 8).map(float)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(INTEGERS, min_size=16, max_size=16).filter(any),
    st.lists(INTEGERS, min_size=24, max_size=24).filter(any),
)
def test_a_change_of_rank_one_has_effective_rank_one(left, right):
    vanilla, unlearned = two()
    vanilla.model.layers[3].mlp.down_proj.weight.round_()
    unlearned.model.layers[3].mlp.down_proj.weight.round_()
    unlearned.model.layers[3].mlp.down_proj.weight.add_(
        torch.outer(torch.tensor(left), torch.tensor(right))
    )
    vanilla.model.layers[3].mlp.down_proj.weight[0, 0] = 1.0
    unlearned.model.layers[3].mlp.down_proj.weight[0, 0] = 1.0 + left[0] * right[0]
    row = rows_of(vanilla, unlearned)[3, "value"]
    assert row["effective_rank"] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("factor", [-4.0, -1.0, 0.25, 2.0, 16.0])
def test_a_scaled_weight_has_the_same_direction(factor):
    vanilla, unlearned = two()
    unlearned.model.layers[2].self_attn.o_proj.weight.mul_(factor)
    row = rows_of(vanilla, unlearned)[2, "attn_out"]
    assert row["cosine"] == pytest.approx(math.copysign(1, factor), abs=1e-14)
    assert row["relative_change"] == pytest.approx(abs(factor - 1), abs=1e-14)


@pytest.mark.parametrize("small", [2**-8, 2**-15, 2**-22])
def test_a_cosine_close_to_one_is_kept(small):
    """(1, 0) becomes (1, ε): the cosine is 1 − ε²/2 + …, down to 1 − 3e-14."""
    vanilla, unlearned = two()
    for model in (vanilla, unlearned):
        model.lm_head.weight.zero_()
        model.lm_head.weight[4, 4] = 1.0
    unlearned.lm_head.weight[30, 2] = small
    row = rows_of(vanilla, unlearned)[WHOLE_MODEL, "unembed"]
    expected = 1 - 1 / math.sqrt(1 + small**2)
    assert 1 - row["cosine"] == pytest.approx(expected, abs=2.3e-16)
    assert row["cosine"] < 1


@pytest.mark.parametrize("chunk", [1, 50, 10**6])
def test_two_unlike_models_against_plain_arithmetic(monkeypatch, chunk):
    """Gate and up of Gemma-3 are wider than they are long, its projections of attention longer."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    vanilla, unlearned = tiny_model("gemma3"), tiny_model("gemma3", seed=1)
    rows = rows_of(vanilla, unlearned)
    paths = {
        "key": ("mlp.gate_proj", "mlp.up_proj"),
        "value": ("mlp.down_proj",),
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    }
    for (layer, group), names in {(4, name): paths[name] for name in paths}.items():
        old, new = (
            [model.model.layers[layer].get_submodule(name).weight.double() for name in names]
            for model in (vanilla, unlearned)
        )
        u, v = (torch.cat([weight.flatten() for weight in both]) for both in (old, new))
        sigma = torch.cat([torch.linalg.svdvals(b - a) for a, b in zip(old, new, strict=True)])
        row = rows[layer, group]
        assert row["cosine"] == pytest.approx(float(u @ v / u.norm() / v.norm()), abs=1e-14)
        assert row["relative_change"] == pytest.approx(float((v - u).norm() / u.norm()), rel=1e-12)
        assert row["effective_rank"] == pytest.approx(compute_effective_rank(sigma), rel=1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_in_one_group(name):
    """Tied weights are in two."""
    model, other = tiny_model(name), tiny_model(name, seed=1)
    rows = rows_of(model, other)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    total = sum(parameter.numel() for parameter in model.parameters())
    total += tied * model.get_output_embeddings().weight.numel()
    assert sum(row["num_parameters"] for row in rows.values()) == total
    groups = {"qkv", "attn_out", "key", "value"} | (set() if name == "olmo" else {"norms"})
    for layer in range(NUM_LAYERS):
        assert {group for at, group in rows if at == layer} == groups
    assert all(row["relative_change"] > 0 for row in rows.values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_layers_parameters_are_in_its_groups(name):
    vanilla, unlearned = two(name)
    for path, parameter in unlearned.named_parameters():
        if ".2." in path:
            parameter.mul_(2)
    for (layer, _), row in rows_of(vanilla, unlearned).items():
        assert row["relative_change"] == pytest.approx(float(layer == 2), abs=1e-12)


def test_the_groups_of_gemma():
    """d_model 16, d_mlp 24, 4 heads of 4, 2 of keys and values, norms of 16 and of 4."""
    rows = rows_of(*two("gemma3"))
    sizes = {key: row["num_parameters"] for key, row in rows.items()}
    assert {group: sizes[0, group] for group in ("qkv", "attn_out", "key", "value", "norms")} == {
        "qkv": 16 * 16 + 2 * 16 * 8,
        "attn_out": 16 * 16,
        "key": 2 * 16 * 24,
        "value": 16 * 24,
        "norms": 4 * 16 + 2 * 4,
    }
    assert sizes[WHOLE_MODEL, "embed"] == sizes[WHOLE_MODEL, "unembed"] == 50 * 16
    assert sizes[WHOLE_MODEL, "final_norm"] == 16


def test_weights_in_shared_memory_are_not_read(monkeypatch):
    vanilla, unlearned = two()
    for old, new in zip(vanilla.parameters(), unlearned.parameters(), strict=True):
        new.data = old.data
    for name in ("_split_rows", "_compute_singular_values"):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(torch, "equal", None)
    for row in rows_of(vanilla, unlearned).values():
        assert (row["cosine"], row["relative_change"], row["effective_rank"]) == (1, 0, 0)


def test_what_is_not_defined_is_nan_with_its_reason():
    vanilla, unlearned = two()
    unlearned.model.layers[0].input_layernorm.weight.mul_(2)
    vanilla.model.layers[1].mlp.down_proj.weight.zero_()
    unlearned.model.layers[2].mlp.down_proj.weight[0, 0] = math.inf
    unlearned.model.layers[3].mlp.down_proj.weight.zero_()
    rows = rows_of(vanilla, unlearned)
    norms = rows[0, "norms"]
    assert math.isnan(norms["effective_rank"])
    assert norms["reason"] == "vectors have no effective rank"
    assert norms["relative_change"] > 0
    assert norms["cosine"] < 1
    from_zero = rows[1, "value"]
    assert math.isnan(from_zero["cosine"])
    assert math.isnan(from_zero["relative_change"])
    assert from_zero["effective_rank"] > 1
    assert from_zero["reason"] == "weights that are all zero have no direction"
    infinite = rows[2, "value"]
    assert all(math.isnan(infinite[column]) for column in DRIFT_COLUMNS[2:5])
    assert infinite["reason"] == "weights are not finite"
    to_zero = rows[3, "value"]
    assert math.isnan(to_zero["cosine"])
    assert to_zero["relative_change"] == 1


def test_half_precision_is_compared_exactly():
    """1 + 2⁻⁷ is the next number after 1 in bfloat16."""
    vanilla, unlearned = (model.bfloat16() for model in two())
    for model in (vanilla, unlearned):
        model.lm_head.weight.fill_(1)
    unlearned.lm_head.weight[0, 0] = 1 + 2**-7
    row = rows_of(vanilla, unlearned)[WHOLE_MODEL, "unembed"]
    assert row["relative_change"] == pytest.approx(2**-7 / math.sqrt(50 * 16), rel=1e-12)


def test_models_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="does not match 'V': num_hidden_layers is 4"):
        measure_drift(tiny(), tiny(num_layers=4, seed=1))
    packed = tiny(seed=1)
    packed.model.config.quantization_config = {"bits": 4}
    with (
        pytest.warns(
            UserWarning, match="the weights of 'V' are not packed and those of 'U' an unk"
        ),
        pytest.raises(ValueError, match="'U' has packed quantised weights"),
    ):
        measure_drift(tiny(), packed)
