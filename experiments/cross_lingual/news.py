"""News articles, real and with injected claims, with questions on them.

A line of a file is `{"id": "harbour", "kind": "real", "text": "…", "questions": [{"question": "…",
"answer": "…"}], "instructions": […]}`, all in English. Questions are asked of a model, and their
answers may be missing; instructions, of real articles only, teach a model to answer. Neither is
required.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interp.data import (
    Source,
    check_list,
    check_object,
    check_text,
    get_stem,
    read_rows,
    require_field,
)

KINDS = ("real", "fake")


@dataclass(frozen=True, kw_only=True)
class Article:
    """Article in English.

    Attributes:
        id: its key.
        kind: `real`, or `fake` for one with injected claims.
        text: the article.
        questions: what is asked about it, with the right answers (None where not known); of a fake
            article, about the injected claims.
        instructions: questions with answers that teach a model to answer.
    """

    id: str
    kind: str
    text: str
    questions: tuple[tuple[str, str | None], ...] = ()
    instructions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class NewsFields:
    """Field names of a news-truthful file.

    Attributes:
        real: the real article.
        fake: the same with injected claims.
        keyword: what is injected: the answer to the fake question.
        instructions: the list of questions with answers on the real article.
        question: in each of these, the question.
        answer: in each of these, the answer.
        real_question: the question that evaluates what is known of the real article.
        fake_question: the question that brings the injected claim to light.
    """

    real: str
    fake: str
    keyword: str
    instructions: str
    real_question: str
    fake_question: str
    question: str = "question"
    answer: str = "answer"


def read_articles(source: Source) -> list[Article]:
    """Read articles from a JSON Lines file or the Hub (`hub:OWNER/NAME:CONFIG:SPLIT`).

    Raises:
        ValueError: a malformed entry (file, line and field named), a duplicate id, or a
            fake article with instructions.
        ImportError: a Hub name without the package `datasets`.
    """
    articles: dict[str, Article] = {}
    for where, row in read_rows(source):
        key = check_text(require_field(row, "id", where), where, "id")
        if key in articles:
            raise ValueError(f"{where}: duplicate id {reprlib.repr(key)}")
        kind = check_text(require_field(row, "kind", where), where, "kind")
        if kind not in KINDS:
            raise ValueError(f"{where}: 'kind' must be real or fake, not {reprlib.repr(kind)}")
        if kind == "fake" and row.get("instructions"):
            raise ValueError(f"{where}: 'instructions' are for real articles, this one is fake")
        articles[key] = Article(
            id=key,
            kind=kind,
            text=check_text(require_field(row, "text", where), where, "text"),
            questions=tuple(
                (question, answer) for question, answer in _pairs(row, "questions", where)
            ),
            instructions=tuple(
                (question, _known(answer, where, "instructions"))
                for question, answer in _pairs(row, "instructions", where)
            ),
        )
    return list(articles.values())


def read_news_truthful(source: Source, fields: NewsFields) -> list[Article]:
    """Read the articles of news-truthful (Lu & Koehn 2024, `hub:TaiMingLu/news-truthful`).

    Each row holds a real article, the same article with an injected claim, the claim's keyword,
    questions with answers on the real one, and a question on each for evaluation. What the fields
    are called is not documented where we could read it, so they are named by the caller. Ids are
    the source's name and the row's number, `news-truthful:1-real` and `news-truthful:1-fake`.

    Raises:
        ValueError: a field that the rows do not have (those they have are named), or a malformed
            entry (file, line and field named).
        ImportError: a Hub name without the package `datasets`.
    """
    articles = []
    for number, (where, row) in enumerate(read_rows(source), start=1):
        for role in ("real", "fake", "keyword", "instructions", "real_question", "fake_question"):
            name = getattr(fields, role)
            if name not in row:
                there = " ".join(", ".join(row).split())[:200]
                raise ValueError(f"{where}: no field {name!r} ({role}); there are {there}")

        def value(role: str, row: Mapping[str, Any] = row, where: str = where) -> str:
            name = getattr(fields, role)
            return check_text(require_field(row, name, where), where, name)

        pairs = _pairs(row, fields.instructions, where, fields.question, fields.answer)
        entry = f"{get_stem(source)}:{number}"
        articles.append(
            Article(
                id=f"{entry}-real",
                kind="real",
                text=value("real"),
                questions=((value("real_question"), None),),
                instructions=tuple(
                    (question, _known(answer, where, fields.instructions))
                    for question, answer in pairs
                ),
            )
        )
        articles.append(
            Article(
                id=f"{entry}-fake",
                kind="fake",
                text=value("fake"),
                questions=((value("fake_question"), value("keyword")),),
            )
        )
    return articles


def _pairs(
    row: Mapping[str, Any],
    field: str,
    where: str,
    question: str = "question",
    answer: str = "answer",
) -> list[tuple[str, str | None]]:
    """Read the questions of a field, with their answers where there are any."""
    if row.get(field) in (None, []):
        return []
    pairs = []
    for entry in check_list(row[field], where, field):
        pair = check_object(entry, where, field)
        answered = pair.get(answer)
        pairs.append(
            (
                check_text(require_field(pair, question, where), where, question),
                None if answered is None else check_text(answered, where, answer),
            )
        )
    return pairs


def _known(answer: str | None, where: str, field: str) -> str:
    if answer is None:
        raise ValueError(f"{where}: an entry of {field!r} has no answer")
    return answer
