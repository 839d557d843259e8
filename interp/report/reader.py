"""Readers of what a page shows of a study's or a sweep's directory.

`read_report` takes either. A study is a directory with study.json, tables and figures; of a run
directory the scores and the figures are made here from its losses, and V's answers are its
trajectories.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

import pandas as pd

from interp.tables import read_csv

SEEN, CONTRADICTED, UNDECIDED, NOT_MEASURED = "seen", "contradicted", "undecided", "not measured"
"""Verdicts on a finding."""

_VERDICTS = (SEEN, CONTRADICTED, UNDECIDED, NOT_MEASURED)

_STUDY: dict[str, Any] = {
    "name": str,
    "title": str,
    "command": str,
    "config": dict,
    "seed": int,
    "day": str,
    "versions": dict[str, str],
    "machine": str,
    "tables": dict[str, str],
    "figures": dict[str, str],
    "findings": list,
}
_NUMBER = float | int | None
_FINDING: dict[str, Any] = {
    "signature": str,
    "source": str,
    "verdict": str,
    "quantity": str,
    "value": _NUMBER,
    "ci_low": _NUMBER,
    "ci_high": _NUMBER,
    "n": _NUMBER,
    "note": str,
}
_NO_CONTROL = (
    "A KRS says which of the vanilla model's parts bring its answers back, not that the unlearned "
    "model still holds them: no model that never knew was measured beside it (docs/krs.md)."
)
# What reads like a number, or like a lacking one (Namibia's NA), and is a name.
_NAMES = ("language", "query_id", "concept", "id")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows, and a sentence that says what they are."""

    rows: pd.DataFrame
    caption: str


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the page shows of one directory.

    Attributes:
        title: a line.
        limits: what its numbers do not say, which stands first.
        about: what was run, by what each line is called.
        settings: of the experiment or sweep, as JSON values.
        findings: what was expected, as in study.json.
        tables: by name.
        figures: plotly figures as JSON values, with their captions, by name.
    """

    title: str
    limits: str = ""
    about: Mapping[str, str]
    settings: Mapping[str, Any]
    findings: Sequence[Mapping[str, Any]] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, tuple[Mapping[str, Any], str]] = field(default_factory=dict)


def read_report(path: str | os.PathLike[str]) -> ReportData:
    """Read the directory of a study or of a sweep.

    Raises:
        ValueError: it is neither a study nor a run directory, or one of its files is damaged.
    """
    folder = Path(path)
    if (folder / "study.json").is_file():
        return _read_study(folder)
    if (folder / "run.json").is_file():
        return _read_run(folder)
    raise ValueError(
        f"{str(path)!r} is neither a study nor a run directory: it has no study.json or run.json"
    )


def _read_study(folder: Path) -> ReportData:
    file = folder / "study.json"
    about = _read_json(file)
    _check_fields(file, about, _STUDY)
    if not isinstance(about.get("limits", ""), str):
        _raise_damaged(file, "'limits' is no text")
    for finding in about["findings"]:
        _check_fields(file, finding, _FINDING)
        if finding["verdict"] not in _VERDICTS:
            _raise_damaged(file, f"a finding is {finding['verdict']!r}")
    for name in (*about["tables"], *about["figures"]):
        if name != Path(name).name:
            _raise_damaged(file, f"{name!r} is no file's name")
    tables = {
        name: Table(rows=_read_csv(folder / "tables" / f"{name}.csv"), caption=caption)
        for name, caption in about["tables"].items()
    }
    figures = {}
    for name, caption in about["figures"].items():
        drawn = folder / "figures" / f"{name}.json"
        figure = _read_json(drawn)
        _check_fields(drawn, figure, {"data": list, "layout": dict})
        figures[name] = (figure, caption)
    return ReportData(
        title=about["title"],
        limits=about.get("limits", ""),
        about={
            "command": about["command"],
            "day": about["day"],
            "seed": str(about["seed"]),
            "versions": _join_items(about["versions"]),
            "machine": about["machine"],
        },
        settings=about["config"],
        findings=about["findings"],
        tables=tables,
        figures=figures,
    )


def _read_run(folder: Path) -> ReportData:
    from interp.launch.recovery import Recovery
    from interp.results import RunDirectory, read_manifest

    manifest = read_manifest(folder)
    recovery = Recovery.read(folder)
    scores = recovery.krs()
    store = RunDirectory(folder, manifest["config"])
    languages = recovery.losses["language"].unique()
    trajectories = [item for code in languages for item in store.read_trajectories(code) or []]
    models = manifest["models"]
    roles = {
        role: [name for name, model in models.items() if model["role"] == role]
        for role in ("vanilla", "unlearned")
    }
    tables = {
        "krs": Table(rows=scores, caption="Recovery by language, site and window."),
        "known": Table(
            rows=recovery.known(),
            caption="What V knows: right answers of those asked, and loss(V, U).",
        ),
    }
    if recovery.has_controls:
        tables["damage"] = Table(
            rows=recovery.damage(), caption="loss(V, U) on facts to keep / on those unlearned."
        )
    if trajectories:
        tables["answers"] = Table(
            rows=_list_answers(trajectories), caption="V's answers, which are scored."
        )
    drawn = {
        "heatmap": (recovery.heatmap(), "Recovery by language and layer, one facet per site."),
        "lines": (recovery.lines(), "Recovery over the layers, with 95 % bootstrap intervals."),
    }
    captions = {
        "answers": "Share of V's answers that are given again.",
        "retained": "Share of V's answers that V still gives with the unlearned model's part.",
    }
    for value in recovery.list_values()[1:]:
        drawn[value] = (recovery.heatmap(value=value), captions[value])
    machine = manifest["machine"]
    return ReportData(
        title=f"Recovery: {', '.join(roles['vanilla'])}",
        limits="" if any(model.get("never") for model in models.values()) else _NO_CONTROL,
        about={
            **{role: ", ".join(names) for role, names in roles.items()},
            "content": _join_items(
                {name: each["content_hash"][:12] for name, each in models.items()}
            ),
            "seed": str(manifest["seed"]),
            "versions": _join_items(manifest["versions"]),
            "machine": ", ".join(str(machine[key]) for key in ("system", "processor", "num_cpus"))
            + " CPUs",
        },
        settings=manifest["config"],
        tables=tables,
        figures={
            name: (json.loads(str(figure.to_json())), caption)
            for name, (figure, caption) in drawn.items()
        },
    )


def _list_answers(trajectories: Sequence[Any]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "language": item.query.language,
                "concept": item.query.concept,
                "query_id": item.query.id,
                "prompt": item.query.prompt,
                "expected": item.query.answer or "",
                "vanilla": item.answer,
            }
            for item in trajectories
        ]
    )


def _join_items(named: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in named.items())


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_number)
    except FileNotFoundError:
        raise ValueError(f"{file} is missing: run the experiment again") from None
    except (ValueError, RecursionError):
        _raise_damaged(file, "it is not JSON")


def _refuse_number(name: str) -> NoReturn:
    raise ValueError(name)


def _read_csv(file: Path) -> pd.DataFrame:
    """Read a table; lacking texts are empty, lacking numbers NaN."""
    try:
        text = file.read_bytes()
        rows = read_csv(file, texts=_NAMES)
    except FileNotFoundError:
        raise ValueError(f"{file} is missing: run the experiment again") from None
    except ValueError:
        _raise_damaged(file, "it is no table")
    if not text:
        _raise_damaged(file, "it is no table")
    if not text.endswith(b"\n"):
        _raise_damaged(file, "its end is lacking")
    return rows


def _check_fields(file: Path, value: object, wanted: Mapping[str, Any]) -> None:
    """Refuse what is not an object with these fields, each of its type."""
    if not isinstance(value, dict):
        _raise_damaged(file, "an object is expected")
    for name, kind in wanted.items():
        if name not in value:
            _raise_damaged(file, f"{name!r} is lacking")
        if not _has_type(value[name], kind):
            _raise_damaged(file, f"{name!r} is {json.dumps(value[name])[:40]}")


def _has_type(value: object, kind: Any) -> bool:
    if get_origin(kind) is dict:
        of = get_args(kind)[1]
        return isinstance(value, dict) and all(isinstance(each, of) for each in value.values())
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return False
    return isinstance(value, kind)


def _raise_damaged(file: Path, why: str) -> NoReturn:
    raise ValueError(f"{file} is damaged ({why}): run the experiment again")
