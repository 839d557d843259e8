"""Records that the readers give, gaps between them, and queries made from records."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from interp.data.query import Query

CLOZE_FORMS = ("blank", "prefix")
"""Forms of a query about a cloze fact, see `make_queries`."""

_BLANK = "___"


@dataclass(frozen=True, kw_only=True)
class ClozeFact:
    """Fact as a sentence with one blank, in one language.

    Attributes:
        id: what the fact is, the same in every language.
        language: BCP-47 code.
        prefix: the text before the blank, spaces included.
        suffix: the text after it; more than punctuation where the answer is not last.
        answers: the right answers, at least one.
        candidates: what is ranked for probing accuracy, the answers among them.
        concept: the data set.
    """

    id: str
    language: str
    prefix: str
    suffix: str
    answers: tuple[str, ...]
    candidates: tuple[str, ...]
    concept: str

    @property
    def blank_is_last(self) -> bool:
        """True if nothing but punctuation follows the blank."""
        return not any(char.isalnum() for char in self.suffix)

    def fill(self, candidate: str) -> str:
        """Return the whole sentence with a candidate in its blank."""
        return f"{self.prefix}{candidate}{self.suffix}"


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """Sentence in one language, one of several translations under the same id."""

    id: str
    language: str
    text: str
    concept: str


@dataclass(frozen=True, kw_only=True)
class QuestionAnswer:
    """Question and its answer in one language.

    Attributes:
        id: what is asked, the same in every language.
        language: BCP-47 code.
        question: the question as it stands in the file.
        answer: its right answer.
        perturbed_answers: wrong answers of the same form (TOFU's truth ratio), if any.
        paraphrased_question: the question in other words, if any.
        paraphrased_answer: the right answer in other words, if any.
        concept: the subject (RWKU), else the data set.
        level: RWKU's level, 1 (fill in the blank), 2 (question) or 3 (adversarial), if given.
        kind: RWKU's type of adversarial question, "" if none.
    """

    id: str
    language: str
    question: str
    answer: str
    concept: str
    perturbed_answers: tuple[str, ...] = ()
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None
    level: int | None = None
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class EntityQuestion:
    """Question whose answer is begun, up to the entity that it asks for.

    Attributes:
        id: what is asked.
        language: BCP-47 code.
        question: the question as it stands in the file.
        answer: the whole answer, which begins with the prefix.
        prefix: the words of the answer that lead up to the entity; they count as prompt.
        entity: what is asked for, in the words of the answer.
        concept: the data set.
    """

    id: str
    language: str
    question: str
    answer: str
    prefix: str
    entity: str
    concept: str

    @property
    def prompt(self) -> str:
        """The question with the begun answer, in the form of the released code of UDS."""
        return f"Question: {self.question}\nAnswer: {self.prefix}"

    @property
    def continuation(self) -> str:
        """The rest of the answer, which begins with a space wherever the prompt ends without."""
        rest = self.answer[len(self.prefix) :]
        return rest if rest[:1].isspace() or self.prompt[-1].isspace() else f" {rest}"


@dataclass(frozen=True, kw_only=True)
class ConceptRecord:
    """Concept with the value vector that carries it and the questions about it.

    Attributes:
        id: `concept-` and the number in the file.
        language: BCP-47 code.
        concept: its name.
        layer: the layer of its concept vector, from 0.
        dim: the index of that vector in the layer's down projection.
        wikipedia_content: an article about it.
        questions: questions about it, as they stand in the file.
        text_completions: first and second half of sentences about it.
        unrelated_questions: questions about other things.
        questions_with_answers: each question with a model's answer, as one text; may be empty.
        answers_tokens_num: the number of tokens of each of these answers; may be empty.
    """

    id: str
    language: str
    concept: str
    layer: int
    dim: int
    wikipedia_content: str
    questions: tuple[str, ...]
    text_completions: tuple[tuple[str, str], ...]
    unrelated_questions: tuple[str, ...]
    questions_with_answers: tuple[str, ...] = ()
    answers_tokens_num: tuple[int, ...] = ()

    @property
    def answers(self) -> tuple[str | None, ...]:
        """Text after `Answer:` in each of `questions_with_answers`, None where there is none."""
        return tuple(
            text.removeprefix(f"Question: {question}").partition("Answer:")[2].strip() or None
            for question, text in zip(self.questions, self.questions_with_answers, strict=False)
        )


Record = ClozeFact | Sentence | QuestionAnswer | EntityQuestion | ConceptRecord
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Entry that a language lacks, and why."""

    id: str
    language: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Dataset(Generic[R]):
    """Records of a source, language by language, and what is missing from them.

    Attributes:
        source: the file or Hub name that was read.
        languages: BCP-47 codes, in the order of the records.
        records: all that was read; iterating over the data set gives them.
        gaps: each entry that a language of `languages` lacks.
    """

    source: str
    languages: tuple[str, ...]
    records: tuple[R, ...]
    gaps: tuple[Gap, ...]

    def __iter__(self) -> Iterator[R]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


def make_queries(
    records: Iterable[Record],
    *,
    template: str | Mapping[str, str] = "{question}",
    cloze: str = "blank",
) -> list[Query]:
    """Make queries from the records of any reader, in their order.

    A question is asked as the template says. A sentence gives its first half as the prompt and
    its second as the answer, cut between words near the middle. A cloze fact with `cloze="blank"`
    is shown whole, since the answer is not last in every language: "Paris is in ___.\\n___ =";
    with `cloze="prefix"` its prompt is the text before the blank. A question whose answer is begun
    has its own form, and the entity as its answer.

    Args:
        records: a data set, or any of its records.
        template: the prompt around `{question}`, for all languages or by BCP-47 code.
        cloze: one of `CLOZE_FORMS`.

    Raises:
        ValueError: no such cloze form, a template without `{question}` or none for a language,
            a fact that cannot be asked by its prefix because words follow the blank or nothing
            stands before it, or two queries with the same id and language.
    """
    if cloze not in CLOZE_FORMS:
        raise ValueError(f"unknown cloze form {cloze!r}; valid: {', '.join(CLOZE_FORMS)}")
    queries: list[Query] = []
    for record in records:
        if isinstance(record, ClozeFact):
            queries.append(_make_cloze_query(record, cloze))
        elif isinstance(record, Sentence):
            queries.append(_make_sentence_query(record))
        elif isinstance(record, QuestionAnswer):
            queries.append(_make_query(record, record.id, record.question, record.answer, template))
        elif isinstance(record, EntityQuestion):
            queries.append(_make_entity_query(record))
        else:
            answers = record.answers or (None,) * len(record.questions)
            for number, (question, answer) in enumerate(
                zip(record.questions, answers, strict=True), start=1
            ):
                queries.append(
                    _make_query(record, f"{record.id}:{number}", question, answer, template)
                )
    return _check_unique(queries)


def make_unrelated_queries(
    records: Iterable[ConceptRecord], *, template: str | Mapping[str, str] = "{question}"
) -> list[Query]:
    """Make queries from the unrelated questions of concepts, which have no answers.

    Raises:
        ValueError: as `make_queries`.
    """
    return _check_unique(
        _make_query(record, f"{record.id}-unrelated:{number}", question, None, template)
        for record in records
        for number, question in enumerate(record.unrelated_questions, start=1)
    )


def _make_query(
    record: QuestionAnswer | ConceptRecord,
    query_id: str,
    question: str,
    answer: str | None,
    template: str | Mapping[str, str],
) -> Query:
    if not isinstance(template, str):
        if record.language not in template:
            raise ValueError(
                f"no template for the language {record.language!r}; there is one for "
                f"{', '.join(template) or 'none'}"
            )
        template = template[record.language]
    if "{question}" not in template:
        raise ValueError(f"the template {template!r} has no slot {{question}}")
    return Query(
        id=query_id,
        language=record.language,
        prompt=template.replace("{question}", question.strip()),
        answer=answer,
        concept=record.concept,
    )


def _make_cloze_query(fact: ClozeFact, form: str) -> Query:
    prompt = f"{fact.fill(_BLANK).strip()}\n{_BLANK} ="
    if form == "prefix":
        if not fact.blank_is_last or not fact.prefix.strip():
            raise ValueError(
                f"{fact.id} in {fact.language!r} cannot be asked by its prefix: "
                f"{fact.fill(_BLANK)!r}; keep the facts with blank_is_last, or ask all with "
                "cloze='blank'"
            )
        prompt = fact.prefix.rstrip()
    return Query(
        id=fact.id,
        language=fact.language,
        prompt=prompt,
        answer=fact.answers[0],
        aliases=fact.answers[1:],
        concept=fact.concept,
    )


def _make_entity_query(record: EntityQuestion) -> Query:
    return Query(
        id=record.id,
        language=record.language,
        prompt=record.prompt.rstrip(),
        answer=record.entity,
        concept=record.concept,
    )


def _make_sentence_query(sentence: Sentence) -> Query:
    text = sentence.text.strip()
    cut = _find_middle(text)
    return Query(
        id=sentence.id,
        language=sentence.language,
        prompt=text[:cut].rstrip(),
        answer=text[cut:].strip() or None,
        concept=sentence.concept,
    )


def _find_middle(text: str) -> int:
    """Return where to cut a text in two: at the space nearest its middle, if one is near."""
    half = len(text) // 2
    spaces = [place for place, char in enumerate(text) if char.isspace()]
    nearest = min(spaces, key=lambda place: abs(place - half), default=-1)
    if abs(nearest - half) <= len(text) // 4 and nearest > 0:
        return nearest
    # No spaces (Chinese, Thai): anywhere but before a mark that belongs to the letter.
    cut = max(half, 1)
    while cut < len(text) and unicodedata.category(text[cut])[0] == "M":
        cut += 1
    return cut


def _check_unique(queries: Iterable[Query]) -> list[Query]:
    seen: dict[tuple[str, str], Query] = {}
    for query in queries:
        if (query.id, query.language) in seen:
            raise ValueError(
                f"duplicate id {query.id!r} in language {query.language!r}; "
                "ids must be unique within a language"
            )
        seen[query.id, query.language] = query
    return list(seen.values())
