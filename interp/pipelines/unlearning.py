"""Unlearning: V forgets, and keeps what its guards look at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from interp.behaviour.guard_questions import find_targets, prepare_guards
from interp.behaviour.guards import METRICS, Guards
from interp.behaviour.retain_texts import make_retain_texts
from interp.data.corpus import Text
from interp.data.query import Query
from interp.data.samples import Sample
from interp.models.gguf import get_cache_directory
from interp.models.language_model import LanguageModel
from interp.pipelines.accuracies import AccuracyEvaluator
from interp.pipelines.training_run import TrainingRun, report
from interp.unlearning import methods
from interp.unlearning.config import OWN_METRICS, TrainingConfig
from interp.unlearning.goal import (
    drop_empty_bounds,
    find_watched,
    is_guarded,
)
from interp.unlearning.memit.requests import MemitConfig
from interp.unlearning.resume import Trained
from interp.unlearning.training import Evaluate


def unlearn(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    retain: Sequence[Text] | None = None,
    config: TrainingConfig | MemitConfig | None = None,
    *,
    method: str = "simnpo",
    preferred: str | None = None,
    probes: Sequence[Query] = (),
    targets: Sequence[Query] | None = None,
    kept: Sequence[Query] | None = None,
    samples: Sequence[Sample] | None = None,
    about: Mapping[str, object] = MappingProxyType({}),
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Make a model forget, and see in which languages it did.

    With guards a run goes on until what was to be forgotten is no longer answered, and gives the
    best model that it had while all guards held (`interp.behaviour.guards`).

    Args:
        vanilla: the model that knows, left untouched.
        forget: what to forget, in the languages to forget it in.
        retain: what to retain, for methods that do; if None, how V goes on about other facts and in
            texts of its own, in many languages (`make_retain_texts`).
        config: settings, which name the method; if None, the method's defaults, with guards.
        method: a name out of `interp.unlearning.methods.METHODS`.
        preferred: `refusal`, `counterfactual`, `other` or `alternate`: which answers `dpo`,
            `dpo_kl`, `idk` and `altpo` prefer; `refusal`, for `altpo` `alternate`, if None.
        probes: questions with answers that are ranked before and after, and on the way where there
            are no guards.
        targets: questions with answers on what is forgotten, for the guards; if None, those of the
            probes that share an id with a text to forget, or else the prompts of these texts.
        kept: questions with answers on facts to keep, for the guards; the built-in facts that no
            text states if None.
        samples: texts that the guards compare next-token distributions on; V's own if None.
        about: further entries of the model's card.
        out: directory for the model; its folder `report` gets the tables. What it holds of the
            same run is not done again, a run that was killed goes on.
        progress: show progress bars.

    Raises:
        ValueError: settings, texts or a model that do not fit, before any training; or `out` holds
            another run.
    """
    plan = set_up_unlearning(
        vanilla,
        forget,
        retain,
        methods.find_config(method) if config is None else config,
        preferred=preferred,
        probes=probes,
        targets=targets,
        kept=kept,
        samples=samples,
        progress=progress,
    )
    trained = plan.run(plan.config, about=about, out=out, progress=progress)
    return report(vanilla, trained, probes, out, progress, plan.guards)


@dataclass(frozen=True, kw_only=True)
class UnlearningSetup:
    """What unlearning is done with, whatever the settings.

    Attributes:
        vanilla: V.
        forget: what to forget.
        retain: what to retain.
        preferred: which answers are preferred.
        probes: questions to rank.
        config: the settings, without bounds on what cannot be measured.
        guards: what measures a model in training; None without bounds on it.
    """

    vanilla: LanguageModel
    forget: Sequence[Text]
    retain: Sequence[Text]
    preferred: str | None
    probes: Sequence[Query]
    config: TrainingConfig | MemitConfig
    guards: Guards | None

    def run(
        self,
        config: TrainingConfig | MemitConfig,
        *,
        about: Mapping[str, object] = MappingProxyType({}),
        out: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> Trained:
        """Unlearn with some settings; see `unlearn`."""
        if self.guards is not None:
            about = {**about, "guards": self.guards.describe()}
        return methods.unlearn(
            self.vanilla,
            self.forget,
            self.retain,
            config,
            preferred=self.preferred,
            evaluate=_make_evaluator(config, self.guards, self.probes),
            confirm=None if self.guards is None else self.guards.confirm,
            about=about,
            out=None if out is None else Path(out),
            progress=progress,
        )


def set_up_unlearning(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    retain: Sequence[Text] | None,
    config: TrainingConfig | MemitConfig,
    *,
    preferred: str | None = None,
    probes: Sequence[Query] = (),
    targets: Sequence[Query] | None = None,
    kept: Sequence[Query] | None = None,
    samples: Sequence[Sample] | None = None,
    progress: bool = True,
) -> UnlearningSetup:
    """Check settings, make texts to retain, and prepare the guards; see `unlearn`.

    Raises:
        ValueError: settings, texts or a model that do not fit.
    """
    methods.check_unlearning(vanilla, forget, config, preferred)
    _check_metrics(config, probes)
    cache = find_answers_file()
    if retain is None:
        retain = ()
        if methods.needs_retain_texts(config):
            retain = make_retain_texts(vanilla, forget, cache=cache, progress=progress)
    guards = None
    if is_guarded(config):
        guards = prepare_guards(
            vanilla,
            find_targets(forget, probes) if targets is None else targets,
            forgotten_in=dict.fromkeys(text.language for text in forget),
            texts=[*forget, *retain],
            kept=kept,
            samples=samples,
            cache=cache,
            progress=progress,
        )
        config = drop_empty_bounds(config, guards.list_metrics())
    return UnlearningSetup(
        vanilla=vanilla,
        forget=forget,
        retain=retain,
        preferred=preferred,
        probes=probes,
        config=config,
        guards=guards,
    )


def find_answers_file() -> Path:
    """Return the file in the user's cache that keeps what V answered."""
    return get_cache_directory() / "answers" / "known.jsonl"


def _check_metrics(config: TrainingConfig | MemitConfig, probes: Sequence[Query]) -> None:
    """Raise ValueError where a bound is on nothing that is measured, before what takes time."""
    valid = tuple(dict.fromkeys((*METRICS, *(query.concept for query in probes))))
    for bound in find_watched(config):
        if bound.metric.partition("/")[0] not in valid:
            raise ValueError(
                f"unknown metric {bound.metric!r} in {str(bound)!r}; valid: "
                f"{', '.join((*OWN_METRICS, *filter(None, valid)))}"
            )


def _make_evaluator(
    config: TrainingConfig | MemitConfig, guards: Guards | None, probes: Sequence[Query]
) -> Evaluate | None:
    """Make what evaluates a model in training: guards, and rankings where they are asked for."""
    if guards is None:
        return AccuracyEvaluator(probes) if probes else None
    names = guards.list_metrics()
    others = [bound for bound in find_watched(config) if not bound.find(names)]
    ranking = AccuracyEvaluator(probes) if probes and others else None

    def evaluate(model: LanguageModel) -> dict[str, float]:
        return guards(model) | ({} if ranking is None else ranking(model))

    return evaluate
