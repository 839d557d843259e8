"""A GGUF file's tokenizer settings: the tokenizer that is built from the file follows them."""

from __future__ import annotations

from importlib import import_module

from tokenizers import Tokenizer

from interp.models.gguf_header import Header

# What splits words as GPT-2 does, which is how the library splits what it does not know
# (llama.cpp, src/llama-vocab.cpp). Files of old converters say nothing, or "default".
_AS_GPT2 = (None, "default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion")


def check_tokenizer(tokenizer: Tokenizer, header: Header) -> None:
    """Prove that text is split as a file says.

    Args:
        tokenizer: was built from the file.
        header: of the file.

    Raises:
        ValueError: text is split in another way, which would give other tokens.
    """
    kind, split = (header.values.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind == "gpt2" and split not in (*_AS_GPT2, *_list_known_splits()):
        raise ValueError(
            f"its tokenizer splits words in a way ({split!r}) that the installed transformers does "
            "not know: give the model's Hugging Face directory in place of the file"
        )
    if kind == "llama":
        wanted = bool(header.values.get("tokenizer.ggml.add_space_prefix", True))
        if _begins_with_space(tokenizer) != wanted:
            raise ValueError(
                f"its tokenizer puts {'a' if wanted else 'no'} space before a text, and the one "
                "that the installed transformers builds does otherwise: give the model's Hugging "
                "Face directory in place of the file"
            )


def _list_known_splits() -> set[str]:
    try:
        module = import_module("transformers.integrations.gguf.gguf_tokenizer_mapping")
        return set(module.GGUF_PRE_TOKENIZER_SPLITS)
    except (ImportError, AttributeError):
        return set()


def _begins_with_space(tokenizer: Tokenizer) -> bool:
    """Return whether a text's first word becomes a word with a space before it."""
    text = "x" if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str("x")
    if tokenizer.pre_tokenizer is not None:
        text = tokenizer.pre_tokenizer.pre_tokenize_str(text)[0][0]
    return text.startswith("▁")
