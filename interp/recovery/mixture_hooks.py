"""Hooks on a mixture of experts: record what it computes, put a donor's coefficients or router in.

While coefficients are recorded or put in, the experts run one after the other (as transformers'
"eager" implementation does), whatever implementation the model's configuration names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from jaxtyping import Bool
from torch import Tensor, nn

from interp.models.anatomy import LayerParts
from interp.models.mixture import (
    Mixture,
    MixtureStates,
    compute_activations,
    compute_routed,
)
from interp.models.module_calls import get_residual, remove_on_exit, replace_forward
from interp.recovery.module_hooks import blend, replace_input, replace_output


@contextmanager
def record_mixture(
    parts: LayerParts, keep: Callable[[MixtureStates], None], *, activations: bool
) -> Iterator[None]:
    """Give `keep` what a mixture computes in every forward inside the block, `[token, …]`.

    Args:
        parts: the layer.
        keep: is given the states when the MLP is about to return.
        activations: keep the activations too, not the routing alone.
    """
    mixture, block = _get_mixture(parts)
    seen: dict[str, Tensor] = {}

    def route(_module: nn.Module, args: tuple) -> None:
        _, seen["chosen"], seen["weights"] = args

    def run_experts(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        active = compute_activations(mixture.experts, hidden, chosen)
        seen["activations"] = active
        return compute_routed(mixture.experts, chosen, weights, active)

    def see_gate(_module: nn.Module, _args: tuple, output: Tensor) -> None:
        seen["gate"] = output.flatten(0, -2).clone()

    def see_shared(_module: nn.Module, args: tuple) -> None:
        seen["shared"] = args[0].flatten(0, -2)

    def leave(*_run: object) -> None:
        keep(MixtureStates(**seen))  # type: ignore[arg-type]
        seen.clear()

    with ExitStack() as stack:
        put = stack.enter_context
        put(remove_on_exit(mixture.experts.register_forward_pre_hook(route)))
        if mixture.shared_gate is not None:
            put(remove_on_exit(mixture.shared_gate.register_forward_hook(see_gate)))
        if activations:
            put(replace_forward(mixture.experts, run_experts))
            if mixture.shared_values is not None:
                put(remove_on_exit(mixture.shared_values.register_forward_pre_hook(see_shared)))
        put(remove_on_exit(block.register_forward_hook(leave)))
        yield


@contextmanager
def replace_router(
    parts: LayerParts, donor: MixtureStates, where: Bool[Tensor, "batch pos"]
) -> Iterator[None]:
    """Let the donor's router decide at the positions `where`: its experts, and its g."""
    mixture, _ = _get_mixture(parts)

    def route(_module: nn.Module, args: tuple) -> tuple:
        hidden, chosen, weights = args
        return hidden, blend(chosen, donor.chosen, where), blend(weights, donor.weights, where)

    with ExitStack() as stack:
        handle = mixture.experts.register_forward_pre_hook(route)
        stack.enter_context(remove_on_exit(handle))
        if mixture.shared_gate is not None:
            assert donor.gate is not None
            stack.enter_context(replace_output(mixture.shared_gate, donor.gate, where))
        yield


@contextmanager
def replace_coefficients(
    parts: LayerParts,
    donor: MixtureStates,
    where: Bool[Tensor, "batch pos"],
    units: Sequence[int] | None = None,
) -> Iterator[None]:
    """Put the donor's coefficients in at the positions `where`, routing included, or some units'.

    With `units` the layer's own routing stays, and with it the biases' weights.
    """
    mixture, _ = _get_mixture(parts)
    if units is not None:
        with _replace_units(parts, donor, where, units):
            yield
        return

    def run_experts(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        active = compute_activations(mixture.experts, hidden, chosen)
        assert donor.activations is not None
        active = blend(active.flatten(1), donor.activations.flatten(-2), where).view(active.shape)
        return compute_routed(
            mixture.experts,
            blend(chosen, donor.chosen, where),
            blend(weights, donor.weights, where),
            active,
        )

    with ExitStack() as stack:
        stack.enter_context(replace_forward(mixture.experts, run_experts))
        if mixture.shared_values is not None:
            assert donor.shared is not None
            stack.enter_context(replace_input(mixture.shared_values, donor.shared, where))
        if mixture.shared_gate is not None:
            assert donor.gate is not None
            stack.enter_context(replace_output(mixture.shared_gate, donor.gate, where))
        yield


def restore_output(
    parts: LayerParts,
    own: MixtureStates | None,
    donor: MixtureStates | None,
    units: Sequence[int] | None,
) -> Tensor:
    """Compute what a mixture gives with its own states, a donor's, or some of a donor's units.

    Args:
        parts: the layer, whose value vectors are used.
        own: its states; needed where `donor` is None or `units` are given.
        donor: states put in.
        units: which of them; all if None.
    """
    mixture, _ = _get_mixture(parts)
    if donor is None or units is None:
        states = own if donor is None else donor
        assert states is not None
        return _compute_output(mixture, _send(states, mixture))
    assert own is not None
    own, donor = _send(own, mixture), _send(donor, mixture)
    change = donor.coefficients(mixture, units) - own.coefficients(mixture, units)
    return _compute_output(mixture, own) + change @ mixture.value_vectors(units).to(change.dtype)


@contextmanager
def _replace_units(
    parts: LayerParts, donor: MixtureStates, where: Tensor, units: Sequence[int]
) -> Iterator[None]:
    if not units:
        yield
        return
    mixture, block = _get_mixture(parts)
    states: list[MixtureStates] = []
    vectors = mixture.value_vectors(units)

    def add(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        whole = get_residual(output)
        own = states.pop().coefficients(mixture, units)
        new = blend(own, donor.coefficients(mixture, units), where)
        whole = whole + ((new - own) @ vectors.to(own.dtype)).view(whole.shape)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    with ExitStack() as stack:
        stack.enter_context(record_mixture(parts, states.append, activations=True))
        # Called after the recorder's.
        stack.enter_context(remove_on_exit(block.register_forward_hook(add)))
        yield


def _compute_output(mixture: Mixture, states: MixtureStates) -> Tensor:
    """Compute what a mixture gives, of its value vectors and any states."""
    assert states.activations is not None

    def run_experts(weights: Tensor, activations: Tensor) -> Tensor:
        return compute_routed(mixture.experts, states.chosen.flatten(0, -2), weights, activations)

    # By a call of the module, so that its hooks, which may cast its weights, run.
    with replace_forward(mixture.experts, run_experts):
        output = mixture.experts(states.weights.flatten(0, -2), states.activations.flatten(0, -3))
    output = output.unflatten(0, states.chosen.shape[:-1])
    if mixture.shared_values is None:
        return output
    shared = mixture.shared_values(states.shared)
    return output + (shared if states.gate is None else states.gate.sigmoid() * shared)


def _get_mixture(parts: LayerParts) -> tuple[Mixture, nn.Module]:
    """Return a layer's mixture of experts, and the block that returns last."""
    assert parts.mixture is not None
    block = parts.mlp if parts.shared_block is None else parts.shared_block
    assert block is not None
    return parts.mixture, block


def _send(states: MixtureStates, mixture: Mixture) -> MixtureStates:
    """Return states on the device where a mixture lives."""
    device = next(mixture.experts.parameters()).device
    moved = {
        name: value.to(device) for name, value in vars(states).items() if isinstance(value, Tensor)
    }
    return replace(states, **moved)
