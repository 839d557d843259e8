"""Precisions: what they do to numbers, that they are undone, and what the noise floor sees."""

from __future__ import annotations

import copy
import warnings

import pandas as pd
import pytest
import torch
from torch import nn

import interp
from interp.models.precision import (
    check_possible,
    compute_in_float32,
    compute_model_in_float32,
    computes_bfloat16,
    has_matrix_units,
    set_matmul_precision,
    set_precision,
)
from interp.recovery import (
    NOTHING,
    Measured,
    Pair,
    SweepConfig,
    full,
    layered,
    make_windows,
    measure_rounding,
    warn_of_noise,
)
from interp.results import read_manifest
from interp.unlearning import Example, TrainingConfig, train
from tests.helpers.tiny_models import (
    ARCHITECTURES,
    mixed_trajectories,
    question,
    tiny,
    tiny_pair,
    trajectory,
    wrap,
)

ITEMS = mixed_trajectories()


def in_bfloat16(architecture: str = "llama", seed: int = 0):
    model = tiny(architecture, seed=seed)
    model.model.to(torch.bfloat16)
    return model


def same_weights_in_float32(model):
    return wrap(copy.deepcopy(model.model).float(), name=model.name)


def settings() -> list[str]:
    return [
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.get_float32_matmul_precision(),
    ]


# Products of float32 matrices


@pytest.mark.parametrize("before", ["highest", "high"])
def test_products_are_as_before(before):
    torch.set_float32_matmul_precision(before)
    try:
        before = settings()
        with set_precision("tf32", []):
            assert torch.backends.cuda.matmul.fp32_precision == "tf32"
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            with set_matmul_precision():
                assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert settings() == before
        with pytest.raises(KeyError), set_precision("tf32", []):
            raise KeyError
        assert settings() == before
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not has_matrix_units(), reason="this CPU multiplies no bfloat16 matrices")
def test_bf32_by_hand():
    """1 + 2⁻⁹ is 1 in bfloat16, which keeps 7 bits behind the point; scores keep all."""
    matrix, one = torch.eye(64) * (1 + 2**-9), torch.eye(64)
    module = nn.Linear(64, 64, bias=False)
    module.weight = nn.Parameter(matrix, requires_grad=False)
    with set_precision("bf32", []):
        assert (matrix @ one).diagonal().tolist() == [1.0] * 64
        assert module(one).diagonal().tolist() == [1.0] * 64
        with compute_in_float32([module]):
            assert module(one).diagonal().tolist() == [1 + 2**-9] * 64
    assert module(one).diagonal().tolist() == [1 + 2**-9] * 64


# Modules in float32


def test_in_float32_by_hand():
    """256 + 1 is 256 in bfloat16, which keeps 8 bits."""
    module = nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    module.weight = nn.Parameter(torch.ones(1, 2, dtype=torch.bfloat16), requires_grad=False)
    weight, state = module.weight, torch.tensor([[256, 1]], dtype=torch.bfloat16)
    assert module(state).item() == 256
    with compute_in_float32([module, module]), compute_in_float32([module]):
        output = module(state)
        assert (output.dtype, output.item()) == (torch.float32, 257)
        assert module.weight is weight
    assert module.weight is weight
    assert module(state).item() == 256
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_in_float32_is_undone_after_an_error():
    module = nn.Linear(2, 1, dtype=torch.bfloat16)
    parameters = dict(module._parameters)
    with pytest.raises(RuntimeError), compute_in_float32([module]):
        module(torch.zeros(1, 3))
    assert module._parameters == parameters
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"
    assert module(torch.zeros(1, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_whole_model_in_float32(architecture):
    """It computes what a float32 model of the same weights does, and nothing less afterwards."""
    model = in_bfloat16(architecture)
    exact = same_weights_in_float32(model)
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10]])
    expected = exact.model(tokens).logits
    coarse = model.model(tokens).logits
    before = model.content_hash()
    with compute_model_in_float32(model):
        logits = model.model(tokens).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert (coarse.float() - expected).abs().max() > 1e-3
    assert torch.equal(model.model(tokens).logits, coarse)
    assert model.content_hash() == before


# Mixed


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "opt_post_norm"])
def test_mixed_scores_in_float32(architecture):
    """Final norm, unembedding and distance, from the bfloat16 residual stream."""
    pair = Pair(vanilla=in_bfloat16(architecture), unlearned=in_bfloat16(architecture, seed=1))
    (item,) = ITEMS[:1]
    tokens, scored = torch.tensor([item.token_ids]), list(item.scored)
    logits = []
    for model in (pair.vanilla, pair.unlearned):
        seen = []
        hook = model.anatomy.layers[-1].layer.register_forward_hook(
            lambda _module, _args, output, seen=seen: seen.append(output)
        )
        model.model(tokens)
        hook.remove()
        residual = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        assert residual.dtype == torch.bfloat16
        exact = same_weights_in_float32(model).anatomy
        logits.append(exact.logits(exact.readout_state(residual.float()))[0, scored])
    expected = (logits[0] - logits[1]).square().mean().item()
    with set_precision("mixed", (pair.vanilla, pair.unlearned)):
        for engine in (full, layered):
            loss = engine.measure(pair, [item], [NOTHING]).losses.item()
            assert loss == pytest.approx(expected, rel=1e-5)
    coarse = layered.measure(pair, [item], [NOTHING]).losses.item()
    assert coarse != pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", ["mixed", "bf32"])
def test_engines_agree(dtype):
    """Wherever rounding enters, it enters all engines: within some percent of loss(V, U)."""
    if dtype == "bf32" and not has_matrix_units():
        pytest.skip("this CPU multiplies no bfloat16 matrices")
    pair = tiny_pair("llama", hidden_size=64, intermediate_size=128)
    exact = full.measure(pair, ITEMS, [NOTHING, *make_windows("coef+attn", num_layers=5)]).losses
    if dtype == "mixed":
        for model in (pair.vanilla, pair.unlearned):
            model.model.to(torch.bfloat16)
    restorations = [NOTHING, *make_windows("coef+attn", num_layers=5)]
    with set_precision(dtype, (pair.vanilla, pair.unlearned)):
        for engine in (full, layered):
            losses = engine.measure(pair, ITEMS, restorations).losses
            error = ((losses - exact).abs() / exact[0]).max().item()
            assert 1e-5 < error < 0.1


# What is asked for


def test_weights_of_another_precision_are_refused():
    model = tiny()
    for dtype, wanted in (("bfloat16", "bfloat16"), ("mixed", "bfloat16"), ("float16", "float16")):
        with pytest.raises(ValueError, match=f"'V' is in float32: load it with dtype='{wanted}'"):
            check_possible(dtype, model)
    check_possible("float32", model)
    with pytest.raises(ValueError, match=r"'tf32' needs an NVIDIA GPU .*'V' is on cpu"):
        check_possible("tf32", model)


def test_bf32_needs_matrix_units(monkeypatch):
    monkeypatch.setattr("interp.models.precision.has_matrix_units", lambda: False)
    with pytest.raises(ValueError, match="'bf32' needs a CPU with bfloat16 matrix units"):
        check_possible("bf32", tiny())


@pytest.mark.usefixtures("unchecked")
def test_settings_that_are_refused():
    with pytest.raises(ValueError, match="unknown dtype 'int8'; valid: float32, bfloat16"):
        SweepConfig(dtype="int8")
    with pytest.raises(ValueError, match="'mixed' needs the engine layered or full"):
        SweepConfig(dtype="mixed", engine="nnsight")
    with pytest.raises(ValueError, match="leave out dtype="):
        SweepConfig(dtype="float32", engine="nnsight", remote="local")


def test_a_sweep_says_its_precision(tmp_path):
    pair = in_bfloat16(), in_bfloat16(seed=1)
    options = {"sites": ["coef"], "progress": False, "out": tmp_path / "run"}
    hashes = [model.content_hash() for model in pair]
    losses = interp.sweep(*pair, ITEMS, dtype="mixed", **options).losses
    assert set(losses["dtype"]) == {"mixed"}
    assert read_manifest(tmp_path / "run")["config"]["dtype"] == "mixed"
    assert [model.content_hash() for model in pair] == hashes
    with pytest.raises(ValueError, match="dtype"):
        interp.sweep(*pair, ITEMS, **options)
    own = interp.sweep(*pair, ITEMS, **options | {"out": None}).losses
    assert set(own["dtype"]) == {"bfloat16"}
    assert not losses["loss_restored"].equals(own["loss_restored"])


# The noise floor


def test_rounding_by_hand(monkeypatch):
    """Two questions, three windows of one site and one of another.

    Here loss(V, U) is 3 + 1 = 4 and the sums of loss(V, R) are 1, 2, 3 and 4; in float32 4, and
    1.4, 2, 2.8 and 3.6. So scores move by 0.1, 0 and 0.05, and by 0.1.
    """
    monkeypatch.setattr(
        "interp.recovery.noise_floor.measure_pair",
        lambda *_run, **_options: (
            Measured(torch.tensor([[2.0, 2.0]])),
            Measured(torch.tensor([[1.0, 0.4], [1.0, 1.0], [1.4, 1.4], [1.8, 1.8]])),
        ),
    )
    losses = (
        torch.tensor([[3.0, 1.0]]),
        torch.tensor([[0.5, 0.5], [1.5, 0.5], [1.0, 2.0], [4.0, 0.0]]),
    )
    restorations = [
        *make_windows("coef", num_layers=3, window=1),
        *make_windows("unembed", num_layers=3, window=1),
    ]
    rounding = measure_rounding(tiny_pair(), ITEMS[:2], restorations, losses, "logit_mse")
    assert rounding == pytest.approx({"coef": 0.1, "unembed": 0.1}, rel=1e-6)


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_rounding_is_measured_against_the_same_weights(direction):
    """Scores of a float32 copy, in the middle of every third of the layers: 0, 2 and 4 of 5."""
    models = {"vanilla": in_bfloat16(), "unlearned": in_bfloat16(seed=1)}
    pair = Pair(**models, direction=direction)
    exact = {name: same_weights_in_float32(model) for name, model in models.items()}
    exact_pair = Pair(**exact, direction=direction)
    restorations = make_windows("coef", num_layers=5, window=1)
    shares = []
    for each in (pair, exact_pair):
        forwards = Pair(vanilla=each.vanilla, unlearned=each.unlearned)
        before = full.measure(forwards, ITEMS[:2], [NOTHING]).losses
        after = full.measure(each, ITEMS[:2], restorations).losses
        shares.append((before, after, after.sum(1) / before.sum()))
    differences = (shares[0][2] - shares[1][2]).abs()
    rounding = measure_rounding(pair, ITEMS[:2], restorations, shares[0][:2], "logit_mse")
    assert rounding["coef"] == pytest.approx(differences[[0, 2, 4]].max().item(), abs=1e-6)
    assert rounding["coef"] > 1e-4


def test_the_floor_sees_what_self_patching_does_not():
    """Self-patching finds V patched with its own states to be V; rounding is there all the same."""
    # Near each other, where rounding is far above the least error below on every kind of CPU.
    vanilla, unlearned = in_bfloat16(), in_bfloat16()
    unlearned.name = "U"
    generator = torch.Generator().manual_seed(2)
    for parameter in unlearned.model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.02
        parameter.data += noise.to(torch.bfloat16)
    restoration = make_windows("coef", num_layers=5)[2]
    itself = Pair(vanilla=vanilla, unlearned=vanilla)
    assert full.measure(itself, ITEMS[:2], [restoration]).losses.tolist() == [[0.0, 0.0]]
    recovery = interp.sweep(
        vanilla, unlearned, ITEMS, sites=["coef"], engine="full", progress=False
    )
    exact = interp.sweep(
        *map(same_weights_in_float32, (vanilla, unlearned)), ITEMS, sites=["coef"], progress=False
    )
    floor = recovery.krs()["noise_floor"]
    error = (recovery.krs()["krs"] - exact.krs()["krs"]).abs()
    # Measured on two of the five questions, in three of the five windows.
    assert 1e-3 < error.max() < 2 * floor.max()
    assert floor.max() < 10 * error.max()
    assert exact.krs()["noise_floor"].max() < 1e-9
    own = recovery.losses.groupby("query_id")["loss_self"].count()
    assert own[own > 0].index.tolist() == ["q0", "q1"]


# The warning


def scores(**sites: list[tuple[float, float, float, float]]) -> pd.DataFrame:
    """KRS, interval and floor of each window."""
    rows = [
        {"language": "en", "site": site, "layer": layer, "krs": krs}
        | {"ci_low": low, "ci_high": high, "noise_floor": floor}
        for site, cells in sites.items()
        for layer, (krs, low, high, floor) in enumerate(cells)
    ]
    return pd.DataFrame(rows)


def test_warning_by_hand():
    table = scores(
        # Every score is nearer to 0 than 0.01.
        value=[(0.005, -0.1, 0.2, 0.01), (-0.009, -0.1, 0.2, 0.01)],
        # One window is above the floor.
        coef=[(0.005, -0.1, 0.2, 0.01), (0.5, 0.4, 0.6, 0.01)],
        # Intervals of 0.004 and 0.006 are narrower than 0.01.
        attn=[(0.3, 0.298, 0.302, 0.01), (0.5, 0.497, 0.503, 0.01)],
    )
    with pytest.warns(UserWarning, match="noise floor") as caught:
        warn_of_noise(table)
    assert [str(item.message) for item in caught] == [
        "the noise floor exceeds the score of every window at value (en: 0.01); the interval of "
        "every window at attn (en: 0.01): measure again with more precision, such as float32"
    ]


def test_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nan = float("nan")
        warn_of_noise(scores(value=[(0.0, 0.0, 0.0, 0.0)], coef=[(0.1, nan, nan, nan)]))
        warn_of_noise(scores(coef=[(0.1, nan, nan, 0.01)]))


def test_a_sweep_warns_once():
    """U is V but for one coefficient of one layer, in bfloat16."""
    vanilla, unlearned = in_bfloat16(), in_bfloat16()
    unlearned.name = "U"
    unlearned.model.lm_head.weight[3, 3] += 2**-7
    items = [trajectory([1, 5, n], [7, n, 9], query=question(n)) for n in range(10, 14)]
    with pytest.warns(UserWarning, match="the noise floor exceeds the score of every") as caught:
        interp.sweep(vanilla, unlearned, items, sites=["coef", "value"], progress=False)
    assert len(caught) == 1


# Training


@pytest.mark.parametrize("has_instructions", [True, False])
def test_training_is_in_bfloat16_only_where_there_are_instructions_for_it(
    has_instructions, monkeypatch
):
    """Emulated, a step on the embedded model takes three minutes in place of two seconds."""
    monkeypatch.setattr(
        "interp.unlearning.training.computes_bfloat16", lambda _device: has_instructions
    )
    seen = set()
    autocast = torch.autocast

    def record(kind, dtype, *, enabled):
        seen.add((kind, dtype, enabled))
        return autocast(kind, dtype, enabled=enabled)

    monkeypatch.setattr(torch, "autocast", record)
    examples = {"forget": [Example(prompt="w3 w4", answer=" w5", language="en")]}
    train(tiny(), examples, TrainingConfig(objective="ga", num_steps=1), progress=False)
    assert seen == {("cpu", torch.bfloat16, has_instructions)}


@pytest.mark.parametrize(("has_avx", "has_tiles"), [(False, False), (True, False), (False, True)])
def test_instructions_for_bfloat16_are_asked_of_the_processor(monkeypatch, has_avx, has_tiles):
    """Intel's before Cooper Lake: oneDNN says that it supports bfloat16, and emulates it."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    assert computes_bfloat16(torch.device("cpu")) == (has_avx or has_tiles)
    assert computes_bfloat16(torch.device("cuda"))
