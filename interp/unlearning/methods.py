"""Unlearning by any registered method: V and texts to forget and to retain become U.

Methods train the top quarter of the layers, on texts of all forms, and are guarded. On
Gemma-3-270M the settings of `simnpo` (in the demo) and `npo_kl` reach the goal, those of `satimp`,
`wga`, `idk` and `gd_kl` come near it, those of `undial` do not (`docs/own-facts.md`); the others'
are older, were found by ranking candidates or not at all, and want `interp.tune`. Layers are those
of a model with 18.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from interp.data.corpus import Text
from interp.models.language_model import LanguageModel
from interp.unlearning import objectives as objectives
from interp.unlearning.config import MemitConfig, TrainingConfig
from interp.unlearning.examples import make_examples
from interp.unlearning.goal import GUARDS, UNTIL, check_goal
from interp.unlearning.memit.requests import check_edits
from interp.unlearning.memit_removal import build_edits, unlearn_by_memit
from interp.unlearning.preferred_answers import check_kind, choose_preferred_answers
from interp.unlearning.registry import METHODS, OBJECTIVES, Method, find_sets
from interp.unlearning.registry import TENSORS as TENSORS
from interp.unlearning.registry import default_settings as default_settings
from interp.unlearning.registry import method as method
from interp.unlearning.registry import objective as objective
from interp.unlearning.resume import Trained
from interp.unlearning.training import Evaluate, train
from interp.unlearning.validation import check_settings


def find_method(name: str) -> Method:
    """Return a method by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; valid: {', '.join(METHODS)}")
    return METHODS[name]


def find_config(name: str) -> TrainingConfig | MemitConfig:
    """Return a method's own settings, with the default goal and guards.

    Raises:
        ValueError: there is no method of that name.
    """
    return replace(find_method(name).config, until=UNTIL, guards=GUARDS)


def find_tuned_setting(name: str) -> str | None:
    """Return the setting of a method that a search changes beside the learning rate, if any."""
    return METHODS[name].tuned if name in METHODS else None


def unlearn(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    retain: Sequence[Text],
    config: TrainingConfig | MemitConfig,
    *,
    preferred: str | None = None,
    evaluate: Evaluate | None = None,
    confirm: Evaluate | None = None,
    about: Mapping[str, object] = MappingProxyType({}),
    out: str | Path | None = None,
    progress: bool = True,
) -> Trained:
    """Make a model forget.

    Args:
        vanilla: V, left untouched.
        forget: what to forget, in the languages to forget it in. MEMIT edits what their prompts
            ask for, by the subject that they mention.
        retain: what to retain, for methods that do; MEMIT keeps what its layers compute of it.
        config: the settings, which name the method.
        preferred: which answers are preferred where a method needs some; see
            `interp.unlearning.choose_preferred_answers`. The method's own if None.
        evaluate: see `train`; what MEMIT makes is measured at each strength that is tried.
        confirm: see `train`.
        about: further entries of the model's card.
        out: directory for the model; see `train`.
        progress: show progress bars.

    Raises:
        ValueError: settings, texts or a model that do not fit, before any training.
        ImportError: LoRA without the package `peft`.
    """
    if isinstance(config, MemitConfig):
        return unlearn_by_memit(
            vanilla,
            forget,
            retain,
            config,
            evaluate=evaluate,
            confirm=confirm,
            about=about,
            out=out,
            progress=progress,
        )
    # Of a text in several languages LingTea draws one each time.
    parallel = config.objective.startswith("lingtea")
    sets = {
        "forget": make_examples(forget, parallel=parallel),
        "retain": make_examples(retain, parallel=parallel),
    }
    if config.objective in OBJECTIVES and "preferred" in find_sets(config.objective):
        usual = METHODS[config.objective].preferred if config.objective in METHODS else "refusal"
        kind = preferred or usual
        chosen = choose_preferred_answers(
            forget, kind, retain=retain, seed=config.seed, model=vanilla
        )
        sets["preferred"] = make_examples(chosen)
    return train(
        vanilla,
        sets,
        config,
        evaluate=evaluate,
        confirm=confirm,
        about=about,
        out=out,
        progress=progress,
    )


def check_unlearning(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    config: TrainingConfig | MemitConfig,
    preferred: str | None,
) -> None:
    """Raise ValueError for settings and texts that do not fit, before what takes time.

    Raises:
        ValueError: see `train` and `memit`.
    """
    if isinstance(config, TrainingConfig):
        check_settings(vanilla, config, evaluates=True)
        if preferred is not None:
            check_kind(preferred)
    else:
        check_goal(config)
        check_edits(vanilla, build_edits(forget), config)


def needs_retain_texts(config: TrainingConfig | MemitConfig) -> bool:
    """Return whether a method uses texts to retain."""
    if isinstance(config, MemitConfig):
        return config.retain_regularisation > 0
    return config.objective in OBJECTIVES and "retain" in find_sets(config.objective)
