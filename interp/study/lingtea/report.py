"""What Choi, Min & Choo 2024's experiments gave, as a study: tables, figures, findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from interp.figures import heatmap, spread, target_unrelated
from interp.recovery.krs import krs_table
from interp.study.lingtea.experiment import Config
from interp.study.lingtea.figures import bands, cost_table
from interp.study.lingtea.findings import BEFORE, LINGTEA, SEQUENTIAL, findings
from interp.study.lingtea.scores import Drawn, compared, measures
from interp.study.rows import where
from interp.study.study import Drawing, Study, Table

_MA, _PA = "memorization_accuracy", "accuracy"


def study_of(parts: Sequence[Mapping[str, pd.DataFrame]], config: Config, *, command: str) -> Study:
    """Put together what `interp.study.lingtea.experiment.run` gave of each material.

    Args:
        parts: its tables.
        config: the settings.
        command: what was typed.
    """
    names = list(dict.fromkeys(name for part in parts for name in part))
    raw = {name: pd.concat([part[name] for part in parts if name in part]) for name in names}
    scores = raw["scores"]
    main = {
        str(name): _own(rows)
        for name, rows in scores.query("size == @config.size").groupby("material", sort=False)
    }
    curves = (
        {
            str(name): rows
            for name, rows in raw.get("curves", pd.DataFrame()).groupby("material", sort=False)
        }
        if "curves" in raw
        else {}
    )
    krs = krs_table(raw["losses"], by=("material", "method", "language"))
    tables = {
        "measures": Table(
            rows=_measures(scores),
            caption="MA, PPL and PA per model and language, with 95 % intervals over entries: "
            "what is left of the forget set and of the test part.",
        ),
        "runs": Table(
            rows=raw["runs"], caption="The models that were made, and where training stopped."
        ),
        "krs": Table(
            rows=krs.drop(columns="unlearned", errors="ignore"),
            caption="KRS per material, method, query language, site and layer.",
        ),
        "answers": Table(
            rows=raw["answers"], caption="Greedy answers to what was to be forgotten."
        ),
    }
    figures = {}
    for name, rows in main.items():
        figures |= _material_figures(name, rows, tables["krs"].rows)
    for name, rows in curves.items():
        tables[f"cost-{name}"] = Table(
            rows=_cost(rows),
            caption=f"What training cost and what was left of the {name}, languages drawn anew "
            "for every sequence and one after the other.",
        )
        figures[f"cost-{name}"] = _cost_figure(name, rows)
    for name in main:
        rows = _sizes(scores.query("material == @name"), config)
        if not rows.empty:
            tables[f"sizes-{name}"] = Table(
                rows=rows, caption=f"MA over the number of {name} to forget, mean over languages."
            )
            figures[f"sizes-{name}"] = _sizes_figure(name, rows)
    found = findings(
        main,
        curves,
        reasons={
            str(name): dict(zip(rows["model"], rows["reason"], strict=True))
            for name, rows in where(raw["runs"], size=[config.size]).groupby("material", sort=False)
        },
        kappas=config.kappas,
        only=config.only,
        level=config.level,
        note=config.note,
    )
    return Study(
        name="lingtea",
        title="Forgetting in many languages (Choi, Min & Choo 2024)",
        command=command,
        config=asdict(config),
        tables=tables,
        figures=figures,
        findings=found,
        seed=config.training.seed,
    )


def _own(scores: pd.DataFrame) -> pd.DataFrame:
    """A material's scores without what only the other has: sentences have no candidates."""
    return scores.dropna(axis="columns", how="all").reset_index(drop=True)


def _measures(scores: pd.DataFrame) -> pd.DataFrame:
    groups: dict[Any, Any] = dict(list(scores.groupby(["material", "size"], sort=False)))
    found = [
        measures(_own(rows)).assign(material=material, size=size)
        for (material, size), rows in groups.items()
    ]
    whole = pd.concat(found, ignore_index=True)
    others = [name for name in whole if name not in ("material", "size")]
    return whole.reindex(columns=["material", "size", *others])


def _material_figures(name: str, scores: pd.DataFrame, krs: pd.DataFrame) -> dict[str, Drawing]:
    table = measures(scores)
    # The short name has room under the axes.
    accuracy = table.query("metric == @_MA").assign(metric="MA")
    drawn = {
        f"ma-{name}": Drawing(
            figure=spread(accuracy, title=f"Memorization accuracy on {name} (MA)"),
            caption=f"MA per model and language on the {name} that are forgotten and on the test "
            "part, which no training saw.",
        ),
        f"kept-{name}": Drawing(
            figure=target_unrelated(
                accuracy,
                target="forget",
                unrelated="test",
                title=f"What is left of the {name} to forget against the test part",
            ),
            caption="Lower right: forgets, and keeps the rest.",
        ),
    }
    probed = table.query("metric == @_PA").assign(metric="PA")
    if not probed.empty:
        drawn[f"pa-{name}"] = Drawing(
            figure=spread(probed, title=f"Probing accuracy on {name} (PA)"),
            caption="Share of clozes whose right candidate ranks first; chance is in the hover.",
        )
    scored = krs.query("material == @name").drop(columns="material")
    drawn[f"krs-{name}"] = Drawing(
        figure=heatmap(scored, title=f"Knowledge recovered by method, {name} forgotten"),
        caption="KRS per method, query language, site and layer.",
    )
    return drawn


def _cost(curves: pd.DataFrame) -> pd.DataFrame:
    """Per evaluation: cost, and memorization accuracy on the forget set, mean over languages."""
    rows = cost_table(curves, {LINGTEA: "random", SEQUENTIAL: "sequential"})
    costs = curves.drop_duplicates(["run", "step"])[
        ["run", "step", "sequences", "tokens", "seconds"]
    ].reset_index(drop=True)
    measured = rows[["value", "ci_low", "ci_high", "n"]].reset_index(drop=True)
    return pd.concat([costs, measured], axis="columns")


def _cost_figure(name: str, curves: pd.DataFrame) -> Drawing:
    lines = {LINGTEA: "drawn anew", SEQUENTIAL: "one after the other"}
    return Drawing(
        figure=bands(
            cost_table(curves, lines),
            x_title=f"{name} trained on, in any language",
            y_title="MA (%)",
            title=f"Forgetting {name}: the order of languages",
        ),
        caption="MA on the forget set, mean over languages, over the sequences of the forget set "
        "that training saw, with 95 % intervals over entries.",
    )


def _sizes(scores: pd.DataFrame, config: Config) -> pd.DataFrame:
    """MA over the size of the forget set, as `bands` draws it; empty where there is one size."""
    if len(set(scores["size"])) < 2:
        return pd.DataFrame()
    found = []
    for size, rows in scores.groupby("size"):
        for model in (BEFORE, *config.size_methods):
            for part in ("forget", "test"):

                def mean(drawn: Drawn, model: str = model, part: str = part) -> float:
                    return float(drawn.ma(model, part).mean())

                measure = asdict(compared(rows, mean, parts=[part]))
                found.append({"facet": part, "line": model, "x": size} | measure)
    return pd.DataFrame(found)


def _sizes_figure(name: str, rows: pd.DataFrame) -> Drawing:
    return Drawing(
        figure=bands(
            rows,
            x_title=f"{name} to forget",
            y_title="MA (%)",
            title=f"Size of the forget set, {name}",
            log=True,
        ),
        caption="MA on the forget set and on the test part, mean over languages, with 95 % "
        "intervals over entries.",
    )
