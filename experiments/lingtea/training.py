"""Unlearning a material by the methods of Choi, Min & Choo 2024, and the cost of training.

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

from experiments.lingtea.config import SEQUENTIAL, Config, name_fixed, name_monolingual
from experiments.lingtea.data import Material, convert_to_texts
from interp import LanguageModel
from interp.behaviour import measure_memorization
from interp.data import Text
from interp.models import computes_bfloat16
from interp.unlearning import (
    Bound,
    Draws,
    Example,
    Trained,
    TrainingConfig,
    make_examples,
    tokenize,
    train,
)

FORGET_MA = "forget_ma"
"""Memorization accuracy on the forget set, the mean over the languages that are trained."""

_RIGHT = "right/"


@dataclass(frozen=True, kw_only=True)
class UnlearningPlan:
    """Plan of one model that is to be made.

    Attributes:
        name: what it is called in tables, and its directory.
        objective: a name out of `interp.unlearning.registry.METHODS`.
        settings: the objective's own.
        languages: BCP-47 codes to train in; all of the material's if empty.
        steps_per_language: 0 draws languages anew, see `TrainingConfig`.
    """

    name: str
    objective: str
    settings: Mapping[str, float] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    steps_per_language: int = 0


def plan_models(config: Config, material: Material) -> list[UnlearningPlan]:
    """Plan the models that are made of a material."""
    if material.size != config.size:
        return [UnlearningPlan(name=name, objective=name) for name in config.size_methods]
    plans = [UnlearningPlan(name=name, objective=name) for name in config.methods]
    if material.name not in config.extras:
        return plans
    for kappa in config.kappas:
        settings = {"kappa": kappa}
        plans.append(
            UnlearningPlan(name=name_fixed(kappa), objective="lingtea_fixed", settings=settings)
        )
    steps = config.steps_per_language
    return [
        *plans,
        UnlearningPlan(name=SEQUENTIAL, objective="lingtea", steps_per_language=steps),
        UnlearningPlan(
            name=name_monolingual(config.only), objective="lingtea", languages=(config.only,)
        ),
    ]


def unlearn_material(
    vanilla: LanguageModel,
    material: Material,
    plan: UnlearningPlan,
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
    config = make_settings(plan, material, config)
    codes = plan.languages or material.languages
    if config.evaluate_every:
        config = replace(config, stops=(Bound(metric=FORGET_MA, below=level, relative=True),))
    return train(
        vanilla,
        _make_examples(material, codes),
        config,
        evaluate=ForgettingProbe(convert_to_texts(material.forget, "forget"), codes),
        out=out,
        progress=progress,
    )


def make_settings(
    plan: UnlearningPlan, material: Material, config: TrainingConfig
) -> TrainingConfig:
    """Return the settings of one model's training."""
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


class ForgettingProbe:
    """Evaluation of how much of the forget set a model in training still knows, text by text.

    In bfloat16, as it trains; the values go into the history of its card.

    Args:
        texts: the forget set in all languages.
        watched: languages of `forget_ma`.
    """

    def __init__(self, texts: Sequence[Text], watched: Sequence[str]) -> None:
        self._texts, self._watched = texts, watched
        self._seconds, self._mark = 0.0, time.monotonic()

    def __call__(self, model: LanguageModel) -> dict[str, float]:
        """Return `forget_ma`, `seconds` of training, and `right/<language>/<id>`: right tokens."""
        self._seconds += time.monotonic() - self._mark
        lower = computes_bfloat16(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=lower):
            table = measure_memorization(model, self._texts, progress=False)
        rows = table.to_dict("records")
        right, tokens = (
            [sum(row[name] for row in rows if row["language"] == code) for code in self._watched]
            for name in ("num_right", "num_tokens")
        )
        shares = [known / there for known, there in zip(right, tokens, strict=True)]
        metrics = {
            f"{_RIGHT}{row['language']}/{row['text_id']}": float(row["num_right"]) for row in rows
        }
        metrics |= {FORGET_MA: sum(shares) / len(shares), "seconds": self._seconds}
        self._mark = time.monotonic()
        return metrics


def trace_forgetting(
    vanilla: LanguageModel,
    material: Material,
    plan: UnlearningPlan,
    config: TrainingConfig,
    trained: Trained,
) -> pd.DataFrame:
    """Trace what a model still knew of the forget set at each evaluation, and the cost until then.

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
    config = make_settings(plan, material, config)
    texts = convert_to_texts(material.forget, "forget")
    columns = ["language", "text_id", "num_tokens"]
    sizes = measure_memorization(vanilla, texts, progress=False).reindex(columns=columns)
    before = ForgettingProbe(texts, material.languages)(vanilla)
    sequences, tokens = _count_trained(vanilla, material, plan, config, len(trained.history))
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
            record = {"run": plan.name, **cost, "seconds": seconds, **text, "num_right": right}
            rows.append(record)
    return pd.DataFrame(rows)


def _make_examples(material: Material, codes: Sequence[str]) -> dict[str, list[Example]]:
    return {
        part: make_examples(
            convert_to_texts((record for record in records if record.language in codes), part),
            parallel=True,
        )
        for part, records in (("forget", material.forget), ("retain", material.retain))
    }


def _count_trained(
    vanilla: LanguageModel,
    material: Material,
    plan: UnlearningPlan,
    config: TrainingConfig,
    num_steps: int,
) -> tuple[list[int], list[int]]:
    """Count sequences of the forget set and tokens of both sets, after each number of steps."""
    assert isinstance(config.batch_size, int)
    sequences, tokens = [0], [0]
    sets = _make_examples(material, plan.languages or material.languages)
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
