"""Tuning: which learning rate and main setting of a method forget with the most retained.

    tuning = interp.tune(vanilla, forget, method="npo_rt", out="runs/tuning")
    tuning.config          # the best settings
    tuning.figure()        # forgetting against retention, a curve per trial

Methods can only be compared at equal forgetting. Each trial is a guarded run (`interp.unlearn`),
and gives a curve: what is retained at each amount of forgetting. The search begins at the method's
own settings and goes, in steps of a factor, to where the goal is reached with more retained; it
ends where no neighbour is better, or after a number of trials.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.behaviour.guards import Guards
from interp.data.corpus import Text
from interp.data.query import Query
from interp.data.samples import Sample
from interp.files import compute_digest, write_atomically
from interp.models.language_model import LanguageModel
from interp.pipelines.training_run import REPORT, TrainingRun, report
from interp.pipelines.unlearning import UnlearningSetup, set_up_unlearning
from interp.tables import write_csv
from interp.unlearning import methods
from interp.unlearning.config import Bound, TrainingConfig
from interp.unlearning.goal import find_broken, measure_distance

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LEARNING_RATE = "learning_rate"

_RATE_FACTOR = 2.0
"""By how much a step of the search changes the learning rate."""

_SETTING_FACTOR = 3.0
"""By how much it changes the method's main setting."""

_BEYOND_REPAIR = Bound(metric="reference_kl", above=2.0)
"""A trial ends early where a model has lost its language."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuning:
    """Result of a search.

    Attributes:
        trials: a row per trial and evaluation: `trial` (from 1), what was tried (`learning_rate`
            and the method's main setting), `step`, `forget` and `retention` (the worst language of
            each), `reference_kl` and `repetition` (likewise), whether all guards `hold`, and
            whether it is the trial's `best`.
        config: the best settings.
        run: the model that they make.
    """

    trials: pd.DataFrame
    config: TrainingConfig
    run: TrainingRun

    def table(self) -> pd.DataFrame:
        """Tabulate the best step of each trial."""
        rows = [row for row in self.trials.to_dict("records") if row["best"]]
        return pd.DataFrame(rows).drop(columns=["best", "distance"])

    def figure(self, *, title: str | None = None) -> Figure:
        """Draw forgetting against retention. See `figures.plot_tuning`."""
        from interp import figures

        return figures.plot_tuning(self.trials, title=title)


def tune(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    retain: Sequence[Text] | None = None,
    config: TrainingConfig | None = None,
    *,
    method: str = "simnpo",
    num_trials: int = 6,
    preferred: str | None = None,
    targets: Sequence[Query] | None = None,
    kept: Sequence[Query] | None = None,
    samples: Sequence[Sample] | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Tuning:
    """Find a method's learning rate and main setting, and make the best model.

    Args:
        vanilla: V, left untouched.
        forget: what to forget.
        retain: what to retain; see `interp.unlearn`.
        config: where the search begins; the method's own settings if None.
        method: a name out of `interp.unlearning.methods.METHODS`.
        num_trials: settings that are tried at most.
        preferred: see `interp.unlearn`.
        targets: see `interp.unlearn`.
        kept: see `interp.unlearn`.
        samples: see `interp.unlearn`.
        out: directory for the best model; its folder `report` gets the trials' table, and what was
            tried already is not tried again.
        progress: show progress bars.

    Raises:
        ValueError: settings, texts or a model that do not fit; a method without steps; or V
            answers too few of the questions, so that nothing could be measured.
    """
    start = methods.find_config(method) if config is None else config
    if not isinstance(start, TrainingConfig):
        raise ValueError(f"{method} has no steps to tune: choose another method")
    if num_trials < 1:
        raise ValueError(f"num_trials must be at least 1, not {num_trials}")
    plan = set_up_unlearning(
        vanilla,
        forget,
        retain,
        start,
        preferred=preferred,
        targets=targets,
        kept=kept,
        samples=samples,
        progress=progress,
    )
    assert isinstance(plan.config, TrainingConfig)
    if plan.guards is None or not (plan.config.until and plan.config.guards):
        raise ValueError(
            f"{vanilla.name!r} answers too few of the questions for a goal and guards: give "
            "targets and kept that it answers rightly, and bounds on them"
        )
    folder = None if out is None else Path(out).with_name(f"{Path(out).name}.tuning")
    search = _Search(plan, plan.guards, plan.config, folder, progress)
    while len(search.trials) < num_trials and (changes := search.choose_next()) is not None:
        search.run(changes)
    best = search.find_best()
    trained = plan.run(best.config, out=out, progress=progress)
    run = report(vanilla, trained, (), out, progress, plan.guards)
    table = pd.DataFrame([row for trial in search.trials for row in trial.rows])
    if out is not None:
        write_csv(Path(out) / REPORT / "tuning.csv", table)
    return Tuning(trials=table, config=best.config, run=run)


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """Settings that were tried, in steps from where the search began, and what came of it."""

    place: tuple[int, int]
    config: TrainingConfig
    rows: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any]:
        """The evaluation that the run went back to."""
        return next(row for row in self.rows if row["best"])

    @property
    def score(self) -> tuple[bool, float, float]:
        """Whether the goal was reached, then what is retained, or how near to the goal it came."""
        best = self.best
        reached = best["distance"] == 0
        return reached, best["retention"] if reached else -best["distance"], best["retention"]


class _Search:
    """Search from neighbour to neighbour."""

    def __init__(
        self,
        plan: UnlearningSetup,
        guards: Guards,
        start: TrainingConfig,
        folder: Path | None,
        progress: bool,
    ) -> None:
        self.plan, self.guards, self.folder, self.progress = plan, guards, folder, progress
        stops = [_BEYOND_REPAIR] if _BEYOND_REPAIR.find(guards.list_metrics()) else []
        self.start = replace(start, stops=(*start.stops, *stops))
        self.setting = methods.find_tuned_setting(start.objective)
        self.trials: list[_Trial] = []

    def choose_next(self) -> tuple[int, int] | None:
        """Choose the next settings: neighbours of the best that were not tried; None if all were.

        Where guards broke before the goal was reached smaller steps come first, else larger ones.
        """
        if not self.trials:
            return (0, 0)
        best = self.find_best()
        broke = any(not row["hold"] for row in best.rows)
        first, second = (-1, 1) if broke else (1, -1)
        tried = {trial.place for trial in self.trials}
        rate, setting = best.place
        neighbours = [(rate + first, setting), (rate + second, setting)]
        if self.setting is not None:
            neighbours += [(rate, setting + 1), (rate, setting - 1)]
        return next((place for place in neighbours if place not in tried), None)

    def find_best(self) -> _Trial:
        """Find the best trial so far; of equal ones the first."""
        return max(self.trials, key=lambda trial: trial.score)

    def run(self, place: tuple[int, int]) -> None:
        """Try settings, unless they were tried before."""
        config = self._configure(place)
        name = compute_digest(
            [
                self.plan.vanilla.content_hash(),
                json.loads(json.dumps(asdict(config), default=str)),
                self.guards.describe(),
                [(text.id, text.text) for text in (*self.plan.forget, *self.plan.retain)],
                self.plan.preferred,
            ]
        )
        file = None if self.folder is None else self.folder / f"{name[:24]}.json"
        rows = None if file is None else _read_rows(file)
        if rows is None:
            rows = self._measure(config)
            if file is not None:
                text = json.dumps(rows)
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, lambda scratch: scratch.write_text(text, encoding="utf-8"))
        about: dict[str, Any] = {"trial": len(self.trials) + 1, LEARNING_RATE: config.learning_rate}
        if self.setting is not None:
            about["setting"] = self.setting
            about["value"] = self._read_setting(config)
        self.trials.append(_Trial(place=place, config=config, rows=[about | row for row in rows]))

    def _configure(self, place: tuple[int, int]) -> TrainingConfig:
        rate, setting = place
        config = replace(
            self.start,
            learning_rate=self.start.learning_rate * _RATE_FACTOR**rate,
        )
        if self.setting is None or not setting:
            return config
        value = self._read_setting(self.start) * _SETTING_FACTOR**setting
        return replace(config, settings={**config.settings, self.setting: value})

    def _read_setting(self, config: TrainingConfig) -> float:
        assert self.setting is not None
        defaults = methods.default_settings(config.objective)
        return float({**defaults, **config.settings}[self.setting])

    @cached_property
    def _before(self) -> dict[str, float]:
        """What V itself gives."""
        return self.guards(self.guards.vanilla)

    def _measure(self, config: TrainingConfig) -> list[dict[str, Any]]:
        """Run a trial, and list its evaluations."""
        before = self._before
        trained = self.plan.run(config, progress=self.progress)
        rows = [summarise_evaluation(0, before, before, config)]
        names = self.guards.list_metrics()
        for step, row in enumerate(trained.history, start=1):
            if all(name in row for name in names):
                metrics = {name: row[name] for name in names}
                rows.append(summarise_evaluation(step, metrics, before, config))
        held = [row for row in rows if row["hold"]] or rows[:1]
        nearest = min(held, key=lambda row: row["distance"])
        for row in rows:
            row["best"] = row is nearest
        return rows


def summarise_evaluation(
    step: int, metrics: Mapping[str, float], before: Mapping[str, float], config: TrainingConfig
) -> dict[str, Any]:
    """Summarise an evaluation: the worst language of each metric, and the distance to the goal."""
    row: dict[str, Any] = {"step": step}
    for name, worst in (
        ("forget", max),
        ("retention", min),
        ("reference_kl", max),
        ("repetition", max),
    ):
        values = [metrics[key] for key in Bound(metric=name).find(metrics)]
        row[name] = worst(values) if values else math.nan
    row["hold"] = not find_broken(config.guards, metrics, before)
    row["distance"] = measure_distance(config.until, metrics, before)
    return row


def _read_rows(file: Path) -> list[dict[str, Any]] | None:
    """Read a trial that was kept; None where there is none, or it is damaged."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return rows if any(row["best"] for row in rows) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
