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

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.knowledge import Measured, measure_knowledge
from interp.behaviour.probing import collect_candidates, name_conditions
from interp.behaviour.registry import BY, metric
from interp.data.corpus import Text
from interp.data.counterfactuals import sort_by_hash
from interp.models.language_model import LanguageModel
from interp.unlearning.config import TrainingConfig
from interp.unlearning.examples import make_examples
from interp.unlearning.training import train

DEFAULTS = TrainingConfig(
    objective="finetune", learning_rate=2e-5, num_steps=20, batch_size=8, evaluate_every=4
)
"""Fine-tune short enough that Gemma-3-270M learns hardly any of eight false capitals afresh."""

LEARNED, HELD_OUT = "learned", "held out"
"""Parts of the queries: those about facts that are in the texts, and the others."""

_CELL = ("part", "language", "concept", "name")


def choose_texts(texts: Sequence[Text], share: float = 0.5, *, seed: int = 0) -> list[Text]:
    """Choose the texts of a share of the facts, which depends on the seed and their ids alone.

    Raises:
        ValueError: a share that leaves no fact on one of the sides.
    """
    ids = list(dict.fromkeys(text.id for text in texts))
    number = round(share * len(ids))
    if not 0 < number < len(ids):
        raise ValueError(
            f"a share of {share} of {len(ids)} facts is {number}; it must leave some on both sides"
        )
    chosen = set(sort_by_hash(ids, f"{seed}/relearning", key=str)[:number])
    return [text for text in texts if text.id in chosen]


def measure_relearning(
    models: Mapping[str, LanguageModel],
    texts: Sequence[Text],
    measured: Measured,
    config: TrainingConfig = DEFAULTS,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Fine-tune copies of models on the same texts, and see what they know on the way.

    Args:
        models: by name, left untouched; `count_steps_to_recover` needs one called `vanilla`.
        texts: what is learned.
        measured: see `interp.behaviour.knowledge`. Queries about facts in the texts, by id, and
            those about others are probed apart, each among the answers of its part: whoever learns
            some answers prefers these whatever the question.
        config: of the fine-tune; the objective is `finetune`. A stop may watch an accuracy as
            `held out: CONCEPT/LANGUAGE`, or a name that the function gives.
        progress: show a progress bar for each model.

    Returns:
        A row per model, step (0 is before) and cell: `model`, `step`, `part` (`learned`,
        `held out`; "" of a function), what `measure_knowledge` gives, and `ended`: why training
        ended.

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
    parts = _split_queries(texts, measured)
    tables = []
    for name, model in models.items():
        table = _relearn(model, texts, parts, config, progress)
        table.insert(0, "model", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def count_steps_to_recover(
    table: pd.DataFrame, share: float = 0.9, *, reference: str = "vanilla"
) -> pd.DataFrame:
    """Find the first evaluated step at which a model knows a share of what the vanilla one knew.

    Args:
        table: of `measure_relearning`.
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


def check_parts(evaluated: EvaluatedModel) -> None:
    """Refuse queries that cannot be probed, be it those about what is learned or the others."""
    for queries in _split_queries(choose_texts(evaluated.forget), evaluated.queries).values():
        assert not callable(queries)
        collect_candidates(queries)


@metric("relearning", needs=("answer", "vanilla", "forget"), check=check_parts)
def tabulate_relearning(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Measure accuracy on facts that are not in a short fine-tune on half of the forgotten ones.

    It is that before and after, with the steps it took to return.
    """
    assert evaluated.vanilla is not None
    both = {"vanilla": evaluated.vanilla, "unlearned": evaluated}
    table = pd.concat(
        [each.compute_once(_relearn_half).assign(model=name) for name, each in both.items()]
    )
    table = table.query("part == @HELD_OUT")
    own = table.query("model == 'unlearned'")
    sizes = own.query("step == 0")[[*BY, "num_queries"]]
    steps = count_steps_to_recover(table).merge(sizes, on=list(BY))
    steps = steps.rename(columns={"steps": "value", "num_queries": "n"})
    ends = {"before relearning": own["step"].min(), "relearned": own["step"].max()}
    parts = {name: own.query("step == @step") for name, step in ends.items()}
    return pd.concat(
        [
            *(name_conditions(part, [name] * len(part)) for name, part in parts.items()),
            steps.assign(metric="relearning_steps"),
        ]
    )


def _relearn_half(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Fine-tune on half of what was to be forgotten."""
    models = {evaluated.model.name: evaluated.model}
    texts = choose_texts(evaluated.forget)
    return measure_relearning(models, texts, evaluated.queries, progress=evaluated.progress)


def _split_queries(texts: Sequence[Text], measured: Measured) -> dict[str, Measured]:
    """Split what is measured by part."""
    if callable(measured):
        return {"": measured}
    ids = {text.id for text in texts}
    parts = {
        LEARNED: [query for query in measured if query.id in ids],
        HELD_OUT: [query for query in measured if query.id not in ids],
    }
    return {part: queries for part, queries in parts.items() if queries}


def _relearn(
    model: LanguageModel,
    texts: Sequence[Text],
    parts: Mapping[str, Measured],
    config: TrainingConfig,
    progress: bool,
) -> pd.DataFrame:
    def measure(model: LanguageModel) -> pd.DataFrame:
        whole = {part: measure_knowledge(model, measured) for part, measured in parts.items()}
        tables = [table.assign(part=part) for part, table in whole.items()]
        return pd.concat(tables, ignore_index=True)

    tables = []

    def evaluate(model: LanguageModel) -> dict[str, float]:
        tables.append(measure(model))
        return _list_metrics(tables[-1])

    before = measure(model)
    examples = {"retain": make_examples(texts)}
    trained = train(model, examples, config, evaluate=evaluate, progress=progress)
    metric = next(iter(_list_metrics(before)))
    steps = [int(row["step"]) + 1 for row in trained.history if metric in row]
    # Where a stop watches a metric, the first evaluation is that before training.
    after = tables[len(tables) - len(steps) :]
    dated = [
        table.assign(step=step) for step, table in zip((0, *steps), (before, *after), strict=True)
    ]
    whole = pd.concat(dated, ignore_index=True).assign(ended=trained.reason)
    for name in ("part", "step"):
        whole.insert(0, name, whole.pop(name))
    return whole


def _list_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Return the values of a table as a training run has them."""
    if "name" in table:
        return dict(zip(table["name"], table["value"], strict=True))
    return {
        f"{row['part']}: {row['concept']}/{row['language']}": row["accuracy"]
        for row in table.to_dict("records")
    }
