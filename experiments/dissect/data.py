"""Concepts that Hong et al. 2024 make a model forget, with what is kept and what is asked.

A concept is a group of facts that V answers rightly in English (`capital/Europe`), or a record of
the authors' files (`interp.data.datasets.read_concepts`). Each is unlearned by itself, in English,
while everything else is retained; unrelated questions are of facts that no training text states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp import LanguageModel, Query
from interp.behaviour import AliasJudge, generate
from interp.data import (
    REAL_LANGUAGE,
    RELATIONS,
    ConceptRecord,
    Fact,
    Text,
    fill,
    format_instruction,
    make_queries,
    make_query,
    make_unrelated_queries,
    order_by_answer,
    read_concepts,
    read_templates,
    select_facts,
    sort_by_hash,
)

TARGET, UNRELATED = "target", "unrelated"

EDIT, STATEMENT, QUESTION = "edit", "statement", "question"
"""Forms of texts: for MEMIT, to complete, and to answer."""

FORMS = {"mixed": STATEMENT, "questions": QUESTION}
"""Form of a method's texts by what `interp.unlearning.Method.form` calls that of built-in facts."""

TEMPLATE = "Question: {question}\nAnswer:"
"""How questions of the authors' files are asked."""


@dataclass(frozen=True, kw_only=True)
class ForgetConcept:
    """Concept to forget, with what is retained and asked.

    Attributes:
        name: of the concept.
        forget: by form, what states it.
        retain: by form, what states other things.
        targets: questions about it, in every query language.
        unrelated: questions about other things, which no text of `retain` answers.
        num_candidates: how many facts of the group V was asked, where V's knowledge chose them.
    """

    name: str
    forget: Mapping[str, tuple[Text, ...]]
    retain: Mapping[str, tuple[Text, ...]]
    targets: tuple[Query, ...]
    unrelated: tuple[Query, ...]
    num_candidates: int = 0


def build_fact_concepts(
    vanilla: LanguageModel,
    names: Sequence[str],
    *,
    languages: Sequence[str],
    num_questions: int,
    num_unrelated: int,
    num_candidates: int = 40,
    num_retain: int = 200,
    num_tokens: int = 10,
    seed: int = 0,
    cache: Path | None = None,
    progress: bool = True,
) -> list[ForgetConcept]:
    """Build concepts of groups of built-in facts that V knows.

    Args:
        vanilla: V, which is asked in English.
        names: a relation and a continent each, such as `capital/Europe`.
        languages: BCP-47 codes of the query languages; only facts that exist in all of them.
        num_questions: facts of a concept at most, the best-known countries first.
        num_unrelated: unrelated questions per language, evenly of all relations.
        num_candidates: facts of a group that V is asked at most; of unrelated ones twice as many
            as are wanted.
        num_retain: texts to retain, of each form.
        num_tokens: V's longest answer.
        seed: of the choice of texts.
        cache: a file that keeps V's answers.
        progress: show progress bars.

    Raises:
        ValueError: no such group, or V knows fewer than two facts of one, or too few others.
    """
    groups = {name: select_country_group(name, languages) for name in names}
    inside = {fact.id for group in groups.values() for fact in group}
    others = []
    for relation in RELATIONS:
        there = [f for f in select_facts(relation, languages=languages) if f.id not in inside]
        share = -(-2 * num_unrelated // len(RELATIONS))
        others.append(order_by_answer(there, REAL_LANGUAGE)[:share])
    # One of each relation in turn.
    mixed = [
        part[place]
        for place in range(len(max(others, key=len)))
        for part in others
        if place < len(part)
    ]
    candidates = {name: group[:num_candidates] for name, group in groups.items()}
    everything = [*mixed, *(fact for group in candidates.values() for fact in group)]
    known = find_known_facts(
        vanilla, everything, num_tokens=num_tokens, cache=cache, progress=progress
    )
    unrelated = [fact for fact in mixed if fact.id in known][:num_unrelated]
    if len(unrelated) < num_unrelated:
        raise ValueError(
            f"{vanilla.name!r} knows {len(unrelated)} of {len(mixed)} facts outside the concepts; "
            f"{num_unrelated} unrelated questions are wanted"
        )
    held_out = {fact.id for fact in unrelated}
    concepts = []
    for name, group in groups.items():
        facts = [fact for fact in candidates[name] if fact.id in known][:num_questions]
        if len(facts) < 2:
            raise ValueError(
                f"{vanilla.name!r} knows {len(facts)} of {len(candidates[name])} facts of "
                f"{name!r}; a concept needs two"
            )
        own = {fact.id for fact in group}
        rest = [
            fact
            for relation in RELATIONS
            for fact in select_facts(relation, languages=[REAL_LANGUAGE])
            if fact.id not in own | held_out
        ]
        forget, retain = _write_texts(facts), _write_texts(rest)
        concepts.append(
            ForgetConcept(
                name=name,
                forget=forget,
                retain={
                    form: tuple(sort_by_hash(texts, f"{seed}/{form}", key=lambda t: t.text))[
                        :num_retain
                    ]
                    for form, texts in retain.items()
                },
                targets=_make_queries(facts, languages, name),
                unrelated=_make_queries(unrelated, languages, "unrelated"),
                num_candidates=len(candidates[name]),
            )
        )
    return concepts


def select_country_group(name: str, languages: Sequence[str]) -> list[Fact]:
    """Select the facts of a relation about the countries of a continent, best-known first.

    Args:
        name: such as `capital/Europe`.
        languages: BCP-47 codes; only facts that exist in all of them, and in English.

    Raises:
        ValueError: no such relation or continent.
    """
    relation, _, continent = name.partition("/")
    there = select_facts("continent", languages=[REAL_LANGUAGE])
    where = {_get_country(fact): fact.object[REAL_LANGUAGE] for fact in there}
    if relation not in RELATIONS or relation == "continent" or continent not in where.values():
        relations = ", ".join(name for name in RELATIONS if name != "continent")
        continents = ", ".join(dict.fromkeys(where.values()))
        raise ValueError(
            f"no group {name!r}; a group is a relation ({relations}), a slash and a continent "
            f"({continents})"
        )
    wanted = [*dict.fromkeys([REAL_LANGUAGE, *languages])]
    facts = select_facts(relation, languages=wanted)
    return [fact for fact in facts if where.get(_get_country(fact)) == continent]


def find_known_facts(
    vanilla: LanguageModel,
    facts: Sequence[Fact],
    *,
    num_tokens: int,
    cache: Path | None = None,
    progress: bool = True,
) -> set[str]:
    """Return the ids of the facts that a model answers rightly in English, by spelling."""
    queries = _make_queries(facts, [REAL_LANGUAGE], "known")
    answers = generate(vanilla, queries, num_tokens=num_tokens, cache=cache, progress=progress)
    return {verdict.query_id for verdict in AliasJudge()(answers) if verdict.value == 1}


def read_file_concepts(
    source: str, *, num_concepts: int, num_questions: int, num_unrelated: int
) -> list[ForgetConcept]:
    """Read concepts of the authors' files, in English.

    Methods that train read the paragraphs of the article; MEMIT edits what those sentences that are
    to be completed and name the concept ask for. Retained are the paragraphs of the other concepts.

    Args:
        source: a file or Hub name, see `read_concepts`.
        num_concepts: the first ones.
        num_questions: questions about each, the first ones.
        num_unrelated: of its unrelated questions, the first ones.

    Raises:
        ValueError: the file is malformed, or has a single concept, so that nothing is retained.
    """
    records = list(read_concepts(source))
    if len(records) < 2:
        raise ValueError(f"{source} has one concept; two are needed, one to retain")
    concepts = []
    for record in records[:num_concepts]:
        article = _split_paragraphs(record)
        others = tuple(
            text for other in records if other is not record for text in _split_paragraphs(other)
        )
        concepts.append(
            ForgetConcept(
                name=record.concept,
                forget={STATEMENT: article, QUESTION: article, EDIT: _read_completions(record)},
                retain=dict.fromkeys((STATEMENT, QUESTION, EDIT), others),
                targets=tuple(make_queries([record], template=TEMPLATE)[:num_questions]),
                unrelated=tuple(
                    make_unrelated_queries([record], template=TEMPLATE)[:num_unrelated]
                ),
            )
        )
    return concepts


def _split_paragraphs(record: ConceptRecord) -> tuple[Text, ...]:
    """Return the paragraphs of a concept's article; headings end without a mark and are no text."""
    lines = (line.strip() for line in record.wikipedia_content.splitlines())
    return tuple(
        Text(id=record.id, language=record.language, kind="real", prompt="", answer=line)
        for line in lines
        if line.endswith((".", "!", "?", '"', "”"))
    )


def _read_completions(record: ConceptRecord) -> tuple[Text, ...]:
    """Read sentences to complete, all of one fact; those that do not name it are unused."""
    texts = []
    for first, second in record.text_completions:
        prompt = first.rstrip()
        start = prompt.lower().rfind(record.concept.lower())
        texts.append(
            Text(
                id=record.id,
                language=record.language,
                kind="real",
                prompt=prompt,
                answer=f" {second.strip()}",
                subject=record.concept,
                mention=prompt[start : start + len(record.concept)] if start >= 0 else "",
                object=second.strip(),
            )
        )
    return tuple(texts)


def _write_texts(facts: Sequence[Fact]) -> dict[str, tuple[Text, ...]]:
    """Write English texts of every fact, by form."""
    statements, questions = [], []
    for fact in facts:
        wordings = read_templates(REAL_LANGUAGE).wordings[fact.relation]
        subject, answer = fact.subject[REAL_LANGUAGE], fact.object[REAL_LANGUAGE]
        about: dict[str, Any] = {"id": fact.id, "language": REAL_LANGUAGE, "kind": "real"}
        for number, template in enumerate(wordings.unlearning, start=1):
            before = template.partition("{object}")[0]
            prompt = fill(before, fact, REAL_LANGUAGE).rstrip()
            named = prompt.count(subject) == 1
            # What follows the answer says nothing of the fact, unless it names the country.
            whole = fill(before + "{object}" if named else template, fact, REAL_LANGUAGE)
            statements.append(
                Text(
                    prompt=prompt,
                    answer=whole.removeprefix(prompt),
                    wording=number,
                    subject=subject,
                    mention=subject if named else "",
                    object=answer,
                    **about,
                )
            )
        for number in range(1, len(wordings.instructions) + 1):
            prompt, answer_text = format_instruction(fact, REAL_LANGUAGE, wording=number)
            questions.append(Text(prompt=prompt, answer=answer_text, wording=number, **about))
    return {STATEMENT: tuple(statements), QUESTION: tuple(questions), EDIT: tuple(statements)}


def _make_queries(
    facts: Sequence[Fact], languages: Sequence[str], concept: str
) -> tuple[Query, ...]:
    return tuple(make_query(fact, code, concept=concept) for code in languages for fact in facts)


def _get_country(fact: Fact) -> str:
    return fact.id.rpartition("-")[2]
