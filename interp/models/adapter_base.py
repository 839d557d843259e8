"""Base model of an adapter: the one that its configuration records, and whether V is that one.

Bases are known by where they are, not by their last name: a directory by its resolved path, a
model of the Hub by its id and revision, which the path of a snapshot in the Hub's cache says, and
a converted GGUF file by its digest.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interp.models.language_model import LanguageModel

if TYPE_CHECKING:
    from peft import PeftConfig

MAX_CHAIN = 8
"""Adapters that can stand on one another before there is a full model."""

SNAPSHOT = re.compile(r"(?P<folder>.*/models--(?P<id>[^/]+))/snapshots/(?P<revision>[^/]+)/*$")
"""Directory of a model in the Hub's cache."""

CONVERTED = re.compile(r"gguf-\d+/[0-9a-f]{64}")
"""Directory of a converted GGUF file, under the file's digest."""

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model is from.

    Attributes:
        place: its Hub id in small letters, or its resolved path.
        revision: a commit, branch or tag of the Hub, if it is known.
        cache: its folder in the Hub's cache, if that is here.
    """

    place: str
    revision: str | None = None
    cache: Path | None = None


def get_recorded_base(config: PeftConfig) -> str:
    """Return the base that an adapter records, with the revision of one on the Hub, or ""."""
    recorded = config.base_model_name_or_path or ""
    if config.revision and "@" not in recorded and not _exists(recorded):
        return f"{recorded}@{config.revision}" if recorded else ""
    return recorded


def check_chain(spec: str, directory: Path, above: tuple[str, ...]) -> str:
    """Return an adapter's resolved directory, unless those that stand on it are too many.

    Args:
        spec: what the adapter is called in an error.
        directory: where it is.
        above: resolved directories of the adapters that stand on it, the last first read.

    Raises:
        ValueError: it stands on itself, or on more than `MAX_CHAIN` others.
    """
    place = os.path.realpath(directory)
    if above and place == above[-1]:
        raise ValueError(f"{spec!r} names itself as the model that it was trained on")
    if place in above:
        names = ", ".join(repr(name) for name in (*above[above.index(place) :], place))
        raise ValueError(
            f"adapters name one another in a circle as the model that they were trained on "
            f"({names}), and none of them is a full model"
        )
    if len(above) >= MAX_CHAIN:
        raise ValueError(
            f"more than {MAX_CHAIN} adapters stand on one another, the last of them {spec!r}: "
            "merge those below with merge_and_unload() and save the whole model"
        )
    return place


def warn_of_other_base(spec: str, config: PeftConfig, like: LanguageModel) -> None:
    """Warn where an adapter is put on another model, or revision, than the one that it records.

    Silent is what is recorded in another spelling: a relative path, a link, a trailing slash, the
    snapshot of a Hub id. Where both cannot be shown to be the same, as after a move, it is said.
    """
    recorded = get_recorded_base(config)
    if not recorded:
        return
    wanted = _find_origin(recorded)
    used = _list_origins(like)
    name = like.name
    matching = [origin for origin in used if origin.place == wanted.place]
    # A download into a folder that is called as the Hub's id says.
    matching += [
        origin
        for origin in used
        if wanted.revision is None
        and HUB_ID.fullmatch(wanted.place)
        and "/" in wanted.place
        and Path(origin.place.casefold()).parts[-2:] == Path(wanted.place).parts
    ]
    if not matching:
        _warn(
            f"the adapter {spec!r} was trained on {recorded!r} and is merged into {name!r}: what "
            "it does is known only if the two are the same model"
        )
    elif wanted.revision is not None and not any(_is_revision(wanted, o) for o in matching):
        known = [origin.revision for origin in matching if origin.revision]
        if known or wanted.revision != "main":
            _warn(
                f"the adapter {spec!r} was trained on revision {wanted.revision!r} of "
                f"{wanted.place!r} and is merged into {name!r}, of revision "
                f"{repr(known[0]) if known else 'unknown'}: what it does is known only if the two "
                "are the same"
            )


def _warn(message: str) -> None:
    # The line that calls `load`.
    warnings.warn(message, stacklevel=6)


def _list_origins(model: LanguageModel) -> list[Origin]:
    config = model.model.config
    places = dict.fromkeys((model.name, str(getattr(config, "name_or_path", "") or "")))
    origins = [_find_origin(place) for place in places if place]
    commit = getattr(config, "_commit_hash", None)
    if commit:
        origins += [Origin(place=origin.place, revision=commit) for origin in origins]
    return origins


def _find_origin(place: str) -> Origin:
    exists = _exists(place)
    path = os.path.realpath(Path(place).expanduser()) if exists else place
    snapshot = SNAPSHOT.fullmatch(Path(path).as_posix())
    if snapshot:
        return Origin(
            place=snapshot["id"].replace("--", "/").casefold(),
            revision=snapshot["revision"],
            cache=Path(snapshot["folder"]),
        )
    folder = Path(path)
    if CONVERTED.fullmatch("/".join(folder.parts[-2:])):
        return Origin(place=folder.name)
    if exists:
        return Origin(place=path)
    repository, _, revision = place.partition("@")
    if HUB_ID.fullmatch(repository):
        return Origin(place=repository.casefold(), revision=revision or None)
    return Origin(place=place.rstrip("/"))


def _is_revision(wanted: Origin, used: Origin) -> bool:
    """Return whether two revisions are one: a branch or tag is the commit that the cache says."""
    if wanted.revision is None or used.revision is None:
        return False
    folders = [folder for folder in (used.cache, wanted.cache) if folder is not None]
    ours, theirs = (_read_reference(folders, o.revision or "") for o in (wanted, used))
    if re.fullmatch(r"[0-9a-f]{7,}", ours):
        return theirs.startswith(ours) or (len(theirs) >= 7 and ours.startswith(theirs))
    return ours == theirs


def _read_reference(folders: list[Path], revision: str) -> str:
    for folder in folders:
        file = folder / "refs" / revision
        if HUB_ID.fullmatch(revision) and ".." not in revision and file.is_file():
            return file.read_text(encoding="utf-8").strip()
    return revision


def _exists(place: str) -> bool:
    try:
        return bool(place) and Path(place).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False
