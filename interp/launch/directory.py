"""What a sweep finds in its run directory, and what it must still ask V."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from interp.data.query import Query
from interp.data.trajectories import Trajectory
from interp.models.language_model import LanguageModel
from interp.recovery.sweep import SweepConfig
from interp.results import RunDirectory, read_table

ANSWERED_TOGETHER = 128
"""Questions, over all languages, that are answered before anything is stored."""


def open_run(
    out: str | os.PathLike[str],
    vanilla: LanguageModel,
    answers: Sequence[Trajectory] | Sequence[Query],
    config: SweepConfig,
    num_tokens: int,
) -> RunDirectory:
    """The run directory, if it is new or of the same configuration.

    Raises:
        ValueError: it holds a run of another configuration or vanilla model.
    """
    asked = []
    for item in answers:
        given = isinstance(item, Trajectory)
        fields = asdict(item.query if given else item)
        # Other right spellings change no measurement.
        del fields["aliases"]
        asked.append(
            fields | ({"answer_ids": item.answer_ids} if given else {"num_tokens": num_tokens})
        )
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    settings = asdict(config) | {"dtype": config.dtype_of(vanilla)}
    if not config.remote:
        del settings["remote"]
    store = RunDirectory(
        out,
        {
            "vanilla": vanilla.name,
            "num_queries": len(answers),
            "queries": digest,
            **settings,
        },
    )
    store.add_model("vanilla", vanilla.name, vanilla.content_hash())
    return store


class Answers:
    """V's answers: given, stored, or still to be made.

    Attributes:
        waiting: questions without an answer, in groups to be answered together.
    """

    def __init__(
        self, answers: Sequence[Trajectory] | Sequence[Query], store: RunDirectory | None
    ) -> None:
        """Read what the run directory knows.

        Raises:
            ValueError: its answers are damaged.
        """
        self._store = store
        by_language: dict[str, list[Trajectory | Query]] = {}
        for item in answers:
            query = item.query if isinstance(item, Trajectory) else item
            by_language.setdefault(query.language, []).append(item)
        self._made: dict[str, list[Trajectory]] = {language: [] for language in by_language}
        self._stored: set[str] = set()
        self.waiting: list[list[Query]] = []
        group: list[Query] = []
        for language, items in by_language.items():
            stored = None if store is None else store.read_trajectories(language)
            if stored is not None:
                self._made[language] = stored
                self._stored.add(language)
                continue
            self._made[language] = [item for item in items if isinstance(item, Trajectory)]
            group += [item for item in items if isinstance(item, Query)]
            # Small languages are answered together, large ones stored as soon as they are done.
            if len(group) >= ANSWERED_TOGETHER:
                self.waiting.append(group)
                group = []
        if group:
            self.waiting.append(group)

    def keep(self, made: Sequence[Trajectory]) -> None:
        """Take in, and store, the answers to a group of questions."""
        for item in made:
            self._made[item.query.language].append(item)
        if self._store is not None:
            for language in dict.fromkeys(item.query.language for item in made):
                self._store.write_trajectories(language, self._made[language])
                self._stored.add(language)

    def all(self) -> list[Trajectory]:
        """All of them, by language; those that were given are stored now."""
        if self._store is not None:
            for language, items in self._made.items():
                if language not in self._stored:
                    self._store.write_trajectories(language, items)
                    self._stored.add(language)
        return [item for items in self._made.values() for item in items]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One language's block of questions.

    Attributes:
        language: its code.
        block: its number within the language.
        items: the questions, with V's answers where they are made.
    """

    language: str
    block: int
    items: Sequence[Trajectory | Query]


class Losses:
    """The losses of some cells of some unlearned models: stored, or still to be measured."""

    def __init__(
        self,
        places: Sequence[tuple[str, int]],
        cells: Sequence[Cell],
        store: RunDirectory | None,
    ) -> None:
        """Nothing is read yet.

        Args:
            places: an unlearned model's name and the number of a cell, for all that is wanted.
            cells: the questions.
            store: the run directory.
        """
        self._places = places
        self._cells = cells
        self._store = store
        self._hashes: dict[str, str] = {}
        self._tables: dict[tuple[str, int], pd.DataFrame] = {}

    def begin(self, unlearned: str, content_hash: str) -> list[int]:
        """Read what is known of an unlearned model, and say which cells are not.

        Raises:
            ValueError: the run directory knows another model under this name, or is damaged.
        """
        self._hashes[unlearned] = content_hash
        if self._store is not None:
            self._store.add_model("unlearned", unlearned, content_hash)
        for name, number in self._places:
            path = self._path(name, number) if name == unlearned else None
            if path is not None and path.exists():
                self._tables[name, number] = read_table(path)
        return [
            number
            for name, number in self._places
            if name == unlearned and (name, number) not in self._tables
        ]

    def keep(self, unlearned: str, number: int, table: pd.DataFrame) -> None:
        """Take in, and store, the losses of a cell."""
        path = self._path(unlearned, number)
        if self._store is not None and path is not None:
            self._store.write_losses(path, table)
        self._tables[unlearned, number] = table

    def all(self) -> pd.DataFrame:
        """All of them, in the order of what was wanted."""
        return pd.concat([self._tables[place] for place in self._places], ignore_index=True)

    def _path(self, unlearned: str, number: int) -> Path | None:
        if self._store is None:
            return None
        cell = self._cells[number]
        return self._store.losses_path(
            unlearned, self._hashes[unlearned], cell.language, cell.block
        )
