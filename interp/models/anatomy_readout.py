"""Derivation of what leads from a model's last layer to its logits: modules, a scale and a cap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from interp.models.anatomy_trace import Trace, is_same


def find_readout(
    trace: Trace, layers: nn.ModuleList
) -> tuple[tuple[str, ...], float, float | None]:
    """Find what leads from the last layer to the logits: modules, a scale and a cap.

    The scale is that of the unembedding's input (where it has no bias) times that of its output.

    Raises:
        ValueError: it is something else.
    """
    unembed = trace.model.get_output_embeddings()
    call = None if unembed is None else trace.get_only_call(unembed)
    last = trace.get_only_call(layers[-1])
    if call is None or last is None or call.hidden is None or call.output is None:
        raise ValueError("it has no unembedding that runs once")
    inside = {module for layer in layers for module in layer.modules()}
    state, final = last.output, []
    start = next(place for place, (module, _) in enumerate(trace.order) if module is layers[-1])
    for module, run in trace.order[start + 1 :]:
        if module in inside or module is unembed or list(module.children()):
            continue
        if (
            is_same(run.hidden, state)
            and run.output is not None
            and not is_same(state, call.hidden)
        ):
            if trace.get_only_call(module) is None and any(True for _ in module.parameters()):
                raise ValueError(f"{trace.names[module]} runs elsewhere than at the end")
            state = run.output
            final.append(trace.names[module])
    config = trace.model.config.get_text_config().to_dict()
    numbers = [v for v in config.values() if type(v) in (int, float) and v > 0]
    factor = 1.0
    if not is_same(state, call.hidden):
        assert state is not None
        factor = _find_factor(state, call.hidden, [*numbers, *_list_ratios(config, numbers)])
        if factor is None or getattr(unembed, "bias", None) is not None:
            raise ValueError("its unembedding does not read the last layer's output after a norm")
    if not is_same(trace.get_body_output(), state):
        raise ValueError("its unembedding does not read what its body returns")
    scale, cap = _find_scale_and_cap(call.output, trace.logits, numbers)
    return tuple(final), factor * scale, cap


def _list_ratios(config: dict[str, Any], numbers: list[float]) -> list[float]:
    """List the numbers of a configuration as shares of the model's width."""
    width = config.get("hidden_size")
    return [number / width for number in numbers] if width else []


def _find_factor(state: Tensor, scaled: Tensor, numbers: list[float]) -> float | None:
    """Find s of s·state, which the unembedding reads (MiniCPM): None if it is something else.

    A number of the configuration is meant, or its inverse, where one is s but for rounding.
    """
    if state.shape != scaled.shape:
        return None
    one, other = state.double().flatten(), scaled.to(state.device).double().flatten()
    found = float(one @ other / (one @ one))
    if not found > 0 or not is_same(scaled, state.double() * found):
        return None
    known = [*numbers, *(1 / number for number in numbers)]
    best = min(known, key=lambda number: abs(number - found))
    tolerance = max(4e-6, torch.finfo(state.dtype).eps / 2)
    return best if abs(best - found) <= tolerance * found else found


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
