"""Derivation of what leads from a model's last layer to its logits: modules, a scale and a cap."""

from __future__ import annotations

from torch import nn

from interp.models.anatomy_trace import Trace, find_scale_and_cap, is_same


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
    return tuple(final), *find_scale_and_cap(call.output, trace.logits, numbers)
