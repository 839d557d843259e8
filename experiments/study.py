"""Study directory of a paper: measurements as tables, figures and findings with intervals.

    study.json       title, settings, command, seed, day, versions; captions and findings
    tables/*.csv     what was measured
    figures/*        each as HTML, PNG, SVG, and as JSON for the page
    findings.md      which of the expected signatures were seen, with intervals

Models and losses lie in folders beside them, which each experiment names itself and goes on from
when it was killed; the study is written at the end, from all of it. `interp report DIR` makes one
page of it.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from interp.files import write_atomically
from interp.report import CONTRADICTED, NOT_MEASURED, SEEN, UNDECIDED, Table
from interp.results import collect_versions
from interp.statistics import Estimate
from interp.tables import write_csv

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


_GUIDE = "[Which number says what](../../docs/krs.md)."


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Signature that a paper reports, with the number that decides whether it was seen here.

    Attributes:
        signature: what is expected, as a statement that can fail.
        source: who saw it, and where.
        quantity: the number that decides, in words: it must be above 0.
        measure: that number, with its interval.
        note: what else a reader must know.
    """

    signature: str
    source: str
    quantity: str
    measure: Estimate
    note: str = ""

    @property
    def verdict(self) -> str:
        """Verdict: `seen` or `contradicted` where the whole interval is on one side of 0.

        Else `undecided`; `not measured` where there is no value.
        """
        measure = self.measure
        if math.isnan(measure.value):
            return NOT_MEASURED
        if measure.ci_low > 0:
            return SEEN
        if measure.ci_high < 0:
            return CONTRADICTED
        return UNDECIDED


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Plotly figure with its caption."""

    figure: Figure
    caption: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """Results of an experiment.

    Attributes:
        name: the experiment's, such as `dissect`.
        title: a line.
        limits: what its numbers do not say, which readers see first.
        command: the command that was run.
        config: settings, such as `asdict` gives them; see `convert_to_json`.
        tables: by name, which becomes a file's. One called `krs` has the columns of `krs_table`
            with what tells its models apart (`method`, `source` …) in columns of their own; one
            called `answers` what models said. The page has selectors for both.
        figures: by name, which becomes a file's.
        findings: what was expected, and whether it was seen.
        seed: of every choice.
    """

    name: str
    title: str
    limits: str = ""
    command: str = ""
    config: Mapping[str, Any]
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, Drawing] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    seed: int = 0

    def findings_table(self) -> pd.DataFrame:
        """Return a row per finding, with its verdict, value and interval."""
        rows = [
            {
                "signature": item.signature,
                "source": item.source,
                "verdict": item.verdict,
                "quantity": item.quantity,
                "value": item.measure.value,
                "ci_low": item.measure.ci_low,
                "ci_high": item.measure.ci_high,
                "n": item.measure.n,
                "note": "; ".join(part for part in (item.note, item.measure.reason) if part),
            }
            for item in self.findings
        ]
        return pd.DataFrame(rows)

    def summary(self) -> str:
        """Format the findings for a terminal: signature, verdict, value with interval, n."""
        shown = ["signature", "verdict", "value", "ci_low", "ci_high", "n"]
        return self.findings_table()[shown].round(2).to_string(index=False)

    def markdown(self) -> str:
        """Format the findings as a table in Markdown, under title, command, day and seed."""
        rows = [
            f"| {row['signature']} | {row['source']} | **{row['verdict']}** | {row['quantity']} | "
            f"{_format_measure(row)} | {row['note']} |"
            for row in self.findings_table().to_dict("records")
        ]
        return "\n".join(
            [
                f"# {self.title}",
                "",
                *_warn(self.limits),
                f"`{self.command}`, {date.today().isoformat()}, seed {self.seed}.",
                "",
                "| expected | by | here | decided by (above 0) | value, 95 % interval | note |",
                "|---|---|---|---|---|---|",
                *rows,
                "",
            ]
        )

    def write(
        self, out: str | Path, *, formats: Sequence[str] = ("html", "png", "svg")
    ) -> list[Path]:
        """Write tables, figures and findings; a reader finds all of them or the ones before.

        Args:
            out: the study's directory.
            formats: of the figures, see `interp.figures.export`.

        Returns:
            The figures' files.
        """
        from interp.figures import export

        folder = Path(out)
        for name, table in self.tables.items():
            write_csv(folder / "tables" / f"{name}.csv", table.rows)
        for name, drawing in self.figures.items():
            write_atomically(
                folder / "figures" / f"{name}.json",
                lambda scratch, drawn=drawing.figure: scratch.write_text(
                    str(drawn.to_json()), encoding="utf-8"
                ),
            )
        drawn = {folder / "figures" / name: each.figure for name, each in self.figures.items()}
        written = export(drawn, formats=formats)
        write_atomically(
            folder / "findings.md",
            lambda scratch: scratch.write_text(self.markdown(), encoding="utf-8"),
        )
        about = {
            "name": self.name,
            "title": self.title,
            "limits": self.limits,
            "command": self.command,
            "config": convert_to_json(self.config),
            "seed": self.seed,
            "day": date.today().isoformat(),
            "versions": collect_versions(),
            "machine": _describe_machine(),
            "tables": {name: table.caption for name, table in self.tables.items()},
            "figures": {name: each.caption for name, each in self.figures.items()},
            "findings": json.loads(str(self.findings_table().to_json(orient="records"))),
        }
        text = json.dumps(about, ensure_ascii=False, indent=1, allow_nan=False)
        write_atomically(
            folder / "study.json", lambda scratch: scratch.write_text(text, encoding="utf-8")
        )
        return written


def select_rows(table: pd.DataFrame, **values: str | Iterable[object]) -> pd.DataFrame:
    """Return the rows that have these values, by column: one value, or any of several."""
    rows: Any = table
    for column, value in values.items():
        rows = rows[rows[column].isin([value] if isinstance(value, str) else [*value])]
    return rows


def convert_to_json(value: Any) -> Any:
    """Convert settings to JSON values; infinities and paths, which JSON lacks, become texts."""
    if isinstance(value, Mapping):
        return {str(key): convert_to_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [convert_to_json(each) for each in value]
    if isinstance(value, Path) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


def _warn(limits: str) -> list[str]:
    return [f"**What this does not say.** {limits} {_GUIDE}", ""] if limits else []


def _describe_machine() -> str:
    """Describe the machine in a few words."""
    parts = [f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} CPU cores"]
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}")
    return ", ".join(parts)


def _format_measure(row: Mapping[str, Any]) -> str:
    if math.isnan(row["value"]):
        return "–"
    return f"{row['value']:.2f} ({row['ci_low']:.2f} to {row['ci_high']:.2f}), n = {row['n']}"
