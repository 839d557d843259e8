"""Readers of questions and concepts: each file has one language (TOFU, RWKU, ConceptVectors)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from interp.data.datasets.codes import bcp47
from interp.data.datasets.records import Concept, Dataset, QuestionAnswer, Record
from interp.data.datasets.tables import Table, check_lengths, dataset_of
from interp.data.sources import (
    Source,
    listed,
    mapped,
    required,
    rows_of,
    stem_of,
    text,
    texts,
    whole,
)

R = TypeVar("R", bound=Record)


def read_tofu(
    source: Source | Mapping[str, Source], *, languages: Sequence[str] | None = None
) -> Dataset[QuestionAnswer]:
    """The questions of TOFU (Maini et al. 2024; MIT): fictitious authors to forget and to retain.

    A line is `{"question": text, "answer": text}`; the perturbed files add `perturbed_answer` (a
    text or a list), `paraphrased_question` and `paraphrased_answer`. Other fields are ignored.
    A translated TOFU is read from one file per language, whose lines correspond. Ids are the
    first file's name and the entry's number, `tofu-forget10:1`.

    Args:
        source: a file or Hub name (`hub:locuslab/TOFU:forget10_perturbed`) in English, or several
            by language.
        languages: BCP-47 codes to keep, in this order; all that the source has if None.

    Raises:
        ValueError: a malformed entry (file, line and field named), files of different lengths,
            or a language that the source does not have.
        ImportError: a Hub name without the package `datasets`.
    """

    def parse(row: dict[str, Any], where: str, entry: str, code: str) -> QuestionAnswer:
        field = "perturbed_answers" if "perturbed_answers" in row else "perturbed_answer"
        perturbed = row.get(field)
        if isinstance(perturbed, str):
            perturbed = [perturbed]
        return QuestionAnswer(
            id=entry,
            language=code,
            question=text(required(row, "question", where), where, "question"),
            answer=text(required(row, "answer", where), where, "answer"),
            perturbed_answers=() if perturbed is None else texts(perturbed, where, field),
            paraphrased_question=_optional(row, "paraphrased_question", where),
            paraphrased_answer=_optional(row, "paraphrased_answer", where),
            concept="tofu",
        )

    return _file_per_language(source, "tofu", ("question", "answer"), parse, languages)


def read_rwku(
    source: Source | Mapping[str, Source], *, languages: Sequence[str] | None = None
) -> Dataset[QuestionAnswer]:
    """The probes of RWKU (Jin et al. 2024; CC BY 4.0) about well-known people.

    `forget_level1` to `3` and `neighbor_level1` and `2`, each a list of `{"query", "answer",
    "level", "type", "subject"}`; only the first two are required. A level-1 query has a blank
    `___`. Ids are the file's name and the entry's number, `rwku-forget_level1:1`.

    Args:
        source: a file or Hub name (`hub:jinzhuoran/RWKU:forget_level1:test`) in English, or
            several by language.
        languages: BCP-47 codes to keep, in this order; all that the source has if None.

    Raises:
        ValueError: a malformed entry (file, line or record, and field named), files of different
            lengths, or a language that the source does not have.
        ImportError: a Hub name without the package `datasets`.
    """

    def parse(row: dict[str, Any], where: str, entry: str, code: str) -> QuestionAnswer:
        level = row.get("level")
        if level is not None and str(level) not in {"1", "2", "3"}:
            raise ValueError(f"{where}: 'level' must be 1, 2 or 3, not {str(level)[:20]!r}")
        return QuestionAnswer(
            id=entry,
            language=code,
            question=text(required(row, "query", where), where, "query"),
            answer=text(required(row, "answer", where), where, "answer"),
            concept=_optional(row, "subject", where) or "rwku",
            level=None if level is None else int(str(level)),
            kind=_optional(row, "type", where) or "",
        )

    return _file_per_language(source, "rwku", ("query", "answer"), parse, languages)


def read_concepts(source: Source, *, languages: Sequence[str] | None = None) -> Dataset[Concept]:
    """The concepts of ConceptVectors and of Hong's later files, in English.

    A list of `{"id", "Concept", "Layer", "Dim", "wikipedia_content", "QA", "text_completion":
    [{"First_half", "Second_half"}], "unrelated_QA"}` in *Intrinsic Evaluation of Unlearning Using
    Parametric Knowledge Traces* (Hong et al. 2024; CC BY 4.0); the files of *Dissecting
    Fine-Tuning Unlearning in Large Language Models* (Hong et al. 2024; licence not stated) add
    `QA_with_answers` and `answers_tokens_num`. Ids are the number in the file, `concept-16`.

    Args:
        source: a file or Hub name.
        languages: `["en"]` or None, as there is no other language.

    Raises:
        ValueError: a malformed entry (file, record and field named), two concepts with the same
            id, or a language that the source does not have.
        ImportError: a Hub name without the package `datasets`.
    """

    def parse(row: dict[str, Any], where: str, entry: str, code: str) -> Concept:
        del entry
        questions = texts(required(row, "QA", where), where, "QA")
        completions = []
        for half in listed(required(row, "text_completion", where), where, "text_completion"):
            pair = mapped(half, where, "text_completion")
            first, second = (
                text(required(pair, field, where), where, field)
                for field in ("First_half", "Second_half")
            )
            completions.append((first, second))
        with_answers = row.get("QA_with_answers")
        counts = row.get("answers_tokens_num")
        for field, values in (("QA_with_answers", with_answers), ("answers_tokens_num", counts)):
            if values is not None and len(listed(values, where, field)) != len(questions):
                raise ValueError(
                    f"{where}: {field!r} has {len(values)} entries, 'QA' has {len(questions)}"
                )
        return Concept(
            id=f"concept-{whole(required(row, 'id', where), where, 'id')}",
            language=code,
            concept=text(required(row, "Concept", where), where, "Concept"),
            layer=whole(required(row, "Layer", where), where, "Layer"),
            dim=whole(required(row, "Dim", where), where, "Dim"),
            wikipedia_content=text(
                required(row, "wikipedia_content", where), where, "wikipedia_content"
            ),
            questions=questions,
            text_completions=tuple(completions),
            unrelated_questions=texts(required(row, "unrelated_QA", where), where, "unrelated_QA"),
            questions_with_answers=(
                () if with_answers is None else texts(with_answers, where, "QA_with_answers")
            ),
            answers_tokens_num=tuple(
                whole(count, where, "answers_tokens_num") for count in counts or ()
            ),
        )

    return _file_per_language(source, "concept", ("QA",), parse, languages)


def _file_per_language(
    source: Source | Mapping[str, Source],
    name: str,
    translated: Sequence[str],
    parse: Callable[[dict[str, Any], str, str, str], R],
    languages: Sequence[str] | None,
) -> Dataset[R]:
    """A data set of which each file has one language, with corresponding entries."""
    files = dict(source) if isinstance(source, Mapping) else {"en": source}
    if not files:
        raise ValueError(f"no files to read {name} from; give at least one by language")
    stem = stem_of(next(iter(files.values())))
    rows: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for code, file in files.items():
        if bcp47(code) in rows:
            raise ValueError(f"{file}: the language {bcp47(code)!r} stands twice, as {code!r} too")
        rows[bcp47(code)] = rows_of(file)
    check_lengths(
        {str(file): len(found) for file, found in zip(files.values(), rows.values(), strict=True)}
    )
    table: Table[R] = {}
    for code, found in rows.items():
        seen: dict[str, str] = {}
        for number, (where, row) in enumerate(found, start=1):
            entry = f"{name}-{stem}:{number}"
            values = table.setdefault(entry, {})
            # A null in one of several languages is a translation not made; else an error.
            absent = [field for field in translated if field in row and row[field] is None]
            if len(rows) > 1 and absent:
                values[code] = f"no {absent[0]} in the source"
                continue
            record = parse(row, where, entry, code)
            first = seen.setdefault(record.id, where)
            if first != where:
                raise ValueError(f"{where}: the id {record.id!r} stands already in {first}")
            values[code] = record
    return dataset_of(" and ".join(map(str, files.values())), table, languages)


def _optional(row: Mapping[str, Any], field: str, where: str) -> str | None:
    """The text of a field that may be missing, null or empty."""
    return None if row.get(field) in (None, "") else text(row[field], where, field)
