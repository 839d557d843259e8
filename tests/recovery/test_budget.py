"""Row budget: everything goes up the layers once, within the memory there is, at any size."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.recovery.engines import layered
from interp.recovery.engines.layered import row_budget as budget_module
from interp.recovery.engines.layered import upward_pass
from interp.recovery.engines.layered.row_budget import CPU_BYTES, JobPlanner, RowBudget
from interp.recovery.sites import NOTHING, make_windows
from tests.helpers import ROOT
from tests.helpers.tiny_models import mixed_trajectories, tiny_pair, trajectories_after, trajectory

# Llama in the tests: d_model 16, d_mlp 24, float32. A token of a row is 16 · 4 bytes, of the states
# of both models 2 · (3 · 16 + 24) · 4, of a layer that runs (6 · 16 + 3 · 24) · 4.
ROW, STATES, CALL = 64, 576, 672

PAIR = tiny_pair()


def questions(*lengths: int) -> list:
    """Questions that share nothing, of so many scored or earlier tokens."""
    return [
        trajectory([number + 3] * (length - 1), [7, 8]) for number, length in enumerate(lengths)
    ]


def cut(items, num_rows: int, num_bytes: int, chunk_tokens: int = 100, **options) -> list:
    budget = RowBudget(chunk_tokens=chunk_tokens, bytes=num_bytes)
    return JobPlanner(PAIR, items, **options).plan_jobs(num_rows, budget)


def test_bytes_by_hand():
    (job,) = cut(questions(10, 12), 3, 1 << 20)
    assert (job.questions, job.prefix, job.rows_at_once) == ((0, 1), 0, 3)
    # The shorter question is padded to 12.
    assert job.num_tokens == 24
    assert job.num_bytes == 24 * (3 * ROW + STATES)


def test_short_questions_go_first_and_batches_are_even():
    """Five questions of 10 tokens, of which three or four have room: three, then two."""
    each = 10 * 3 * ROW
    for num_bytes in (3 * each, 5 * each - 1):
        jobs = cut(questions(10, 9, 10, 10, 10), 3, num_bytes, chunk_tokens=60)
        assert [job.questions for job in jobs] == [(1, 0, 2), (3, 4)]
        assert [job.room for job in jobs] == [3 * each, 2 * each]
        assert [job.num_bytes for job in jobs] == [3 * each + 30 * STATES, 2 * each + 20 * STATES]


def test_a_call_has_no_more_tokens_than_it_may():
    """Room for all: calls of 25 tokens take two questions of 10, and of single ones two rows."""
    jobs = cut(questions(10, 10, 10), 3, 1 << 20, chunk_tokens=25)
    assert [(len(job.questions), job.rows_at_once) for job in jobs] == [(2, 1), (1, 2)]


def test_rows_that_have_no_room_wait_outside():
    """Of 7 rows of 10 tokens 5 may wait in memory."""
    (job,) = cut(questions(10), 7, 50 * ROW)
    assert (job.rows_at_once, job.room) == (7, 50 * ROW)
    assert job.num_bytes == 50 * ROW + 10 * STATES
    # No room at all, and calls of a token.
    (job,) = cut(questions(10), 5, 1, chunk_tokens=1)
    assert (job.rows_at_once, job.room) == (1, 0)
    assert job.is_smallest


def test_without_room_questions_go_together_until_they_fill_a_call():
    """Fill calls: a quarter of 100 tokens is 2.5 questions; where all have room, ten fit."""
    without = cut(questions(*[10] * 9), 7, 0)
    assert [len(job.questions) for job in without] == [3, 3, 3]
    assert [job.room for job in without] == [0, 0, 0]
    assert [len(job.questions) for job in cut(questions(*[10] * 9), 7, 1 << 20)] == [9]


def test_a_shared_prefix_counts_once(monkeypatch):
    monkeypatch.setattr(budget_module, "SAVED_TOKENS", 20)
    items = [trajectory([5] * 30 + [9 + number], [7, 8]) for number in range(2)]
    (job,) = cut(items, 1, 1 << 20)
    assert (job.prefix, job.num_tokens) == (30, 30 + 2 * 2)
    (job,) = cut(items, 1, 1 << 20, padding_side="left")
    assert (job.prefix, job.num_tokens) == (0, 2 * 32)


def test_nothing_to_restore():
    assert cut(questions(10), 0, 100) == []


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=12),
    num_rows=st.integers(1, 9),
    num_bytes=st.integers(1, 300_000),
    smaller=st.integers(1, 30_000),
)
def test_everything_is_done_once_within_the_budget(lengths, num_rows, num_bytes, smaller):
    items = questions(*lengths)
    planner = JobPlanner(PAIR, items)
    jobs = planner.plan_jobs(num_rows, RowBudget(chunk_tokens=1, bytes=num_bytes))
    for limit, found in (
        (num_bytes, jobs),
        (smaller, planner.replan(jobs, num_rows, RowBudget(chunk_tokens=1, bytes=smaller))),
    ):
        assert sorted(q for job in found for q in job.questions) == list(range(len(items)))
        for job in found:
            assert job.room <= limit


def test_the_budget_is_read_from_free_memory(monkeypatch):
    monkeypatch.setattr(budget_module, "measure_free_memory", lambda _device: 1_000_000)
    chunk_tokens = 400_000 // (STATES + CALL)
    assert RowBudget.for_pair(PAIR) == RowBudget(chunk_tokens=chunk_tokens, bytes=400_000)
    monkeypatch.setattr(budget_module, "measure_free_memory", lambda _device: 1 << 40)
    assert RowBudget.for_pair(PAIR) == RowBudget(chunk_tokens=1800, bytes=CPU_BYTES)
    monkeypatch.setattr(budget_module, "measure_free_memory", lambda _device: 0)
    assert RowBudget.for_pair(PAIR) == RowBudget(chunk_tokens=1, bytes=0)


def test_halving_comes_to_the_smallest():
    budget = RowBudget(chunk_tokens=1800, bytes=1 << 27)
    for _ in range(11):
        budget = budget.halve()
    assert budget == RowBudget(chunk_tokens=1, bytes=0)
    assert budget.halve() == budget


def test_what_was_found_before_memory_ran_out_is_kept(monkeypatch):
    """Ten questions in passes of two, of which the third fails: its questions alone run twice."""
    items = mixed_trajectories(10)
    restorations = budget_restorations()
    expected = layered.measure(PAIR, items, restorations).losses
    ran: list[list[int]] = []
    init = upward_pass.UpwardPass.__init__

    def failing(self, pair, trajectories, *args, **kwargs):
        ran.append([items.index(item) for item in trajectories])
        if len(ran) == 3:
            raise torch.OutOfMemoryError
        init(self, pair, trajectories, *args, **kwargs)

    monkeypatch.setattr(upward_pass.UpwardPass, "__init__", failing)
    longest = max(item.scored.stop for item in items)
    budget = RowBudget(chunk_tokens=2 * longest, bytes=1 << 20)
    found = layered.measure(PAIR, items, restorations, budget=budget).losses
    torch.testing.assert_close(found, expected)
    succeeded = [question for number, pass_ in enumerate(ran) if number != 2 for question in pass_]
    assert sorted(succeeded) == list(range(10))
    # Half the memory holds one question.
    assert {len(pass_) for pass_ in ran[3:]} == {1}


def test_one_layers_states_are_alive_at_a_time(monkeypatch):
    alive = []
    up = upward_pass.UpwardPass._run_layer

    def spy(self, layer, rows):
        found = up(self, layer, rows)
        for segment in self.segments:
            for run in (segment.base_run, segment.donor_run):
                alive.append([states.resid_in is not None for states in run.layers])
        return found

    monkeypatch.setattr(upward_pass.UpwardPass, "_run_layer", spy)
    monkeypatch.setattr(budget_module, "SAVED_TOKENS", 1)
    layered.measure(PAIR, trajectories_after((5, 6, 7), 3), budget_restorations())
    assert len(alive) == 5 * 4
    for layer in range(5):
        expected = [number == layer for number in range(5)]
        assert alive[4 * layer : 4 * layer + 4] == [expected] * 4


def budget_restorations() -> list:
    sites = ("coef", "attn", "coef+attn", "value")
    return [
        NOTHING,
        *(item for site in sites for item in make_windows(site, num_layers=5, window=3)),
    ]


SCALING = """
import time, torch
from interp.recovery.engines import layered
from interp.recovery.engines.layered.row_budget import JobPlanner, RowBudget, Sizes
from interp.recovery.sites import NOTHING, make_windows
from tests.helpers.tiny_models import tiny_pair, trajectory

torch.set_num_threads(1)
pair = tiny_pair(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_layers=8)
sites = ("coef", "attn", "coef+attn", "value")
rows = [NOTHING, *(item for site in sites for item in make_windows(site, num_layers=8, window=5))]
items = [
    trajectory([(number * 7 + place) % 47 + 3 for place in range(15)], [number % 40 + 3] * ANSWER)
    for number in range(NUM)
]
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
def run(count, budget):
    start = time.process_time()
    found = layered.measure(pair, items[:count], rows, budget=budget).losses
    return time.process_time() - start, found
def wanted(count):
    every = RowBudget(chunk_tokens=1800, bytes=1 << 60)
    (job,) = JobPlanner(pair, items[:count]).plan_jobs(len(rows), every)
    return RowBudget(chunk_tokens=1800, bytes=job.room)
run(10, wanted(10))
"""


def in_its_own_process(program: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [float(word) for word in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
def test_time_is_linear_and_memory_flat_from_10_to_1000_questions():
    program = SCALING.replace("NUM", "1000").replace("WIDTH", "64").replace("ANSWER", "30") + (
        "few = min(run(10, wanted(10))[0] for _ in range(3))\n"
        "before = peak()\n"
        "many, found = run(1000, wanted(10))\n"
        "sizes = Sizes.for_pair(pair)\n"
        "allowed = wanted(10).bytes + 1800 * (sizes.states + sizes.call)\n"
        "print(few / 10, many / 1000, (peak() - before) / allowed)\n"
    )
    few, many, growth = in_its_own_process(program)
    assert many / few < 1.2
    # A call of 10 questions is not full yet.
    assert growth < 0.5


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
def test_a_twentieth_of_the_wanted_budget_is_hardly_slower():
    sizes = SCALING.replace("NUM", "20").replace("WIDTH", "384").replace("ANSWER", "60")
    program = sizes + (
        "full = wanted(20)\n"
        "less = RowBudget(chunk_tokens=1800, bytes=full.bytes // 20)\n"
        "fast, expected = run(20, full)\n"
        "slow, found = run(20, less)\n"
        "error = ((found - expected).abs() / expected[0]).max()\n"
        "print(fast, slow, error.item())\n"
    )
    fast, slow, error = in_its_own_process(program)
    assert error < 1e-5
    assert slow / fast < 1.3


@pytest.mark.slow
@pytest.mark.gemma
@pytest.mark.parametrize("sites", [("coef",), ("coef", "attn", "coef+attn", "value")])
def test_a_twentieth_of_the_wanted_budget_on_the_embedded_model(gemma_pair, sites):
    """Bar of 1.3, on ten questions of the benchmark's size."""
    queries = interp.queries("capitals", languages=["en"], limit=10)
    items = interp.trajectories(gemma_pair.vanilla, queries, num_tokens=30, progress=False)
    rows = [
        NOTHING,
        *(item for site in sites for item in make_windows(site, num_layers=18, window=5)),
    ]
    everything = RowBudget(chunk_tokens=1800, bytes=1 << 40)
    wanted = max(job.room for job in JobPlanner(gemma_pair, items).plan_jobs(len(rows), everything))

    def run(num_bytes: int) -> tuple[float, torch.Tensor]:
        start = time.process_time()
        budget = RowBudget(chunk_tokens=1800, bytes=num_bytes)
        found = layered.measure(gemma_pair, items, rows, budget=budget).losses
        return time.process_time() - start, found

    run(wanted)
    fast, expected = run(wanted)
    slow, found = run(wanted // 20)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    print(
        f"{', '.join(sites)}: {fast:.1f} s, {slow:.1f} s with a twentieth, {slow / fast:.2f} times"
    )
    assert slow / fast < 1.3
