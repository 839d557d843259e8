"""Facts and sentences to forget and to retain, the same in many languages (Choi et al. 2024).

A material has three parts that share nothing: what is forgotten, what is retained in training, and
a test part that no training sees, which says what else was lost. Every entry exists in every
language, because an entry is one sequence whose language is drawn anew.

Facts are clozes (BMLAMA-53 in the paper), their labels the answer's tokens; sentences (FLORES-200
in the paper) are labelled whole. Without files the built-in facts serve as both: as clozes, and,
stated, as sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.lingtea.config import Config
from interp import Query
from interp.data import (
    ClozeFact,
    Dataset,
    Fact,
    Gap,
    Sentence,
    Text,
    fill,
    make_queries,
    read_bmlama,
    read_flores,
    read_templates,
    select_facts,
    sort_by_hash,
)

_TURN = 4
"""Facts of a relation before those of the next."""

PARTS = ("forget", "retain", "test")

Record = ClozeFact | Sentence


@dataclass(frozen=True, kw_only=True)
class Material:
    """Entries that a model is to forget and to retain.

    Attributes:
        name: `facts` or `sentences`.
        languages: BCP-47 codes.
        forget: entry by entry, each in all languages.
        retain: likewise; what methods with a retain set train on.
        test: likewise; never trained on.
        gaps: entries that were left out because a language lacks them.
    """

    name: str
    languages: tuple[str, ...]
    forget: tuple[Record, ...]
    retain: tuple[Record, ...]
    test: tuple[Record, ...]
    gaps: tuple[Gap, ...] = ()

    @property
    def size(self) -> int:
        """Entries to forget."""
        return len({record.id for record in self.forget})


def make_materials(config: Config) -> list[Material]:
    """Make the materials, each with forget sets of all its sizes.

    Raises:
        ValueError: a file or a built-in set that lacks something, a language of its own among them.
    """
    if not set(config.extras) <= set(config.languages) <= {"facts", "sentences"}:
        raise ValueError(
            f"the materials {', '.join({*config.languages, *config.extras})} must be facts or "
            "sentences, with languages for each"
        )
    for name in config.extras:
        if config.only not in config.languages[name]:
            raise ValueError(
                f"{config.only!r} is none of the languages of the {name}: "
                f"{', '.join(config.languages[name])}"
            )
    return [
        _make_material(config, name, size)
        for name in config.languages
        for size in (config.size, *(config.sizes if name in config.extras else ()))
    ]


def select_queries(material: Material, config: Config) -> list[Query]:
    """Select the forgotten entries that are swept, language by language."""
    ids = list(dict.fromkeys(record.id for record in material.forget))[: config.num_queries]
    records = [record for record in material.forget if record.id in ids]
    queries = convert_to_queries(records, "forget")
    return sorted(queries, key=lambda query: material.languages.index(query.language))


def make_fact_clozes(
    languages: Sequence[str], relations: Sequence[str] = ("capital",), *, num_candidates: int = 10
) -> list[ClozeFact]:
    """Make parallel clozes of built-in facts, best-known countries first.

    A cloze is the first statement of a fact, up to the answer. Relations take turns with four facts
    each, so that every part of `split_pool` gets facts of every relation.

    Args:
        languages: BCP-47 codes; a fact that one of them lacks is left out.
        relations: see `interp.data.facts.RELATIONS`.
        num_candidates: the right answer and others of its relation, drawn by hash.

    Raises:
        ValueError: no such relation, or a language without facts or templates.
    """
    pools = [select_facts(relation, languages=languages) for relation in relations]
    return [
        _make_cloze(fact, code, pool, num_candidates)
        for start in range(0, max(map(len, pools)), _TURN)
        for pool in pools
        for fact in pool[start : start + _TURN]
        for code in languages
    ]


def make_fact_sentences(languages: Sequence[str], relations: Sequence[str]) -> list[Sentence]:
    """Make parallel sentences of statements on countries, best-known countries first.

    Args:
        languages: BCP-47 codes; a country that lacks a fact in one of them is left out.
        relations: what is said of each country, in this order.

    Raises:
        ValueError: no such relation, or a language without facts or templates.
    """
    by_country: list[dict[str, Fact]] = []
    for relation in relations:
        facts = select_facts(relation, languages=languages)
        by_country.append({fact.id.rpartition("-")[2]: fact for fact in facts})
    sentences = []
    for country in by_country[0]:
        if any(country not in pool for pool in by_country):
            continue
        for code in languages:
            stated = [
                fill(read_templates(code).wordings[fact.relation].statements[0], fact, code)
                for fact in (pool[country] for pool in by_country)
            ]
            text = read_templates(code).separator.join(stated)
            sentences.append(Sentence(id=country, language=code, text=text, concept="stated"))
    return sentences


def split_pool(
    name: str, pool: Sequence[Record], *, size: int, num_retain: int, num_test: int
) -> Material:
    """Split the entries of one pool into the parts of a material.

    Every other entry, in the pool's order, is for the forget set, the others take turns between
    retain and test, so that no part is better known. A smaller forget set is the beginning of a
    larger one, beside the same retain and test parts.

    Args:
        name: of the material.
        pool: records of complete entries, in order.
        size: entries to forget.
        num_retain: entries of the retain part.
        num_test: entries of the test part.

    Raises:
        ValueError: the pool is too small.
    """
    ids = list(dict.fromkeys(record.id for record in pool))
    wanted = {"forget": size, "retain": num_retain, "test": num_test}
    there = {"forget": ids[::2], "retain": ids[1::4], "test": ids[3::4]}
    for part, number in wanted.items():
        if number > len(there[part]):
            raise ValueError(
                f"{number} {name} are wanted in the {part} part; of {len(ids)} that all languages "
                f"have it gets {len(there[part])}"
            )
    chosen = {part: set(there[part][:number]) for part, number in wanted.items()}
    return Material(
        name=name,
        languages=tuple(dict.fromkeys(record.language for record in pool)),
        forget=tuple(record for record in pool if record.id in chosen["forget"]),
        retain=tuple(record for record in pool if record.id in chosen["retain"]),
        test=tuple(record for record in pool if record.id in chosen["test"]),
    )


def read_material(
    name: str,
    read: Callable[..., Dataset[Record]],
    paths: Mapping[str, str],
    *,
    languages: Sequence[str],
    size: int,
) -> Material:
    """Read a material from files of the paper's data sets.

    Args:
        name: of the material.
        read: `read_bmlama` or `read_flores`.
        paths: a file for each of `PARTS`; `{size}` stands for the size of the forget set.
        languages: BCP-47 codes.
        size: entries to forget, the first ones.

    Raises:
        ValueError: a file is missing or malformed, lacks a language, or has too few entries.
    """
    parts: dict[str, tuple[Record, ...]] = {}
    gaps: list[Gap] = []
    for part in PARTS:
        path = paths[part].format(size=size)
        if not path.startswith("hub:") and not Path(path).exists():
            raise ValueError(f"no file {path!r} of {name} to {part}")
        complete, missing = _select_complete(read(path, languages=list(languages)), languages)
        gaps += missing
        ids = list(dict.fromkeys(record.id for record in complete))
        if part == "forget":
            if len(ids) < size:
                raise ValueError(
                    f"{path!r} has {len(ids)} {name} in all languages, fewer than {size}"
                )
            ids = ids[:size]
        kept = set(ids)
        parts[part] = tuple(record for record in complete if record.id in kept)
    return Material(
        name=name,
        languages=tuple(languages),
        forget=parts["forget"],
        retain=parts["retain"],
        test=parts["test"],
        gaps=tuple(gaps),
    )


def convert_to_texts(records: Iterable[Record], part: str) -> list[Text]:
    """Convert records to texts to train on and to score: of a fact its answer is labelled.

    What follows a fact's blank is left out: a model that reads from left to right has not seen it.
    """
    texts = []
    for record in records:
        prompt, answer = "", ""
        if isinstance(record, ClozeFact):
            prompt = record.prefix.rstrip()
            answer = record.prefix[len(prompt) :] + record.answers[0]
        else:
            answer = record.text
        about = {"id": record.id, "language": record.language, "kind": part, "wording": 1}
        texts.append(Text(**about, prompt=prompt, answer=answer))
    return texts


def convert_to_queries(records: Iterable[Record], part: str) -> list[Query]:
    """Convert records to queries: a fact up to its blank, the first half of a sentence."""
    queries = []
    for record in records:
        if isinstance(record, ClozeFact):
            query = Query(
                id=record.id,
                language=record.language,
                prompt=record.prefix.rstrip(),
                answer=record.answers[0],
                aliases=record.answers[1:],
            )
        else:
            (query,) = make_queries([record])
        queries.append(replace(query, concept=part))
    return queries


def _make_material(config: Config, name: str, size: int) -> Material:
    languages = config.languages[name]
    files, read, make = {
        "facts": (config.fact_files, read_bmlama, make_fact_clozes),
        "sentences": (config.sentence_files, read_flores, make_fact_sentences),
    }[name]
    if files:
        return read_material(name, read, files, languages=languages, size=size)
    pool = make(languages, config.relations)
    counts = {"num_retain": config.num_retain, "num_test": config.num_test}
    return split_pool(name, pool, size=size, **counts)


def _make_cloze(fact: Fact, code: str, pool: Sequence[Fact], num_candidates: int) -> ClozeFact:
    answer = fact.object[code]
    others = dict.fromkeys(
        other.object[code]
        # By the fact alone: the candidates are alike in every language.
        for other in sort_by_hash(pool, f"candidates/{fact.id}", key=lambda each: each.id)
    )
    wrong = [name for name in others if name not in {answer, *fact.aliases.get(code, ())}]
    before, _, after = (
        read_templates(code).wordings[fact.relation].statements[0].partition("{object}")
    )
    return ClozeFact(
        id=fact.id,
        language=code,
        prefix=fill(before, fact, code),
        suffix=fill(after, fact, code),
        answers=(answer, *fact.aliases.get(code, ())),
        # In an order that says nothing: of equally likely ones the first is a model's guess.
        candidates=tuple(sorted([answer, *wrong[: num_candidates - 1]])),
        concept=fact.relation,
    )


def _select_complete(
    dataset: Dataset[Record], languages: Sequence[str]
) -> tuple[list[Record], list[Gap]]:
    """Select the entries that all languages have, and list what the others lack."""
    gaps = list(dataset.gaps)
    entries: dict[str, dict[str, Record]] = {}
    for record in dataset:
        if isinstance(record, ClozeFact) and not record.prefix.strip():
            reason = "nothing stands before the blank"
            gaps.append(Gap(id=record.id, language=record.language, reason=reason))
            continue
        entries.setdefault(record.id, {})[record.language] = record
    whole = [entry for entry in entries.values() if len(entry) == len(languages)]
    return [entry[code] for entry in whole for code in languages], gaps
