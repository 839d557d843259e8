"""Options that commands share, and how they are read."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from tyro.conf import arg

if TYPE_CHECKING:
    from interp.unlearning.config import Stop

Format = Literal["html", "png", "svg", "pdf"]
ALL_FORMATS: tuple[Format, ...] = ("html", "png", "svg", "pdf")
Codes = Annotated[tuple[str, ...], arg(metavar="CODE [CODE ...]")]
OptionalCodes = Annotated[tuple[str, ...] | None, arg(metavar="CODE [CODE ...]")]
Name = Annotated[str, arg(metavar="NAME")]
OptionalName = Annotated[str | None, arg(metavar="NAME")]
Groups = Literal["layers", "mlp", "attn", "lora"]
T = TypeVar("T")


def changed(config: T, changes: Mapping[str, object]) -> T:
    """Settings with those changes that a person asked for."""
    asked = {key: value for key, value in changes.items() if value is not None}
    valid = [field.name for field in fields(config)]  # pyright: ignore[reportArgumentType]
    for name in asked:
        if name not in valid:
            raise ValueError(f"no setting {name!r}; valid: {', '.join(valid)}")
    return replace(config, **asked)  # pyright: ignore[reportArgumentType, reportCallIssue]


def preset_of(presets: Mapping[str, T], name: str, **changes: object) -> T:
    """A preset by its name, with those changes that a person asked for."""
    if name not in presets:
        raise ValueError(f"no preset {name!r}; valid: {', '.join(presets)}")
    return changed(presets[name], changes)


def command_of(script: str, preset: str, **options: object) -> str:
    """What was typed to run an experiment, for whoever runs it again."""
    given = [f"--{name} {value}" for name, value in options.items() if value is not None]
    return " ".join(["python", f"experiments/{script}.py", preset, *given])


@contextmanager
def mistakes_told(speaker: str) -> Iterator[None]:
    """A person's mistake inside the block is one sentence on standard error, and exit code 2.

    An interruption is exit code 130.
    """
    try:
        yield
    except (ValueError, LookupError, ImportError, OSError) as error:
        said = " ".join((str(error) or type(error).__name__).split())
        print(f"{speaker}: {said}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{speaker}: stopped; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)


def stop_of(text: str) -> Stop:
    """A stop from `forget_ce>8` or, relative to the value before, `real/en<80%`."""
    found = re.fullmatch(r"\s*([^<>\s]+)\s*([<>])\s*([\d.]+)(%?)\s*", text)
    try:
        metric, sign, number, percent = found.groups() if found else ("", "", "", "")
        value = float(number) / (100 if percent else 1)
    except ValueError:
        raise ValueError(
            f"a stop must be METRIC<VALUE or METRIC>VALUE, such as forget_ce>8, not {text!r}"
        ) from None
    from interp.unlearning.config import Stop

    bound = {"below": value} if sign == "<" else {"above": value}
    return Stop(metric=metric, relative=bool(percent), **bound)


def settings_of(pairs: Sequence[str]) -> dict[str, float]:
    """Numbers by name from `beta=0.1`."""
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(
                f"a setting must be NAME=VALUE with a number, such as beta=0.1, not {pair!r}"
            ) from None
    return found


def shard_of(text: str) -> tuple[int, int]:
    """A part and the number of parts from `1/4`."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise ValueError(f"shard must be I/N, such as 1/4, not {text!r}")
    return int(index), int(count)
