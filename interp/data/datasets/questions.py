"""Readers of questions and concepts, one language a file (TOFU, UDS, RWKU, ConceptVectors)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from interp.data.datasets.builder import Table, build_dataset, check_lengths
from interp.data.datasets.language_codes import normalize_code
from interp.data.datasets.records import (
    ConceptRecord,
    Dataset,
    EntityQuestion,
    QuestionAnswer,
    Record,
)
from interp.data.row_readers import (
    Source,
    check_count,
    check_list,
    check_object,
    check_text,
    check_texts,
    get_stem,
    read_rows,
    require_field,
)

R = TypeVar("R", bound=Record)


def read_tofu(
    source: Source | Mapping[str, Source], *, languages: Sequence[str] | None = None
) -> Dataset[QuestionAnswer]:
    """Read TOFU (Maini et al. 2024; MIT): questions on fictitious authors to forget and to retain.

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
            question=check_text(require_field(row, "question", where), where, "question"),
            answer=check_text(require_field(row, "answer", where), where, "answer"),
            perturbed_answers=() if perturbed is None else check_texts(perturbed, where, field),
            paraphrased_question=_get_optional(row, "paraphrased_question", where),
            paraphrased_answer=_get_optional(row, "paraphrased_answer", where),
            concept="tofu",
        )

    return _read_file_per_language(source, "tofu", ("question", "answer"), parse, languages)


def read_uds(source: Source, *, languages: Sequence[str] | None = None) -> Dataset[EntityQuestion]:
    """Read the questions of UDS (Lee, Kim & Jo 2026; Apache-2.0), in English.

    Questions of TOFU's forget10, each `{"idx", "question", "answer", "prefix", "entity"}`: the
    prefix is the part of the answer that leads up to the entity. Other fields are ignored; the
    `entity_span` of the file is in tokens of Llama 3, and found anew for every tokenizer. Ids are
    the number in the file, `uds-0`.

    Args:
        source: a file, such as the release's `forget10_filtered.json`, or a Hub name.
        languages: `["en"]` or None, as there is no other language.

    Raises:
        ValueError: a malformed entry (file, record and field named), an answer that does not begin
            with its prefix or does not hold its entity after it, two entries with the same number,
            or a language that the source does not have.
        ImportError: a Hub name without the package `datasets`.
    """

    def parse(row: dict[str, Any], where: str, entry: str, code: str) -> EntityQuestion:
        del entry
        answer, entity = (
            check_text(require_field(row, field, where), where, field)
            for field in ("answer", "entity")
        )
        prefix = require_field(row, "prefix", where)
        prefix = check_text(prefix, where, "prefix") if prefix else ""
        if not answer.startswith(prefix):
            raise ValueError(f"{where}: 'answer' must begin with 'prefix'")
        if entity not in answer[len(prefix) :]:
            raise ValueError(f"{where}: 'answer' must hold 'entity' after 'prefix'")
        return EntityQuestion(
            id=f"uds-{check_count(require_field(row, 'idx', where), where, 'idx')}",
            language=code,
            question=check_text(require_field(row, "question", where), where, "question"),
            answer=answer,
            prefix=prefix,
            entity=entity,
            concept="uds",
        )

    return _read_file_per_language(source, "uds", ("question",), parse, languages)


def read_rwku(
    source: Source | Mapping[str, Source], *, languages: Sequence[str] | None = None
) -> Dataset[QuestionAnswer]:
    """Read the probes of RWKU (Jin et al. 2024; CC BY 4.0) about well-known people.

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
            question=check_text(require_field(row, "query", where), where, "query"),
            answer=check_text(require_field(row, "answer", where), where, "answer"),
            concept=_get_optional(row, "subject", where) or "rwku",
            level=None if level is None else int(str(level)),
            kind=_get_optional(row, "type", where) or "",
        )

    return _read_file_per_language(source, "rwku", ("query", "answer"), parse, languages)


def read_concepts(
    source: Source, *, languages: Sequence[str] | None = None
) -> Dataset[ConceptRecord]:
    """Read the concepts of ConceptVectors and of Hong's later files, in English.

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

    def parse(row: dict[str, Any], where: str, entry: str, code: str) -> ConceptRecord:
        del entry
        questions = check_texts(require_field(row, "QA", where), where, "QA")
        completions = []
        for half in check_list(
            require_field(row, "text_completion", where), where, "text_completion"
        ):
            pair = check_object(half, where, "text_completion")
            first, second = (
                check_text(require_field(pair, field, where), where, field)
                for field in ("First_half", "Second_half")
            )
            completions.append((first, second))
        with_answers = row.get("QA_with_answers")
        counts = row.get("answers_tokens_num")
        for field, values in (("QA_with_answers", with_answers), ("answers_tokens_num", counts)):
            if values is not None and len(check_list(values, where, field)) != len(questions):
                raise ValueError(
                    f"{where}: {field!r} has {len(values)} entries, 'QA' has {len(questions)}"
                )
        return ConceptRecord(
            id=f"concept-{check_count(require_field(row, 'id', where), where, 'id')}",
            language=code,
            concept=check_text(require_field(row, "Concept", where), where, "Concept"),
            layer=check_count(require_field(row, "Layer", where), where, "Layer"),
            dim=check_count(require_field(row, "Dim", where), where, "Dim"),
            wikipedia_content=check_text(
                require_field(row, "wikipedia_content", where), where, "wikipedia_content"
            ),
            questions=questions,
            text_completions=tuple(completions),
            unrelated_questions=check_texts(
                require_field(row, "unrelated_QA", where), where, "unrelated_QA"
            ),
            questions_with_answers=(
                () if with_answers is None else check_texts(with_answers, where, "QA_with_answers")
            ),
            answers_tokens_num=tuple(
                check_count(count, where, "answers_tokens_num") for count in counts or ()
            ),
        )

    return _read_file_per_language(source, "concept", ("QA",), parse, languages)


def _read_file_per_language(
    source: Source | Mapping[str, Source],
    name: str,
    translated: Sequence[str],
    parse: Callable[[dict[str, Any], str, str, str], R],
    languages: Sequence[str] | None,
) -> Dataset[R]:
    """Read a data set of which each file has one language, with corresponding entries."""
    files = dict(source) if isinstance(source, Mapping) else {"en": source}
    if not files:
        raise ValueError(f"no files to read {name} from; give at least one by language")
    stem = get_stem(next(iter(files.values())))
    rows: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for code, file in files.items():
        if normalize_code(code) in rows:
            raise ValueError(
                f"{file}: duplicate language {normalize_code(code)!r} (also written {code!r})"
            )
        rows[normalize_code(code)] = read_rows(file)
    check_lengths(
        {
            str(file): len(entries)
            for file, entries in zip(files.values(), rows.values(), strict=True)
        }
    )
    table: Table[R] = {}
    for code, entries in rows.items():
        seen: dict[str, str] = {}
        for number, (where, row) in enumerate(entries, start=1):
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
                raise ValueError(f"{where}: duplicate id {record.id!r} (first in {first})")
            values[code] = record
    return build_dataset(" and ".join(map(str, files.values())), table, languages)


def _get_optional(row: Mapping[str, Any], field: str, where: str) -> str | None:
    """Return the text of a field that may be missing, null or empty."""
    return None if row.get(field) in (None, "") else check_text(row[field], where, field)
