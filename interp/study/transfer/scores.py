"""What models do, item by item: the behaviour, and how well they still write.

| measure | of an item |
|---|---|
| `behaviour` | whether the unwanted answer is the likelier one |
| `margin` | how much likelier, in nats |
| `consistency` | whether a text is continued in its language; no weight where that is not told |
| `distinct-2` | different pairs of tokens in a continuation, as a share of its pairs |
| `nll` | negative log-likelihood of a held-out text; weighted by its tokens |

A rate is the sum of values over the sum of weights, perplexity exp of that of `nll`. The same
items are asked of all models and in all languages, so that comparisons draw items once for all
(`paired`): n are items, whatever the number of languages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.behaviour.answers import Answer, generate
from interp.behaviour.diversity import distinct
from interp.behaviour.language_use import consistency
from interp.behaviour.measure import (
    Measure,
    draw_counts,
    percentiles,
    resampled,
    share,
    undefined,
)
from interp.behaviour.memorization import memorization
from interp.behaviour.token_scores import label_scores
from interp.data.cache import key_of
from interp.models.language_model import LanguageModel
from interp.results import read_table, write_table
from interp.study.transfer.tasks import Pair, Task

COLUMNS = ("model", "language", "item", "measure", "value", "weight")

BEHAVIOUR, MARGIN, CONSISTENCY, DIVERSITY, NLL = (
    "behaviour",
    "margin",
    "consistency",
    "distinct-2",
    "nll",
)

PERPLEXITY = "perplexity"
"""What `cells` makes of `nll`."""

Rates = Mapping[tuple[str, str], float]
"""Of one measure: the sum of values over that of weights, by model and language."""


def items(
    models: Mapping[str, LanguageModel],
    task: Task,
    *,
    num_tokens: int = 30,
    out: Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """All measures of all models, item by item.

    Args:
        models: by the name that they get in the table.
        task: what is measured.
        num_tokens: the longest continuation.
        out: a folder that keeps answers and each model's rows; what it has is not done again.
        progress: show progress bars.

    Returns:
        `COLUMNS`: values that have no weight are NaN.

    Raises:
        ValueError: a text that does not fit a model's context.
        ImportError: py3langid is not installed.
    """
    parts = []
    for name, model in models.items():
        key = key_of(
            kind="transfer items",
            model=model.content_hash(),
            asked=repr([asdict(pair) for pair in task.asked]),
            prompts=repr([asdict(query) for query in task.prompts]),
            held_out=repr([asdict(text) for text in task.held_out]),
            per_token=task.per_token,
            num_tokens=num_tokens,
        )
        file = None if out is None else out / "items" / f"{key[:16]}.parquet"
        if file is not None and file.is_file():
            found = read_table(file, of=key)
        else:
            cache = None if out is None else out / "answers.jsonl"
            said = generate(
                model, task.prompts, num_tokens=num_tokens, cache=cache, progress=progress
            )
            rows = [
                *preferences(model, task.asked, per_token=task.per_token, progress=progress),
                *abilities(said),
                *likelihoods(model, task, progress=progress),
            ]
            found = pd.DataFrame(rows)
            if file is not None:
                write_table(file, found, of=key)
        parts.append(found.assign(model=name))
    return pd.concat(parts, ignore_index=True).reindex(columns=list(COLUMNS))


def preferences(
    model: LanguageModel, pairs: Sequence[Pair], *, per_token: bool = False, progress: bool = True
) -> list[dict[str, object]]:
    """Which answer of each pair a model prefers: rows of `behaviour` and `margin`.

    Args:
        model: the model.
        pairs: of answers.
        per_token: see `Task`; the margin is then in nats per token.
        progress: show a progress bar.
    """
    examples = [example for pair in pairs for example in pair.examples()]
    found = [
        scores.logprobs.double() for scores in label_scores(model, examples, progress=progress)
    ]
    likelihoods = [(each.mean() if per_token else each.sum()).item() for each in found]
    rows = []
    for pair, chosen, rejected in zip(pairs, likelihoods[::2], likelihoods[1::2], strict=True):
        about = {"language": pair.language, "item": pair.id, "weight": 1.0}
        rows.append(about | {"measure": BEHAVIOUR, "value": float(rejected > chosen)})
        rows.append(about | {"measure": MARGIN, "value": rejected - chosen})
    return rows


def abilities(answers: Sequence[Answer]) -> list[dict[str, object]]:
    """What continuations are like: rows of `consistency` and `distinct-2`."""
    rows = []
    for answer in answers:
        query = answer.query
        told = consistency([answer], progress=False)["consistency"].iloc[0]
        varied = distinct([answer.text], query.language, order=2).value
        for measure, value in ((CONSISTENCY, told), (DIVERSITY, varied)):
            about = {"language": query.language, "item": query.id, "measure": measure}
            rows.append(about | {"value": float(value), "weight": float(not math.isnan(value))})
    return rows


def likelihoods(
    model: LanguageModel, task: Task, *, progress: bool = True
) -> list[dict[str, object]]:
    """How likely held-out texts are: rows of `nll`."""
    table = memorization(model, task.held_out, progress=progress)
    return [
        {
            "language": row["language"],
            "item": row["text_id"],
            "measure": NLL,
            "value": row["nll"],
            "weight": float(row["num_tokens"]),
        }
        for row in table.to_dict("records")
    ]


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Each measure of each model in each language, with its 95 % interval over items.

    Args:
        table: what `items` gives.

    Returns:
        A row per model, language and measure, with `value`, `ci_low`, `ci_high`, `n` (items with a
        weight) and `reason`; Wilson's intervals of shares, else bootstrap ones. `nll` becomes
        `PERPLEXITY`.
    """
    rows = []
    for _, group in table.groupby(["model", "language", "measure"], sort=False):
        model, code, name = (group[key].iloc[0] for key in ("model", "language", "measure"))
        kept = group.query("weight > 0")
        value, weight = (np.array(kept[key], dtype=float) for key in ("value", "weight"))
        left_out = len(group) - len(kept)
        reason = f"{left_out} of {len(group)} items have no value" if left_out else ""
        if name in (BEHAVIOUR, CONSISTENCY):
            found = share((value == 1).tolist(), reason=reason)
        else:
            found = resampled(
                len(kept),
                lambda at, value=value, weight=weight: value[at].sum() / weight[at].sum(),
                reason=reason,
            )
        if name == NLL:
            ends = {key: math.exp(getattr(found, key)) for key in ("value", "ci_low", "ci_high")}
            name, found = PERPLEXITY, replace(found, **ends)
        rows.append({"model": model, "language": code, "measure": name, **asdict(found)})
    return pd.DataFrame(rows)


def rates_of(table: pd.DataFrame, measure: str) -> Rates:
    """One measure of all models in all languages where it has a weight."""
    kept = table.query(f"measure == {measure!r} and weight > 0")
    sums: Any = kept.groupby(["model", "language"])[["value", "weight"]].sum()
    return (sums["value"] / sums["weight"]).to_dict()


def paired(
    table: pd.DataFrame,
    measure: str,
    statistic: Callable[[Rates], float],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Measure:
    """A comparison of models and languages in one measure, with its bootstrap interval over items.

    Args:
        table: what `items` gives.
        measure: of `items`.
        statistic: what is compared, as one number; a rate of no weight is NaN.
        num_resamples: bootstrap resamples; those in which the statistic is NaN do not count.
        seed: of the resamples.

    Returns:
        `n` is the number of items.

    Raises:
        ValueError: an item stands twice in a cell.
    """
    rows = table.query("measure == @measure and weight > 0")
    if rows.empty:
        return undefined(f"nothing was measured of {measure}")
    keys = ["model", "language"]
    if rows.duplicated(subset=[*keys, "item"]).any():
        raise ValueError(f"an item stands twice in a cell of {measure}")
    item, names = pd.factorize(rows["item"])
    grouped = rows.groupby(keys)
    cell = grouped.ngroup().to_numpy()
    order: list[Any] = list(grouped.indices)
    values, weights = np.zeros((len(names), len(order))), np.zeros((len(names), len(order)))
    values[item, cell], weights[item, cell] = rows["value"], rows["weight"]

    def compared(draw: np.ndarray) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = (draw @ values) / (draw @ weights)
            return float(statistic(dict(zip(order, rates, strict=True))))

    draws = draw_counts(np.zeros(len(names)), num_resamples=num_resamples, seed=seed)
    low, high = percentiles([compared(draw) for draw in draws])
    whole = compared(np.ones(len(names)))
    reason = "" if not math.isnan(whole) else f"a rate of {measure} is not defined"
    return Measure(value=whole, ci_low=low, ci_high=high, n=len(names), reason=reason)
