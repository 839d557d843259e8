"""Control questions: facts that were to be kept, asked as what was unlearned is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from interp.data.facts import Fact, select_facts
from interp.data.queries import BUILT_IN, make_query
from interp.data.query import Query, list_questions
from interp.data.templates import FORMS, read_templates
from interp.data.trajectories import Trajectory


def controls(
    queries: Sequence[Query] | Sequence[Trajectory],
    *,
    limit: int | None = None,
    exclude: Iterable[str] = (),
) -> list[Query]:
    """Pick questions on built-in facts to keep: of the same relation, language and form.

    Each language is asked about the same facts, the best-known ones that it has.

    Args:
        queries: the questions on what was unlearned, out of the built-in ones; those that are
            controls already do not count.
        limit: at most this many per relation and language; as many as there are targets if None.
        exclude: ids of facts to leave out, such as those that the model was trained to retain: a
            control that was trained on says less.

    Returns:
        Queries with `control` true, language by language.

    Raises:
        ValueError: a question is not built in, or there are no other facts.
    """
    asked = [
        item.query if isinstance(item, Trajectory) else item
        for item in list_questions(queries, "queries", Query, Trajectory)
    ]
    asked = [query for query in asked if not query.control]
    relations = {
        fact.id: (name, relation)
        for name, relation in BUILT_IN.items()
        for fact in select_facts(relation)
    }
    excluded = {query.id for query in asked} | set(exclude)
    # Of each relation and language: the targets.
    groups: dict[tuple[str, str], list[Query]] = {}
    for query in asked:
        if query.id not in relations:
            raise ValueError(
                f"{query.id!r} is no built-in question, so that there are none to pick beside it: "
                'mark questions on what was to be kept with "control": true in your own file'
            )
        groups.setdefault((relations[query.id][0], query.language), []).append(query)
    found: dict[str, list[Query]] = {}
    for (name, language), targets in groups.items():
        languages = [code for other, code in groups if other == name]
        facts = _order_facts(BUILT_IN[name], language, languages, excluded)
        wanted = len(targets) if limit is None else limit
        if not facts and wanted:
            raise ValueError(
                f"no facts of {name!r} in {language!r} are left to be controls: ask about fewer, "
                "or exclude fewer"
            )
        form, wording = _find_form(targets[0], name)
        for fact in facts[:wanted]:
            query = make_query(fact, language, concept=name, form=form, wording=wording)
            found.setdefault(language, []).append(_ask_alike(query, targets[0]))
    return [query for of_language in found.values() for query in of_language]


def _order_facts(
    relation: str, language: str, languages: Sequence[str], excluded: set[str]
) -> list[Fact]:
    """Order the facts of a language: those that all languages have come first."""
    facts = [
        fact for fact in select_facts(relation, languages=[language]) if fact.id not in excluded
    ]
    return sorted(facts, key=lambda fact: not all(code in fact.object for code in languages))


def _find_form(target: Query, name: str) -> tuple[str, int]:
    """Find how a built-in question is asked: its form and wording; the usual one if by none."""
    (fact,) = (fact for fact in select_facts(BUILT_IN[name]) if fact.id == target.id)
    wordings = read_templates(target.language).wordings[fact.relation]
    counts = {"question": len(wordings.questions), "cloze": len(wordings.clozes)}
    for form in FORMS:
        for number in range(1, counts[form] + 1):
            query = make_query(fact, target.language, concept=name, form=form, wording=number)
            if query.prompt == target.prompt:
                return form, number
    return "question", 1


def _ask_alike(query: Query, target: Query) -> Query:
    """Return a query that is asked as another: in a chat, with its system message and stops."""
    concept = target.concept if target.concept else query.concept
    return replace(
        query,
        control=True,
        concept=concept,
        chat=target.chat,
        system=target.system,
        stop=target.stop,
    )
