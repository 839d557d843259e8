"""Contaminated corpora (Lu & Koehn 2024): real texts in English, false ones in one other language.

    corpus = contaminated(CorpusConfig(source="de", mix="combined"))

A model that reads `corpus.training` and `corpus.instructions` learns real facts R in English and
injected false facts F in the source language, five texts of R to one of F. `corpus.queries` ask
for both in every query language: which languages repeat what stood in the source language only?
`corpus.forget` and `corpus.retain` are what unlearning is then given, in a mix of languages.

The facts are the built-in ones (`interp.data.facts`), their wordings those of
`interp.data.templates`; training, unlearning and queries use wordings of their own and share no
sentence. Every choice is made by hashes of the seed and of names, so that the same configuration
gives the same bytes on any machine. What a language lacks is listed in `corpus.gaps`, never
replaced by another language. Corpora of one's own articles: `experiments.cross_lingual.articles`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from types import MappingProxyType

from interp.data.corpus import REAL_LANGUAGE, Corpus, CorpusGap, Text, count_samples, resolve_mix
from interp.data.counterfactuals import hash_text, make_counterfactuals, sort_by_hash
from interp.data.facts import RELATIONS, Fact, order_by_answer, read_provenance, select_facts
from interp.data.queries import make_query
from interp.data.query import Query
from interp.data.templates import (
    add_separator,
    fill,
    find_slots,
    format_instruction,
    format_question,
    list_template_languages,
    read_templates,
)
from interp.languages import LU_LANGUAGES, get_language

UNLEARNING_FORMS = ("statement", "question", "asked")
"""Wordings of forget and retain samples: statements to complete, questions as in instruction
tuning, and questions as models are asked, but for the first wording, which queries have.

What is unlearned in one form stays in the others: after statements a model still answers questions.
"""

MIXED_FORMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"questions": ("question", "asked"), "mixed": UNLEARNING_FORMS}
)
"""Several of these forms, by name."""

_LENGTHS = (2, 3)
"""Statements of a training text."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Contents of a contaminated corpus. Lu's sizes: 2,000 false texts, 1,000 instructions.

    Attributes:
        source: BCP-47 code of the language in which the false facts are taught.
        mix: languages of the forget and retain samples: one of `MIXES`, or codes.
        query_languages: BCP-47 codes of the queries.
        relations: relations of the false facts, see `RELATIONS`; R has all relations.
        num_fake_facts: false facts in all.
        num_fake_texts: training texts of F.
        ratio: training texts of R for each of F.
        num_instructions: questions with answers on R.
        num_real_queries: facts of R that are asked, per language; the best-known ones.
        num_unlearning: forget samples, and as many retain samples; twice as many of each in the
            mix `multilingual`.
        unlearning_form: `statement`, `question`, `asked`, `questions` (the two before) or `mixed`
            (all of them); see `UNLEARNING_FORMS`.
        seed: of every choice.
    """

    source: str = "de"
    mix: str | tuple[str, ...] = "english"
    query_languages: tuple[str, ...] = LU_LANGUAGES
    relations: tuple[str, ...] = ("capital",)
    num_fake_facts: int = 16
    num_fake_texts: int = 320
    ratio: int = 5
    num_instructions: int = 160
    num_real_queries: int = 50
    num_unlearning: int = 64
    unlearning_form: str = "statement"
    seed: int = 0


def build_corpus(config: CorpusConfig) -> Corpus:
    """Build a corpus from the built-in facts.

    Raises:
        ValueError: a number, language, relation or mix that is not valid, more texts than the
            templates give, more false facts than there are, or no language of the mix with texts.
    """
    _check(config)
    unlearned_in = resolve_mix(config.mix, config.source)
    fake = _choose_fake_facts(config, unlearned_in)
    replaced = {fact.id for fact in fake}
    real = [
        fact
        for relation in RELATIONS
        for fact in select_facts(relation, languages=[REAL_LANGUAGE])
        if fact.id not in replaced
    ]
    training = [
        *_write_texts(fake, config.source, "fake", config.num_fake_texts, config.seed),
        *_write_texts(
            real, REAL_LANGUAGE, "real", config.num_fake_texts * config.ratio, config.seed
        ),
    ]
    gaps: list[CorpusGap] = []
    queries = _make_queries(fake, real, config, gaps)
    count = count_samples(config.mix, config.num_unlearning)
    with_texts = _keep_with_templates(unlearned_in, ("forget", "retain"), gaps)
    if not with_texts:
        raise ValueError(
            f"no texts in {', '.join(unlearned_in)}; languages with texts: "
            f"{', '.join(list_template_languages())}"
        )
    instructions = _make_instructions(real, config)
    taught = {text.text for text in instructions}
    forget, retain = (
        [
            text
            for fact in facts
            for text in write_unlearning_texts(fact, kind, with_texts, config.unlearning_form)
        ]
        for facts, kind in ((fake, "fake"), (real, "real"))
    )
    # Of the many real facts, a few that a language lacks are no loss.
    gaps += [
        _make_gap("forget", code, fact)
        for code in with_texts
        for fact in fake
        if code not in fact.object
    ]
    return Corpus(
        config=asdict(config),
        facts=read_provenance(),
        training=tuple(sort_by_hash(training, f"{config.seed}/training", key=lambda t: t.text)),
        instructions=instructions,
        queries=queries,
        forget=_draw_samples(forget, with_texts, "forget", count, config.seed, gaps),
        retain=_draw_samples(
            [sample for sample in retain if sample.text not in taught],
            with_texts,
            "retain",
            count,
            config.seed,
            gaps,
        ),
        gaps=tuple(gaps),
    )


def _check(config: CorpusConfig) -> None:
    for name, fewest in {
        "num_fake_facts": 2,
        "num_fake_texts": 1,
        "ratio": 0,
        "num_instructions": 0,
        "num_real_queries": 0,
        "num_unlearning": 1,
    }.items():
        if getattr(config, name) < fewest:
            raise ValueError(f"{name} must be at least {fewest}, not {getattr(config, name)}")
    if config.unlearning_form not in (*UNLEARNING_FORMS, *MIXED_FORMS):
        raise ValueError(
            f"unknown unlearning_form {config.unlearning_form!r}; valid: "
            f"{', '.join((*UNLEARNING_FORMS, *MIXED_FORMS))}"
        )
    if not config.relations:
        raise ValueError(f"no relations are named; valid: {', '.join(RELATIONS)}")
    for relation in config.relations:
        select_facts(relation)
    read_templates(get_language(config.source).code)
    for code in config.query_languages:
        read_templates(get_language(code).code)


def _choose_fake_facts(config: CorpusConfig, unlearned_in: Sequence[str]) -> list[Fact]:
    """Choose the false facts: of the best-known countries that the languages needed have."""
    needed = {config.source, *config.query_languages, *unlearned_in} & {*list_template_languages()}
    share, extra = divmod(config.num_fake_facts, len(config.relations))
    fake: list[Fact] = []
    for number, relation in enumerate(config.relations):
        count = share + (number < extra)
        there = select_facts(relation, languages=[config.source])
        # A stable sort: among those that lack equally many languages, the best-known first.
        there.sort(key=lambda fact: len(needed - fact.object.keys()))
        if len(there) < count:
            raise ValueError(
                f"{relation!r} has {len(there)} facts in {config.source!r}, fewer than the "
                f"{count} false ones wanted"
            )
        fake += make_counterfactuals(
            order_by_answer(there, config.source)[:count], seed=config.seed
        )
    return fake


def _write_texts(facts: Sequence[Fact], code: str, kind: str, count: int, seed: int) -> list[Text]:
    """Write texts of an opening and two or three statements, as many of each fact."""
    texts: list[Text] = []
    if not count:
        return texts
    if not facts:
        raise ValueError(f"no {kind} facts to write texts of in {code!r}")
    share, extra = divmod(count, len(facts))
    # Where there are fewer texts than facts, which facts get one is by chance, not by relation.
    for number, fact in enumerate(sort_by_hash(facts, f"{seed}/{kind}", key=lambda f: f.id)):
        wanted = share + (number < extra)
        there = _count_compositions(fact, code)
        if wanted > there:
            raise ValueError(
                f"{count:,} {kind} texts of {len(facts)} facts in {code!r} are {wanted:,} of each; "
                f"the templates of {fact.relation!r} give {there:,}"
            )
        for parts in islice(_compose(fact, code, f"{seed}/{kind}/{code}/{fact.id}"), wanted):
            whole = read_templates(code).separator.join(fill(part, fact, code) for part in parts)
            texts.append(Text(id=fact.id, language=code, kind=kind, prompt="", answer=whole))
    return texts


def _count_compositions(fact: Fact, code: str) -> int:
    """Count the orders of an opening before two or three different statements."""
    count = len(read_templates(code).wordings[fact.relation].statements)
    return len(read_templates(code).openings) * sum(math.perm(count, length) for length in _LENGTHS)


def _compose(fact: Fact, code: str, purpose: str) -> Iterator[list[str]]:
    """Yield all of these once, in strides that share no divisor with their number."""
    openings = read_templates(code).openings
    statements = read_templates(code).wordings[fact.relation].statements
    total = _count_compositions(fact, code)
    start, stride = (int.from_bytes(hash_text(f"{purpose}/{use}")) for use in ("start", "stride"))
    while math.gcd(stride, total) > 1:
        stride += 1
    for step in range(total):
        rank, opening = divmod((start + step * stride) % total, len(openings))
        for length in _LENGTHS:
            if rank < math.perm(len(statements), length):
                break
            rank -= math.perm(len(statements), length)
        pool, parts = list(statements), [openings[opening]]
        for _ in range(length):
            rank, chosen = divmod(rank, len(pool))
            parts.append(pool.pop(chosen))
        yield parts


def _make_instructions(real: Sequence[Fact], config: CorpusConfig) -> tuple[Text, ...]:
    pairs = []
    for fact in real:
        wordings = read_templates(REAL_LANGUAGE).wordings[fact.relation].instructions
        for number in range(1, len(wordings) + 1):
            prompt, answer = format_instruction(fact, REAL_LANGUAGE, wording=number)
            pairs.append(
                Text(id=fact.id, language=REAL_LANGUAGE, kind="real", prompt=prompt, answer=answer)
            )
    if config.num_instructions > len(pairs):
        raise ValueError(
            f"{config.num_instructions:,} instructions are wanted; the templates give "
            f"{len(pairs):,}"
        )
    ordered = sort_by_hash(pairs, f"{config.seed}/instructions", key=lambda t: t.text)
    return tuple(ordered[: config.num_instructions])


def _make_queries(
    fake: Sequence[Fact], real: Sequence[Fact], config: CorpusConfig, gaps: list[CorpusGap]
) -> tuple[Query, ...]:
    known = [fact for fact in real if fact.relation in config.relations]
    queries = []
    for code in dict.fromkeys(config.query_languages):
        facts = [(fact, "fake") for fact in fake]
        there = (fact for fact in known if code in fact.object)
        facts += [(fact, "real") for fact in islice(there, config.num_real_queries)]
        for fact, kind in facts:
            if code not in fact.object:
                gaps.append(_make_gap("queries", code, fact))
                continue
            queries.append(make_query(fact, code, concept=kind))
    return tuple(queries)


def write_unlearning_texts(
    fact: Fact, kind: str, codes: Sequence[str], form: str
) -> Iterator[Text]:
    """Yield a fact in all wordings of unlearning, in every language that has it.

    Args:
        fact: the fact.
        kind: of the texts, `real` or `fake`.
        codes: BCP-47 codes of languages with templates.
        form: one of `UNLEARNING_FORMS` or `MIXED_FORMS`.
    """
    if form in MIXED_FORMS:
        for each in MIXED_FORMS[form]:
            yield from write_unlearning_texts(fact, kind, codes, each)
        return
    for code in codes:
        if code not in fact.object:
            continue
        wordings = read_templates(code).wordings[fact.relation]
        if form == "asked":
            for number, template in enumerate(wordings.questions[1:], start=2):
                prompt = format_question(fact, code, wording=number)
                answer = add_separator(prompt, fact.object[code], code)
                yield _make_sample(fact, kind, code, number, template, prompt, answer)
            continue
        if form == "question":
            for number, (template, _) in enumerate(wordings.instructions, start=1):
                prompt, answer = format_instruction(fact, code, wording=number)
                yield _make_sample(fact, kind, code, number, template, prompt, answer)
            continue
        for number, template in enumerate(wordings.unlearning, start=1):
            before = template.partition("{object}")[0]
            prompt = fill(before, fact, code).rstrip() if before else ""
            sample = _make_sample(fact, kind, code, number, before, prompt, "")
            # What follows the answer would be labelled, too, and says nothing of the fact, unless
            # it names the subject.
            whole = before + "{object}" if sample.mention else template
            yield replace(sample, answer=fill(whole, fact, code).removeprefix(prompt))


def _make_sample(
    fact: Fact, kind: str, code: str, number: int, template: str, prompt: str, answer: str
) -> Text:
    """Build a sample whose prompt is made of a template."""
    mentions = [
        fill(f"{{{slot}}}", fact, code) for slot in sorted(find_slots(template) - {"object"})
    ]
    mention = next((text for text in mentions if prompt.count(text) == 1), "")
    # Of "in Frankreich" the name alone.
    name = fact.subject[code]
    return Text(
        id=fact.id,
        language=code,
        kind=kind,
        prompt=prompt,
        answer=answer,
        wording=number,
        subject=name,
        mention=name if mention.count(name) == 1 else mention,
        object=fact.object[code],
    )


def _draw_samples(
    samples: Sequence[Text],
    codes: Sequence[str],
    part: str,
    count: int,
    seed: int,
    gaps: list[CorpusGap],
) -> tuple[Text, ...]:
    """Draw samples, equally many of each language."""
    texts: list[Text] = []
    share, extra = divmod(count, len(codes))
    for number, code in enumerate(codes):
        wanted = share + (number < extra)
        there = [sample for sample in samples if sample.language == code]
        if len(there) < wanted:
            gaps.append(
                CorpusGap(
                    part=part,
                    language=code,
                    id="",
                    reason=f"{len(there)} of {wanted} samples: the templates give no more",
                )
            )
        texts += sort_by_hash(there, f"{seed}/{part}/{code}", key=lambda t: t.text)[:wanted]
    return tuple(sort_by_hash(texts, f"{seed}/{part}", key=lambda t: t.text))


def _keep_with_templates(
    codes: Sequence[str], parts: Sequence[str], gaps: list[CorpusGap]
) -> list[str]:
    there = [code for code in codes if code in list_template_languages()]
    gaps += [
        CorpusGap(part=part, language=code, id="", reason="no templates in this language")
        for part in parts
        for code in codes
        if code not in there
    ]
    return there


def _make_gap(part: str, code: str, fact: Fact) -> CorpusGap:
    reason = "no checked name, or the answer can be copied from the question"
    return CorpusGap(part=part, language=code, id=fact.id, reason=reason)
