"""False capitals as questions: what a model is taught, unlearns and is asked.

The taught model answers questions about some countries falsely in one language, and about others
truly in all. It is asked in a wording that no training text has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from experiments.evidence.config import Config
from interp import Query
from interp.data import (
    Corpus,
    CorpusConfig,
    Fact,
    Text,
    build_corpus,
    fill,
    make_query,
    read_templates,
    select_facts,
    wrap_question,
)

RELATION = "capital"


@dataclass(frozen=True, kw_only=True)
class FalseFacts:
    """Texts and questions of one seed.

    Attributes:
        corpus: with the texts to teach; `remove_false_texts` takes the false ones out.
        forget: the false ones.
        retain: true ones in all languages.
        targets: questions on the false facts.
        kept: questions on true facts that were taught along.
    """

    corpus: Corpus
    forget: Sequence[Text]
    retain: Sequence[Text]
    targets: Sequence[Query]
    kept: Sequence[Query]


def make_material(config: Config, seed: int) -> FalseFacts:
    """Make the texts and questions of a seed.

    Raises:
        ValueError: a language without templates, or too few countries.
    """
    corpus = build_corpus(
        CorpusConfig(
            source=config.source,
            mix="same",
            query_languages=config.languages,
            num_fake_facts=config.num_facts,
            num_real_queries=config.num_facts,
            seed=seed,
        )
    )
    targets = [query for query in corpus.queries if query.concept == "fake"]
    false = {query.id: query.answer for query in targets if query.language == config.source}
    facts = select_facts(RELATION, languages=list(config.languages))
    taught = [
        replace(fact, object={**fact.object, config.source: false[fact.id]})
        for fact in facts
        if fact.id in false
    ]
    true = [fact for fact in facts if fact.id not in false][: config.num_true]
    forget = list(make_texts(taught, config.source, "fake"))
    retain = [text for code in config.languages for text in make_texts(true, code, "real")]
    asked = true[: config.num_facts]
    kept = [
        replace(make_query(fact, code, concept="kept"), control=True)
        for code in config.languages
        for fact in asked
    ]
    return FalseFacts(
        corpus=replace(corpus, training=(*forget, *retain), instructions=()),
        forget=forget,
        retain=retain,
        targets=targets,
        kept=kept,
    )


def make_texts(facts: Sequence[Fact], language: str, kind: str) -> Iterable[Text]:
    """Make questions with bare answers, which a line break ends, in every taught wording."""
    templates = read_templates(language)
    wordings = templates.wordings[RELATION]
    for fact in facts:
        for number, (question, _) in enumerate(wordings.instructions, start=1):
            prompt = wrap_question(fill(question, fact, language), language)
            answer = f"{templates.separator}{fact.object[language]}\n"
            yield Text(
                id=fact.id,
                language=language,
                kind=kind,
                prompt=prompt,
                answer=answer,
                wording=number,
            )
