"""The documentation's pages as blocks of code, and its commands as the command line reads them."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from tyro.conf import OmitSubcommandPrefixes

from interp.cli import COMMANDS, build_command
from tests.helpers import ROOT

PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "interp/data/README.md", *(ROOT / "docs").glob("*.md"))
)

_REQUIRED = {"vanilla": "V", "unlearned": "U", "queries": "Q", "out": "O"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page.

    Attributes:
        line: where it begins in the page.
        kind: the language that its fence names.
        text: what stands in it.
        changed: it stands below a diff or a new file, so that it is about the package with that.
    """

    line: int
    kind: str
    text: str
    changed: bool

    @property
    def needs(self) -> str:
        """What it says that it needs to run, "" if it runs anywhere."""
        first = self.text.partition("\n")[0]
        return first.removeprefix("# ") if first.startswith("# needs ") else ""


def blocks(page: str) -> list[Block]:
    """All blocks of a page, from top to bottom."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Block] = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        changed = any(file_of(block) for block in found)
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(line=line, kind=match[1], text=match[2], changed=changed))
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of every command of a bash block; comments are left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def read(words: Sequence[str]) -> dict[str, object]:
    """What a command line means, without doing it; "…" stands for what a sweep needs.

    Raises:
        SystemExit: the command line refuses it.
    """
    given = list(words)
    if "…" in given:
        given.remove("…")
        for name, value in _REQUIRED.items():
            given += [] if f"--{name}" in given else [f"--{name}", value]
    meant: dict[str, object] = {}

    def noting(function):
        @functools.wraps(function)
        def note(*args, **options):
            meant.update(options, args=args)

        return note

    tyro.extras.subcommand_cli_from_dict(
        {name: noting(build_command(name, given)) for name in COMMANDS},
        args=given,
        config=(OmitSubcommandPrefixes,),
    )
    return meant


# A command of a page with less to do, on a tiny model where it would take the embedded one.
_SMALLER = {
    "contaminate": "--vanilla models/vanilla --num-facts 4 --num-texts 8 --num-instructions 0 "
    "--num-real 2 --steps 1 --batch-size 4 --languages de en --formats html",
    "unlearn": "--steps 1 --batch-size 2 --formats html",
    "evaluate": "--num-tokens 3 --limit 2 --languages de en --formats html",
    "sweep": "--num-tokens 3 --limit 2 --window 3 --languages en de",
    "queries": "",
    "krs": "",
    "figures": "--formats html",
    "report": "",
}


def smaller(words: Sequence[str]) -> list[str]:
    """A command with the same meaning on less: fewer steps, texts, tokens, questions."""
    made = list(words)
    options = _SMALLER[words[0]].split()
    if words[0] == "unlearn" and any("lora" in word for word in words):
        options += ["--lora-rank", "2"]
    for option in " ".join(options).split("--")[1:]:
        name, *values = f"--{option}".split()
        if name in made:
            first = made.index(name)
            last = first + 1
            while last < len(made) and not made[last].startswith("--"):
                last += 1
            del made[first:last]
        made += [name, *values]
    return made


def applied(diff: str, text: str) -> str:
    """A file with a diff's lines: those with " " or "-" stand in it once, side by side."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++", "@@"))]
    old = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    new = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    assert text.count(old) == 1, f"stands {text.count(old)} times in the file:\n{old}"
    return text.replace(old, new)


def file_of(block: Block) -> str:
    """The file that a block changes or is; "" if it is about none."""
    first = block.text.partition("\n")[0]
    found = re.fullmatch(r"(?:---|#) (interp/\S+)", first)
    return found[1] if found else ""
