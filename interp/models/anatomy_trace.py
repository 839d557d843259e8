"""Trace of a forward of four tokens: what every module of a model was given and returned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from interp.models.low_rank_linear import LowRankLinear

NUM_TOKENS = 4

# What is the same differs by rounding alone; wider in half precision.
_SAME = 1e-3


@dataclass(frozen=True)
class Call:
    """One run of a module: its arguments, and its first input and output as they were then.

    `others` are the further tensors that it returned.
    """

    args: tuple
    kwargs: dict[str, Any]
    hidden: Tensor | None
    output: Tensor | None
    num_outputs: int = 0
    others: tuple[Tensor, ...] = ()

    def without(self, tensors: Sequence[Tensor]) -> Call:
        """Return the call with None in the place of some tensors among its arguments."""
        unwanted = {id(tensor) for tensor in tensors}
        args = tuple(None if id(value) in unwanted else value for value in self.args)
        kwargs = {k: None if id(value) in unwanted else value for k, value in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs)

    def repeat(self, module: nn.Module, hidden: Tensor) -> Any:
        """Run a module with these arguments, and another state in the place of the first."""
        if self.args:
            return module(hidden, *self.args[1:], **self.kwargs)
        return module(**self.kwargs | {"hidden_states": hidden})

    def list_states(self, shape: torch.Size) -> list[Tensor]:
        """List further arguments that have the shape of a state."""
        given = (*self.args[1:], *self.kwargs.values())
        return [value for value in given if isinstance(value, Tensor) and value.shape == shape]


class Trace:
    """What every module of a model was given and returned in one forward.

    Attributes:
        calls: of every module that ran, in the order in which they first returned.
        order: every call with its module, in the order in which they returned.
        logits: what the model returned.
    """

    def __init__(self, model: PreTrainedModel, *, probe: bool = False) -> None:
        """Run the model on four tokens.

        Args:
            model: the model.
            probe: put numbers of every size in the place of the unembedding's outputs, which shows
                what becomes of them.

        Raises:
            ValueError: its code does not run.
        """
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.calls: dict[nn.Module, list[Call]] = {}
        self.order: list[tuple[nn.Module, Call]] = []
        unembed = model.get_output_embeddings() if probe else None
        # What is returned may be added to in place afterwards.
        inputs: dict[nn.Module, Tensor | None] = {}

        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden = get_hidden(args, kwargs)
            inputs[module] = None if hidden is None else hidden.clone()

        def leave(module: nn.Module, args: tuple, kwargs: dict, result: object) -> Tensor | None:
            output = get_first(result)
            if module is unembed and output is not None:
                result = output = make_probe(output)
            output = None if output is None else output.clone()
            several = result if isinstance(result, tuple) else ()
            others = tuple(value for value in several[1:] if isinstance(value, Tensor))
            call = Call(args, kwargs, inputs.get(module), output, len(several), others)
            self.calls.setdefault(module, []).append(call)
            self.order.append((module, call))
            return output if module is unembed else None

        with ExitStack() as stack, evaluating(model):
            for module in self.names:
                for handle in (
                    module.register_forward_pre_hook(enter, with_kwargs=True),
                    module.register_forward_hook(leave, with_kwargs=True),
                ):
                    stack.callback(handle.remove)
            self.logits: Tensor = model(input_ids=make_tokens(model), use_cache=False).logits

    def get_body_output(self) -> Tensor | None:
        """Return what the model without its unembedding returns, which some do not go through."""
        body = self.model.base_model
        if (call := self.get_only_call(body)) is not None:
            return call.output
        return get_first(body(input_ids=make_tokens(self.model), use_cache=False))

    def get_only_call(self, module: nn.Module) -> Call | None:
        """Return a module's call; None if it did not run, or several times."""
        calls = self.calls.get(module, [])
        return calls[0] if len(calls) == 1 else None


def make_tokens(model: PreTrainedModel) -> Tensor:
    """Make the four tokens, `[1, 4]`."""
    embedding = model.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    size = len(weight) if isinstance(weight, Tensor) else model.config.get_text_config().vocab_size
    device = next(model.parameters()).device
    return (torch.arange(NUM_TOKENS, device=device) * 7 + 11)[None] % size


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def get_first(result: Any) -> Tensor | None:
    """Return the tensor that a module returned, the first of several."""
    result = getattr(result, "last_hidden_state", result)
    if isinstance(result, tuple | list) and result:
        result = result[0]
    return result if isinstance(result, Tensor) else None


def get_hidden(args: tuple, kwargs: dict) -> Tensor | None:
    """Return the tensor that a module was given, the first of several."""
    given = args[0] if args else kwargs.get("hidden_states")
    return given if isinstance(given, Tensor) else None


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear map, perhaps with an adapter around it."""
    return isinstance(getattr(module, "base_layer", module), nn.Linear | Conv1D | LowRankLinear)


def is_same(one: Tensor | None, other: Tensor | None, tolerance: float = _SAME) -> bool:
    """Return whether two tensors are equal but for rounding, whatever their shapes.

    Entries that are not finite say nothing; False where there are no others.
    """
    if one is None or other is None or one.numel() != other.numel():
        return False
    if one.is_floating_point():
        tolerance = max(tolerance, 8 * torch.finfo(one.dtype).eps)
    one, other = one.float().flatten(), other.to(one.device).float().flatten()
    known = one.isfinite() & other.isfinite()
    error = (one - other)[known].abs()
    return len(error) > 0 and bool(error.max() <= tolerance * one[known].abs().max())


def make_probe(outputs: Tensor) -> Tensor:
    """Make numbers of every size, of both signs, in the shape and precision of logits."""
    size = outputs.shape[-1]
    largest = 4.0 if outputs.dtype == torch.float16 else 6.0
    sizes = torch.logspace(-2, largest, size, device=outputs.device)
    signs = 1 - 2 * (torch.arange(size, device=outputs.device) % 2)
    return (sizes * signs).to(outputs.dtype).expand_as(outputs).clone()
