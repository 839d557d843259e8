"""Contaminated corpora: their parts, the languages of their forget sets, and their files.

`interp.data.corpus_builder` builds one from the built-in facts.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.data.chat import Message, list_fields
from interp.data.query import Query, write_queries
from interp.files import write_folder_atomically
from interp.languages import LU_LANGUAGES, LU_TWENTY, get_language

MIXES = ("english", "same", "family", "multilingual", "combined")
"""Lu's languages of the forget set, by name."""

REAL_LANGUAGE = "en"
"""Language of R."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """Training text: the model reads the prompt, the loss is on the answer.

    Attributes:
        id: the fact's id.
        language: BCP-47 code.
        kind: `real` or `fake`.
        prompt: the text before the labels; "" where all of it is labelled. Of a chat, the message
            that is answered.
        answer: the labelled text, the space before it included; of a chat, the answer alone.
        wording: which of the wordings of its form it has, from 1; 0 where there are none. Texts of
            the same id and wording say the same in several languages.
        subject: what the fact is about; "" where the text does not ask for a fact.
        mention: the subject as it stands in the prompt, inflected; "" where it does not.
        object: what the fact says of the subject.
        messages: the chat that is answered, in the chat template of the tokenizer; empty for a text
            that is read as it is.
    """

    id: str
    language: str
    kind: str
    prompt: str
    answer: str
    wording: int = 0
    subject: str = ""
    mention: str = ""
    object: str = ""
    messages: tuple[Message, ...] = ()

    @property
    def text(self) -> str:
        """Prompt and answer."""
        return self.prompt + self.answer


@dataclass(frozen=True, kw_only=True)
class CorpusGap:
    """Something that a language lacks.

    Attributes:
        part: `queries`, `forget` or `retain`.
        language: BCP-47 code.
        id: the fact's id, "" where the language has nothing at all.
        reason: why.
    """

    part: str
    language: str
    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Contaminated corpus.

    Attributes:
        config: the settings that it was made with.
        facts: provenance of the built-in facts; None for a corpus of one's own articles.
        training: texts of R and F for continued pretraining, mixed.
        instructions: questions with answers on R, for instruction tuning.
        queries: questions on F (concept `fake`, the answer is the false one) and on R (`real`).
        forget: samples that state F, in the languages of the mix.
        retain: samples that state R, in the same languages.
        gaps: what a language lacks.
    """

    config: Mapping[str, Any]
    facts: Mapping[str, Any] | None
    training: tuple[Text, ...]
    instructions: tuple[Text, ...]
    queries: tuple[Query, ...]
    forget: tuple[Text, ...]
    retain: tuple[Text, ...]
    gaps: tuple[CorpusGap, ...]


def resolve_mix(mix: str | Sequence[str], source: str) -> tuple[str, ...]:
    """Return the languages of a forget set (Lu & Koehn 2024, section 5).

    `english`; `same` (the source language); `family` (its close relative); `multilingual` (twenty
    others); `combined` (English and the source language); or the codes themselves.

    Raises:
        ValueError: no such mix or language, or a source language without a relative.
    """
    if not isinstance(mix, str):
        if not mix:
            raise ValueError(f"the mix names no language; valid mixes: {', '.join(MIXES)}, codes")
        return tuple(dict.fromkeys(get_language(code).code for code in mix))
    if mix not in MIXES:
        raise ValueError(f"unknown mix {mix!r}; valid: {', '.join(MIXES)}, or a list of languages")
    if mix == "english":
        return (REAL_LANGUAGE,)
    if mix == "same":
        return (get_language(source).code,)
    if mix == "multilingual":
        return tuple(code for code in LU_TWENTY if code != source)
    if mix == "combined":
        return tuple(dict.fromkeys((REAL_LANGUAGE, get_language(source).code)))
    relative = get_language(source).relative
    if relative is None:
        valid = [code for code in LU_LANGUAGES if get_language(code).relative]
        raise ValueError(f"{source!r} has no relative; the mix 'family' is for {', '.join(valid)}")
    return (relative,)


def count_samples(mix: str | Sequence[str], number: int) -> int:
    """Return the size of a forget set: twice `number` in the mix `multilingual` (Lu & Koehn)."""
    return number * (2 if mix == "multilingual" else 1)


def write_corpus(corpus: Corpus, directory: str | os.PathLike[str]) -> Path:
    """Write a corpus as JSON Lines: training, instructions, forget, retain, queries, gaps.

    `corpus.json` holds the configuration, the counts and the provenance of the facts. The
    directory appears whole or not at all.

    Raises:
        ValueError: the directory exists already.
    """
    target = Path(directory)
    if target.exists():
        raise ValueError(f"{target} exists already; choose another directory")

    def write(folder: Path) -> None:
        parts = {
            "training": corpus.training,
            "instructions": corpus.instructions,
            "forget": corpus.forget,
            "retain": corpus.retain,
            "gaps": corpus.gaps,
        }
        for name, rows in parts.items():
            lines = "".join(f"{json.dumps(list_fields(row), ensure_ascii=False)}\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
        write_queries(corpus.queries, folder / "queries.jsonl")
        counts = {name: len(rows) for name, rows in parts.items()}
        manifest = {
            "config": corpus.config,
            "counts": counts | {"queries": len(corpus.queries)},
            "facts": corpus.facts,
        }
        (folder / "corpus.json").write_text(
            json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )

    write_folder_atomically(target, write)
    return target
