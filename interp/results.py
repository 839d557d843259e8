"""Run directories: measurements in shards that are whole or absent.

    run.json                 configuration, versions, machine, hashes of the models
    trajectories/*.parquet   V's answers, as token ids and text
    losses/*.parquet         the rows of `recovery.sweep`, one shard per cell

A cell is (unlearned model, language, block of questions). Nothing is written before the first
result. Every file is written under a temporary name and moved into place, so a run that is killed
loses at most the cells in work, and a second run of the same command does only what is missing.
Every file holds a digest of its contents, a table also of the run and the name that it was written
under: one that is damaged, or copied from elsewhere, is refused. Processes that write to one
directory change `run.json` one after the other, under a lock; its first writer decides whose
configuration the directory has.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from interp.data.chat import list_chat_fields
from interp.data.query import Query
from interp.data.trajectories import Trajectory
from interp.files import (
    check_folder,
    compute_digest,
    list_files,
    lock_folder,
    make_folder,
    write_atomically,
)

FORMAT = 1
"""Number of the layout described above. A manifest without a number has this one."""

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
                is named), a damaged manifest, or one of a later version; or it is a file.
        """
        self.path = Path(path)
        check_folder(self.path)
        self._versions = collect_versions()
        self._manifest: dict[str, Any] = {
            "format": FORMAT,
            "config": json.loads(json.dumps(config)),
            "models": {},
            "seed": 0,
            "versions": self._versions,
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

    @property
    def config(self) -> dict[str, Any]:
        """What is measured."""
        return self._manifest["config"]

    def add_model(self, role: str, name: str, content_hash: str, **more: str | bool | None) -> str:
        """Note a model that is measured.

        Args:
            role: "vanilla" or "unlearned".
            name: what it was loaded as.
            content_hash: of its weights.
            more: `text_hash`, of its tokenizer and end tokens, where measurements depend on them;
                `never`, true of a model that never knew what the others forgot.

        Returns:
            The name under which the run knows the model: that of its first measurement, if it is
            the same vanilla model, or an unlearned model's directory spelled in another way.

        Raises:
            ValueError: the run knows another model under this name, or another vanilla model.
        """
        entry: dict[str, Any] = {"role": role, "content_hash": content_hash}
        entry |= {key: value for key, value in more.items() if value}
        if place := hash_place(name):
            entry["place"] = place
        known_name = self._find_known_name(name, entry)
        self._manifest["models"] = self._merge_models(self._manifest["models"], {known_name: entry})
        return known_name

    def warn_of_versions(self) -> None:
        """Warn where the directory's run was measured with other versions of the packages."""
        known = self._manifest["versions"]
        others = [
            f"{name} {known.get(name, 'absent')} (now {self._versions.get(name, 'absent')})"
            for name in dict.fromkeys((*known, *self._versions))
            if known.get(name) != self._versions.get(name)
        ]
        if others:
            warnings.warn(
                f"{str(self.path)!r} holds a run that was measured with other versions: "
                f"{', '.join(others)}; run.json will name both",
                stacklevel=4,
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
                    **json.loads(row.get("asked") or "{}"),
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
        asked = [list_chat_fields(item.query, control=True) for item in trajectories]
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
        if any(asked):
            table["asked"] = [json.dumps(fields, ensure_ascii=False) for fields in asked]
        write_table(self._trajectories_path(language), table, of=self._manifest["config"])

    def _trajectories_path(self, language: str) -> Path:
        return self.path / "trajectories" / f"{_slugify(language)}.parquet"

    def _find_known_name(self, name: str, entry: Mapping[str, str]) -> str:
        """Find the name under which the run knows a model; its own if it does not."""
        known = self._manifest["models"]
        if name in known:
            return name
        for other, its in known.items():
            if any(its[key] != entry[key] for key in ("role", "content_hash")):
                continue
            # A directory of its own is a model of its own, whatever it holds; but there is one V.
            place = its.get("place") or hash_place(other)
            if entry["role"] == "vanilla" or (place and place == entry.get("place")):
                return other
        return name

    def _merge_models(
        self, known: Mapping[str, dict[str, str]], added: Mapping[str, dict[str, str]]
    ) -> dict[str, dict[str, str]]:
        """Add models to those that a run knows, which must not be others of the same names."""
        merged = dict(known)
        for name, entry in added.items():
            for other, its in merged.items():
                if entry["role"] == its["role"] == "vanilla" and other != name:
                    raise ValueError(
                        f"{self.path} was measured with the vanilla model {other!r}, not {name!r}; "
                        "choose another output directory"
                    )
            its = merged.setdefault(name, entry)
            if any(its[key] != entry[key] for key in ("role", "content_hash")):
                raise ValueError(
                    f"{self.path} was measured with another {its['role']} model under the name "
                    f"{name!r}; choose another output directory or name"
                )
            texts = {given["text_hash"] for given in (its, entry) if "text_hash" in given}
            if len(texts) > 1:
                raise ValueError(
                    f"{self.path} was measured with another tokenizer of {name!r}, or with other "
                    "special or end tokens; use those of then, or choose another output directory"
                )
            # Where it lay first stays; what an earlier version did not note is added.
            merged[name] = entry | its
        return merged

    def _write_manifest(self) -> None:
        """Write what is known of the run: with its first result, and when a model joined."""
        make_folder(self.path)
        file = self.path / "run.json"
        with lock_folder(self.path):
            written = None
            if file.exists():
                written = read_manifest(self.path)
                self._check_config(written["config"], self._manifest["config"])
                # Other processes may have added models of their own.
                models = self._merge_models(written["models"], self._manifest["models"])
                self._manifest = written | {"models": models}
            earlier = self._manifest.get("earlier_versions", [])
            if self._versions not in (self._manifest["versions"], *earlier):
                self._manifest |= {
                    "versions": self._versions,
                    "earlier_versions": [*earlier, self._manifest["versions"]],
                }
            if self._manifest == written:
                return
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
        ValueError: there is none, it is damaged, or of a later version.
    """
    file = Path(path) / "run.json"
    if not file.is_file():
        raise ValueError(f"{str(path)!r} is not a run directory: run.json is missing")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        number = manifest.get("format", FORMAT)
        whole = manifest.pop("digest") == compute_digest(manifest)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        number, whole = FORMAT, False
    if isinstance(number, int) and number > FORMAT:
        raise ValueError(
            f"{file} was written by a later version of interp (format {number}, this one reads "
            f"{FORMAT}): install a newer interp"
        )
    if not whole or number != FORMAT:
        raise ValueError(
            f"{file} is damaged, or of an earlier version: delete the directory and run again"
        )
    return manifest


def read_losses(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read all losses of a run directory.

    Raises:
        ValueError: it is no run directory, a shard is damaged, or nothing is measured yet.
    """
    config = read_manifest(path)["config"]
    shards = list_files(Path(path) / "losses", "*.parquet")
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


def hash_place(name: str) -> str:
    """Hash where on this machine a name leads, however it is spelled; "" if nowhere."""
    path = os.path.expanduser(name)
    # A name can be too long for a path, or hold what none can: then it leads nowhere.
    if not os.path.exists(path):
        return ""
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]


def _slugify(name: str) -> str:
    """Turn any name into a file name; different names have different ones."""
    if _PLAIN.fullmatch(name):
        return name
    slug = re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-")[-60:]
    return f"{slug}_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _shorten(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
