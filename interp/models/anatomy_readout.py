"""Derivation of what leads from a model's last layer to its logits: modules, a scale and a cap."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interp.models.anatomy_trace import Trace, is_same


def find_readout(
    trace: Trace, layers: nn.ModuleList
) -> tuple[tuple[str, ...], float, float | None]:
    """Find what leads from the last layer to the logits: modules, a scale and a cap.

    Raises:
        ValueError: it is something else.
    """
    unembed = trace.model.get_output_embeddings()
    call = None if unembed is None else trace.get_only_call(unembed)
    last = trace.get_only_call(layers[-1])
    if call is None or last is None or call.hidden is None or call.output is None:
        raise ValueError("it has no unembedding that runs once")
    inside = {module for layer in layers for module in layer.modules()}
    after = list(trace.calls)
    after = after[after.index(layers[-1]) + 1 :]
    state, final = last.output, []
    for module in after:
        run = trace.get_only_call(module)
        if run is None or module in inside or module is unembed or list(module.children()):
            continue
        if (
            is_same(run.hidden, state)
            and run.output is not None
            and not is_same(state, call.hidden)
        ):
            state = run.output
            final.append(trace.names[module])
    if not is_same(state, call.hidden):
        raise ValueError("its unembedding does not read the last layer's output after a norm")
    if not is_same(trace.get_body_output(), call.hidden):
        raise ValueError("its unembedding does not read what its body returns")
    config = trace.model.config.get_text_config().to_dict()
    numbers = [v for v in config.values() if type(v) in (int, float) and v > 0]
    return tuple(final), *_find_scale_and_cap(call.output, trace.logits, numbers)


def _find_scale_and_cap(
    probe: Tensor, logits: Tensor, numbers: list[float]
) -> tuple[float, float | None]:
    """Find s and c of logits that are c·tanh(s·z / c), or s·z, of what was put in, z.

    Both are numbers of the configuration, or their inverses, where one is close to what is found.
    """
    known = [1.0, *numbers, *(1 / number for number in numbers)]

    def refine(found: float) -> float:
        """Return the number of the configuration that is meant: here it is seen rounded."""
        best = min(known, key=lambda number: abs(number - found))
        return float(best if is_same(logits.new_tensor(found), logits.new_tensor(best)) else found)

    logits = logits.to(probe.device)
    place = probe[0, 0].abs().argmin()
    scale = refine(float(logits[0, 0, place].double() / probe[0, 0, place].double()))
    if is_same(logits, probe.double() * scale):
        return scale, None
    cap = refine(float(logits.abs().max()))
    if is_same(logits, cap * torch.tanh(probe.double() * scale / cap)):
        return scale, cap
    raise ValueError("its logits are not the unembedding's outputs, scaled or capped")
