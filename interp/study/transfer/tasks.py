"""A behaviour to train away, as pairs of answers of which one is wanted (Neplenbroek et al. 2025).

There the pairs are of biased and unbiased, toxic and harmless texts. `refusing` makes pairs of a
behaviour that is harmless and that base models show in many languages: to answer a question. The
wanted answer is that one does not know. Training is on other countries, in other words and in
English alone; the same questions are then asked in every language.

    task = refusing(["en", "de", "zh"])
    train(vanilla, task.examples("dpo"), config)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from interp.data.corpus import Text
from interp.data.facts import facts_of
from interp.data.queries import query_of
from interp.data.query import Query, read_queries
from interp.data.sources import required, rows_of, text
from interp.data.templates import as_prompt, fill, joined, templates
from interp.data.texts import read_texts
from interp.languages import language
from interp.unlearning.examples import Example, examples_of

SOURCE = "en"
"""The language of training."""

METHODS = ("finetune", "dpo")
"""Fine-tuning on wanted text; direct preference optimisation on pairs (Rafailov et al. 2023)."""

CONTINUED = "texts"
"""The concept of beginnings of texts that a model goes on with."""

_STATEMENTS = 2


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
        id: what the pair is about, the same in every language.
        language: BCP-47 code.
        prompt: what both follow; "" where whole sentences are compared.
        chosen: the wanted answer, the space before it included.
        rejected: the unwanted one.
    """

    id: str
    language: str
    prompt: str
    chosen: str
    rejected: str

    def examples(self) -> tuple[Example, Example]:
        """The wanted and the unwanted answer."""
        return (
            Example(prompt=self.prompt, answer=self.chosen, language=self.language),
            Example(prompt=self.prompt, answer=self.rejected, language=self.language),
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained and what is measured.

    Attributes:
        training: pairs in `SOURCE`.
        asked: pairs in every language, none of which is trained on.
        questions: what the asked pairs answer, as queries.
        prompts: beginnings of texts in every language.
        held_out: texts in every language, none of which is trained on.
        curated: wanted texts that fine-tuning learns; the wanted answers of `training` if none.
        neutral: the rate of the behaviour in a model without it: 0, or for stereotypes 0.5, since
            of two sentences one is always likelier.
        per_token: likelihoods are compared per token, as in the paper's released code, and not of
            whole answers. Right for sentences of one kind: long answers are likelier per token.
    """

    training: tuple[Pair, ...]
    asked: tuple[Pair, ...]
    questions: tuple[Query, ...]
    prompts: tuple[Query, ...]
    held_out: tuple[Text, ...]
    curated: tuple[Text, ...] = field(default=())
    neutral: float = 0.0
    per_token: bool = False

    def examples(self, method: str) -> dict[str, list[Example]]:
        """Sets of examples to train on by a method, see `interp.unlearning.training.train`.

        Raises:
            ValueError: no such method.
        """
        if method not in METHODS:
            raise ValueError(f"no method {method!r}; valid: {', '.join(METHODS)}")
        chosen, rejected = map(list, zip(*(pair.examples() for pair in self.training), strict=True))
        if method == "finetune":
            return {"retain": examples_of(self.curated) or chosen}
        return {"forget": rejected, "preferred": chosen}


def refusing(
    languages: Sequence[str],
    *,
    num_training: int = 40,
    num_asked: int = 16,
    num_prompts: int = 12,
    num_held_out: int = 8,
) -> Task:
    """To say that one does not know, asked for capitals of countries.

    Countries that all languages have are dealt out in turn, the best-known first, to be asked and
    to be trained on. Training has the questions of instruction tuning, in the frame of the queries.

    Args:
        languages: BCP-47 codes, of languages with templates; `SOURCE` is one of them.
        num_training: countries to train on, each in all wordings.
        num_asked: countries to ask for.
        num_prompts: texts to continue, per language: openings about countries that are asked for.
        num_held_out: held-out texts, per language: an opening and statements on continents.

    Raises:
        ValueError: a language without templates, none of them `SOURCE`, or fewer countries.
    """
    if SOURCE not in languages:
        raise ValueError(f"the languages must hold {SOURCE!r}, which is trained in")
    for code in languages:
        templates(code)
    facts = facts_of("capital", languages=languages)
    asked = facts[: 2 * num_asked : 2]
    used = {fact.id for fact in asked}
    training = [fact for fact in facts if fact.id not in used][:num_training]
    if len(asked) < num_asked or len(training) < num_training or num_prompts > num_asked:
        raise ValueError(
            f"{len(facts)} countries have a capital in all of these languages, fewer than the "
            f"{num_training} to train on and the {num_asked} to ask for"
            if num_prompts <= num_asked
            else f"{num_prompts} texts to continue are more than the {num_asked} countries"
        )
    pairs = []
    for fact in training:
        for asks, _ in templates(SOURCE).wordings["capital"].instructions:
            prompt = as_prompt(fill(asks, fact, SOURCE), SOURCE)
            pairs.append(_refused(fact.id, SOURCE, prompt, fact.object[SOURCE], len(pairs)))
    questions = [query_of(fact, code, concept="capitals") for code in languages for fact in asked]
    held_out = facts_of("continent", languages=languages)[:num_held_out]
    return Task(
        training=tuple(pairs),
        asked=tuple(
            _refused(query.id, query.language, query.prompt, query.answer or "", at % num_asked)
            for at, query in enumerate(questions)
        ),
        questions=tuple(questions),
        prompts=tuple(
            Query(
                id=fact.id,
                language=code,
                prompt=fill(_turn(templates(code).openings, at), fact, code),
                concept=CONTINUED,
            )
            for code in languages
            for at, fact in enumerate(asked[:num_prompts])
        ),
        held_out=tuple(
            Text(
                id=fact.id,
                language=code,
                kind="held out",
                prompt="",
                answer=templates(code).separator.join(
                    fill(part, fact, code)
                    for part in (
                        _turn(templates(code).openings, at),
                        *templates(code).wordings["continent"].statements[:_STATEMENTS],
                    )
                ),
            )
            for code in languages
            for at, fact in enumerate(held_out)
        ),
    )


def from_files(
    training: str | PathLike[str],
    asked: str | PathLike[str],
    prompts: str | PathLike[str],
    held_out: str | PathLike[str],
    *,
    curated: str | PathLike[str] | None = None,
    languages: Sequence[str] | None = None,
    neutral: float = 0.0,
) -> Task:
    """A task of one's own data, such as that of the paper.

    Sentences without prompts are compared per token, answers to prompts as wholes.

    Args:
        training: pairs in `SOURCE`, see `read_pairs`: BiasDPO, or pairs of toxic and other texts.
        asked: pairs in many languages, such as CrowS-Pairs, or RTP-LX with answers.
        prompts: a file of queries, such as sentences of Tatoeba.
        held_out: a file of texts (`interp.data.texts`).
        curated: a file of texts that fine-tuning learns, such as PANDA's.
        languages: BCP-47 codes to keep; all that `asked` has if None.
        neutral: see `Task`.

    Raises:
        ValueError: a file is missing or malformed, or training is in another language.
    """
    trained, found = read_pairs(training), read_pairs(asked)
    if others := {pair.language for pair in trained} - {SOURCE}:
        raise ValueError(f"{training} has pairs in {min(others)!r}; training is in {SOURCE!r}")
    kept = {pair.language for pair in found} if languages is None else {*languages}
    continued = [query for query in read_queries(prompts) if query.language in kept]
    questions = [
        Query(id=pair.id, language=pair.language, prompt=pair.prompt, answer=pair.rejected.strip())
        for pair in found
        if pair.prompt and pair.language in kept
    ]
    return Task(
        training=tuple(trained),
        asked=tuple(pair for pair in found if pair.language in kept),
        # Of sentences without a prompt nothing can be asked: the texts stand in for them.
        questions=tuple(questions or continued),
        prompts=tuple(continued),
        held_out=tuple(text for text in read_texts(held_out) if text.language in kept),
        curated=tuple(read_texts(curated)) if curated else (),
        neutral=neutral,
        per_token=not any(pair.prompt for pair in found),
    )


def read_pairs(path: str | PathLike[str]) -> list[Pair]:
    """Pairs of a JSON Lines file (or JSON array).

    A line is `{"id": "17", "language": "de", "prompt": "…", "chosen": "…", "rejected": "…"}`.
    `prompt` may be lacking, `language` is then `SOURCE`, and `id` the line's number.

    Raises:
        ValueError: there is no such file, or a line is malformed (named by its number).
    """
    return [_parsed(row, where, at) for at, (where, row) in enumerate(rows_of(path), start=1)]


def _parsed(row: dict[str, Any], where: str, number: int) -> Pair:
    code = language(text(row.get("language", SOURCE), where, "language")).code
    prompt = text(row["prompt"], where, "prompt") if row.get("prompt") else ""
    chosen, rejected = (
        joined(prompt, text(required(row, name, where), where, name), code)
        for name in ("chosen", "rejected")
    )
    if chosen == rejected:
        raise ValueError(f"{where}: 'chosen' and 'rejected' are the same")
    key = text(str(row.get("id", number)), where, "id")
    return Pair(id=key, language=code, prompt=prompt, chosen=chosen, rejected=rejected)


def _refused(key: str, code: str, prompt: str, answer: str, turn: int) -> Pair:
    return Pair(
        id=key,
        language=code,
        prompt=prompt,
        chosen=joined(prompt, _turn(templates(code).refusals, turn), code),
        rejected=joined(prompt, answer, code),
    )


def _turn(options: Sequence[str], number: int) -> str:
    return options[number % len(options)]
