"""Mixtures of experts: their parts, and MLP(x) = Σₑ gₑ(x) Σᵢ aₑᵢ(x) vₑᵢ (+ biases, weighted by g).

A mixture is one module that holds all experts' matrices and is called with the states, the experts
that the router chose for each token and their weights g; beside it there may be a shared expert,
which every token goes through, with g = 1 or a gate of its own. The coefficient of neuron i of
expert e is mₑᵢ = gₑ aₑᵢ, 0 where e is not chosen. Unit e·f + i is that neuron, f being an expert's
width; the shared expert's neurons follow after those of all others.

Of each token only what its experts compute is kept, `[k, f]` for k chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class MixturePaths:
    """Module paths of a mixture of experts, from the layer.

    Attributes:
        experts: the module that holds all experts' matrices.
        top_k: k, the experts that a token is routed to.
        routers: what decides on the experts and on g: all that is neither an expert nor a norm.
        shared_keys: the shared expert's first matrices; none where there is no shared expert.
        shared_values: its down projection.
        shared_gate: its g is the sigmoid of this module's output; None where g = 1.
        shared_block: the shared expert, where it is a block of the layer's own that runs after the
            mixture's (Granite-4): the MLP's output is the sum of the two blocks'.
    """

    experts: str
    top_k: int
    routers: tuple[str, ...]
    shared_keys: tuple[str, ...] = ()
    shared_values: str | None = None
    shared_gate: str | None = None
    shared_block: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Modules of a mixture of experts; the attributes are those of `MixturePaths`."""

    experts: nn.Module
    top_k: int
    routers: tuple[nn.Module, ...]
    shared_keys: tuple[nn.Module, ...] = ()
    shared_values: nn.Module | None = None
    shared_gate: nn.Module | None = None
    shared_block: nn.Module | None = None

    @property
    def num_experts(self) -> int:
        """Return E, without the shared one."""
        return len(_get_weight(self.experts, "down_proj"))

    @property
    def width(self) -> int:
        """Return f, the neurons of an expert."""
        return _get_weight(self.experts, "down_proj").shape[1 if _is_transposed(self) else 2]

    @property
    def shared_width(self) -> int:
        """Return the neurons of the shared expert, 0 where there is none."""
        if self.shared_values is None:
            return 0
        return _get_weight(self.shared_values, "weight").shape[1]

    @property
    def num_units(self) -> int:
        """Return the number of coefficients, E·f and the shared expert's."""
        return self.num_experts * self.width + self.shared_width

    @property
    def stored_width(self) -> int:
        """Return how many numbers of a token `MixtureStates` holds."""
        return self.top_k * (self.width + 2) + self.shared_width + 1

    def list_keys(self) -> list[tuple[nn.Module, tuple[str, ...]]]:
        """List the modules with the experts' first matrices, and their parameters' names."""
        return [(self.experts, get_key_names(self.experts)), *_list_all(self.shared_keys)]

    def list_values(self) -> list[tuple[nn.Module, tuple[str, ...]]]:
        """List the modules with the experts' down projections, and their parameters' names."""
        names = _get_names(self.experts, ("down_proj", "down_proj_bias"))
        shared = () if self.shared_values is None else (self.shared_values,)
        return [(self.experts, names), *_list_all(shared)]

    def list_router_weights(self) -> list[tuple[nn.Module, tuple[str, ...]]]:
        """List the modules that decide on g, and the names of what they hold, buffers too."""
        return _list_all(self.routers)

    def value_vectors(self, units: Sequence[int]) -> Float[Tensor, "unit d_model"]:
        """Return the value vectors of some units, the shared expert's last."""
        experts, neurons, shared = self.split_units(units)
        down = _get_weight(self.experts, "down_proj")
        vectors = down[experts, neurons] if _is_transposed(self) else down[experts, :, neurons]
        if self.shared_values is None:
            return vectors
        return torch.cat([vectors, _get_weight(self.shared_values, "weight")[:, shared].T])

    def split_units(self, units: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Split distinct units into experts, neurons in them, and the shared expert's neurons."""
        first = self.num_experts * self.width
        routed = [unit for unit in dict.fromkeys(units) if unit < first]
        shared = [unit - first for unit in dict.fromkeys(units) if unit >= first]
        return (
            [unit // self.width for unit in routed],
            [unit % self.width for unit in routed],
            shared,
        )


@dataclass(frozen=True, kw_only=True)
class MixtureStates:
    """What a mixture of experts computed in one run.

    Attributes:
        chosen: the experts of each token.
        weights: their g.
        gate: the shared expert's gate, before the sigmoid; None where it has none.
        activations: the chosen experts' a; None where the routing alone was kept.
        shared: the shared expert's a; None where there is none.
    """

    chosen: Int[Tensor, "*tokens k"]
    weights: Float[Tensor, "*tokens k"]
    gate: Float[Tensor, "*tokens 1"] | None = None
    activations: Float[Tensor, "*tokens k f"] | None = None
    shared: Float[Tensor, "*tokens f_shared"] | None = None

    def coefficients(self, mixture: Mixture, units: Sequence[int]) -> Float[Tensor, "*tokens unit"]:
        """Compute the coefficients of some units, the shared expert's last.

        Args:
            mixture: whose these states are.
            units: which; all of them at once would take E·f numbers a token.
        """
        experts, neurons, shared = mixture.split_units(units)
        assert self.activations is not None
        is_chosen = self.chosen[..., None] == self.chosen.new_tensor(experts)
        scaled = self.weights[..., None] * self.activations[..., neurons] * is_chosen
        routed = scaled.sum(-2).to(self.activations.dtype)
        if self.shared is None:
            return routed
        beside = self.shared[..., shared]
        if self.gate is not None:
            beside = self.gate.sigmoid() * beside
        return torch.cat([routed, beside], dim=-1)


def compute_activations(
    experts: nn.Module, hidden: Float[Tensor, "token d_model"], chosen: Int[Tensor, "token k"]
) -> Float[Tensor, "token k f"]:
    """Compute the chosen experts' activations a of every token, before g."""
    module: _AnyExperts = experts  # type: ignore[assignment]
    first, *bias = (_get_weight(module, name) for name in get_key_names(experts))
    down = _get_weight(module, "down_proj")
    result = hidden.new_zeros(*chosen.shape, down.shape[1 if module.is_transposed else 2])
    for expert, token, slot in _iterate_chosen(chosen, len(first)):
        given = hidden[token]
        matrix = first[expert].T if module.is_transposed else first[expert]
        raw = nn.functional.linear(given, matrix, *(of[expert] for of in bias))
        active = module._apply_gate(raw) if module.has_gate else module.act_fn(raw)
        result[token, slot] = active.to(result.dtype)
    return result


def compute_routed(
    experts: nn.Module,
    chosen: Int[Tensor, "token k"],
    weights: Float[Tensor, "token k"],
    activations: Float[Tensor, "token k f"],
) -> Float[Tensor, "token d_model"]:
    """Compute Σₑ gₑ (Σᵢ aₑᵢ vₑᵢ + bₑ) of the routed experts."""
    module: _AnyExperts = experts  # type: ignore[assignment]
    down = _get_weight(module, "down_proj")
    bias = _get_weight(module, "down_proj_bias") if module.has_bias else None
    size = down.shape[2 if module.is_transposed else 1]
    result = activations.new_zeros(len(chosen), size)
    for expert, token, slot in _iterate_chosen(chosen, len(down)):
        matrix = down[expert].T if module.is_transposed else down[expert]
        output = nn.functional.linear(
            activations[token, slot], matrix, None if bias is None else bias[expert]
        )
        output = output * weights[token, slot, None]
        result.index_add_(0, token, output.to(result.dtype))
    return result


def get_key_names(experts: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that hold the experts' first matrices and biases."""
    first = "gate_up_proj" if getattr(experts, "has_gate", True) else "up_proj"
    return _get_names(experts, (first, f"{first}_bias"))


class _AnyExperts(nn.Module):
    """Interface of transformers' modules of experts, see `use_experts_implementation` there."""

    is_transposed: bool
    has_bias: bool
    has_gate: bool
    act_fn: nn.Module

    def _apply_gate(self, gate_up_out: Tensor) -> Tensor: ...


def _get_weight(module: nn.Module, name: str) -> Tensor:
    # What is in its place for a while need not be a Parameter.
    weight = module._parameters[name]
    assert weight is not None
    return weight


def _is_transposed(mixture: Mixture) -> bool:
    return bool(getattr(mixture.experts, "is_transposed", False))


def _iterate_chosen(chosen: Tensor, num_experts: int):
    """Yield the experts that some token is routed to, with these tokens and their places."""
    for expert in chosen.unique().tolist():
        # An index beyond is what some routers say for none.
        if expert < num_experts:
            yield expert, *torch.where(chosen == expert)


def _get_names(module: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if module._parameters.get(name) is not None)


def _list_all(modules: Sequence[nn.Module]) -> list[tuple[nn.Module, tuple[str, ...]]]:
    listed = []
    for module in modules:
        buffers = set(module._buffers) - module._non_persistent_buffers_set
        listed.append((module, (*module._parameters, *sorted(buffers))))
    return listed
