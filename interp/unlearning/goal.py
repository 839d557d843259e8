"""Goal of a run: forget until the bounds are reached, while the guards hold.

A run does not end where a guard breaks: with a retain term a model often mends what the first
steps broke. It goes on, and in the end back to the best evaluation that it had: one at which all
guards held, nearest to what was to be reached.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from interp.unlearning.config import OWN_METRICS, Bound, MemitConfig, TrainingConfig

Config = TypeVar("Config", bound=TrainingConfig | MemitConfig)

UNTIL = (Bound(metric="forget", below=0.1),)
"""Goal of methods by default: what may still be answered of what is to be forgotten."""

GUARDS = (
    Bound(metric="retention/en", above=0.9),
    Bound(metric="retention", above=0.8),
    Bound(metric="repetition", below=0.1),
    Bound(metric="reference_kl", below=0.1),
)
"""Guards of methods by default, in every language where none is named.

Nine tenths in English, eight in the others, of which models of this size know some twenty facts:
there one more fact that is lost is 5 %.
"""


def drop_empty_bounds(config: Config, metrics: Collection[str]) -> Config:
    """Drop bounds of `UNTIL` and `GUARDS` on what is not measured, with a warning.

    So it is where V answers nothing of it rightly: there is nothing to see. What is measured in
    other languages needs no warning.
    """
    dropped = [
        bound
        for bound in (*config.until, *config.guards)
        if bound in (*UNTIL, *GUARDS) and not bound.find(metrics)
    ]
    others = {name.partition("/")[0] for name in metrics}
    missed = [bound for bound in dropped if bound.metric.partition("/")[0] not in others]
    if missed:
        warnings.warn(
            f"the vanilla model answers too few of the questions for {', '.join(map(str, missed))}"
            ": give targets and kept that it answers rightly, or nothing sees what unlearning does "
            "there",
            stacklevel=3,
        )
    until = tuple(bound for bound in config.until if bound not in dropped)
    guards = tuple(bound for bound in config.guards if bound not in dropped)
    if not until and config.until:
        # Of V as it was and a model that forgot, V would always be the better one.
        guards = ()
    return replace(config, until=until if guards else (), guards=guards)


def is_guarded(config: TrainingConfig | MemitConfig) -> bool:
    """Return whether a run has a goal."""
    return bool(config.until or config.guards)


def find_watched(config: TrainingConfig | MemitConfig) -> list[Bound]:
    """Find the bounds that need evaluations."""
    stops = config.stops if isinstance(config, TrainingConfig) else ()
    bounds = (*stops, *config.until, *config.guards)
    return [bound for bound in bounds if bound.metric not in OWN_METRICS]


def check_goal(config: TrainingConfig | MemitConfig) -> None:
    """Raise ValueError for a goal or guards that cannot tell good models from others.

    Raises:
        ValueError: a bound on the loss of single batches, or a goal without guards.
    """
    for bound in (*config.until, *config.guards):
        if bound.metric in OWN_METRICS:
            raise ValueError(
                f"{str(bound)!r} is on the loss of single batches, which can end a run (stops) and "
                "not say whether a model is good: bound what is evaluated, such as forget<=0.1"
            )
    if config.until and not config.guards:
        raise ValueError(
            "until needs guards, or the first broken model will do: bound retention or "
            "reference_kl, too"
        )


def check_before(config: TrainingConfig | MemitConfig, before: Mapping[str, float]) -> None:
    """Raise ValueError unless what is bounded is measured, and the guards hold in V.

    Args:
        config: the bounds.
        before: the metrics of V.

    Raises:
        ValueError: an unknown metric, or a guard that V breaks.
    """
    for bound in find_watched(config):
        if not bound.find(before):
            raise ValueError(
                f"unknown metric {bound.metric!r} in {str(bound)!r}; valid: "
                f"{', '.join((*OWN_METRICS, *before))}"
            )
    if broken := find_broken(config.guards, before, before):
        name, bound = next(iter(broken.items()))
        raise ValueError(
            f"{name} is {before[name]:.3g} before any training, so that the guard {bound} cannot "
            "hold: choose another bound"
        )


def find_broken(
    bounds: Sequence[Bound], metrics: Mapping[str, float], before: Mapping[str, float]
) -> dict[str, Bound]:
    """Find the metrics that miss a bound, and which one."""
    return {
        name: bound
        for bound in bounds
        for name in bound.find(metrics)
        if bound.measure_gap(name, metrics[name], before)
    }


def measure_distance(
    bounds: Sequence[Bound], metrics: Mapping[str, float], before: Mapping[str, float]
) -> float:
    """Sum up by how much metrics miss their bounds; 0 where all hold."""
    return math.fsum(
        bound.measure_gap(name, metrics[name], before)
        for bound in bounds
        for name in bound.find(metrics)
    )


class BestCheckpoint:
    """Best evaluation of a run so far.

    Attributes:
        is_wanted: whether the run has guards, so that it goes back to its best evaluation.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self._until, self._guards = config.until, config.guards
        self.is_wanted = bool(config.guards)
        self._step = 0
        self._distance = math.inf
        self._broken = ""

    @property
    def is_reached(self) -> bool:
        """Whether at the best evaluation nothing of the goal is missing."""
        return bool(self._until) and self._distance == 0

    def would_be_reached(self, metrics: Mapping[str, float], before: Mapping[str, float]) -> bool:
        """Return whether an evaluation misses nothing of the goal, and breaks no guard."""
        if not (self.is_wanted and self._until):
            return False
        broken = find_broken((*self._until, *self._guards), metrics, before)
        return not broken

    @property
    def state(self) -> dict[str, Any]:
        """What a run that was killed needs to go on, as JSON."""
        return {
            "step": self._step,
            "distance": self._distance if math.isfinite(self._distance) else None,
            "broken": self._broken,
        }

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """Take up a `state`."""
        if state is not None:
            self._step = state["step"]
            self._distance = math.inf if state["distance"] is None else state["distance"]
            self._broken = state["broken"]

    def offer(self, step: int, metrics: Mapping[str, float], before: Mapping[str, float]) -> bool:
        """Take an evaluation into account; return whether it is the best so far.

        Of two that are equally near to the goal the earlier is better, which has changed less;
        without `until` the later, which was trained for longer.
        """
        if not self.is_wanted:
            return False
        if broken := find_broken(self._guards, metrics, before):
            # Which guard the run meets first, after its best evaluation so far.
            name, bound = next(iter(broken.items()))
            self._broken = (
                self._broken or f"at step {step} {name} was {metrics[name]:.3g} (guard {bound})"
            )
            return False
        distance = measure_distance(self._until, metrics, before)
        better = distance < self._distance if self._until else True
        if better:
            self._step, self._distance, self._broken = step, distance, ""
        return better

    def describe(self, step: int) -> str:
        """Say which step's weights the run ends with, and why."""
        if self.is_reached:
            return f"the goal is reached at step {self._step}"
        if self._step == step:
            return f"all guards hold at the last step, {step}"
        why = self._broken or "later ones are no nearer to the goal"
        return f"back to step {self._step} of {step}, the best at which all guards held: {why}"
