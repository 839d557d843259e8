"""Trajectories as padded tensors.

Legend of shape names: batch = questions, pos = positions, scored = all scored positions of the
batch, in row-major order.

Padding stands on the right by default. Then no mask is needed: under causal attention no real
position sees what follows it. On the left a mask and explicit position ids go with the tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.data.trajectories import Trajectory
from interp.recovery.sites import Positions

PaddingSide = Literal["right", "left"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Questions of one forward pass.

    Attributes:
        input_ids: prompt and answer up to the last scored position; padding repeats a real token
            and is never restored, never scored.
        real: True at real tokens.
        in_prompt: True at the prompt's tokens.
        scored: True where logits are compared.
        next_ids: at scored positions the token that follows (-1 where none does).
        padding_side: where the padding is.
    """

    input_ids: Int[Tensor, "batch pos"]
    real: Bool[Tensor, "batch pos"]
    in_prompt: Bool[Tensor, "batch pos"]
    scored: Bool[Tensor, "batch pos"]
    next_ids: Int[Tensor, "batch pos"]
    padding_side: PaddingSide

    @property
    def num_tokens(self) -> int:
        """Number of positions, padding included."""
        return self.input_ids.numel()

    def restored(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        """The positions at which activation sites are restored."""
        if positions == "prompt":
            return self.in_prompt
        if positions == "answer":
            return self.real & ~self.in_prompt
        return self.real

    def inputs(self, body: nn.Module) -> dict[str, Tensor | bool]:
        """The keyword arguments of a forward through the model or its body."""
        inputs: dict[str, Tensor | bool] = {"input_ids": self.input_ids, "use_cache": False}
        if self.padding_side == "left":
            inputs["attention_mask"] = self.real.long()
            if "position_ids" in inspect.signature(body.forward).parameters:
                inputs["position_ids"] = (self.real.long().cumsum(1) - 1).clamp(min=0)
        return inputs

    def mean_per_question(
        self, losses: Float[Tensor, "*rows scored"]
    ) -> Float[Tensor, "*rows batch"]:
        """The mean over each question's scored positions."""
        counts = self.scored.sum(1)
        question = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        sums = losses.new_zeros(*losses.shape[:-1], len(counts))
        sums.index_add_(-1, question, losses)
        return sums / counts


def make_batch(
    trajectories: Sequence[Trajectory],
    *,
    device: torch.device | str = "cpu",
    padding_side: PaddingSide = "right",
) -> Batch:
    """Pad trajectories that each score at least one position."""
    assert all(item.scored for item in trajectories)
    lengths = [item.scored.stop for item in trajectories]
    width = max(lengths)
    shape = (len(trajectories), width)
    input_ids = torch.zeros(shape, dtype=torch.long)
    next_ids = torch.full(shape, -1)
    real, in_prompt, scored = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    for row, (item, length) in enumerate(zip(trajectories, lengths, strict=True)):
        start = 0 if padding_side == "right" else width - length
        tokens = torch.tensor(item.token_ids)
        input_ids[row] = tokens[0]
        input_ids[row, start : start + length] = tokens[:length]
        real[row, start : start + length] = True
        in_prompt[row, start : start + min(length, len(item.prompt_ids))] = True
        here = slice(start + item.scored.start, start + item.scored.stop)
        scored[row, here] = True
        following = tokens[item.scored.start + 1 : item.scored.stop + 1]
        next_ids[row, here.start : here.start + len(following)] = following
    return Batch(
        input_ids=input_ids.to(device),
        real=real.to(device),
        in_prompt=in_prompt.to(device),
        scored=scored.to(device),
        next_ids=next_ids.to(device),
        padding_side=padding_side,
    )
