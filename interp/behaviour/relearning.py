"""Relearning: how soon does a little fine-tuning bring back what a model was made to forget?

    part = part_of(corpus.forget)
    table = robustness({"vanilla": V, "unlearned": U, "baseline": B}, part, corpus.queries)
    steps_to_recover(table)

Knowledge that was removed has to be learned afresh, knowledge that was hidden returns at once
(Lynch et al. 2024, Hu et al. 2024, Łucki et al. 2024). What is learned may be a part of F, F in
another language, or unrelated text; what counts are the facts that are not in it. Learning is
compared with that of a `baseline` that never saw F, trained in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from interp.behaviour.knowledge import Measured, knowledge
from interp.data.corpus import Text
from interp.data.counterfactuals import in_hash_order
from interp.models.language_model import LanguageModel
from interp.unlearning.config import TrainingConfig
from interp.unlearning.examples import examples_of
from interp.unlearning.training import train

DEFAULTS = TrainingConfig(
    objective="finetune", learning_rate=2e-5, num_steps=20, batch_size=8, evaluate_every=4
)
"""A fine-tune short enough that Gemma-3-270M learns hardly any of eight false capitals afresh."""

LEARNED, HELD_OUT = "learned", "held out"
"""Parts of the queries: those about facts that are in the texts, and the others."""

_CELL = ("part", "language", "concept", "name")


def part_of(texts: Sequence[Text], share: float = 0.5, *, seed: int = 0) -> list[Text]:
    """The texts of a share of the facts; which facts depends on the seed and their ids alone.

    Raises:
        ValueError: a share that leaves no fact on one of the sides.
    """
    ids = list(dict.fromkeys(text.id for text in texts))
    number = round(share * len(ids))
    if not 0 < number < len(ids):
        raise ValueError(
            f"a share of {share} of {len(ids)} facts is {number}; it must leave some on both sides"
        )
    chosen = set(in_hash_order(ids, f"{seed}/relearning", key=str)[:number])
    return [text for text in texts if text.id in chosen]


def robustness(
    models: Mapping[str, LanguageModel],
    texts: Sequence[Text],
    measured: Measured,
    config: TrainingConfig = DEFAULTS,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Fine-tune copies of models on the same texts, and see what they know on the way.

    Args:
        models: by name, left untouched; `steps_to_recover` needs one called `vanilla`.
        texts: what is learned.
        measured: see `interp.behaviour.knowledge`. Queries about facts in the texts, by id, and
            those about others are probed apart, each among the answers of its part: whoever learns
            some answers prefers these whatever the question.
        config: of the fine-tune; the objective is `finetune`. A stop may watch an accuracy as
            `held out: CONCEPT/LANGUAGE`, or a name that the function gives.
        progress: show a progress bar for each model.

    Returns:
        A row per model, step (0 is before) and cell: `model`, `step`, `part` (`learned`,
        `held out`; "" of a function), what `knowledge` gives, and `ended`: why training ended.

    Raises:
        ValueError: settings, texts or queries that do not fit.
    """
    if config.objective != "finetune":
        raise ValueError(f"relearning has the objective 'finetune', not {config.objective!r}")
    if config.evaluate_every < 1:
        raise ValueError(
            f"evaluate_every must be at least 1 to see what is relearned when, not "
            f"{config.evaluate_every}"
        )
    parts = _parts(texts, measured)
    tables = []
    for name, model in models.items():
        found = _relearned(model, texts, parts, config, progress)
        found.insert(0, "model", name)
        tables.append(found)
    return pd.concat(tables, ignore_index=True)


def steps_to_recover(
    table: pd.DataFrame, share: float = 0.9, *, reference: str = "vanilla"
) -> pd.DataFrame:
    """The first evaluated step at which a model knows a share of what the vanilla model knew.

    Args:
        table: of `robustness`.
        share: of the reference's value at step 0.
        reference: the model of that name.

    Returns:
        A row per other model and cell: `model`, `part`, `language` and `concept` (or `name`),
        `target` (the value to reach), `steps` (NaN with a `reason` where it was not reached, or
        where the reference itself cannot be told from chance).

    Raises:
        ValueError: a share that is not above 0, or a table without the reference.
    """
    if not share > 0:
        raise ValueError(f"the share to recover must be above 0, not {share}")
    if reference not in set(table["model"]):
        names = ", ".join(dict.fromkeys(table["model"]))
        raise ValueError(f"the table has no model {reference!r} to compare with; it has {names}")
    cell = [column for column in _CELL if column in table]
    value = "accuracy" if "accuracy" in table else "value"
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in table.to_dict("records"):
        groups.setdefault((row["model"], *(row[column] for column in cell)), []).append(row)
    rows = []
    for key, group in groups.items():
        if key[0] == reference:
            continue
        target, steps, reason = math.nan, math.nan, ""
        known = next((row for row in groups.get((reference, *key[1:]), ()) if not row["step"]), {})
        if math.isnan(known.get(value, math.nan)):
            reason = f"{reference} has no value"
        elif "chance" in known and known["ci_low"] <= known["chance"]:
            reason = (
                f"{reference} cannot be told from chance: {known[value]:.0%} "
                f"({known['ci_low']:.0%} to {known['ci_high']:.0%}), chance {known['chance']:.0%}"
            )
        else:
            target = share * known[value]
            # Shares of counts are not exact.
            reached = [row["step"] for row in group if row[value] >= target - 1e-9]
            steps = float(min(reached, default=math.nan))
            reason = "" if reached else f"not reached: {group[0]['ended']}"
        named = dict(zip(("model", *cell), key, strict=True))
        rows.append({**named, "target": target, "steps": steps, "reason": reason})
    return pd.DataFrame(rows)


def _parts(texts: Sequence[Text], measured: Measured) -> dict[str, Measured]:
    """What is measured, by part."""
    if callable(measured):
        return {"": measured}
    ids = {text.id for text in texts}
    parts = {
        LEARNED: [query for query in measured if query.id in ids],
        HELD_OUT: [query for query in measured if query.id not in ids],
    }
    return {part: queries for part, queries in parts.items() if queries}


def _relearned(
    model: LanguageModel,
    texts: Sequence[Text],
    parts: Mapping[str, Measured],
    config: TrainingConfig,
    progress: bool,
) -> pd.DataFrame:
    def known(model: LanguageModel) -> pd.DataFrame:
        found = {part: knowledge(model, measured) for part, measured in parts.items()}
        tables = [table.assign(part=part) for part, table in found.items()]
        return pd.concat(tables, ignore_index=True)

    tables = []

    def evaluate(model: LanguageModel) -> dict[str, float]:
        tables.append(known(model))
        return _metrics(tables[-1])

    before = known(model)
    examples = {"retain": examples_of(texts)}
    trained = train(model, examples, config, evaluate=evaluate, progress=progress)
    metric = next(iter(_metrics(before)))
    steps = [int(row["step"]) + 1 for row in trained.history if metric in row]
    # Where a stop watches a metric, the first evaluation is that before training.
    after = tables[len(tables) - len(steps) :]
    dated = [
        table.assign(step=step) for step, table in zip((0, *steps), (before, *after), strict=True)
    ]
    found = pd.concat(dated, ignore_index=True).assign(ended=trained.reason)
    for name in ("part", "step"):
        found.insert(0, name, found.pop(name))
    return found


def _metrics(table: pd.DataFrame) -> dict[str, float]:
    """The values of a table as a training run has them."""
    if "name" in table:
        return dict(zip(table["name"], table["value"], strict=True))
    return {
        f"{row['part']}: {row['concept']}/{row['language']}": row["accuracy"]
        for row in table.to_dict("records")
    }
