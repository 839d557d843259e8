"""Validation of a training run: settings, examples and model are checked before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import torch

from interp.models.language_model import LanguageModel
from interp.unlearning.config import RetainLoss, Schedule, TrainingConfig
from interp.unlearning.examples import Example
from interp.unlearning.goal import check_goal, find_watched
from interp.unlearning.registry import METHODS, OBJECTIVES, default_settings, find_sets
from interp.unlearning.trainable_model import check_trained_part


def check_training(
    vanilla: LanguageModel,
    examples: Mapping[str, Sequence[Example]],
    config: TrainingConfig,
    *,
    evaluates: bool,
) -> None:
    """Raise ValueError unless a run can be made of these settings and examples.

    Raises:
        ValueError: it cannot; the message names the setting and what would be right.
    """
    check_settings(vanilla, config, evaluates=evaluates)
    for name in find_sets(config.objective):
        if not examples.get(name):
            raise ValueError(f"{config.objective} needs {name} examples: give at least one")
    counts = [len(examples[name]) for name in ("forget", "preferred") if name in examples]
    if len(set(counts)) > 1:
        raise ValueError(
            f"there are {counts[0]} forget examples and {counts[1]} preferred answers; each needs "
            "one"
        )


def check_settings(vanilla: LanguageModel, config: TrainingConfig, *, evaluates: bool) -> None:
    """Raise ValueError unless a run can be made of these settings, whatever the examples.

    Raises:
        ValueError: it cannot; the message names the setting and what would be right.
    """
    if config.objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {config.objective!r}; valid: {', '.join(OBJECTIVES)}")
    for name in config.settings:
        if name not in default_settings(config.objective):
            valid = ", ".join(default_settings(config.objective)) or "none"
            raise ValueError(f"{config.objective} has no setting {name!r}; valid: {valid}")
    for name in find_sets(config.objective):
        if isinstance(config.batch_size, Mapping) and name not in config.batch_size:
            raise ValueError(f"batch_size has no entry for the {name} examples")
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
    if config.schedule not in (valid := get_args(Schedule)):
        raise ValueError(f"unknown schedule {config.schedule!r}; valid: {', '.join(valid)}")
    if not 0 < config.top_share <= 1:
        raise ValueError(f"top_share must be above 0 and at most 1, not {config.top_share}")
    for name in ("learning_rate", "max_grad_norm", "adam_epsilon"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0, not {getattr(config, name)}")
    check_trained_part(vanilla, config.parameters, layers=config.layers, lora_rank=config.lora_rank)
    if torch.finfo(vanilla.dtype).bits < 32 and config.parameters != "lora":
        raise ValueError(
            f"{vanilla.name!r} has {str(vanilla.dtype).removeprefix('torch.')} weights, in which "
            "small steps are lost: load it with dtype='float32' (autocast computes in bfloat16 "
            "all the same), or train with lora"
        )
    needs = {need for objective in OBJECTIVES[config.objective] for need in objective.needs}
    if "direction" in needs and not 0 <= config.layer < vanilla.num_layers:
        raise ValueError(
            f"layer {config.layer} of {config.objective} is out of range 0 to "
            f"{vanilla.num_layers - 1} ({vanilla.name!r})"
        )
    for bound in find_watched(config):
        if not (evaluates and config.evaluate_every):
            raise ValueError(
                f"the bound {str(bound)!r} needs evaluate and evaluate_every; the steps' own "
                "metrics are forget_ce and retain_ce"
            )
    check_goal(config)
    check_retain_loss(config)


def check_retain_loss(config: TrainingConfig) -> None:
    """Raise ValueError unless a method has a CE(R) where it is to be another loss.

    Raises:
        ValueError: an unknown loss, or a method without CE(R), or one that needs it beside another.
    """
    if config.retain_loss not in (valid := get_args(RetainLoss)):
        raise ValueError(f"unknown retain_loss {config.retain_loss!r}; valid: {', '.join(valid)}")
    if config.retain_loss == "ce":
        return
    fit = [name for name in METHODS if name in OBJECTIVES and _has_plain_retain_loss(name)]
    if not _has_plain_retain_loss(config.objective):
        raise ValueError(
            f"{config.objective} has no CE on the retain set that KL could take the place of; "
            f"valid with retain_loss 'kl': {', '.join(fit)}"
        )


def _has_plain_retain_loss(name: str) -> bool:
    needs = [need for part in OBJECTIVES[name] for need in part.needs if need.startswith("retain")]
    return len(find_sets(name)) > 1 and set(needs) == {"retain_logprobs", "retain_mask"}
