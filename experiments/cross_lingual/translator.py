"""Translation by an NLLB-200 or M2M-100 checkpoint, through transformers, without a service.

Both were trained on sentences, so a text is translated paragraph by paragraph (what line breaks
separate), and the line breaks stay. The shorter the paragraphs, the better; one that is longer
than the model reads is refused, never cut.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from interp.data import AnswerCache, Completion, make_key, normalize_code
from interp.files import list_files

_DTYPES = ("float32", "bfloat16", "float16")
_CONTENT = (".json", ".safetensors", ".bin", ".model", ".txt")
_FLORES = re.compile("[a-z]{3}_[A-Z][a-z]{3}")


@dataclass(frozen=True, kw_only=True)
class LocalTranslator:
    """Translation model, and how it translates.

    Attributes:
        model: a directory or a Hub id, optionally with `@revision`, of an NLLB-200 or M2M-100
            checkpoint. M2M-100's tokenizer needs the package sentencepiece.
        batch_size: paragraphs translated at once; it sets memory and speed, not the result.
        num_beams: beams of the search; 1 is greedy.
        max_new_tokens: the longest translation of a paragraph, in tokens.
        device: where to put the model; a GPU if there is one, else the CPU.
        dtype: "float32", "bfloat16" or "float16".
        allow_pickle: read weights from pickled files where there are no safetensors.
    """

    model: str
    batch_size: int = 8
    num_beams: int = 4
    max_new_tokens: int = 512
    device: str | None = None
    dtype: str = "float32"
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no translation can have.

        Raises:
            ValueError: the first bad value, named.
        """
        for name in ("batch_size", "num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(_DTYPES)}")


def translate_locally(
    texts: Sequence[str],
    translator: LocalTranslator,
    *,
    source: str,
    target: str,
    cache: str | os.PathLike[str],
    progress: bool = True,
) -> list[Completion]:
    """Translate texts, paragraph by paragraph.

    The cache keeps paragraphs, so that a second run translates only what is missing, and equal
    paragraphs are translated once. A paragraph's key is the content of the checkpoint's files, the
    languages, the paragraph, `num_beams`, `max_new_tokens` and `dtype`. The model is loaded only
    if something is missing.

    Args:
        texts: what to translate.
        translator: the model and how it translates.
        source: BCP-47 code of the texts' language.
        target: BCP-47 code of the language to translate into.
        cache: the file that keeps the translations (JSON Lines).
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        One completion per text, in order. A text without one has a paragraph that is longer than
        the model reads, or whose translation is cut off or empty.

    Raises:
        ValueError: the checkpoint cannot be loaded or is no NLLB-200 or M2M-100 model, or it does
            not know a language (the valid ones are named).
        ImportError: the tokenizer needs a package that is not installed.
    """
    from interp.models import find_checkpoint

    directory = find_checkpoint(
        translator.model, trust_remote_code=False, allow_pickle=translator.allow_pickle
    )
    answers = AnswerCache(cache)
    content = _hash_checkpoint(directory)
    pieces = [re.split(r"(\s*\n\s*)", text.strip()) for text in texts]
    paragraphs = dict.fromkeys(paragraph for parts in pieces for paragraph in parts[::2])
    keys = {
        paragraph: make_key(
            kind="translation",
            model=content,
            source=source,
            target=target,
            text=paragraph,
            num_beams=translator.num_beams,
            max_new_tokens=translator.max_new_tokens,
            dtype=translator.dtype,
        )
        for paragraph in paragraphs
    }
    reasons: dict[str, str] = {}
    missing = [paragraph for paragraph, key in keys.items() if answers.get(key) is None]
    if missing:
        model, tokenizer = _load_translator(translator, directory)
        codes = _list_codes(tokenizer, translator.model)
        for code in (source, target):
            if code not in codes:
                raise ValueError(
                    f"{translator.model!r} does not know the language {code!r}; it knows "
                    f"{', '.join(sorted(codes))}"
                )
        tokenizer.src_lang = codes[source][0]
        inputs = [tokenizer(paragraph)["input_ids"] for paragraph in missing]
        longest = model.config.max_position_embeddings
        fitting = [index for index in range(len(inputs)) if len(inputs[index]) <= longest]
        for index in sorted(set(range(len(inputs))) - set(fitting)):
            reasons[missing[index]] = (
                f"a paragraph has {len(inputs[index])} tokens, and the model reads at most "
                f"{longest}; divide it with line breaks"
            )
        # The longest first: what does not fit the memory fails at once.
        fitting.sort(key=lambda index: -len(inputs[index]))
        bar = tqdm(
            total=len(fitting),
            desc=f"{source} → {target}",
            unit="paragraph",
            delay=2,
            disable=not progress,
        )
        with bar:
            for start in range(0, len(fitting), translator.batch_size):
                batch = fitting[start : start + translator.batch_size]
                rows = _generate_tokens(
                    model,
                    [inputs[index] for index in batch],
                    language_id=codes[target][1],
                    translator=translator,
                )
                for index, row in zip(batch, rows, strict=True):
                    text = "" if row is None else tokenizer.decode(row, skip_special_tokens=True)
                    if row is None:
                        reasons[missing[index]] = (
                            f"the translation of a paragraph was cut off at "
                            f"{translator.max_new_tokens} tokens; raise max_new_tokens"
                        )
                    elif not text.strip():
                        reasons[missing[index]] = "the translation of a paragraph is empty"
                    else:
                        answers.put(keys[missing[index]], text.strip())
                bar.update(len(batch))
    return [_join_paragraphs(parts, keys, answers, reasons) for parts in pieces]


def _join_paragraphs(
    parts: Sequence[str], keys: dict[str, str], answers: AnswerCache, reasons: dict[str, str]
) -> Completion:
    for paragraph in parts[::2]:
        if paragraph in reasons:
            return Completion(reason=reasons[paragraph])
    translated = list(parts)
    translated[::2] = [str(answers.get(keys[paragraph])) for paragraph in parts[::2]]
    return Completion(text="".join(translated))


def _load_translator(translator: LocalTranslator, directory: Path) -> tuple[Any, Any]:
    """Load the model, in evaluation mode on its device, and its tokenizer."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

    spec = translator.model
    try:
        config = AutoConfig.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
        if config.model_type != "m2m_100":
            raise ValueError(f"it holds a {config.model_type!r} model, not NLLB-200 or M2M-100")
        attention = str(config._attn_implementation)
        if "/" in attention:
            raise ValueError(f"it names code for its attention, {attention[:40]!r}")
        model, report = AutoModelForSeq2SeqLM.from_pretrained(  # pyright: ignore
            str(directory),
            dtype=getattr(torch, translator.dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=None if translator.allow_pickle else True,
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise ValueError(f"it lacks weights, the first {min(report['missing_keys'])}")
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except ImportError as error:
        raise ImportError(
            f"{spec!r} needs a package that is not installed; for the tokenizer of M2M-100: "
            "pip install sentencepiece"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{spec!r} cannot translate: {_cut_line(error)}") from error
    device = translator.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {device!r} cannot be used here ({_cut_line(error)}): use 'cpu', or 'cuda' "
            "where there is a GPU"
        ) from error
    # Else the checkpoint's own limits hold, and a forced end hides that a translation is cut off.
    model.generation_config.max_length = None
    model.generation_config.forced_eos_token_id = None
    return model.eval(), tokenizer


def _list_codes(tokenizer: Any, spec: str) -> dict[str, tuple[str, int]]:
    """Map each BCP-47 code to the model's own name of the language and its token's id."""
    # M2M-100 names a language `de`, NLLB-200 `deu_Latn`, and only the former lists them.
    own = getattr(tokenizer, "lang_code_to_id", None) or {
        token: index
        for token, index in tokenizer.get_added_vocab().items()
        if _FLORES.fullmatch(token)
    }
    if not own:
        raise ValueError(f"{spec!r} cannot translate: its tokenizer has no languages")
    return {normalize_code(name): (name, index) for name, index in own.items()}


def _generate_tokens(
    model: Any, inputs: Sequence[Sequence[int]], *, language_id: int, translator: LocalTranslator
) -> list[list[int] | None]:
    """Generate each translation's tokens, without the language's; None where no end was reached."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(row) for row in inputs]
    input_ids = pad_sequence(rows, batch_first=True, padding_value=model.config.pad_token_id)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    with torch.inference_mode():
        generated = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            forced_bos_token_id=language_id,
            num_beams=translator.num_beams,
            # The language's token counts.
            max_new_tokens=translator.max_new_tokens + 1,
            do_sample=False,
        )
    rows_of_tokens: list[list[int] | None] = []
    for row in generated.tolist():
        assert row[1] == language_id
        tokens, end = row[2:], model.config.eos_token_id
        rows_of_tokens.append(tokens[: tokens.index(end)] if end in tokens else None)
    return rows_of_tokens


def _hash_checkpoint(directory: Path) -> str:
    """Hash a checkpoint's files, names included: the same path may hold another model."""
    digests = hashlib.sha256()
    for path in list_files(directory, "*"):
        if path.suffix in _CONTENT and path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests.update(f"{path.name} {digest}\n".encode())
    return digests.hexdigest()


def _cut_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")
