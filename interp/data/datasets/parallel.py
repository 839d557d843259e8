"""Readers of parallel data: each entry has all languages (BMLAMA-53, FLORES-200)."""

import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interp.data.datasets.builder import Table, build_dataset, check_lengths
from interp.data.datasets.language_codes import normalize_code
from interp.data.datasets.records import ClozeFact, Dataset, Sentence
from interp.data.row_readers import (
    Source,
    check_object,
    check_text,
    check_texts,
    get_stem,
    read_lines,
    read_rows,
    require_field,
)

_MASK = "<mask>"
_FLORES_FILE = re.compile(r"(?P<code>[a-z]{3}_[A-Z][a-z]{3})\.(?P<split>dev|devtest)")


def read_bmlama(source: Source, *, languages: Sequence[str] | None = None) -> Dataset[ClozeFact]:
    """Read the cloze facts of BMLAMA-53 (Qi et al. 2023), as released with Choi et al. 2024.

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
    for number, (where, row) in enumerate(read_rows(source), start=1):
        entry = f"bmlama53-{get_stem(source)}:{number}"
        fields = {
            field: _normalize_languages(require_field(row, field, where), where, field)
            for field in ("prompt", "answers", "candidates")
        }
        table[entry] = {}
        for code in dict.fromkeys(code for values in fields.values() for code in values):
            absent = [field for field, values in fields.items() if values.get(code) is None]
            if absent:
                table[entry][code] = f"no {absent[0]} in the source"
                continue
            prompt = check_text(fields["prompt"][code], where, f"prompt.{code}")
            if prompt.count(_MASK) != 1:
                raise ValueError(
                    f"{where}: 'prompt.{code}' must have {_MASK} once, not {prompt.count(_MASK)} "
                    "times"
                )
            answers = check_texts(fields["answers"][code], where, f"answers.{code}")
            candidates = check_texts(fields["candidates"][code], where, f"candidates.{code}")
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
    return build_dataset(source, table, languages)


def read_flores(source: Source, *, languages: Sequence[str] | None = None) -> Dataset[Sentence]:
    """Read the parallel sentences of FLORES-200 (NLLB Team 2022; CC BY-SA 4.0).

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
        stem, rows = _read_flores_folder(Path(source))
    else:
        stem, rows = get_stem(source), read_rows(source)
    for number, (where, row) in enumerate(rows, start=1):
        entry = f"flores200-{stem}:{number}"
        table[entry] = {}
        for code, value in _normalize_languages(row, where, "").items():
            if value is None:
                table[entry][code] = "no sentence in the source"
                continue
            sentence = check_text(value, where, code)
            table[entry][code] = Sentence(
                id=entry, language=code, text=sentence, concept="flores200"
            )
    return build_dataset(source, table, languages)


def _read_flores_folder(folder: Path) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """Read a folder of FLORES-200: its split, and its sentences as rows by language."""
    names = {
        path: name
        for path in sorted(folder.iterdir())
        if (name := _FLORES_FILE.fullmatch(path.name))
    }
    splits = sorted({name["split"] for name in names.values()})
    if len(splits) != 1:
        raise ValueError(
            f"{folder} must have files of one split, named such as deu_Latn.dev; it has "
            f"{' and '.join(splits) or 'none'}"
        )
    lines = {path: read_lines(path) for path in names}
    check_lengths({str(path): len(entries) for path, entries in lines.items()})
    count = len(next(iter(lines.values())))
    return splits[0], [
        (
            f"{folder}, line {number + 1}",
            {name["code"]: lines[path][number][1] or None for path, name in names.items()},
        )
        for number in range(count)
    ]


def _normalize_languages(value: object, where: str, field: str) -> dict[str, Any]:
    """Return an object's values by BCP-47 code."""
    values: dict[str, Any] = {}
    for written, entry in check_object(value, where, field).items():
        try:
            code = normalize_code(written)
        except ValueError as error:
            place = f"{where}: in {field!r}," if field else f"{where}:"
            raise ValueError(f"{place} {error}") from None
        if code in values:
            raise ValueError(f"{where}: duplicate language {code!r} (also written {written!r})")
        values[code] = entry
    return values
