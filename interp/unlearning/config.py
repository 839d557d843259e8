"""Settings of a training run: what is valid, and the card that says how a model came about."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType

import torch

from interp.models.language_model import LanguageModel
from interp.unlearning.catalogue import SETS, methods, objectives_of, sets_of, settings_of
from interp.unlearning.examples import Example

OWN_METRICS = ("forget_ce", "retain_ce")
"""Metrics that every step has of the sets it drew."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When to stop: a metric that is above or below a bound.

    Attributes:
        metric: one of the step's own (`forget_ce`, `retain_ce`: nats per token, before the step) or
            of what `evaluate` gives.
        above: stop where the metric is at least this.
        below: stop where the metric is at most this.
        relative: the bounds are multiples of the metric's value before training.
    """

    metric: str
    above: float = math.inf
    below: float = -math.inf
    relative: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of a training run.

    Attributes:
        objective: a name out of `interp.unlearning.catalogue.methods()`.
        settings: the objective's own settings; those of its sources where not given.
        parameters: `layers` (all weights but embedding and unembedding), `mlp`, `attn`, or `lora`.
        layers: only these layers, from 0; all if None.
        lora_rank: rank of the adapters.
        lora_alpha: their scale times the rank; twice the rank if None.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        warmup_steps: steps until the learning rate is reached, linearly.
        num_steps: steps at most.
        batch_size: examples of each set per step; by set where they differ.
        accumulation: parts that a step's examples are computed in, one after the other.
        max_grad_norm: gradients are clipped to this norm.
        autocast: compute in bfloat16 (weights stay in their own precision), several times faster
            where the processor has bf16 matrix units.
        gradient_checkpointing: keep no states inside a layer; slower, with less memory.
        evaluate_every: steps between evaluations; 0 for none.
        checkpoint_every: steps between models that are kept, beside the directory of the last one;
            0 for none.
        steps_per_language: of sequences in several languages: 0 draws the language anew for every
            sequence (Choi et al. 2024), a number takes all of them in one language for that many
            steps, then in the next.
        stops: when to stop early.
        layer: whose states `rmu` moves, from 0; 7 in its source.
        seed: of the order of the examples and of `rmu`'s direction.
    """

    objective: str = "gd"
    settings: Mapping[str, float] = field(default_factory=dict)
    parameters: str = "layers"
    layers: tuple[int, ...] | None = None
    lora_rank: int = 128
    lora_alpha: int | None = None
    learning_rate: float = 5e-6
    weight_decay: float = 0.0
    warmup_steps: int = 0
    num_steps: int = 60
    batch_size: int | Mapping[str, int] = 24
    accumulation: int = 1
    max_grad_norm: float = 1.0
    autocast: bool = True
    gradient_checkpointing: bool = False
    evaluate_every: int = 0
    checkpoint_every: int = 0
    steps_per_language: int = 0
    stops: tuple[Stop, ...] = ()
    layer: int = 7
    seed: int = 0


def training_card(
    vanilla: LanguageModel,
    examples: Mapping[str, Sequence[Example]],
    config: TrainingConfig,
    about: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, object]:
    """The card of a training run. Equal cards mean equal models.

    Args:
        vanilla: the parent.
        examples: by set, what is trained on.
        config: the settings.
        about: further entries, such as where the examples come from.
    """
    settings = asdict(config)
    settings["settings"] = {**settings_of(config.objective), **config.settings}
    if not config.steps_per_language:
        # Cards say so only where it is set: older ones do not know it.
        del settings["steps_per_language"]
    # JSON has no infinity.
    for stop in settings["stops"]:
        for bound in ("above", "below"):
            stop[bound] = stop[bound] if math.isfinite(stop[bound]) else None
    data = {name: [asdict(example) for example in given] for name, given in examples.items()}
    return make_card(vanilla, config.objective, settings, data, about)


def make_card(
    vanilla: LanguageModel,
    method: str,
    settings: Mapping[str, object],
    data: Mapping[str, Sequence[Mapping[str, object]]],
    about: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, object]:
    """How a model comes about: method, settings, parent, and of each set of data a summary."""
    card = {
        "method": method,
        "settings": settings,
        "parent": vanilla.name,
        "parent_hash": vanilla.content_hash(),
        "data": {name: _summary(rows) for name, rows in data.items()},
        **about,
    }
    # As it will be read again: JSON has no tuples.
    return json.loads(json.dumps(card))


def _summary(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    return {
        "examples": len(rows),
        "languages": dict(Counter(str(row["language"]) for row in rows)),
        "sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


def check(
    vanilla: LanguageModel,
    examples: Mapping[str, Sequence[Example]],
    config: TrainingConfig,
    *,
    evaluates: bool,
) -> None:
    """That a run can be made of these settings and examples.

    Raises:
        ValueError: it cannot; the message names the setting and what would be right.
    """
    if config.objective not in methods():
        raise ValueError(f"no objective {config.objective!r}; valid: {', '.join(methods())}")
    for name in config.settings:
        if name not in settings_of(config.objective):
            valid = ", ".join(settings_of(config.objective)) or "none"
            raise ValueError(f"{config.objective} has no setting {name!r}; valid: {valid}")
    for name in sets_of(config.objective):
        if not examples.get(name):
            raise ValueError(f"{config.objective} needs {name} examples: give at least one")
        if isinstance(config.batch_size, Mapping) and name not in config.batch_size:
            raise ValueError(f"batch_size has no entry for the {name} examples")
    counts = [len(examples[name]) for name in ("forget", "preferred") if name in examples]
    if len(set(counts)) > 1:
        raise ValueError(
            f"there are {counts[0]} forget examples and {counts[1]} preferred answers; each needs "
            "one"
        )
    sizes = [config.batch_size]
    if isinstance(config.batch_size, Mapping):
        sizes = list(config.batch_size.values())
    for name, value in [
        *(("batch_size", size) for size in sizes),
        ("num_steps", config.num_steps),
        ("accumulation", config.accumulation),
    ]:
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    for name in ("warmup_steps", "evaluate_every", "checkpoint_every", "steps_per_language"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must be at least 0, not {getattr(config, name)}")
    for name in ("learning_rate", "max_grad_norm"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0, not {getattr(config, name)}")
    if torch.finfo(vanilla.dtype).bits < 32 and config.parameters != "lora":
        raise ValueError(
            f"{vanilla.name!r} has {str(vanilla.dtype).removeprefix('torch.')} weights, in which "
            "small steps are lost: load it with dtype='float32' (autocast computes in bfloat16 "
            "all the same), or train with lora"
        )
    needs = {need for objective in objectives_of(config.objective) for need in objective.needs}
    if "direction" in needs and not 0 <= config.layer < vanilla.num_layers:
        raise ValueError(
            f"no layer {config.layer} for {config.objective}; {vanilla.name!r} has 0 to "
            f"{vanilla.num_layers - 1}"
        )
    for stop in config.stops:
        if stop.metric not in OWN_METRICS and not (evaluates and config.evaluate_every):
            raise ValueError(
                f"the stop on {stop.metric!r} needs evaluate and evaluate_every; the steps' own "
                "metrics are forget_ce and retain_ce"
            )


def difference(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """The first thing in which two cards differ, "" if they are of the same run.

    What the parent is called does not matter: its hash says whether it is the same.
    """
    for key in dict.fromkeys((*found, *wanted)):
        one, other = found.get(key), wanted.get(key)
        if one != other and key != "parent":
            if key in SETS:
                return f"other {key} examples"
            if isinstance(one, dict) and isinstance(other, dict):
                return difference(one, other)
            if isinstance(one, list) or isinstance(other, list):
                return f"another {key}"
            return f"{key} {one!r} instead of {other!r}"
    return ""
