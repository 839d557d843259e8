"""Models that forget a material by Choi, Min & Choo 2024's methods, and what training them costs.

Every method stops at the same point, so that what they retain can be compared: when memorization
accuracy on the forget set, the mean over languages, is down to a share of what it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch

from interp.behaviour.memorization import memorization
from interp.data.corpus import Text
from interp.models.language_model import LanguageModel
from interp.study.lingtea.data import Material, texts_of_records
from interp.unlearning.config import Stop, TrainingConfig
from interp.unlearning.examples import Draws, Example, examples_of, tokenize
from interp.unlearning.store import Trained
from interp.unlearning.training import train

FORGET_MA = "forget_ma"
"""Memorization accuracy on the forget set, the mean over the languages that are trained."""

_RIGHT = "right/"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One model that is to be made.

    Attributes:
        name: what it is called in tables, and its directory.
        objective: a name out of `interp.unlearning.catalogue.METHODS`.
        settings: the objective's own.
        languages: BCP-47 codes to train in; all of the material's if empty.
        steps_per_language: 0 draws languages anew, see `TrainingConfig`.
    """

    name: str
    objective: str
    settings: Mapping[str, float] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    steps_per_language: int = 0


def unlearned(
    vanilla: LanguageModel,
    material: Material,
    plan: Plan,
    config: TrainingConfig,
    *,
    level: float,
    out: Path,
    progress: bool = True,
) -> Trained:
    """Train a model, or load it where `out` holds it.

    Args:
        vanilla: V.
        material: what is forgotten and retained.
        plan: by which method, in which languages.
        config: the settings that all methods share; `num_steps` is of steps that forget.
        level: training stops when accuracy on the forget set is at most this share of that before.
        out: the model's directory.
        progress: show progress bars.

    Raises:
        ValueError: settings that do not fit, or `out` holds another run.
    """
    config = settings_of_plan(plan, material, config)
    codes = plan.languages or material.languages
    if config.evaluate_every:
        config = replace(config, stops=(Stop(metric=FORGET_MA, below=level, relative=True),))
    return train(
        vanilla,
        _examples(material, codes),
        config,
        evaluate=OnTheWay(texts_of_records(material.forget, "forget"), codes),
        out=out,
        progress=progress,
    )


def settings_of_plan(plan: Plan, material: Material, config: TrainingConfig) -> TrainingConfig:
    """The settings of one model's training."""
    num_steps = config.num_steps
    if plan.steps_per_language:
        num_steps = plan.steps_per_language * len(plan.languages or material.languages)
    elif plan.objective == "lingtea_code":
        # Every other epoch is on the retain set.
        num_steps *= 2
    return replace(
        config,
        objective=plan.objective,
        settings=dict(plan.settings),
        steps_per_language=plan.steps_per_language,
        num_steps=num_steps,
    )


class OnTheWay:
    """How much of the forget set a model in training still knows, text by text.

    In bfloat16, as it trains; the values go into the history of its card.

    Args:
        texts: the forget set in all languages.
        watched: languages of `forget_ma`.
    """

    def __init__(self, texts: Sequence[Text], watched: Sequence[str]) -> None:
        self._texts, self._watched = texts, watched
        self._seconds, self._mark = 0.0, time.monotonic()

    def __call__(self, model: LanguageModel) -> dict[str, float]:
        """`forget_ma`, `seconds` of training so far, and `right/<language>/<id>`: right tokens."""
        self._seconds += time.monotonic() - self._mark
        with torch.autocast(model.device.type, torch.bfloat16):
            table = memorization(model, self._texts, progress=False)
        rows = table.to_dict("records")
        right, tokens = (
            [sum(row[name] for row in rows if row["language"] == code) for code in self._watched]
            for name in ("num_right", "num_tokens")
        )
        shares = [known / there for known, there in zip(right, tokens, strict=True)]
        found = {
            f"{_RIGHT}{row['language']}/{row['text_id']}": float(row["num_right"]) for row in rows
        }
        found |= {FORGET_MA: sum(shares) / len(shares), "seconds": self._seconds}
        self._mark = time.monotonic()
        return found


def curve(
    vanilla: LanguageModel,
    material: Material,
    plan: Plan,
    config: TrainingConfig,
    trained: Trained,
) -> pd.DataFrame:
    """What a model still knew of the forget set whenever it was evaluated, and the cost until then.

    Args:
        vanilla: V.
        material: what it forgot.
        plan: how it was made; not of `lingtea_code`, whose steps forget and retain in turn.
        config: the settings that all methods share.
        trained: what came of it.

    Returns:
        One row per evaluation (before training is step 0), language and text: `run`, `step`,
        `sequences` of the forget set and `tokens` of both sets trained on, `seconds`, `language`,
        `text_id`, `num_tokens`, `num_right`.
    """
    config = settings_of_plan(plan, material, config)
    texts = texts_of_records(material.forget, "forget")
    columns = ["language", "text_id", "num_tokens"]
    sizes = memorization(vanilla, texts, progress=False).reindex(columns=columns)
    before = OnTheWay(texts, material.languages)(vanilla)
    sequences, tokens = _trained_on(vanilla, material, plan, config, len(trained.history))
    evaluated = [(0, before | {"seconds": 0.0})]
    evaluated += [(at, row) for at, row in enumerate(trained.history, start=1) if FORGET_MA in row]
    rows, seconds, last = [], 0.0, 0.0
    for step, row in evaluated:
        # A run that was killed and went on counted from 0 again.
        seconds += row["seconds"] - last if row["seconds"] >= last else row["seconds"]
        last = row["seconds"]
        cost = {"step": step, "sequences": sequences[step], "tokens": tokens[step]}
        for text in sizes.to_dict("records"):
            right = row[f"{_RIGHT}{text['language']}/{text['text_id']}"]
            found = {"run": plan.name, **cost, "seconds": seconds, **text, "num_right": right}
            rows.append(found)
    return pd.DataFrame(rows)


def _examples(material: Material, codes: Sequence[str]) -> dict[str, list[Example]]:
    return {
        part: examples_of(
            texts_of_records((record for record in records if record.language in codes), part),
            parallel=True,
        )
        for part, records in (("forget", material.forget), ("retain", material.retain))
    }


def _trained_on(
    vanilla: LanguageModel,
    material: Material,
    plan: Plan,
    config: TrainingConfig,
    num_steps: int,
) -> tuple[list[int], list[int]]:
    """Sequences of the forget set and tokens of both sets, after each number of steps from 0."""
    assert isinstance(config.batch_size, int)
    sequences, tokens = [0], [0]
    sets = _examples(material, plan.languages or material.languages)
    draws = {
        name: Draws(
            given, seed=config.seed, purpose=name, steps_per_language=config.steps_per_language
        )
        for name, given in sets.items()
    }
    lengths = {
        name: [len(tokenize(vanilla, example).ids) for example in given]
        for name, given in sets.items()
    }
    for step in range(num_steps):
        drawn = {name: each.indices(step, config.batch_size) for name, each in draws.items()}
        sequences.append(sequences[-1] + len(drawn["forget"]))
        tokens.append(
            tokens[-1] + sum(lengths[name][number] for name in drawn for number in drawn[name])
        )
    return sequences, tokens
