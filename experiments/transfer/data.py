"""Behaviour to train away, as pairs of answers of which one is wanted (Neplenbroek et al. 2025).

There the pairs are of biased and unbiased, toxic and harmless texts. `make_refusal_task` makes
pairs of a behaviour that is harmless and that base models show in many languages: to answer a
question. The wanted answer is that one does not know. Training is on other countries, in other
words and in English alone; the same questions are then asked in every language.

    task = make_refusal_task(["en", "de", "zh"])
    train(vanilla, task.make_examples("dpo"), config)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import Any

from experiments.transfer.config import Config
from interp import Query
from interp.data import (
    Text,
    add_separator,
    check_text,
    fill,
    make_query,
    read_queries,
    read_rows,
    read_templates,
    read_texts,
    require_field,
    select_facts,
    wrap_question,
)
from interp.languages import get_language
from interp.unlearning import Example, make_examples

SOURCE = "en"
"""The language of training."""

METHODS = ("finetune", "dpo")
"""Fine-tuning on wanted text; direct preference optimisation on pairs (Rafailov et al. 2023)."""

CONTINUED = "texts"
"""The concept of beginnings of texts that a model goes on with."""

_STATEMENTS = 2


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
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

    def make_examples(self) -> tuple[Example, Example]:
        """Return the wanted and the unwanted answer."""
        return (
            Example(prompt=self.prompt, answer=self.chosen, language=self.language),
            Example(prompt=self.prompt, answer=self.rejected, language=self.language),
        )


@dataclass(frozen=True, kw_only=True)
class BehaviourTask:
    """Data to train on and to measure.

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

    training: tuple[AnswerPair, ...]
    asked: tuple[AnswerPair, ...]
    questions: tuple[Query, ...]
    prompts: tuple[Query, ...]
    held_out: tuple[Text, ...]
    curated: tuple[Text, ...] = field(default=())
    neutral: float = 0.0
    per_token: bool = False

    def make_examples(self, method: str) -> dict[str, list[Example]]:
        """Return sets of examples to train on by a method, see `interp.unlearning.training.train`.

        Raises:
            ValueError: no such method.
        """
        if method not in METHODS:
            raise ValueError(f"no method {method!r}; valid: {', '.join(METHODS)}")
        chosen, rejected = map(
            list, zip(*(pair.make_examples() for pair in self.training), strict=True)
        )
        if method == "finetune":
            return {"retain": make_examples(self.curated) or chosen}
        return {"forget": rejected, "preferred": chosen}


def make_refusal_task(
    languages: Sequence[str],
    *,
    num_training: int = 40,
    num_asked: int = 16,
    num_prompts: int = 12,
    num_held_out: int = 8,
) -> BehaviourTask:
    """Make the task to say that one does not know, asked for capitals of countries.

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
        read_templates(code)
    facts = select_facts("capital", languages=languages)
    asked_facts = facts[: 2 * num_asked : 2]
    used = {fact.id for fact in asked_facts}
    training = [fact for fact in facts if fact.id not in used][:num_training]
    if len(asked_facts) < num_asked or len(training) < num_training or num_prompts > num_asked:
        raise ValueError(
            f"{len(facts)} countries have a capital in all of these languages, fewer than the "
            f"{num_training} to train on and the {num_asked} to ask for"
            if num_prompts <= num_asked
            else f"{num_prompts} texts to continue are more than the {num_asked} countries"
        )
    pairs = []
    for fact in training:
        for asks, _ in read_templates(SOURCE).wordings["capital"].instructions:
            prompt = wrap_question(fill(asks, fact, SOURCE), SOURCE)
            pairs.append(_make_refusal(fact.id, SOURCE, prompt, fact.object[SOURCE], len(pairs)))
    questions = [
        make_query(fact, code, concept="capitals") for code in languages for fact in asked_facts
    ]
    held_out = select_facts("continent", languages=languages)[:num_held_out]
    return BehaviourTask(
        training=tuple(pairs),
        asked=tuple(
            _make_refusal(
                query.id, query.language, query.prompt, query.answer or "", at % num_asked
            )
            for at, query in enumerate(questions)
        ),
        questions=tuple(questions),
        prompts=tuple(
            Query(
                id=fact.id,
                language=code,
                prompt=fill(_take_turn(read_templates(code).openings, at), fact, code),
                concept=CONTINUED,
            )
            for code in languages
            for at, fact in enumerate(asked_facts[:num_prompts])
        ),
        held_out=tuple(
            Text(
                id=fact.id,
                language=code,
                kind="held out",
                prompt="",
                answer=read_templates(code).separator.join(
                    fill(part, fact, code)
                    for part in (
                        _take_turn(read_templates(code).openings, at),
                        *read_templates(code).wordings["continent"].statements[:_STATEMENTS],
                    )
                ),
            )
            for code in languages
            for at, fact in enumerate(held_out)
        ),
    )


def read_task(
    training: str | PathLike[str],
    asked: str | PathLike[str],
    prompts: str | PathLike[str],
    held_out: str | PathLike[str],
    *,
    curated: str | PathLike[str] | None = None,
    languages: Sequence[str] | None = None,
    neutral: float = 0.0,
) -> BehaviourTask:
    """Read a task of one's own data, such as that of the paper.

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
    trained, pairs = read_pairs(training), read_pairs(asked)
    if others := {pair.language for pair in trained} - {SOURCE}:
        raise ValueError(f"{training} has pairs in {min(others)!r}; training is in {SOURCE!r}")
    kept = {pair.language for pair in pairs} if languages is None else {*languages}
    continued = [query for query in read_queries(prompts) if query.language in kept]
    questions = [
        Query(id=pair.id, language=pair.language, prompt=pair.prompt, answer=pair.rejected.strip())
        for pair in pairs
        if pair.prompt and pair.language in kept
    ]
    return BehaviourTask(
        training=tuple(trained),
        asked=tuple(pair for pair in pairs if pair.language in kept),
        # Of sentences without a prompt nothing can be asked: the texts stand in for them.
        questions=tuple(questions or continued),
        prompts=tuple(continued),
        held_out=tuple(text for text in read_texts(held_out) if text.language in kept),
        curated=tuple(read_texts(curated)) if curated else (),
        neutral=neutral,
        per_token=not any(pair.prompt for pair in pairs),
    )


def read_pairs(path: str | PathLike[str]) -> list[AnswerPair]:
    """Read pairs of a JSON Lines file (or JSON array).

    A line is `{"id": "17", "language": "de", "prompt": "…", "chosen": "…", "rejected": "…"}`.
    `prompt` may be lacking, `language` is then `SOURCE`, and `id` the line's number.

    Raises:
        ValueError: there is no such file, or a line is malformed (named by its number).
    """
    return [_parse_pair(row, where, at) for at, (where, row) in enumerate(read_rows(path), start=1)]


def _parse_pair(row: dict[str, Any], where: str, number: int) -> AnswerPair:
    code = get_language(check_text(row.get("language", SOURCE), where, "language")).code
    prompt = check_text(row["prompt"], where, "prompt") if row.get("prompt") else ""
    chosen, rejected = (
        add_separator(prompt, check_text(require_field(row, name, where), where, name), code)
        for name in ("chosen", "rejected")
    )
    if chosen == rejected:
        raise ValueError(f"{where}: 'chosen' and 'rejected' are the same")
    key = check_text(str(row.get("id", number)), where, "id")
    return AnswerPair(id=key, language=code, prompt=prompt, chosen=chosen, rejected=rejected)


def _make_refusal(key: str, code: str, prompt: str, answer: str, turn: int) -> AnswerPair:
    return AnswerPair(
        id=key,
        language=code,
        prompt=prompt,
        chosen=add_separator(prompt, _take_turn(read_templates(code).refusals, turn), code),
        rejected=add_separator(prompt, answer, code),
    )


def _take_turn(options: Sequence[str], number: int) -> str:
    return options[number % len(options)]


def make_task(config: Config) -> BehaviourTask:
    """Make what is trained and measured, of files or of the built-in facts."""
    if config.files is not None:
        return read_task(**asdict(config.files), languages=config.languages, neutral=config.neutral)
    return make_refusal_task(
        config.languages,
        num_training=config.num_training,
        num_asked=config.num_asked,
        num_prompts=config.num_prompts,
        num_held_out=config.num_held_out,
    )


def select_questions(task: BehaviourTask, config: Config) -> list[Query]:
    """Return the first questions of each of the sweep's languages."""
    return [
        query
        for code in config.swept
        for query in [each for each in task.questions if each.language == code][: config.num_swept]
    ]
