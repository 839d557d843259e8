"""Registry of unlearning methods, filled where each is defined.

    @method("npo_rt", learning_rate=5e-6, num_steps=30)
    def npo_rt(forget_logprobs, forget_mask, *, ..., beta=0.1, alpha=1.0): ...

The function's arguments are the contract. One that is named in `TENSORS` is computed anew for every
step, and only if a function asks for it; the others are the objective's settings, with their
defaults. So a step of training is: compute the tensors of `needs`, call the function, descend.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

from interp.unlearning.config import MemitConfig, TrainingConfig

Update = Callable[..., Mapping[str, float]]

Function = TypeVar("Function", bound=Callable[..., object])

SETS = ("forget", "retain", "preferred")
"""Sets of examples; the names of their tensors begin with theirs."""

TENSORS: dict[str, str] = {
    "forget_logprobs": "θ's log-probabilities of F's label tokens [sequence label]",
    "forget_reference_logprobs": "θ₀'s log-probabilities of F's label tokens",
    "forget_log_odds": "θ's log-odds log p/(1 − p) of F's label tokens, exact where p rounds to 1",
    "forget_reference_log_odds": "θ₀'s log-odds of F's label tokens",
    "forget_others_kl": "KL(θ₀ ‖ θ) of what else than F's label tokens could come in their places",
    "forget_logit_margin": "θ's largest minus its mean logit, where F's label tokens are predicted",
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
"""Tensors that the trainer computes, by name."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Objective of a training run, as data.

    Attributes:
        function: what is minimised.
        needs: names out of `TENSORS`, the function's arguments.
        settings: its other arguments, as the sources set them.
        negated: α, where the model that is made is θ₀ − α·(θ − θ₀).
        update: gives the settings that are others in the next step, such as a multiplier; its
            arguments are some of the function's.
    """

    function: Callable[..., object]
    needs: tuple[str, ...]
    settings: Mapping[str, float] = field(default_factory=dict)
    negated: float | None = None
    update: Update | None = None

    @property
    def sets(self) -> tuple[str, ...]:
        """Sets of examples that it needs."""
        return tuple(name for name in SETS if any(need.startswith(name) for need in self.needs))

    def compute_changes(
        self, tensors: Mapping[str, object], settings: Mapping[str, float]
    ) -> dict[str, float]:
        """Compute the settings that are others in the next step, after one with these tensors."""
        if self.update is None:
            return {}
        given = {**tensors, **settings}
        return {**self.update(**{name: given[name] for name in _list_arguments(self.update)})}


@dataclass(frozen=True, kw_only=True)
class Method:
    """Method of unlearning with its default settings.

    Attributes:
        config: its settings.
        form: how the texts of built-in facts are worded for it (`interp.data.CorpusConfig`):
            `mixed`, or `questions` where another answer is preferred.
        preferred: which answers are preferred where it needs some, one of
            `interp.unlearning.KINDS`.
        tuned: the setting that a search changes beside the learning rate; None if only that.
    """

    config: TrainingConfig | MemitConfig
    form: str = "mixed"
    preferred: str = "refusal"
    tuned: str | None = None


_USUAL: Mapping[str, Any] = MappingProxyType(
    {
        "batch_size": {"forget": 24, "retain": 36, "preferred": 24},
        "top_share": 0.25,
        "evaluate_every": 4,
    }
)
"""Fields of `TrainingConfig` that methods share by default."""

OBJECTIVES: dict[str, tuple[Objective, ...]] = {}
"""Objectives that a model can be trained with, by name: one, or several in turn, an epoch each."""

METHODS: dict[str, Method] = {}
"""Methods of unlearning by name, with the defaults that were found for them."""


def objective(
    name: str,
    *,
    after: Sequence[Callable[..., object]] = (),
    negated: float | None = None,
    update: Update | None = None,
) -> Callable[[Function], Function]:
    """Register the decorated function as an objective: `TrainingConfig(objective=name)`.

    Registering a name of one's own again replaces it. The card of a model has the name and the
    settings, not the formula: what a changed objective makes belongs into another directory.

    Args:
        name: of the objective.
        after: objectives that are minimised before this one, in turn, each for an epoch of its set.
        negated: α, where the model that is made is θ₀ − α·(θ − θ₀).
        update: called after every step with those of the function's arguments that it names; it
            returns the settings that are others in the next step.

    Raises:
        ValueError: the name is one of the library's, or an argument without a default is not in
            `TENSORS`; or `update` has an argument that the function has not.
    """

    def register(function: Function) -> Function:
        _check_name(name, function)
        main = _read_signature(name, function, negated)
        if update is not None:
            for argument in _list_arguments(update):
                if argument not in (*main.needs, *main.settings):
                    raise ValueError(
                        f"the update of {name} needs {argument!r}; valid: what {name} itself needs"
                    )
        OBJECTIVES[name] = (
            *(_read_signature(name, part, negated) for part in after),
            replace(main, update=update),
        )
        return function

    return register


def method(
    name: str,
    *,
    learning_rate: float = 1e-5,
    num_steps: int = 20,
    form: str | None = None,
    preferred: str = "refusal",
    tuned: str | None = None,
    after: Sequence[Callable[..., object]] = (),
    negated: float | None = None,
    update: Update | None = None,
    **changes: Any,
) -> Callable[[Function], Function]:
    """Register the decorated objective as an unlearning method with its default settings.

    Args:
        name: of the method and of its objective.
        learning_rate: AdamW's.
        num_steps: steps at most.
        form: how built-in facts are worded for it, see `Method`; by default `questions` if it needs
            preferred answers.
        preferred: which answers are preferred where it needs some, see `Method`.
        tuned: the setting that a search changes beside the learning rate, see `Method`.
        after: see `objective`.
        negated: see `objective`.
        update: see `objective`.
        changes: further fields of `TrainingConfig`.

    Raises:
        ValueError: see `objective`.
    """

    def register(function: Function) -> Function:
        objective(name, after=after, negated=negated, update=update)(function)
        config = TrainingConfig(
            objective=name,
            learning_rate=learning_rate,
            num_steps=num_steps,
            **{**_USUAL, **changes},
        )
        usual = "questions" if "preferred" in find_sets(name) else "mixed"
        METHODS[name] = Method(config=config, form=form or usual, preferred=preferred, tuned=tuned)
        return function

    return register


def _check_name(name: str, function: Callable[..., object]) -> None:
    """Raise ValueError if a name belongs to a function of the library other than this one."""
    owners = [part.function.__module__ for part in OBJECTIVES.get(name, ())[-1:]]
    if name in METHODS and not owners:
        owners = [__name__]
    library = __name__.rpartition(".")[0]
    if (
        owners
        and owners[0].startswith(library)
        and getattr(function, "__module__", "") not in owners
    ):
        raise ValueError(f"{name!r} is an objective of the library: choose another name")


def _list_arguments(function: Callable[..., object]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _read_signature(name: str, function: Callable[..., object], negated: float | None) -> Objective:
    parameters = inspect.signature(function).parameters.values()
    needs = tuple(each.name for each in parameters if each.name in TENSORS)
    settings = {each.name: each.default for each in parameters if each.name not in TENSORS}
    for argument, default in settings.items():
        if default is inspect.Parameter.empty:
            raise ValueError(
                f"{name} needs {argument!r}, which is not computed; valid: {', '.join(TENSORS)}; "
                "a setting needs a default"
            )
    return Objective(function=function, needs=needs, settings=settings, negated=negated)


def find_sets(name: str) -> tuple[str, ...]:
    """Return the sets of examples that an objective, or several in turn, need."""
    needed = {each for objective in OBJECTIVES[name] for each in objective.sets}
    return tuple(each for each in SETS if each in needed)


def default_settings(name: str) -> dict[str, float]:
    """Return an objective's own settings, as its sources have them."""
    settings: dict[str, float] = {}
    for part in OBJECTIVES[name]:
        settings |= part.settings
        if part.negated is not None:
            settings["alpha"] = part.negated
    return settings
