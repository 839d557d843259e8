"""Options that commands share, and the reading of what a person types."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from tyro.conf import arg

from interp.files import check_file

if TYPE_CHECKING:
    from interp.unlearning.config import Bound

Format = Literal["html", "png", "svg", "pdf"]
ALL_FORMATS: tuple[Format, ...] = ("html", "png", "svg", "pdf")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """Queries of a set that are asked.

    Attributes:
        languages: BCP-47 codes of the query languages; all that the queries have by default.
        limit: at most this many queries per language; all by default.
    """

    languages: Annotated[tuple[str, ...] | None, arg(metavar="CODE [CODE ...]")] = None
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Form in which a model is asked.

    Attributes:
        chat: ask in the chat template of the tokenizer: the prompt is a user's message, and the end
            of turn ends an answer; what a file says of a query stays.
        system: a system message before each chat.
        stop: texts before which an answer ends, such as '\\n', a line break, which ends those to
            built-in questions by default, or '' for none; a chat ends with its turn in any case.
    """

    chat: bool = False
    system: str | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainedChatOptions(ChatOptions):
    """Form in which a model is trained and probed.

    Attributes:
        chat: train and probe in the chat template of the tokenizer: the prompt is a user's message,
            the answer and its end of turn are learned; what a file says of a text stays.
        system: a system message before each chat.
        stop: has no effect, as probes are ranked and nothing is generated; for command lines that
            several commands share.
    """


@dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """Figures that a command draws.

    Attributes:
        formats: figure formats; all but html need the extra `export` and a Chrome.
    """

    formats: Annotated[tuple[Format, ...], arg()] = ALL_FORMATS


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Device and precision of the models.

    Attributes:
        device: cpu, cuda, cuda:1, or auto to spread the layers over several GPUs; a GPU if there is
            one.
        dtype: float32, bfloat16 or float16; float32 on a CPU, else the checkpoint's own.
        quantise: pack the weights with bitsandbytes: 4bit (NF4) or 8bit (LLM.int8).
        dequantise: make plain weights of those of packed checkpoints, for the parameter sites.
    """

    device: str | None = None
    dtype: str | None = None
    quantise: str | None = None
    dequantise: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainedModelOptions:
    """Training of a model by a command.

    Attributes:
        out: directory for the model; tables and figures go into its folder report.
        seed: of every choice.
        device: cpu, cuda, cuda:1; a GPU if there is one.
        dtype: of the weights: float32, or bfloat16 with --parameters lora; what is computed is
            bfloat16 in any case.
        quantise: pack the weights with bitsandbytes, 4bit (NF4) or 8bit (LLM.int8), and train LoRA
            beside them; needs --parameters lora.
        dequantise: make plain weights of those of a packed checkpoint.
    """

    out: Path
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    quantise: str | None = None
    dequantise: bool = False


def select_load_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a command's options that are those of `interp.load`."""
    return {field.name: options[field.name] for field in fields(ModelOptions)}


def replace_settings(config: T, changes: Mapping[str, object]) -> T:
    """Return settings with those changes that are not None."""
    given = {key: value for key, value in changes.items() if value is not None}
    valid = [field.name for field in fields(config)]  # pyright: ignore[reportArgumentType]
    for name in given:
        if name not in valid:
            raise ValueError(f"no setting {name!r}; valid: {', '.join(valid)}")
    return replace(config, **given)  # pyright: ignore[reportArgumentType, reportCallIssue]


def check_output_file(path: Path) -> None:
    """Check, before any work, that a command can write the file that a person names.

    Raises:
        ValueError: something else has its name; or it is a link, which would be replaced while the
            file that it leads to stays as it was.
    """
    if path.is_symlink():
        raise ValueError(
            f"{str(path)!r} is a link to {os.readlink(path)!r}: name the file itself, or another"
        )
    check_file(path)


def read_chat_options(options: Mapping[str, object]) -> dict[str, Any]:
    """Read the options of `ChatOptions` as functions of `interp` take them."""
    stop: Any = options.get("stop")
    # No shell writes a line break as people do.
    written = None if stop is None else [text.replace(r"\n", "\n") for text in stop]
    return {"chat": options["chat"], "system": options["system"], "stop": written}


def parse_bound(text: str) -> Bound:
    """Parse a bound such as `retention>=0.9` or, relative to the value before, `real/en<=80%`."""
    match = re.fullmatch(r"\s*([^<>=\s]+)\s*([<>])=?\s*([\d.]+)(%?)\s*", text)
    try:
        metric, sign, number, percent = match.groups() if match else ("", "", "", "")
        value = float(number) / (100 if percent else 1)
    except ValueError:
        raise ValueError(
            f"a bound must be METRIC<=VALUE or METRIC>=VALUE, such as forget<=0.1, not {text!r}"
        ) from None
    from interp.unlearning.config import Bound

    bound = {"below": value} if sign == "<" else {"above": value}
    return Bound(metric=metric, relative=bool(percent), **bound)


def parse_settings(pairs: Sequence[str]) -> dict[str, float]:
    """Parse numbers by name, such as `beta=0.1`."""
    settings = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            settings[name] = float(value)
        except ValueError:
            raise ValueError(
                f"a setting must be NAME=VALUE with a number, such as beta=0.1, not {pair!r}"
            ) from None
    return settings


def parse_batch_size(words: Sequence[str]) -> int | dict[str, int]:
    """Parse one number (`24`), or one for each set of examples (`forget=24 retain=36`)."""
    sizes = {}
    for word in words:
        name, sign, value = word.rpartition("=")
        if not value.isdecimal() or bool(sign) != bool(name) or (len(words) > 1 and not sign):
            raise ValueError(
                "a batch size must be a number, such as 24, or one for each set, such as "
                f"forget=24 retain=36, not {' '.join(words)!r}"
            )
        sizes[name] = int(value)
    return sizes.get("", sizes)


def parse_shard(text: str) -> tuple[int, int]:
    """Parse a part and the number of parts, such as `1/4`."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise ValueError(f"shard must be I/N, such as 1/4, not {text!r}")
    return int(index), int(count)
