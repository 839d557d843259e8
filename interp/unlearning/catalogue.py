"""What each unlearning objective needs, so that a trainer computes only that.

One step of training: compute `TENSORS` by name for the names in `OBJECTIVES[name].needs`, then
`OBJECTIVES[name].function(**tensors, **settings)`. LingTea's released code, `lingtea_code`,
minimises two of them in turn. `task_vector` learns F, and then what it learned is subtracted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from interp.unlearning import lingtea, objectives, representation

SETS = ("forget", "retain", "preferred")
"""Sets of examples; the names of their tensors begin with theirs."""

TENSORS: dict[str, str] = {
    "forget_logprobs": "θ's log-probabilities of F's label tokens [sequence label]",
    "forget_reference_logprobs": "θ₀'s log-probabilities of F's label tokens",
    "forget_mask": "True on F's label tokens, False on padding",
    "preferred_logprobs": "θ's log-probabilities of the answers preferred for F's questions",
    "preferred_reference_logprobs": "θ₀'s log-probabilities of the preferred answers",
    "preferred_mask": "True on the preferred answers' tokens",
    "retain_logprobs": "θ's log-probabilities of R's label tokens",
    "retain_reference_logprobs": "θ₀'s log-probabilities of R's label tokens",
    "retain_mask": "True on R's label tokens",
    "retain_kl": "KL(θ₀ ‖ θ) at the positions that predict R's label tokens",
    "retain_own_kl": "KL(θ₀ ‖ θ) at the positions of R's label tokens, one later than retain_kl",
    "retain_repeat_logprobs": "θ₀'s log-probability of repeating each of R's label tokens",
    "forget_states": "θ's residual stream after one layer on F [sequence pos d_model]",
    "forget_positions": "True at F's tokens, prompts included, False at padding and at <bos>",
    "retain_states": "θ's residual stream after that layer on R",
    "retain_reference_states": "θ₀'s residual stream after that layer on R",
    "retain_positions": "True at R's tokens, likewise",
    "direction": "the fixed random unit vector [d_model]",
}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective as data.

    Attributes:
        function: what is minimised.
        needs: names out of `TENSORS`, the function's arguments.
        settings: its other arguments, as the sources set them.
        negated: α, where the model that is made is θ₀ − α·(θ − θ₀).
    """

    function: Callable[..., object]
    needs: tuple[str, ...]
    settings: Mapping[str, float] = field(default_factory=dict)
    negated: float | None = None

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets of examples that it needs."""
        return tuple(name for name in SETS if any(need.startswith(name) for need in self.needs))


_FORGET = ("forget_logprobs", "forget_mask")
_FORGET_AND_REFERENCE = (*_FORGET, "forget_reference_logprobs")
_RETAIN = ("retain_logprobs", "retain_mask")
_RETAIN_KL = ("retain_kl", "retain_mask")

OBJECTIVES: dict[str, Objective] = {
    "finetune": Objective(function=objectives.finetune, needs=_RETAIN),
    "ga": Objective(function=objectives.ga, needs=_FORGET),
    "gd": Objective(
        function=objectives.gd, needs=_FORGET + _RETAIN, settings={"gamma": 1.0, "alpha": 1.0}
    ),
    "gd_kl": Objective(
        function=objectives.gd_kl,
        needs=_FORGET + _RETAIN_KL,
        settings={"gamma": 1.0, "alpha": 1.0},
    ),
    "dpo": Objective(
        function=objectives.dpo,
        needs=(
            *_FORGET_AND_REFERENCE,
            "preferred_logprobs",
            "preferred_reference_logprobs",
            "preferred_mask",
        ),
        settings={"beta": 0.1},
    ),
    "npo": Objective(function=objectives.npo, needs=_FORGET_AND_REFERENCE, settings={"beta": 0.1}),
    "npo_kl": Objective(
        function=objectives.npo_kl,
        needs=_FORGET_AND_REFERENCE + _RETAIN_KL,
        settings={"beta": 0.1, "alpha": 1.0},
    ),
    "npo_rt": Objective(
        function=objectives.npo_rt,
        needs=_FORGET_AND_REFERENCE + _RETAIN,
        settings={"beta": 0.1, "alpha": 1.0},
    ),
    "simnpo": Objective(
        function=objectives.simnpo,
        needs=_FORGET + _RETAIN,
        settings={"beta": 4.5, "delta": 0.0, "alpha": 1.0},
    ),
    "idk": Objective(
        function=objectives.idk,
        needs=("preferred_logprobs", "preferred_mask", *_RETAIN),
        settings={"alpha": 1.0},
    ),
    "rmu": Objective(
        function=representation.rmu,
        needs=(
            "forget_states",
            "forget_positions",
            "retain_states",
            "retain_reference_states",
            "retain_positions",
            "direction",
        ),
        settings={"c": 6.5, "alpha": 1200.0},
    ),
    "task_vector": Objective(function=objectives.finetune_forget, needs=_FORGET, negated=1.0),
    "lingtea": Objective(
        function=lingtea.lingtea,
        needs=(*_FORGET, *_RETAIN_KL, "retain_logprobs", "retain_reference_logprobs"),
    ),
    "lingtea_fixed": Objective(
        function=lingtea.lingtea_fixed,
        needs=(*_FORGET, *_RETAIN_KL, "retain_logprobs"),
        settings={"kappa": 0.5},
    ),
    "lingtea_code_forget": Objective(function=objectives.ga, needs=_FORGET),
    "lingtea_code_retain": Objective(
        function=lingtea.lingtea_code_retain,
        needs=(*_RETAIN, "retain_repeat_logprobs", "retain_own_kl"),
    ),
}

IN_TURN: dict[str, tuple[str, ...]] = {
    "lingtea_code": ("lingtea_code_forget", "lingtea_code_retain"),
}
"""Methods that minimise several objectives in turn, each for an epoch of its set."""


def methods() -> tuple[str, ...]:
    """All that a model can be trained with, what was registered included."""
    alone = (name for name in OBJECTIVES if not any(name in parts for parts in IN_TURN.values()))
    return (*alone, *IN_TURN)


METHODS: tuple[str, ...] = methods()
"""The methods that come with the library."""


def register(name: str, objective: Objective) -> None:
    """Give an objective of one's own a name, for this process: `TrainingConfig(objective=name)`.

    Registering a name again replaces it. The card of a model has the name and the settings, not the
    formula: what a changed objective makes belongs into another directory.

    Raises:
        ValueError: the name is one of the library's, a need is not in `TENSORS`, or needs and
            settings are not the function's arguments.
    """
    if name in METHODS or any(name in parts for parts in IN_TURN.values()):
        raise ValueError(f"{name!r} is an objective of the library: choose another name")
    for need in objective.needs:
        if need not in TENSORS:
            raise ValueError(f"{name} needs {need!r}, which is not computed: {', '.join(TENSORS)}")
    given = {*objective.needs, *objective.settings}
    taken = inspect.signature(objective.function).parameters.keys()
    if taken != given:
        raise ValueError(
            f"the function of {name} takes {', '.join(sorted(taken))}; its needs and settings are "
            f"{', '.join(sorted(given))}"
        )
    OBJECTIVES[name] = objective


def objectives_of(method: str) -> tuple[Objective, ...]:
    """What a method minimises: one objective, or several in turn."""
    return tuple(OBJECTIVES[name] for name in IN_TURN.get(method, (method,)))


def sets_of(method: str) -> tuple[str, ...]:
    """The sets of examples that a method needs."""
    needed = {name for objective in objectives_of(method) for name in objective.sets}
    return tuple(name for name in SETS if name in needed)


def settings_of(method: str) -> dict[str, float]:
    """A method's own settings, as its sources have them."""
    found: dict[str, float] = {}
    for objective in objectives_of(method):
        found |= objective.settings
        if objective.negated is not None:
            found["alpha"] = objective.negated
    return found
