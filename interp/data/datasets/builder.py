"""Data sets with their gaps, from entries by id and language."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from interp.data.datasets.records import (
    ClozeFact,
    Dataset,
    EntityQuestion,
    Gap,
    QuestionAnswer,
    Record,
    Sentence,
)
from interp.data.row_readers import Source

R = TypeVar("R", bound=Record)

Table = dict[str, dict[str, R | str]]
"""By id and language: a record, or why there is none."""


def build_dataset(source: Source, table: Table[R], languages: Sequence[str] | None) -> Dataset[R]:
    """Build a data set language by language; what a language lacks, or has in English, is a gap.

    Raises:
        ValueError: There is no record, or the source does not have one of the languages.
    """
    available = dict.fromkeys(
        code
        for values in table.values()
        for code, value in values.items()
        if not isinstance(value, str)
    )
    if not available:
        raise ValueError(f"{source} holds no entries")
    for code in languages or ():
        if code not in available:
            raise ValueError(
                f"{source} has nothing in the language {code!r}; it has {', '.join(available)}"
            )
    chosen = tuple(dict.fromkeys(available if languages is None else languages))
    records: list[R] = []
    gaps: list[Gap] = []
    for code in chosen:
        for entry, values in table.items():
            value = values.get(code, "not in the source")
            if not isinstance(value, str) and code != "en":
                english = values.get("en")
                same = not isinstance(english, str | None) and _get_wording(
                    english
                ) == _get_wording(value)
                value = "left untranslated: the same text as in English" if same else value
            if isinstance(value, str):
                gaps.append(Gap(id=entry, language=code, reason=value))
            else:
                records.append(value)
    if not records:
        raise ValueError(f"{source} has no entry in {', '.join(chosen) or 'no language'}")
    return Dataset(source=str(source), languages=chosen, records=tuple(records), gaps=tuple(gaps))


def check_lengths(lengths: Mapping[str, int]) -> None:
    """Check that files with corresponding entries have equally many.

    Raises:
        ValueError: They have not; the first two that differ are named.
    """
    first, count = next(iter(lengths.items()))
    for file, other in lengths.items():
        if other != count:
            raise ValueError(
                f"{first} has {count} entries, {file} has {other}: their entries must correspond"
            )


def _get_wording(record: Record) -> tuple[str, ...]:
    """Return the text of a record that a translation must change."""
    if isinstance(record, ClozeFact):
        return record.prefix, record.suffix
    if isinstance(record, Sentence):
        return (record.text,)
    if isinstance(record, QuestionAnswer | EntityQuestion):
        return (record.question,)
    return record.questions
