"""Run directories: measurements in shards that are whole or absent.

    run.json                 configuration, versions, machine, content hashes of the models
    trajectories/*.parquet   V's answers, as token ids and text
    losses/*.parquet         the rows of `recovery.sweep`, one shard per cell

A cell is (unlearned model, language, block of questions). Nothing is written before the first
result. Every file is written under a temporary name and moved into place, so a run that is killed
loses at most the cells in work, and a second run of the same command does only what is missing.
Every file holds a digest of its contents, a table also of the run and the name that it was written
under: one that is damaged, or copied from elsewhere, is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from interp.data.query import Query
from interp.data.trajectories import Trajectory
from interp.files import compute_digest, write_atomically

PACKAGES = ("interp", "torch", "transformers", "numpy", "pandas", "plotly")

# What pandas and pyarrow raise on damaged files, beside what each documents.
UNREADABLE = (
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RecursionError,
)

_PLAIN = re.compile(r"(?!(con|prn|aux|nul|com\d|lpt\d)$)[a-z0-9][a-z0-9-]{0,59}")
"""Names that are file names on every system, also where case does not count."""


class RunDirectory:
    """Files of one run."""

    def __init__(self, path: str | os.PathLike[str], config: dict[str, Any]) -> None:
        """Open a run directory, or begin one.

        Args:
            path: the directory.
            config: what is measured, as JSON values. It must be that of the directory's run.

        Raises:
            ValueError: the directory holds a run of another configuration (the first difference
                is named) or a damaged manifest, or it is a file.
        """
        self.path = Path(path)
        if self.path.is_file():
            raise ValueError(f"{str(path)!r} is a file, and a run needs a directory")
        self._manifest: dict[str, Any] = {
            "config": json.loads(json.dumps(config)),
            "models": {},
            "seed": 0,
            "versions": collect_versions(),
            "machine": {
                "system": platform.platform(),
                "processor": platform.processor() or platform.machine(),
                "num_cpus": os.cpu_count(),
                "python": platform.python_version(),
            },
        }
        if (self.path / "run.json").exists():
            known = read_manifest(self.path)
            self._check_config(known["config"], self._manifest["config"])
            self._manifest = known

    def add_model(self, role: str, name: str, content_hash: str) -> None:
        """Note a model that is measured.

        Raises:
            ValueError: the run knows another model under this name, or another vanilla model.
        """
        known = self._manifest["models"]
        for other, entry in known.items():
            if role == entry["role"] == "vanilla" and other != name:
                raise ValueError(
                    f"{self.path} was measured with the vanilla model {other!r}, not {name!r}; "
                    "choose another output directory"
                )
        entry = {"role": role, "content_hash": content_hash}
        if known.setdefault(name, entry) != entry:
            raise ValueError(
                f"{self.path} was measured with another {known[name]['role']} model under the name "
                f"{name!r}; choose another output directory or name"
            )

    def losses_path(self, unlearned: str, content_hash: str, language: str, block: int) -> Path:
        """Return the path of a cell's losses."""
        stem = f"{_slugify(unlearned)}-{content_hash[:8]}.{_slugify(language)}.{block:04d}"
        return self.path / "losses" / f"{stem}.parquet"

    def write_losses(self, path: Path, losses: pd.DataFrame) -> None:
        """Write one cell's rows."""
        self._write_manifest()
        write_table(path, losses, of=self._manifest["config"])

    def read_trajectories(self, language: str) -> list[Trajectory] | None:
        """Read the trajectories of a language; None where they are not made yet."""
        path = self._trajectories_path(language)
        if not path.exists():
            return None
        table = read_table(path, of=self._manifest["config"])
        return [
            Trajectory(
                query=Query(
                    id=row["query_id"],
                    language=row["language"],
                    prompt=row["prompt"],
                    answer=row["right_answer"],
                    aliases=tuple(row["aliases"]),
                    concept=row["concept"],
                ),
                prompt_ids=tuple(map(int, row["prompt_ids"])),
                answer_ids=tuple(map(int, row["answer_ids"])),
                answer=row["answer"],
                scored=range(row["scored_start"], row["scored_stop"]),
                reason=row["reason"],
            )
            for row in table.astype(object).where(table.notna(), None).to_dict("records")
        ]

    def write_trajectories(self, language: str, trajectories: Sequence[Trajectory]) -> None:
        """Write the trajectories of a language."""
        self._write_manifest()
        table = pd.DataFrame(
            [
                {
                    "language": item.query.language,
                    "query_id": item.query.id,
                    "concept": item.query.concept,
                    "prompt": item.query.prompt,
                    "right_answer": item.query.answer,
                    "aliases": list(item.query.aliases),
                    "answer": item.answer,
                    "prompt_ids": list(item.prompt_ids),
                    "answer_ids": list(item.answer_ids),
                    "scored_start": item.scored.start,
                    "scored_stop": item.scored.stop,
                    "reason": item.reason,
                }
                for item in trajectories
            ]
        )
        write_table(self._trajectories_path(language), table, of=self._manifest["config"])

    def _trajectories_path(self, language: str) -> Path:
        return self.path / "trajectories" / f"{_slugify(language)}.parquet"

    def _write_manifest(self) -> None:
        """Write what is known of the run: with its first result, and when a model joined."""
        file = self.path / "run.json"
        if file.exists():
            written = read_manifest(self.path)
            self._check_config(written["config"], self._manifest["config"])
            if self._manifest["models"].items() <= written["models"].items():
                return
            # Another process may have added models of its own.
            self._manifest["models"] = written["models"] | self._manifest["models"]
        whole = {**self._manifest, "digest": compute_digest(self._manifest)}
        text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
        write_atomically(file, lambda scratch: scratch.write_text(text, encoding="utf-8"))

    def _check_config(self, known: dict[str, Any], config: dict[str, Any]) -> None:
        for key in dict.fromkeys((*known, *config)):
            if known.get(key) != config.get(key):
                raise ValueError(
                    f"{self.path} holds a run with another {key} ({_shorten(known.get(key))}, now "
                    f"{_shorten(config.get(key))}); choose another output directory"
                )


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the manifest of a run directory.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    file = Path(path) / "run.json"
    if not file.is_file():
        raise ValueError(f"{str(path)!r} is not a run directory: run.json is missing")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest.pop("digest") == compute_digest(manifest):
            return manifest
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(
        f"{file} is damaged, or of an earlier version: delete the directory and run again"
    )


def read_losses(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read all losses of a run directory.

    Raises:
        ValueError: it is no run directory, a shard is damaged, or nothing is measured yet.
    """
    config = read_manifest(path)["config"]
    shards = sorted((Path(path) / "losses").glob("*.parquet"))
    if not shards:
        raise ValueError(f"{str(path)!r} holds no losses yet: run the sweep first")
    return pd.concat([read_table(shard, of=config) for shard in shards], ignore_index=True)


def write_table(path: Path, table: pd.DataFrame, *, of: object) -> None:
    """Write a table as parquet, with a digest of it, its file's name and what it is of."""
    marked = table.copy(deep=False)
    marked.attrs = {"digest": _compute_table_digest(table, path, of)}
    write_atomically(path, lambda scratch: marked.to_parquet(scratch, index=False))


def read_table(path: Path, *, of: object = None) -> pd.DataFrame:
    """Read a table that `write_table` wrote.

    Args:
        path: the file.
        of: what the table must be of; the configuration of the run directory it lies in if None.

    Raises:
        ValueError: it is damaged, of something else, or was written under another name.
    """
    if of is None:
        of = read_manifest(path.parent.parent)["config"]
    try:
        table = pd.read_parquet(path)
        if table.attrs.pop("digest") == _compute_table_digest(table, path, of):
            return table
    except UNREADABLE:
        pass
    raise ValueError(f"{path} is damaged, or not of this run: delete it and run again")


def _compute_table_digest(table: pd.DataFrame, path: Path, of: object) -> str:
    def plain(value: object) -> object:
        return value.tolist() if isinstance(value, np.ndarray) else value

    # Strings and lacking values have several forms in pandas, of which a file keeps one.
    columns = table.astype(object).where(table.notna(), None).items()
    return compute_digest(
        [of, path.name, [[name, *map(plain, column)] for name, column in columns]]
    )


def collect_versions() -> dict[str, str]:
    """Return the versions of the packages that numbers depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _slugify(name: str) -> str:
    """Turn any name into a file name; different names have different ones."""
    if _PLAIN.fullmatch(name):
        return name
    slug = re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-")[-60:]
    return f"{slug}_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _shorten(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
