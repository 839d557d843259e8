"""Damage to files: what disks, networks, editors, other programs and bad luck make of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

ODD = [
    b"\\ud83d",
    "\u202e".encode(),
    "\u2028".encode(),
    "\ufeff".encode(),
    "e\u0301\u0301".encode() * 50,
    b"\0",
    b"\x1a",
    b"\xed\xa0\x80",
    b"\xf8\x88\x80\x80\x80",
    b"1e999",
    b"NaN",
    b"-0",
    b"9" * 5000,
    b'"',
    b"\\",
    b"{",
    b"[" * 2000,
    b"\n",
    b"\r\n",
]
"""Bytes that are put where they do not belong."""

VALUES: list[object] = [
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\0",
    "\ud800",
    "x\n\n" * 9,
    "../../x",
    [],
    [[]],
    [None],
    ["", "a"],
    {},
    {"en": None},
    {"": {"": []}},
]
"""Replacements of a JSON value."""


def damaged_bytes(whole: bytes, rng: random.Random) -> bytes:
    """Return a file's content with one thing wrong, or several."""
    size = len(whole)
    start = rng.randrange(size)
    end = min(size, start + rng.choice([1, 1, 2, 8, 64, 512]))
    junk = rng.randbytes(end - start)
    kinds: list[Callable[[], bytes]] = [
        lambda: whole[:start],
        lambda: whole[start:],
        lambda: whole[: size - rng.randrange(1, min(9, size) + 1)],
        lambda: whole[:start] + whole[end:],
        lambda: whole[:end] + whole[start:],
        lambda: whole[:start] + bytes(end - start) + whole[end:],
        lambda: whole[:start] + junk + whole[end:],
        lambda: whole[:start] + junk + whole[start:],
        lambda: whole[:start] + bytes([whole[start] ^ 1 << rng.randrange(8)]) + whole[start + 1 :],
        lambda: whole[:start] + rng.choice(ODD) + whole[start:],
        lambda: whole + junk,
        lambda: whole + bytes(4096),
        lambda: whole + whole,
        lambda: rng.randbytes(size),
        lambda: bytes(size),
        lambda: b"",
        lambda: whole.decode("latin-1").encode("utf-16"),
        lambda: b"x" * 2**20,
    ]
    return rng.choice(kinds)()


def damaged_json(document: object, rng: random.Random) -> object:
    """Return a JSON document in which one value, or one name of a field, is another."""
    if isinstance(document, list) and document and rng.random() < 0.9:
        at = rng.randrange(len(document))
        new = damaged_json(document[at], rng)
        return [*document[:at], new, *document[at + 1 :]]
    if isinstance(document, dict) and document and rng.random() < 0.9:
        name = rng.choice([*document])
        rest = {key: value for key, value in document.items() if key != name}
        manner = rng.randrange(6)
        if manner == 0:
            return rest
        if manner == 1:
            return rest | {rng.choice(["", "\ud800", name.swapcase(), "../x", "x" * 300]): 1}
        return document | {name: damaged_json(document[name], rng)}
    return rng.choice(VALUES)


def damage(path: Path, rng: random.Random) -> None:
    """Damage a file; text that is JSON, line by line or as a whole, half of the time as JSON."""
    whole = path.read_bytes()
    new = whole
    while new == whole:
        new = damaged_bytes(whole, rng)
        if rng.random() < 0.5:
            try:
                new = _as_json(whole.decode("utf-8"), path, rng)
            except ValueError:
                continue
    path.write_bytes(new)


def _as_json(text: str, path: Path, rng: random.Random) -> bytes:
    if path.suffix != ".jsonl":
        return json.dumps(damaged_json(json.loads(text), rng)).encode()
    rows = [json.loads(line) for line in text.splitlines()]
    return b"".join(json.dumps(row).encode() + b"\n" for row in _one_of(rows, rng))


def _one_of(rows: list[object], rng: random.Random) -> list[object]:
    at = rng.randrange(len(rows))
    return [*rows[:at], damaged_json(rows[at], rng), *rows[at + 1 :]]


def refusal(read: Callable[[], object], *names: str) -> tuple[str, object]:
    """Return the one sentence by which a damaged input is refused, or "" and what was read of it.

    Any other error goes through: it is a crash.
    """
    try:
        return "", read()
    except (ValueError, LookupError, ImportError) as error:
        message = str(error)
    assert len(message.splitlines()) == 1, message
    assert 15 < len(message) < 1000, message
    assert message.count(" ") >= 3, message
    assert not names or any(name in message for name in names), message
    return message, None
