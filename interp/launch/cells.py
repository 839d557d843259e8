"""Cells of a sweep, and the stores of V's answers and of losses that a run directory backs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from interp.data.chat import list_fields
from interp.data.query import Query
from interp.data.trajectories import Trajectory, encode_query
from interp.models.chat import compute_template_hash
from interp.models.generation import compute_text_hash
from interp.models.language_model import LanguageModel
from interp.recovery.sweep_config import SweepConfig
from interp.results import RunDirectory, hash_place, read_manifest, read_table

ANSWERED_TOGETHER = 128
"""Number of questions, over all languages, that are answered before anything is stored."""


def open_run_directory(
    out: str | os.PathLike[str],
    vanilla: LanguageModel,
    answers: Sequence[Trajectory] | Sequence[Query],
    config: SweepConfig,
    num_tokens: int,
) -> RunDirectory:
    """Open a run directory that is new or of the same configuration.

    Raises:
        ValueError: it holds a run of another configuration, vanilla model or tokenizer.
    """
    questions = []
    for item in answers:
        given = isinstance(item, Trajectory)
        fields = list_fields(item.query if given else item)
        # Other right spellings change no measurement.
        del fields["aliases"]
        questions.append(
            fields | ({"answer_ids": item.answer_ids} if given else {"num_tokens": num_tokens})
        )
    digest = hashlib.sha256(json.dumps(questions, sort_keys=True).encode()).hexdigest()
    settings = asdict(config) | {"dtype": config.dtype_of(vanilla)}
    if not config.remote:
        del settings["remote"]
    if any(fields.get("chat") for fields in questions):
        settings["chat_template"] = compute_template_hash(vanilla)[:16]
    content_hash = vanilla.content_hash()
    config_of_run = {
        # As the run calls it: one model has several names, such as a path and a longer one.
        "vanilla": _find_vanilla_name(out, content_hash) or vanilla.name,
        "num_queries": len(answers),
        "queries": digest,
        **settings,
    }
    store = RunDirectory(out, config_of_run)
    store.add_model(
        "vanilla",
        config_of_run["vanilla"],
        content_hash,
        text_hash=compute_text_hash(vanilla),
    )
    _check_prompts(store, vanilla, answers)
    store.warn_of_versions()
    return store


def _find_vanilla_name(out: str | os.PathLike[str], content_hash: str) -> str | None:
    """Find what a run directory calls a vanilla model; None if it holds no run of it."""
    if not (Path(out) / "run.json").is_file():
        return None
    for name, entry in read_manifest(out)["models"].items():
        if (entry["role"], entry["content_hash"]) == ("vanilla", content_hash):
            return name
    return None


def _check_prompts(
    store: RunDirectory, vanilla: LanguageModel, answers: Sequence[Trajectory] | Sequence[Query]
) -> None:
    """Check that stored prompts have the tokens that the tokenizer makes of them today.

    Runs of earlier versions did not note the tokenizer.
    """
    languages = {item.language for item in answers if isinstance(item, Query)}
    for language in sorted(languages):
        for item in store.read_trajectories(language) or ():
            if item.prompt_ids != encode_query(vanilla, item.query):
                raise ValueError(
                    f"{store.path} was measured with another tokenizer of {vanilla.name!r}: the "
                    f"prompt of {item.query.id!r} ({language}) has other tokens now; choose "
                    "another output directory"
                )


class AnswerStore:
    """Store of V's answers: given, read from the run directory, or still to be made.

    Attributes:
        pending: questions without an answer, in groups to be answered together.
    """

    def __init__(
        self, answers: Sequence[Trajectory] | Sequence[Query], store: RunDirectory | None
    ) -> None:
        """Read what the run directory holds.

        Raises:
            ValueError: its answers are damaged.
        """
        self._store = store
        by_language: dict[str, list[Trajectory | Query]] = {}
        for item in answers:
            query = item.query if isinstance(item, Trajectory) else item
            by_language.setdefault(query.language, []).append(item)
        self._answers: dict[str, list[Trajectory]] = {language: [] for language in by_language}
        self._stored: set[str] = set()
        self.pending: list[list[Query]] = []
        group: list[Query] = []
        for language, items in by_language.items():
            stored = None if store is None else store.read_trajectories(language)
            if stored is not None:
                self._answers[language] = stored
                self._stored.add(language)
                continue
            self._answers[language] = [item for item in items if isinstance(item, Trajectory)]
            group += [item for item in items if isinstance(item, Query)]
            # Small languages are answered together, large ones stored as soon as they are done.
            if len(group) >= ANSWERED_TOGETHER:
                self.pending.append(group)
                group = []
        if group:
            self.pending.append(group)

    def add(self, answers: Sequence[Trajectory]) -> None:
        """Add, and store, the answers to a group of questions."""
        for item in answers:
            self._answers[item.query.language].append(item)
        if self._store is not None:
            for language in dict.fromkeys(item.query.language for item in answers):
                self._store.write_trajectories(language, self._answers[language])
                self._stored.add(language)

    def get_all(self) -> list[Trajectory]:
        """Return all answers, by language; those that were given are stored now."""
        if self._store is not None:
            for language, items in self._answers.items():
                if language not in self._stored:
                    self._store.write_trajectories(language, items)
                    self._stored.add(language)
        return [item for items in self._answers.values() for item in items]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Block of questions in one language.

    Attributes:
        language: its code.
        block: its number within the language.
        items: the questions, with V's answers where they are made.
    """

    language: str
    block: int
    items: Sequence[Trajectory | Query]


class LossStore:
    """Store of the losses of some cells of some unlearned models.

    Attributes:
        keys: an unlearned model's name and the number of a cell, for all that is wanted.
        cells: the questions.
    """

    def __init__(
        self,
        keys: Sequence[tuple[str, int]],
        cells: Sequence[Cell],
        store: RunDirectory | None,
        never: str | None = None,
    ) -> None:
        self.keys = keys
        self._never = never
        self.cells = cells
        self._store = store
        self._hashes: dict[str, str] = {}
        # What the run directory calls the models.
        self._names: dict[str, str] = {}
        self._tables: dict[tuple[str, int], pd.DataFrame] = {}

    def read_known(self, unlearned: str, content_hash: str) -> list[int]:
        """Read what is known of an unlearned model, and return the numbers of the other cells.

        Raises:
            ValueError: the run directory knows another model under this name, or is damaged.
        """
        self._hashes[unlearned] = content_hash
        if self._store is not None:
            self._names[unlearned] = self._store.add_model(
                "unlearned", unlearned, content_hash, never=unlearned == self._never
            )
        for name, number in self.keys:
            path = self._path(name, number) if name == unlearned else None
            if path is not None and path.exists():
                self._tables[name, number] = read_table(path)
        return [
            number
            for name, number in self.keys
            if name == unlearned and (name, number) not in self._tables
        ]

    def add(self, unlearned: str, number: int, table: pd.DataFrame) -> None:
        """Add, and store, the losses of a cell."""
        path = self._path(unlearned, number)
        if self._store is not None and path is not None:
            vanilla = self._store.config["vanilla"]
            table = table.assign(vanilla=vanilla, unlearned=self._names[unlearned])
            self._store.write_losses(path, table)
        self._tables[unlearned, number] = table

    def get_all(self) -> pd.DataFrame:
        """Return all losses, in the order of `keys`."""
        return pd.concat([self._tables[key] for key in self.keys], ignore_index=True)

    def get_name(self, unlearned: str) -> str:
        """Return what the tables call an unlearned model."""
        return self._names.get(unlearned, unlearned)

    def _path(self, unlearned: str, number: int) -> Path | None:
        if self._store is None:
            return None
        cell = self.cells[number]
        return self._store.losses_path(
            self._names[unlearned], self._hashes[unlearned], cell.language, cell.block
        )


def split_cells(answers: Sequence[Trajectory] | Sequence[Query], size: int) -> list[Cell]:
    """Split questions into blocks of one size, languages in order of first appearance."""
    by_language: dict[str, list[Trajectory | Query]] = {}
    for item in answers:
        query = item.query if isinstance(item, Trajectory) else item
        by_language.setdefault(query.language, []).append(item)
    return [
        Cell(language=language, block=block, items=items[start : start + size])
        for language, items in by_language.items()
        for block, start in enumerate(range(0, len(items), size))
    ]


def index_models(
    unlearned: LanguageModel | str | os.PathLike[str] | Sequence[LanguageModel | str],
) -> dict[str, LanguageModel | str]:
    """Return the unlearned models, or their specifications, by name.

    Raises:
        ValueError: there are none, or two of one name.
    """
    given = [unlearned] if isinstance(unlearned, LanguageModel | str | os.PathLike) else unlearned
    models: dict[str, LanguageModel | str] = {}
    places: dict[str, str] = {}
    for item in given:
        source = item if isinstance(item, LanguageModel) else os.fspath(item)
        name = source.name if isinstance(source, LanguageModel) else source
        if name in models:
            raise ValueError(f"duplicate unlearned model {name!r}")
        place = hash_place(name)
        if place and place in places:
            raise ValueError(f"{name!r} and {places[place]!r} are one model: give it once")
        models[name] = source
        places[place] = name
    if not models:
        raise ValueError("no unlearned models: give at least one")
    return models


def select_shard(keys: list[tuple[str, int]], shard: tuple[int, int]) -> list[tuple[str, int]]:
    """Return the i-th of n equal parts; neighbours stay together, as they share a model."""
    index, count = shard
    start, stop = (-(-len(keys) * number // count) for number in (index - 1, index))
    return keys[start:stop]
