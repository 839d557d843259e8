"""Cost estimate of a sweep, by hand on two layers; its numbers are what the sweep then does."""

from __future__ import annotations

from typing import Any

import pytest

from interp import Trajectory
from interp.models import copy_with_shared_tensors
from interp.recovery import cost_estimate as plan_module
from interp.recovery.cost_estimate import CostEstimate, estimate_cost
from interp.recovery.engines import layered
from interp.recovery.engines.layered import upward_pass
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING
from interp.recovery.sweep_config import SweepConfig
from tests.helpers.tiny_models import mixed_trajectories, tiny_pair, trajectory, wrap

# Llama in the tests, per layer: q and o 16 × 16, k and v 16 × 8; gate, up, down 16 × 24.
ATTN, MLP = 768, 1152
LAYER = ATTN + MLP


def told(**changes: Any) -> str:
    settings: dict = {
        "num_questions": 320,
        "num_rows": 73,
        "num_forwards": 12,
        "vanilla_bytes": 1 << 30,
        "unlearned_bytes": 5 << 20,
        "row_bytes": 256 << 20,
        "free_bytes": 12 << 30,
        "seconds": 600.0,
    }
    return str(CostEstimate(**(settings | changes)))


def test_a_line_for_a_reader():
    assert told() == (
        "plan: 320 questions × 73 rows in 12 passes; memory: V 1.0 GiB + U 5.0 MiB + rows "
        "256.0 MiB, 12.0 GiB free; about 10 min"
    )
    assert told(seconds=None, row_bytes=0).endswith("U 5.0 MiB, 12.0 GiB free")
    assert told(seconds=0.2).endswith("about 1 s")
    assert told(seconds=89).endswith("about 89 s")
    assert told(seconds=9000).endswith("about 2.5 h")
    assert "U 2.0 KiB" in told(unlearned_bytes=2048)


def question(prompt: int, answer: int) -> Trajectory:
    return trajectory(range(3, 3 + prompt), [7] * answer)


def work_by_hand(monkeypatch, sites: str, **options) -> float:
    """Count, at a multiplication per second, for a row restored in layer 0 of two.

    One question of 10 tokens, 4 of them scored. Taken off is all but the row itself: both models'
    runs, 2 · 2 layers; its score and U's, 2 products of 16 × 16, in float64 twice the work; the
    Gram matrices, three as the models share nothing; the noise floor, two runs and half of one.
    """
    pair = tiny_pair(num_layers=2)
    monkeypatch.setattr(plan_module, "_measure_speed", lambda *_: 1.0)
    config = SweepConfig(sites=(sites,), window=1, **options)
    found = estimate_cost(pair, [[question(7, 4)]], config)
    assert (found.num_questions, found.num_rows, found.num_forwards) == (1, 2, 1)
    assert found.seconds is not None
    runs = 10 * 4 * LAYER
    scores = 2 * 4 * 4 * 16 * 16
    gram = 0.6 * 3 * 50 * 16 * 16
    noise = 10 * 2 * LAYER * 2.5
    return found.seconds - runs - scores - gram - noise


@pytest.mark.parametrize(
    ("sites", "options", "inside"),
    [
        ("coef@0", {}, ATTN),
        ("attn@0", {}, MLP),
        ("coef@0+attn@0", {}, 0),
        ("resid@0", {}, 0),
        ("value@0", {}, LAYER),
        ("coef@0[3]", {}, LAYER),
        ("coef@0", {"positions": "prompt"}, LAYER),
    ],
)
def test_work_of_a_row_by_hand(monkeypatch, sites, options, inside):
    """Nothing of what is known inside the window, the whole layer above it."""
    found = work_by_hand(monkeypatch, sites, **options)
    assert found == pytest.approx(10 * (inside + LAYER))


def test_other_engines_run_whole_forwards(monkeypatch):
    """V's forward, U's and one per window, each of 10 tokens with logits at 4."""
    monkeypatch.setattr(plan_module, "_measure_speed", lambda *_: 1.0)
    config = SweepConfig(sites=("coef", "unembed"), window=1, engine="full")
    found = estimate_cost(tiny_pair(num_layers=2), [[question(7, 4)]], config)
    # Two windows, the unembedding, and U alone.
    assert (found.num_rows, found.num_forwards, found.row_bytes) == (4, 4, 0)
    assert found.seconds == pytest.approx(5 * (10 * 2 * LAYER + 4 * 50 * 16))


def test_it_is_what_the_sweep_does(monkeypatch):
    """Cells of 3 and 2 questions, of which one scores nothing."""
    pair, items = tiny_pair(), mixed_trajectories(4)
    cells = [items[:3], [items[3], question(7, 0)]]
    config = SweepConfig(sites=("coef", "value"), window=3)
    ran: list[tuple[int, int]] = []
    init = upward_pass.UpwardPass.__init__

    def spy(self, pair, trajectories, restorations, **options):
        ran.append((len(trajectories), len(restorations)))
        init(self, pair, trajectories, restorations, **options)

    monkeypatch.setattr(upward_pass.UpwardPass, "__init__", spy)
    found = estimate_cost(pair, cells, config)
    assert ran == []
    restorations = [NOTHING, *config.restorations(5)]
    for cell in (items[:3], items[3:]):
        layered.measure(pair, cell, restorations)
    assert found.num_forwards == len(ran) == 2
    assert found.num_questions == sum(questions for questions, _ in ran) == 4
    assert {rows for _, rows in ran} == {found.num_rows} == {11}
    assert found.seconds is not None
    assert found.seconds > 0
    # A row of 16 numbers, both models' states of 3 · 16 + 24.
    tokens = 3 * max(item.scored.stop for item in items[:3])
    assert found.row_bytes == tokens * (11 * 16 + 2 * 72) * 4


def test_memory_is_what_differs():
    vanilla = tiny_pair().vanilla
    name = "model.layers.1.mlp.down_proj.weight"
    unlearned = wrap(copy_with_shared_tensors(vanilla.model, {name}))
    found = estimate_cost(Pair(vanilla=vanilla, unlearned=unlearned), [], SweepConfig())
    assert found.unlearned_bytes == 16 * 24 * 4
    assert (found.num_questions, found.row_bytes, found.seconds) == (0, 0, None)
    assert found.free_bytes > 0
