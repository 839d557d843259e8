"""Batches: trajectories as padded tensors.

Legend of shape names: batch = questions, pos = positions, scored = all scored positions of the
batch, in row-major order.

Padding stands on the right by default. Then no mask is needed: under causal attention no real
position sees what follows it. On the left a mask and explicit position ids go with the tokens.

Questions that begin with the same tokens (a template, few-shot examples, a chat preamble) can be
split into what they share, `make_prefix_batch`, and the rest, `make_batch(…, start=…)`.

Which positions are scored is known on the CPU when a batch is made. It is kept as numbers
(`scored_at`): choosing by True and False, or counting them, would make the CPU wait for a GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from interp.data.trajectories import Trajectory
from interp.recovery.sites import Positions

PaddingSide = Literal["right", "left"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Batch of questions for one forward pass.

    Attributes:
        input_ids: prompt and answer up to the last scored position; padding repeats a real token
            and is never restored, never scored.
        real: True at real tokens.
        in_prompt: True at the prompt's tokens.
        scored: True where logits are compared.
        scored_at: the scored positions by number, the two axes merged.
        scored_question: the question, by number, of each of them.
        num_scored: how many of them each question has.
        next_ids: at scored positions the token that follows (-1 where none does).
        all_answered: whether a token follows each of them.
        padding_side: where the padding is.
    """

    input_ids: Int[Tensor, "batch pos"]
    real: Bool[Tensor, "batch pos"]
    in_prompt: Bool[Tensor, "batch pos"]
    scored: Bool[Tensor, "batch pos"]
    scored_at: Int[Tensor, " scored"]
    scored_question: Int[Tensor, " scored"]
    num_scored: tuple[int, ...]
    next_ids: Int[Tensor, "batch pos"]
    all_answered: bool
    padding_side: PaddingSide

    @property
    def num_tokens(self) -> int:
        """Number of positions, padding included."""
        return self.input_ids.numel()

    def select_positions(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        """Select the positions at which activation sites are restored."""
        if positions == "prompt":
            return self.in_prompt
        if positions == "answer":
            return self.real & ~self.in_prompt
        return self.real

    def inputs(self, body: nn.Module) -> dict[str, Tensor | bool]:
        """Make the keyword arguments of a forward through the model or its body."""
        inputs = {"input_ids": self.input_ids}
        if self.padding_side == "left":
            inputs["attention_mask"] = self.real.long()
            if "position_ids" in inspect.signature(body.forward).parameters:
                inputs["position_ids"] = (self.real.long().cumsum(1) - 1).clamp(min=0)
        # Parameters come in the order of use: the embedding's is where token ids are wanted.
        device = next(body.parameters()).device
        return {**{name: value.to(device) for name, value in inputs.items()}, "use_cache": False}

    def make_past_inputs(self, past: Cache | None) -> dict[str, Cache | bool]:
        """Make the keyword arguments that put earlier keys and values before this batch."""
        return {} if past is None else {"past_key_values": past, "use_cache": True}

    def at_scored(self, values: Tensor) -> Tensor:
        """Select [batch, pos, …] → [scored, …], on whatever device the values are."""
        return values.flatten(0, 1)[self.scored_at.to(values.device)]

    def average_per_question(
        self, losses: Float[Tensor, "*rows scored"]
    ) -> Float[Tensor, "*rows batch"]:
        """Average over each question's scored positions."""
        sums = losses.new_zeros(*losses.shape[:-1], self.scored.shape[0])
        sums.index_add_(-1, self.scored_question.to(losses.device), losses)
        return sums / self.scored.sum(1).to(losses.device)


def make_batch(
    trajectories: Sequence[Trajectory],
    *,
    device: torch.device | str = "cpu",
    padding_side: PaddingSide = "right",
    start: int = 0,
) -> Batch:
    """Pad trajectories that each score at least one position, from token `start` on."""
    assert all(item.scored for item in trajectories)
    assert start <= count_shared_tokens(trajectories)
    lengths = [item.scored.stop - start for item in trajectories]
    width = max(lengths)
    shape = (len(trajectories), width)
    input_ids = torch.zeros(shape, dtype=torch.long)
    next_ids = torch.full(shape, -1)
    real, in_prompt, scored = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    for row, (item, length) in enumerate(zip(trajectories, lengths, strict=True)):
        first = 0 if padding_side == "right" else width - length
        tokens = torch.tensor(item.token_ids[start:])
        input_ids[row] = tokens[0]
        input_ids[row, first : first + length] = tokens[:length]
        real[row, first : first + length] = True
        in_prompt[row, first : first + min(length, len(item.prompt_ids) - start)] = True
        here = slice(first + item.scored.start - start, first + item.scored.stop - start)
        scored[row, here] = True
        following = tokens[item.scored.start + 1 - start : item.scored.stop + 1 - start]
        next_ids[row, here.start : here.start + len(following)] = following
    question, _ = scored.nonzero(as_tuple=True)
    return Batch(
        input_ids=send(input_ids, device),
        real=send(real, device),
        in_prompt=send(in_prompt, device),
        scored=send(scored, device),
        scored_at=send(scored.flatten().nonzero()[:, 0], device),
        scored_question=send(question, device),
        num_scored=tuple(len(item.scored) for item in trajectories),
        next_ids=send(next_ids, device),
        all_answered=bool((next_ids[scored] >= 0).all()),
        padding_side=padding_side,
    )


def send(values: Tensor, device: torch.device | str) -> Tensor:
    """Send a CPU tensor to a device: to a GPU from pinned memory, without waiting for it."""
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def count_shared_tokens(trajectories: Sequence[Trajectory]) -> int:
    """Count the tokens that the trajectories begin with in common, before anything is scored."""
    first, last = (
        min(item.token_ids for item in trajectories),
        max(item.token_ids for item in trajectories),
    )
    shared = next(
        (index for index, pair in enumerate(zip(first, last, strict=False)) if len({*pair}) > 1),
        min(len(first), len(last)),
    )
    return min(shared, *(_get_prefix_limit(item) for item in trajectories))


def _get_prefix_limit(item: Trajectory) -> int:
    return min(item.scored.start, len(item.prompt_ids))


def make_prefix_batch(
    trajectories: Sequence[Trajectory], length: int, *, device: torch.device | str = "cpu"
) -> Batch:
    """Make one row of the first tokens, which all trajectories share."""
    assert length <= count_shared_tokens(trajectories)
    return make_unscored_batch(send(torch.tensor([trajectories[0].token_ids[:length]]), device))


def make_unscored_batch(input_ids: Int[Tensor, "batch pos"]) -> Batch:
    """Make a batch of tokens without padding, all of prompts, of which none is scored."""
    everywhere = torch.ones_like(input_ids, dtype=torch.bool)
    nowhere = input_ids.new_empty(0)
    return Batch(
        input_ids=input_ids,
        real=everywhere,
        in_prompt=everywhere,
        scored=~everywhere,
        scored_at=nowhere,
        scored_question=nowhere,
        num_scored=(0,),
        next_ids=torch.full_like(input_ids, -1),
        all_answered=True,
        padding_side="right",
    )


def group_by_prefix(trajectories: Sequence[Trajectory], *, overhead: int) -> list[list[int]]:
    """Split questions into groups that share a prefix, so that the fewest tokens are run.

    A group costs its prefix once, the rest of each question, and `overhead` tokens for being
    one more group. The best split of the questions in the order of their tokens is found by
    dynamic programming.
    """
    order = sorted(range(len(trajectories)), key=lambda index: trajectories[index].token_ids)
    # best[n]: the least cost of the first n questions, and where their last group begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for stop in range(1, len(order) + 1):
        splits = []
        prefix, rest = 0, 0
        for start in range(stop - 1, -1, -1):
            item = trajectories[order[start]]
            if start == stop - 1:
                prefix = _get_prefix_limit(item)
            else:
                prefix = min(prefix, count_shared_tokens([item, trajectories[order[start + 1]]]))
            rest += item.scored.stop
            cost = best[start][0] + rest - (stop - start - 1) * prefix + overhead
            splits.append((cost, start))
        best.append(min(splits))
    groups = []
    stop = len(order)
    while stop:
        start = best[stop][1]
        groups.append(order[start:stop])
        stop = start
    return groups[::-1]
