"""Trajectories as padded tensors: what is real, restored, scored, and what follows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interp.recovery.batches import (
    count_shared_tokens,
    group_by_prefix,
    make_batch,
    make_prefix_batch,
)
from tests.helpers.tiny_models import ARCHITECTURES, mixed_trajectories, tiny, trajectory

# Three prompt tokens and two answer tokens; one prompt token and three answer tokens. The last
# answer token is only predicted, so it is not run.
SHORT = trajectory([11, 12, 13], [14, 15])
LONG = trajectory([21], [22, 23, 24, 25])


def test_padding_on_the_right_by_hand():
    batch = make_batch([SHORT, LONG, trajectory([31, 32], [33])])
    assert batch.input_ids.tolist() == [[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 31, 31]]
    assert batch.real.long().tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.in_prompt.long().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert batch.scored.long().tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0]]
    assert batch.next_ids[batch.scored].tolist() == [14, 15, 22, 23, 24, 25, 33]
    assert batch.num_tokens == 12


def test_padding_on_the_left_by_hand():
    batch = make_batch([SHORT, LONG, trajectory([31, 32], [33])], padding_side="left")
    assert batch.input_ids.tolist() == [[11, 12, 13, 14], [21, 22, 23, 24], [31, 31, 31, 32]]
    assert batch.real.long().tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.in_prompt.long().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 1]]
    assert batch.scored.long().tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]
    assert batch.next_ids[batch.scored].tolist() == [14, 15, 22, 23, 24, 25, 33]


def test_positions_scored_without_a_next_token():
    """hong2024 scores the last n positions, of which the very last predicts nothing known."""
    item = replace(trajectory([11, 12, 13, 14], []), scored=range(2, 4))
    batch = make_batch([item, SHORT])
    assert batch.input_ids.tolist() == [[11, 12, 13, 14], [11, 12, 13, 14]]
    assert batch.scored.long().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert batch.next_ids[0, 2:].tolist() == [14, -1]


@pytest.mark.parametrize("side", ["right", "left"])
def test_restored_positions(side):
    batch = make_batch([SHORT, LONG, trajectory([31, 32], [33])], padding_side=side)
    prompt, answer = batch.select_positions("prompt"), batch.select_positions("answer")
    assert prompt.sum(1).tolist() == [3, 1, 2]
    # The last answer token is not run.
    assert answer.sum(1).tolist() == [1, 3, 0]
    assert torch.equal(prompt | answer, batch.select_positions("all"))
    assert torch.equal(batch.select_positions("all"), batch.real)
    assert not (prompt & answer).any()


def test_mean_per_question_by_hand():
    """Means over 2, 4 and 1 scored positions, not over all seven."""
    batch = make_batch([SHORT, LONG, trajectory([31, 32], [33])])
    losses = torch.tensor([1.0, 3.0, 10.0, 10.0, 20.0, 0.0, 7.0], dtype=torch.float64)
    assert batch.average_per_question(losses).tolist() == [2.0, 10.0, 7.0]
    assert batch.average_per_question(torch.stack([losses, 2 * losses])).tolist() == [
        [2.0, 10.0, 7.0],
        [4.0, 20.0, 14.0],
    ]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_is_not_seen(architecture, side):
    """Padding does not change a question's logits."""
    vanilla, items = tiny(architecture), mixed_trajectories()
    batch = make_batch(items, padding_side=side)
    with torch.inference_mode():
        logits = vanilla.model(**batch.inputs(vanilla.anatomy.body)).logits
        for row, item in enumerate(items):
            alone = vanilla.model(torch.tensor([item.token_ids[:-1]])).logits[0]
            torch.testing.assert_close(logits[row][batch.real[row]], alone, rtol=1e-4, atol=1e-5)


# What questions begin with


def test_the_shared_prefix_ends_before_what_is_scored():
    items = [trajectory([5, 6, 7, 8, 9], [3, 4]), trajectory([5, 6, 7, 9], [8])]
    assert count_shared_tokens(items) == 3
    # The last prompt token predicts the first of the answer: it is scored.
    assert count_shared_tokens([trajectory([5, 6, 7], [8, 9])] * 2) == 2
    assert count_shared_tokens(items[:1]) == 4
    assert count_shared_tokens([items[0], trajectory([6, 5], [3])]) == 0


def test_a_batch_behind_its_prefix():
    items = [trajectory([5, 6, 7, 8, 9], [3, 4]), trajectory([5, 6, 7, 9], [8])]
    whole, prefix, rest = make_batch(items), make_prefix_batch(items, 3), make_batch(items, start=3)
    assert prefix.input_ids.tolist() == [[5, 6, 7]]
    assert (prefix.real.all(), prefix.in_prompt.all(), prefix.scored.any()) == (True, True, False)
    for name in ("real", "in_prompt", "scored", "next_ids"):
        assert torch.equal(getattr(rest, name), getattr(whole, name)[:, 3:]), name
    assert rest.input_ids.tolist() == [[8, 9, 3], [9, 9, 9]]


def test_groups_that_run_the_fewest_tokens():
    """Two preambles of 21 tokens: one group runs 4 · 22 = 88 tokens, two run 2 · (21 + 2) = 46."""
    items = [
        trajectory([first] * 20 + [30 + first, last], [9]) for last in (3, 4) for first in (7, 8)
    ]
    assert group_by_prefix(items, overhead=41) == [[0, 2], [1, 3]]
    assert group_by_prefix(items, overhead=43) == [[0, 2, 1, 3]]
    # Nothing is gained by being alone.
    assert group_by_prefix(items[:1], overhead=0) == [[0]]
