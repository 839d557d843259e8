"""Low-rank sums: a weight W + s·B A that shares W and is made when it is read.

LoRA leaves a model's weights as they are and trains two thin matrices beside each. Merged, every
weight that it touches is a matrix of its own; as `LowRankSum` it stays V's, and the sum lives as
long as the operation that reads it. The numbers are those of the merged weight, bit for bit.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


class LowRankSum(nn.Parameter):
    """Parameter of a module that is W + s·B A. It holds W (not a copy), A and B.

    Every operation on it is one on the sum, made anew; `detach()` and `.data` are the sum as an
    ordinary tensor, and so is what a deep copy holds. It cannot be written into or trained.
    """

    base: Tensor
    low_rank: tuple[Tensor, Tensor, float, bool] | None
    held: Tensor | None = None

    @classmethod
    def from_matrices(
        cls,
        base: Float[Tensor, "rows columns"],
        a: Float[Tensor, "rank in"],
        b: Float[Tensor, "out rank"],
        *,
        scale: float,
        transposed: bool = False,
    ) -> LowRankSum:
        """Put a low-rank matrix beside a weight.

        Args:
            base: W, [out, in], or [in, out] where `transposed` (as GPT-2's Conv1D holds it).
            a: A.
            b: B.
            scale: s.
            transposed: W is held transposed.
        """
        total = Tensor._make_wrapper_subclass(
            cls, base.shape, strides=base.stride(), dtype=base.dtype, device=base.device
        )
        total.base = base if isinstance(base, cls) else base.detach()
        total.low_rank = a, b, scale, transposed
        return total

    def merge(self) -> Tensor:
        """Return the sum as an ordinary tensor, rounded as peft does when it merges."""
        if self.low_rank is None:
            return self.base
        if self.held is not None:
            return self.held
        a, b, scale, transposed = self.low_rank
        delta = torch.mm(b, a, out=_allocate(len(b), a.shape[1], like=b)).mul_(scale)
        if transposed:
            delta = delta.T
        total = delta
        if delta.dtype != self.base.dtype:
            total = _allocate(*self.base.shape, like=self.base).copy_(delta)
        return total.add_(_merge_if_sum(self.base))

    def alias(self) -> nn.Parameter:
        """Return another parameter that holds the same memory."""
        if self.low_rank is None:
            return nn.Parameter(self.base, requires_grad=False)
        a, b, scale, transposed = self.low_rank
        return LowRankSum.from_matrices(self.base, a, b, scale=scale, transposed=transposed)

    @property
    def own_bytes(self) -> int:
        """Memory of A and B, or of the sum, once that was moved or converted."""
        if self.low_rank is None:
            return self.base.nbytes
        return sum(part.nbytes for part in self.low_rank[:2])

    @property
    def data(self) -> Tensor:
        """Sum as a tensor. Set by `model.to(…)`, it becomes an ordinary tensor elsewhere."""
        return self.merge()

    @data.setter
    def data(self, value: Tensor) -> None:
        if value is not self:
            torch._C.TensorBase.data.__set__(self, value)  # pyright: ignore
            self.base, self.low_rank, self.held = value, None, None

    def __deepcopy__(self, _memo: dict) -> nn.Parameter:
        """Return an ordinary parameter, without gradient."""
        return nn.Parameter(self.merge().clone(), requires_grad=False)

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable,
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        for place, argument in enumerate(func._schema.arguments):  # pyright: ignore
            value = args[place] if place < len(args) else given.get(argument.name)
            if argument.is_write and isinstance(value, cls):
                raise ValueError(
                    "a weight that is the vanilla model's plus a LoRA adapter's cannot be written "
                    "into: copy.deepcopy(model) makes a model with weights of its own"
                )
        args, given = tree_map_only(cls, _merge_if_sum, (tuple(args), given))
        return func(*args, **given)


@contextmanager
def hold_sums(*modules: nn.Module) -> Iterator[None]:
    """Make the sums in some modules once, and hold them inside the block.

    It takes the memory of merged weights, and is worth it where they are read again and again: a
    layer that runs on many batches, a model that answers token by token.
    """
    sums = {
        id(parameter): parameter
        for module in modules
        for parameter in module.parameters()
        if isinstance(parameter, LowRankSum) and parameter.held is None
    }.values()
    try:
        for parameter in sums:
            parameter.held = parameter.merge()
        yield
    finally:
        for parameter in sums:
            parameter.held = None


def _allocate(*shape: int, like: Tensor) -> Tensor:
    """Return uninitialised memory that goes back to the system when it is freed.

    In the heap of a process, blocks of this size that come and go leave holes which smaller tensors
    begin to fill, and the next block finds no room in them.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    size = max(1, math.prod(shape) * like.element_size())
    return torch.frombuffer(mmap.mmap(-1, size), dtype=like.dtype)[: math.prod(shape)].view(shape)


def _merge_if_sum(tensor: Tensor) -> Tensor:
    return tensor.merge() if isinstance(tensor, LowRankSum) else tensor
