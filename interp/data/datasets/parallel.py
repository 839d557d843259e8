"""Readers of parallel data: each entry has all languages (BMLAMA-53, FLORES-200)."""

import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interp.data.datasets.codes import bcp47
from interp.data.datasets.records import ClozeFact, Dataset, Sentence
from interp.data.datasets.tables import Table, check_lengths, dataset_of
from interp.data.sources import (
    Source,
    lines_of,
    mapped,
    required,
    rows_of,
    stem_of,
    text,
    texts,
)

_MASK = "<mask>"
_FLORES_FILE = re.compile(r"(?P<code>[a-z]{3}_[A-Z][a-z]{3})\.(?P<split>dev|devtest)")


def read_bmlama(source: Source, *, languages: Sequence[str] | None = None) -> Dataset[ClozeFact]:
    """The cloze facts of BMLAMA-53 (Qi et al. 2023), as released with Choi et al. 2024.

    A line is `{"prompt": {lang: "… <mask> …"}, "answers": {lang: [text]}, "candidates":
    {lang: [text, …]}}`. The entries have no ids of their own: theirs is the file's name and their
    number in it, `bmlama53-forget-32:1`. The licence is not stated with the files.

    Args:
        source: a file, or a Hub name (`hub:OWNER/NAME:CONFIG:SPLIT`).
        languages: BCP-47 codes to keep, in this order; all that the source has if None.

    Raises:
        ValueError: a malformed entry (file, line and field named), such as a prompt without
            exactly one <mask> or an answer that is not among the candidates, or a language that
            the source does not have.
        ImportError: a Hub name without the package `datasets`.
    """
    table: Table[ClozeFact] = {}
    for number, (where, row) in enumerate(rows_of(source), start=1):
        entry = f"bmlama53-{stem_of(source)}:{number}"
        fields = {
            field: _by_language(required(row, field, where), where, field)
            for field in ("prompt", "answers", "candidates")
        }
        table[entry] = {}
        for code in dict.fromkeys(code for values in fields.values() for code in values):
            absent = [field for field, values in fields.items() if values.get(code) is None]
            if absent:
                table[entry][code] = f"no {absent[0]} in the source"
                continue
            prompt = text(fields["prompt"][code], where, f"prompt.{code}")
            if prompt.count(_MASK) != 1:
                raise ValueError(
                    f"{where}: 'prompt.{code}' must have {_MASK} once, not {prompt.count(_MASK)} "
                    "times"
                )
            answers = texts(fields["answers"][code], where, f"answers.{code}")
            candidates = texts(fields["candidates"][code], where, f"candidates.{code}")
            for answer in answers:
                if answer not in candidates:
                    raise ValueError(
                        f"{where}: the answer {reprlib.repr(answer)} in 'answers.{code}' is not "
                        f"among 'candidates.{code}'"
                    )
            prefix, _, suffix = prompt.partition(_MASK)
            table[entry][code] = ClozeFact(
                id=entry,
                language=code,
                prefix=prefix,
                suffix=suffix,
                answers=answers,
                candidates=candidates,
                concept="bmlama53",
            )
    return dataset_of(source, table, languages)


def read_flores(source: Source, *, languages: Sequence[str] | None = None) -> Dataset[Sentence]:
    """The parallel sentences of FLORES-200 (NLLB Team 2022; CC BY-SA 4.0).

    Either JSON Lines as released with Choi et al. 2024, `{lang: sentence}`, or a folder of the
    official release, one file per language and split (`deu_Latn.dev`), one sentence per line.
    Ids are the file's name (in a folder, the split) and the entry's number: `flores200-dev:1`.

    Args:
        source: a file, a folder with the files of one split, or a Hub name.
        languages: BCP-47 codes to keep, in this order; all that the source has if None.

    Raises:
        ValueError: a malformed entry (file, line and field named), a folder with no files or with
            both splits, files of different lengths, or a language that the source does not have.
        ImportError: a Hub name without the package `datasets`.
    """
    table: Table[Sentence] = {}
    if not str(source).startswith("hub:") and Path(source).is_dir():
        stem, rows = _flores_folder(Path(source))
    else:
        stem, rows = stem_of(source), rows_of(source)
    for number, (where, row) in enumerate(rows, start=1):
        entry = f"flores200-{stem}:{number}"
        table[entry] = {}
        for code, value in _by_language(row, where, "").items():
            if value is None:
                table[entry][code] = "no sentence in the source"
                continue
            sentence = text(value, where, code)
            table[entry][code] = Sentence(
                id=entry, language=code, text=sentence, concept="flores200"
            )
    return dataset_of(source, table, languages)


def _flores_folder(folder: Path) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """The split of a folder of FLORES-200, and its sentences as rows by language."""
    found = {
        path: name
        for path in sorted(folder.iterdir())
        if (name := _FLORES_FILE.fullmatch(path.name))
    }
    splits = sorted({name["split"] for name in found.values()})
    if len(splits) != 1:
        raise ValueError(
            f"{folder} must have files of one split, named such as deu_Latn.dev; it has "
            f"{' and '.join(splits) or 'none'}"
        )
    lines = {path: lines_of(path) for path in found}
    check_lengths({str(path): len(entries) for path, entries in lines.items()})
    count = len(next(iter(lines.values())))
    return splits[0], [
        (
            f"{folder}, line {number + 1}",
            {name["code"]: lines[path][number][1] or None for path, name in found.items()},
        )
        for number in range(count)
    ]


def _by_language(value: object, where: str, field: str) -> dict[str, Any]:
    """An object's values by BCP-47 code."""
    found: dict[str, Any] = {}
    for written, entry in mapped(value, where, field).items():
        try:
            code = bcp47(written)
        except ValueError as error:
            place = f"{where}: in {field!r}," if field else f"{where}:"
            raise ValueError(f"{place} {error}") from None
        if code in found:
            raise ValueError(f"{where}: the language {code!r} stands twice, as {written!r} too")
        found[code] = entry
    return found
