"""Tables: what every model says, and its recovery and readout beside those of both controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd

from experiments.evidence.config import CLEAN, LEAST_KEPT, MOST_LEFT, UNTOUCHED, Config
from interp.recovery import compute_damage, compute_excess, compute_retained
from interp.report import Table

NEVER = (UNTOUCHED, CLEAN)
"""Models that never knew."""


def make_tables(measurements: Mapping[str, pd.DataFrame], config: Config) -> dict[str, Table]:
    """Make the tables of the study.

    Args:
        measurements: what `run.measure` returns.
        config: unused; every study's tables may read its settings.
    """
    del config
    losses, residual = measurements["losses"], measurements["residual"]
    tables = {
        "models": Table(
            rows=tabulate_models(measurements["measures"], losses),
            caption="What each model says (share of answers that hold the expected one, greedy): "
            "false capitals, and true facts that were to be kept; the shares of the taught model's "
            "that are left and kept; whether a model passes (at least "
            f"{LEAST_KEPT:.0%} kept, at most {MOST_LEFT:.0%} left); and damage, loss(V, U) on kept "
            "facts over that on the targets.",
        ),
        "scores": Table(
            rows=tabulate_scores(losses),
            caption="Best window of five layers of each unlearned model, KRS and share of answers, "
            "beside a model that never knew in the same window (`never`), with the excess and its "
            "paired 95 % interval over facts, and at that model's own best window (`best_never`).",
        ),
        "readout": Table(
            rows=tabulate_readout(losses, num_layers=5),
            caption="V with the other model's part in a window of five layers: the share of its "
            "answers that it still gives, and the fall of their log-probability.",
        ),
        "residual": Table(
            rows=tabulate_readout(residual, num_layers=1),
            caption="V with the other model's residual stream after one layer: fall of the "
            "answer's log-probability, nats per token, and the share of it that a model that never "
            "knew costs, with 95 % intervals over facts.",
        ),
    }
    if len(measurements["thirty"]):
        tables["thirty"] = Table(
            rows=tabulate_scores(measurements["thirty"], values=("krs",)),
            caption="As `scores`, of the first taught model, with thirty tokens and no stop.",
        )
    return tables


def tabulate_models(measures: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Tabulate what models say, and the damage done to them."""
    whole: Any = measures.query("metric == 'alias' and layer.isna()")
    keys = ["seed", "method", "language"]
    wide = whole.pivot(index=keys, columns="concept", values="value").reset_index()
    wide = wide.rename(columns={"fake": "false_facts", "kept": "kept_facts"})
    taught = wide.query("method == 'taught'").drop(columns="method")
    before = wide.merge(taught, on=["seed", "language"], suffixes=("", "_before"))
    before = before.set_index(keys).loc[list(wide[keys].itertuples(index=False, name=None))]
    # Of nothing known before, no share is left.
    kept, left = (
        (before[name] / before[f"{name}_before"].where(before[f"{name}_before"] > 0)).to_numpy()
        for name in ("kept_facts", "false_facts")
    )
    damages = [
        compute_damage(_name_models(rows)).rename(columns={"unlearned": "method"}).assign(seed=seed)
        for seed, rows in _select(losses, "restore").groupby("seed")
    ]
    damage = pd.concat(damages, ignore_index=True).reindex(columns=[*keys, "damage"])
    wide = wide.assign(
        retention=kept, left=left, passes=(kept >= LEAST_KEPT) & (left <= MOST_LEFT)
    ).merge(damage, on=keys, how="left")
    columns = ["false_facts", "kept_facts", "left", "retention", "passes", "damage"]
    return wide.reindex(columns=[*keys, *columns])


def tabulate_scores(
    losses: pd.DataFrame, *, values: tuple[Literal["krs", "answers"], ...] = ("krs", "answers")
) -> pd.DataFrame:
    """Tabulate the scores of unlearned models at their best windows, beside those that never knew.

    `best_never` is the score of the model that never knew at its own best window.
    """
    parts = []
    for seed, rows in _select(losses, "restore").groupby("seed"):
        named = _name_models(rows)
        for value in values:
            for never in NEVER:
                others = _leave_out(named, never)
                table = compute_excess(others, never, value=value)
                parts.append(_find_best(table).assign(seed=seed, value=value, of=never))
    found = pd.concat(parts, ignore_index=True).rename(columns={"unlearned": "method"})
    order = ["seed", "method", "language", "value", "site", "layer", "score", "of", "never"]
    rest = ["best_never", "excess", "ci_low", "ci_high", "num_queries", "reason"]
    return found.reindex(columns=[*order, *rest])


def tabulate_readout(losses: pd.DataFrame, *, num_layers: int) -> pd.DataFrame:
    """Tabulate what V reads in other models' parts, in whole windows of so many layers."""
    parts = []
    for seed, rows in _select(losses, "corrupt").groupby("seed"):
        named = _name_models(rows)
        for never in NEVER:
            others = _leave_out(named, never)
            table = compute_retained(others, never)
            parts.append(table.assign(seed=seed, of=never))
    found = pd.concat(parts, ignore_index=True).rename(columns={"model": "method"})
    whole = found["last_layer"] - found["first_layer"] == num_layers - 1
    order = ["seed", "method", "language", "site", "layer", "of", "retained", "retained_never"]
    rest = ["erased", "erased_low", "erased_high", "fall", "fall_never", "erased_fall"]
    ends = ["erased_fall_low", "erased_fall_high", "num_queries"]
    return found.loc[whole, [*order, *rest, *ends]].reset_index(drop=True)


def _select(losses: pd.DataFrame, direction: str) -> pd.DataFrame:
    return losses.loc[losses["direction"] == direction]


def _name_models(losses: pd.DataFrame) -> pd.DataFrame:
    """Call every model by its method in place of its path."""
    return losses.assign(unlearned=losses["method"], vanilla="taught")


def _leave_out(losses: pd.DataFrame, never: str) -> pd.DataFrame:
    """Leave out the models that never knew, but for one."""
    others = [name for name in NEVER if name != never]
    return losses.loc[~losses["unlearned"].isin(others)]


def _find_best(table: pd.DataFrame) -> pd.DataFrame:
    """Find each model's best window per language and site."""
    keys = ["unlearned", "language", "site"]
    groups: Any = table.groupby(keys, sort=False)
    best = groups["never"].max().rename("best_never").reset_index()
    return table.loc[groups["score"].idxmax().dropna()].merge(best, on=keys)
