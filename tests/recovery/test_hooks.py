"""Models are touched only inside a `with`: bit-identical afterwards, whatever happened inside."""

from __future__ import annotations

import gc
import random

import psutil
import pytest
import torch
from torch import nn

from interp import sweep
from interp.models import replace_forward
from interp.recovery.batches import make_batch
from interp.recovery.hooks import record
from interp.recovery.module_hooks import swap_parameters
from interp.recovery.pair import Pair
from interp.recovery.sites import SITES, Restoration, make_windows
from tests.helpers.tiny_models import OWN_ENGINES, mixed_trajectories, tiny_pair

TRAJECTORIES = mixed_trajectories(3)


def everything() -> list[Restoration]:
    found = []
    for site in (*SITES, "coef+attn", "coef+attn+value+norms+unembed"):
        for positions in ("all", "prompt"):
            found += make_windows(site, num_layers=5, window=3, positions=positions)
    return found


def fingerprint(pair: Pair) -> list[object]:
    """Take the bits of both models, and which objects their parameters and hooks are."""
    found: list[object] = []
    for wrapped in (pair.vanilla, pair.unlearned):
        model = wrapped.model
        found.append(wrapped.content_hash())
        found.append([(name, id(p), p.data_ptr()) for name, p in model.named_parameters()])
        for name, module in model.named_modules():
            # `wrap` and the library's own set-up may leave hooks: they must be the same ones.
            found.append((name, list(module._forward_hooks), list(module._forward_pre_hooks)))
            assert "forward" not in vars(module), name
    return found


def assert_no_hooks(pair: Pair) -> None:
    for wrapped in (pair.vanilla, pair.unlearned):
        for module in wrapped.model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "bloom", "opt", "phi"])
@pytest.mark.parametrize("engine", OWN_ENGINES)
def test_models_are_as_before(engine, architecture, direction):
    pair = tiny_pair(architecture, direction=direction)
    before = fingerprint(pair)
    assert_no_hooks(pair)
    OWN_ENGINES[engine](pair, TRAJECTORIES, everything())
    assert fingerprint(pair) == before
    assert_no_hooks(pair)


class Interruption(Exception):
    """Error that nobody expects."""


@pytest.mark.parametrize(
    ("architecture", "error"),
    [
        ("llama", Interruption),
        ("llama", KeyboardInterrupt),
        ("gpt2", Interruption),
        ("bloom", torch.OutOfMemoryError),
    ],
)
@pytest.mark.parametrize("engine", OWN_ENGINES)
def test_models_are_as_before_after_an_exception(monkeypatch, engine, architecture, error):
    """Failing runs: the n-th matrix product of a run fails, for n in every phase of it."""
    pair, restorations = tiny_pair(architecture), everything()
    before = fingerprint(pair)
    # Derived once, and not in the runs that are counted.
    anatomies = pair.base.anatomy, pair.donor.anatomy
    matrix = type(anatomies[0].layers[0].values)
    forward = matrix.forward
    calls = 0
    fail_at = -1

    def failing(self: nn.Module, *args: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == fail_at or (error is torch.OutOfMemoryError and 0 < fail_at < calls):
            raise error
        return forward(self, *args)

    monkeypatch.setattr(matrix, "forward", failing)
    OWN_ENGINES[engine](pair, TRAJECTORIES, restorations)
    total = calls
    assert total > 100
    rng = random.Random(f"{engine} {architecture}")
    for fail_at in [1, total, *rng.sample(range(2, total), 6)]:  # noqa: B007
        calls = 0
        with pytest.raises(error):
            OWN_ENGINES[engine](pair, TRAJECTORIES, restorations)
        assert fingerprint(pair) == before
        assert_no_hooks(pair)


def test_an_interrupted_run_does_not_change_the_next(monkeypatch):
    pair, restorations = tiny_pair(), everything()
    expected = OWN_ENGINES["layered"](pair, TRAJECTORIES, restorations)
    forward = nn.Linear.forward
    calls = 0

    def failing(self, values):
        nonlocal calls
        calls += 1
        if calls == 150:
            raise KeyboardInterrupt
        return forward(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", failing)
        with pytest.raises(KeyboardInterrupt):
            OWN_ENGINES["layered"](pair, TRAJECTORIES, restorations)
    assert torch.equal(OWN_ENGINES["layered"](pair, TRAJECTORIES, restorations), expected)


def test_replacements_nest_and_are_undone_in_order():
    linear, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        linear.weight.fill_(2)
        other.weight.fill_(5)
        x = torch.ones(1, 1)
        with swap_parameters(linear, other):
            assert linear(x).item() == 5
            with replace_forward(linear, lambda values: values - 3):
                assert linear(x).item() == -2
                with replace_forward(linear, lambda values: values - 4):
                    assert linear(x).item() == -3
                assert linear(x).item() == -2
            assert linear(x).item() == 5
        assert linear(x).item() == 2


def test_what_is_recorded_is_what_ran():
    """Llama: resid = resid_in + attn + mlp_out, and mlp_out = coef · value vectors."""
    vanilla = tiny_pair("llama_biases").vanilla
    batch = make_batch(TRAJECTORIES)
    names = {"resid_in", "attn", "coef", "mlp_out", "resid"}
    with torch.inference_mode():
        run = record(vanilla.anatomy, batch, names)
    previous = vanilla.model.get_input_embeddings()(batch.input_ids)
    for layer, states in enumerate(run.layers):
        torch.testing.assert_close(states.resid_in, previous)
        torch.testing.assert_close(states.resid, previous + states.attn + states.mlp_out)
        down = vanilla.model.model.layers[layer].mlp.down_proj
        torch.testing.assert_close(states.mlp_out, states.coef @ down.weight.T + down.bias)
        previous = states.resid
    torch.testing.assert_close(run.final, vanilla.model.model.norm(previous))


def test_what_is_not_asked_for_is_not_recorded():
    vanilla = tiny_pair().vanilla
    with torch.inference_mode():
        run = record(vanilla.anatomy, make_batch(TRAJECTORIES), {"coef"})
    for states in run.layers:
        assert states.coef is not None
        assert states.attn is states.mlp_out is states.resid is states.resid_in is None


def num_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())


def test_memory_does_not_grow():
    pair = tiny_pair()
    tensors, resident = {}, {}
    for number in range(1, 51):
        sweep(
            pair.vanilla,
            pair.unlearned,
            TRAJECTORIES,
            sites=["coef", "attn", "unembed", "value"],
            window=3,
            engine="layered" if number % 5 else "full",
            progress=False,
        )
        if number in (5, 50):
            tensors[number] = num_tensors()
            resident[number] = psutil.Process().memory_info().rss
    assert tensors[50] == tensors[5]
    # Allocators keep some pages; 45 sweeps that leaked one run's states would be far above.
    assert resident[50] - resident[5] < 32 << 20
