"""Answers that cost time or money, kept on disk: one JSON object a line, only ever appended.

    {"key": "<SHA-256 of everything that determines the answer>", "digest": "<SHA-256 of the key
     and the text>", "text": "<the answer>"}

A line counts once its line break is written, so a killed run loses at most the answer in work: the
broken end that it leaves is passed over when read and overwritten when written. Of two processes
that append at once, one waits.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from filelock import FileLock

from interp.files import compute_digest

_START = b'{"key": "'
_TAIL_BYTES = 2**16


def make_key(**determinants: str | float | None) -> str:
    """Return the key of an answer: the SHA-256 of all that determines it, in hexadecimal."""
    written = json.dumps(determinants, sort_keys=True, allow_nan=False)
    return hashlib.sha256(written.encode("ascii")).hexdigest()


class AnswerCache:
    """Answers in one file. A file that another process appends to is seen as it was first."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the answers that are there already.

        Args:
            path: the file; it and its directory are made when the first answer is put in.

        Raises:
            ValueError: the path is a directory, or a file that holds something else (its line is
                named); such a file is not touched.
        """
        self.path = Path(path)
        self._texts: dict[str, str] = {}
        if self.path.is_dir():
            raise ValueError(f"the cache {str(self.path)!r} is a directory; give a file's path")
        if not self.path.exists():
            return
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{self.path}, line {number}"
                if line.endswith(b"\n"):
                    key, text = _parse_entry(line, where)
                    self._texts[key] = text
                else:
                    _check_broken(line[: len(_START)], where)

    def get(self, key: str) -> str | None:
        """Return the latest answer with this key; None if there is none."""
        return self._texts.get(key)

    def put(self, key: str, text: str) -> None:
        """Keep an answer, in memory and at the end of the file.

        Raises:
            ValueError: the file cannot be written, or no longer ends as a cache does.
        """
        row = {"key": key, "digest": compute_digest([key, text]), "text": text}
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"), self.path.open("a+b") as file:
                _cut_broken_end(file.fileno(), str(self.path))
                file.write(line)
        # The second is raised where the file system has no locks.
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"the cache {str(self.path)!r} cannot be written ({reason}): give the path of a "
                "file in a directory with room for it"
            ) from error
        self._texts[key] = text


def _parse_entry(line: bytes, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        key, text = row["key"], row["text"]
        # Half of a surrogate pair is no text.
        str.encode(key + text)
        # Earlier lines have no digest.
        whole = row.get("digest") in (None, compute_digest([key, text]))
        whole = whole and row.keys() <= {"key", "text", "digest"}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(
            f"{where}: not a cached answer; delete the line if it is damaged, or give another file"
        )
    return key, text


def _check_broken(start: bytes, where: str) -> None:
    """Refuse an unfinished line that no killed run of ours can have left: it would be lost."""
    if start != _START[: len(start)]:
        raise ValueError(f"{where}: not the beginning of a cached answer; give another file")


def _cut_broken_end(file: int, path: str) -> None:
    """Cut off what follows the last line break, reading from the file's end."""
    size = position = os.fstat(file).st_size
    end = b""
    while position and b"\n" not in end:
        step = min(_TAIL_BYTES, position)
        position -= step
        os.lseek(file, position, os.SEEK_SET)
        end = os.read(file, step) + end
    broken = end.rpartition(b"\n")[2]
    if broken:
        _check_broken(broken[: len(_START)], f"{path}, last line")
        os.ftruncate(file, size - len(broken))
