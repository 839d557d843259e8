"""What goes up the layers together: everything once, within the memory there is, at any size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_for_tests import mixed_trajectories, tiny_pair, trajectories_after, trajectory

from interp.recovery.engines import budget as budget_module
from interp.recovery.engines import layered, upward
from interp.recovery.engines.budget import CPU_BYTES, Planner, RowBudget

CPU = torch.device("cpu")

# Llama in the tests: d_model 16, d_mlp 24, float32. A row of one token before and after a layer is
# 2 · 16 · 4 bytes, the states of both models 2 · (3 · 16 + 24) · 4.
ROW, STATES = 128, 576

PAIR = tiny_pair()


def questions(*lengths: int) -> list:
    """Questions that share nothing, of so many scored or earlier tokens."""
    return [
        trajectory([number + 3] * (length - 1), [7, 8]) for number, length in enumerate(lengths)
    ]


def cut(items, num_rows: int, num_bytes: int, **options) -> list:
    budget = RowBudget(chunk_tokens=100, bytes=num_bytes)
    return Planner(PAIR, items, **options).jobs(num_rows, budget)


def test_bytes_by_hand():
    (job,) = cut(questions(10, 12), 3, 1 << 20)
    assert (job.questions, job.rows, job.prefix) == ((0, 1), (0, 1, 2), 0)
    # The shorter question is padded to 12.
    assert job.num_tokens == 24
    assert job.num_bytes == 24 * (3 * ROW + STATES)


def test_short_questions_go_first_and_batches_are_even():
    """Five questions of 10 tokens, of which three or four would fit: three, then two."""
    each = 10 * (3 * ROW + STATES)
    for num_bytes in (3 * each, 5 * each - 1):
        jobs = cut(questions(10, 9, 10, 10, 10), 3, num_bytes)
        assert [job.questions for job in jobs] == [(1, 0, 2), (3, 4)]
        assert all(job.num_bytes <= num_bytes for job in jobs)


def test_a_question_that_does_not_fit_goes_by_some_rows():
    """Of 7 rows, 3 fit beside the states: 3, 3 and 1."""
    num_bytes = 10 * (STATES + 3 * ROW)
    jobs = cut(questions(10), 7, num_bytes)
    assert [job.rows for job in jobs] == [(0, 1, 2), (3, 4, 5), (6,)]
    # Of 8 rows as well; of 5: 3 and 2.
    assert [len(job.rows) for job in cut(questions(10), 5, num_bytes)] == [3, 2]
    # Where nothing fits, row by row.
    assert [len(job.rows) for job in cut(questions(10), 5, 1)] == [1] * 5


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
    planner = Planner(PAIR, items)
    jobs = planner.jobs(num_rows, RowBudget(chunk_tokens=1, bytes=num_bytes))
    everything = {(question, row) for question in range(len(items)) for row in range(num_rows)}
    for limit, found in (
        (num_bytes, jobs),
        (smaller, planner.again(jobs, RowBudget(chunk_tokens=1, bytes=smaller))),
    ):
        cells = [(q, row) for job in found for q in job.questions for row in job.rows]
        assert len(cells) == len(set(cells))
        assert set(cells) == everything
        for job in found:
            assert job.num_bytes <= limit or len(job.questions) == len(job.rows) == 1


def test_the_budget_is_read_from_free_memory(monkeypatch):
    monkeypatch.setattr(budget_module, "free_memory", lambda _device: 1_000_000)
    assert RowBudget.of([CPU]).bytes == 400_000
    monkeypatch.setattr(budget_module, "free_memory", lambda _device: 1 << 40)
    assert RowBudget.of([CPU]).bytes == CPU_BYTES


def test_what_was_found_before_memory_ran_out_is_kept(monkeypatch):
    """Ten questions in passes of two, of which the third fails: its questions alone run twice."""
    items = mixed_trajectories(10)
    restorations = budget_restorations()
    expected = layered.losses(PAIR, items, restorations)
    ran: list[list[int]] = []
    init = upward.UpwardPass.__init__

    def failing(self, pair, trajectories, *args, **kwargs):
        ran.append([items.index(item) for item in trajectories])
        if len(ran) == 3:
            raise torch.OutOfMemoryError
        init(self, pair, trajectories, *args, **kwargs)

    monkeypatch.setattr(upward.UpwardPass, "__init__", failing)
    longest = max(item.scored.stop for item in items)
    num_bytes = 2 * longest * (len(restorations) * ROW + STATES)
    budget = RowBudget(chunk_tokens=100, bytes=num_bytes)
    found = layered.losses(PAIR, items, restorations, budget=budget)
    torch.testing.assert_close(found, expected)
    succeeded = [question for number, pass_ in enumerate(ran) if number != 2 for question in pass_]
    assert sorted(succeeded) == list(range(10))
    # Half the memory holds one question.
    assert {len(pass_) for pass_ in ran[3:]} == {1}


def test_one_layers_states_are_alive_at_a_time(monkeypatch):
    alive = []
    up = upward.UpwardPass._up

    def spy(self, layer, rows):
        found = up(self, layer, rows)
        for segment in self.segments:
            for run in (segment.base_run, segment.donor_run):
                alive.append([states.resid_in is not None for states in run.layers])
        return found

    monkeypatch.setattr(upward.UpwardPass, "_up", spy)
    monkeypatch.setattr(budget_module, "SAVED_TOKENS", 1)
    layered.losses(PAIR, trajectories_after((5, 6, 7), 3), budget_restorations())
    assert len(alive) == 5 * 4
    for layer in range(5):
        expected = [number == layer for number in range(5)]
        assert alive[4 * layer : 4 * layer + 4] == [expected] * 4


def budget_restorations() -> list:
    from interp.recovery.sites import NOTHING, windows

    sites = ("coef", "attn", "coef+attn", "value")
    return [NOTHING, *(item for site in sites for item in windows(site, num_layers=5, window=3))]


SCALING = """
import time, torch
from interp.recovery.engines import layered
from interp.recovery.engines.budget import Planner, RowBudget
from interp.recovery.sites import NOTHING, windows
from models_for_tests import tiny_pair, trajectory

torch.set_num_threads(1)
pair = tiny_pair(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_layers=8)
sites = ("coef", "attn", "coef+attn", "value")
rows = [NOTHING, *(item for site in sites for item in windows(site, num_layers=8, window=5))]
items = [
    trajectory([(number * 7 + place) % 47 + 3 for place in range(15)], [number % 40 + 3] * ANSWER)
    for number in range(NUM)
]
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
def run(count, budget):
    start = time.process_time()
    found = layered.losses(pair, items[:count], rows, budget=budget)
    return time.process_time() - start, found
def wanted(count):
    every = RowBudget(chunk_tokens=1800, bytes=1 << 60)
    (job,) = Planner(pair, items[:count]).jobs(len(rows), every)
    return RowBudget(chunk_tokens=1800, bytes=job.num_bytes)
run(10, wanted(10))
"""


def in_its_own_process(program: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
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
        "print(few / 10, many / 1000, (peak() - before) / wanted(10).bytes)\n"
    )
    few, many, growth = in_its_own_process(program)
    assert many / few < 1.2
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
