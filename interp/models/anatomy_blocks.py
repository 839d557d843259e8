"""Derivation of a layer's blocks: which mix tokens, and the matrix whose output a block returns.

A block mixes tokens if its last output changes with the tokens before, whatever it does: attention,
linear attention, a state-space layer, a convolution. Two may stand side by side (Falcon-H1): then
both read the same, up to a factor, and the layer adds up what they return.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from interp.models.anatomy_trace import (
    NUM_TOKENS,
    Call,
    Trace,
    get_first,
    is_linear,
    is_same,
)

# A token's output when an earlier one changes: to the bit, but for the order of sums.
_UNCHANGED = 1e-5

# Attention without a softmax over keys, which keeps a state instead of keys and values.
_LINEAR = ("Linear", "Delta", "Lightning")

Blocks = list[tuple[str, nn.Module]]
"""Names and modules of a layer's children."""


@dataclass(frozen=True, kw_only=True)
class MixerPaths:
    """Module paths of a token mixer, from the layer.

    Attributes:
        kind: "attention", or what else its class is called (GatedDeltaNet, MambaMixer, ShortConv).
        block: the block.
        out: its output projection; its output is the site `attn`.
        adds_residual: the block takes the residual stream as an argument of its own and adds it
            itself.
        num_outputs: length of the tuple that the block returns; 0 for a tensor.
    """

    kind: str
    block: str
    out: str
    adds_residual: bool = False
    num_outputs: int = 0


def split_blocks(trace: Trace, layer: nn.Module) -> tuple[Blocks, Blocks, list[nn.Module]]:
    """Split a layer's children: blocks that mix tokens, other blocks, and bare matrices."""
    mixers, points, matrices = [], [], []
    for name, block in layer.named_children():
        call = trace.get_only_call(block)
        if is_linear(block):
            matrices += [block] if call is not None else []
        elif call is not None and _is_block(block, call):
            # One whose matrices are zero mixes nothing.
            mixes = "Attention" in type(block).__name__ or _mixes_tokens(block, call)
            (mixers if mixes else points).append((name, block))
    return mixers, points, matrices


def find_mixers(
    trace: Trace, layer: nn.Module, blocks: Blocks, where: str
) -> tuple[MixerPaths, ...]:
    """Find the parts of a layer's token mixer, or of those that stand side by side.

    Raises:
        ValueError: there is none, or several that do not read the same; or one does not return the
            output of a matrix.
    """
    if not blocks or not _read_alike([trace.calls[block][0] for _, block in blocks]):
        named = ", ".join(name for name, _ in blocks) or "none"
        raise ValueError(f"{where}: one block that mixes tokens is wanted, and there are: {named}")
    start = len(trace.names[layer]) + 1
    mixers = []
    for name, block in blocks:
        kind = name_kind(block, type(trace.model).__name__)
        out, adds_residual = find_last_matrix(trace, block, f"{where}: the {kind} block")
        mixers.append(
            MixerPaths(
                kind=kind,
                block=name,
                out=trace.names[out][start:],
                adds_residual=adds_residual,
                num_outputs=trace.calls[block][0].num_outputs,
            )
        )
    return tuple(mixers)


def name_kind(block: nn.Module, model_name: str) -> str:
    """Name the kind of a token mixer by its class, without the model's name before it."""
    name = type(block).__name__
    # Whole words only: what both begin with may end inside one.
    ends = [place for place in range(1, len(name)) if name[place].isupper()]
    shared = max((end for end in ends if model_name.startswith(name[:end])), default=0)
    kind = name[shared:]
    convolves = any(isinstance(module, nn.Conv1d) for module in block.modules())
    if "Attention" in kind and not convolves and not any(word in kind for word in _LINEAR):
        return "attention"
    return kind


def find_last_matrix(trace: Trace, block: nn.Module, where: str) -> tuple[nn.Module, bool]:
    """Find the matrix whose output a block returns, and whether it adds the residual stream.

    Raises:
        ValueError: it returns something else.
    """
    call = trace.get_only_call(block)
    assert call is not None
    inside = set(block.modules())
    assert call.output is not None
    for module in reversed([module for module in trace.calls if module in inside]):
        run = trace.get_only_call(module)
        if run is None or not is_linear(module):
            continue
        if is_same(call.output, run.output):
            return module, False
        for residual in call.list_states(call.output.shape):
            if is_same(call.output - residual.to(call.output.device), run.output):
                return module, True
    raise ValueError(f"{where} does not return the output of one of its matrices")


def _read_alike(calls: Sequence[Call]) -> bool:
    """Return whether blocks read the same state, each times a factor of its own."""
    first, *others = [call.hidden for call in calls]
    return all(_is_multiple(first, other) for other in others)


def _is_multiple(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.numel() != other.numel():
        return False
    one, other = one.float().flatten(), other.to(one.device).float().flatten()
    return is_same(other, one * ((one @ other) / (one @ one)))


def _is_block(block: nn.Module, call: Call) -> bool:
    """Return whether a module computes a state of every token with matrices of its own."""
    if call.hidden is None or call.output is None or call.hidden.numel() != call.output.numel():
        return False
    return any(parameter.ndim > 1 for parameter in block.parameters())


def _mixes_tokens(block: nn.Module, call: Call) -> bool:
    """Return whether the last token's output changes with the tokens before."""
    assert call.hidden is not None
    hidden = call.hidden.clone()
    # Some layers merge the axes of questions and tokens.
    before = hidden.view(NUM_TOKENS, -1)[:-1]
    before.copy_(before.flip(-1) * 2 + before.abs().mean())
    output = get_first(call.repeat(block, hidden))
    assert output is not None
    assert call.output is not None
    last, other = call.output.view(NUM_TOKENS, -1)[-1], output.view(NUM_TOKENS, -1)[-1]
    return bool((last - other).abs().max() > _UNCHANGED * last.abs().max())
