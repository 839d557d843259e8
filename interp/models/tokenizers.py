"""Tokenizer of a checkpoint."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from interp.models import gguf
from interp.models.language_model import LanguageModel

VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)

TOKENIZER_FILES = {
    *VOCABULARY_FILES,
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
}

UNREADABLE = (*gguf.UNREADABLE, ImportError)
"""Errors that readers of a damaged checkpoint raise."""


def read_tokenizer(
    spec: str, directory: Path, *, base: LanguageModel | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """Read a checkpoint's tokenizer; return the base's where it has none, or the same one.

    Args:
        spec: what the checkpoint is called in an error.
        directory: the checkpoint.
        base: the model that it belongs to.
        trust_remote_code: run tokenizer code that comes with it.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    if gguf.is_converted(directory):
        with _explain(f"the tokenizer in {spec!r} could not be read"):
            return gguf.read_converted_tokenizer(directory)
    if base is not None and _has_same_tokenizer(directory, base.tokenizer):
        return base.tokenizer
    if any((directory / file).exists() for file in VOCABULARY_FILES):
        with _explain(f"the tokenizer in {spec!r} could not be read"):
            return AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=trust_remote_code
            )
    if base is None:
        raise ValueError(
            f"{spec!r} holds no tokenizer: save one beside the model with "
            "tokenizer.save_pretrained, or pass like= with the vanilla model to use its own"
        )
    return base.tokenizer


@contextmanager
def _explain(what: str) -> Iterator[None]:
    """Turn what the tokenizers library raises inside the block into a sentence."""
    try:
        yield
    except BaseException as error:
        # It raises plain Exception; a panic in Rust is not even one.
        known = type(error) is Exception or type(error).__name__ == "PanicException"
        if not known and not isinstance(error, UNREADABLE):
            raise
        raise ValueError(f"{what}: {gguf.summarize_error(error)}") from error


def _has_same_tokenizer(directory: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a directory's files are those that a tokenizer in memory would write.

    One with a large vocabulary takes hundreds of megabytes, and seconds to be read.
    """
    written = {entry.name for entry in directory.iterdir()} & TOKENIZER_FILES
    with TemporaryDirectory() as scratch:
        with _explain(f"a tokenizer could not be written to the temporary directory {scratch!r}"):
            tokenizer.save_pretrained(scratch)
        if {entry.name for entry in Path(scratch).iterdir()} != written:
            return False
        return all(
            _read_tokenizer_settings(directory / name)
            == _read_tokenizer_settings(Path(scratch) / name)
            if name == "tokenizer_config.json"
            else filecmp.cmp(directory / name, Path(scratch) / name, shallow=False)
            for name in written
        )


def _read_tokenizer_settings(file: Path) -> object:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(settings, dict):
        return None
    # Where it was read from does not count.
    origin = {"is_local", "local_files_only", "name_or_path"}
    return {key: value for key, value in settings.items() if key not in origin}
