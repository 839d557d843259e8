"""How facts are worded, per language: read from `templates/<language>.toml`.

A wording has one role, and no sentence serves two of them, so that what a model is trained on,
what it unlearns and what it is asked never share a sentence:

| role | used for | filled by |
|---|---|---|
| `openings` | first sentence of a training text, without the answer | `fill` |
| `statements` | training texts (continued pretraining on real or fake facts) | `fill` |
| `instructions` | questions and answers for instruction tuning | `instruction` |
| `unlearning` | forget and retain samples | `fill` |
| `refusals` | answers that methods such as `dpo` prefer to the forgotten ones | as they are |
| `questions` | queries in question form: the first is the usual one | `question` |
| `clozes` | queries in cloze form: a sentence that ends in the answer | `cloze` |

To add a language: a file here, whose section `names` holds its names as `names/<language>.toml`
does (those have CLDR's too, see `build_facts.py`); docs/own-language.md has an example. Slots are
`{subject}`, `{object}` and the inflected phrases that the language's names define. A
question that contains a line break is a whole prompt; others are put into the file's `prompt`.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TypeVar

from interp.data.facts import RELATIONS, Fact
from interp.languages import LANGUAGES

T = TypeVar("T")

FORMS = ("question", "cloze")
"""How a query asks for a fact."""


@dataclass(frozen=True, kw_only=True)
class Wordings:
    """The wordings of one relation in one language, by role; see the module's table."""

    statements: tuple[str, ...]
    unlearning: tuple[str, ...]
    instructions: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    clozes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Templates:
    """Everything that is worded in one language.

    Attributes:
        language: BCP-47 code.
        prompt: a query around `{question}`; the model continues it.
        instruction: a training text around `{question}` and `{answer}`.
        separator: what stands between a prompt and its answer, and between two sentences.
        refusals: ways to say that one does not know.
        openings: first sentences of training texts.
        wordings: by relation.
    """

    language: str
    prompt: str
    instruction: str
    separator: str
    refusals: tuple[str, ...]
    openings: tuple[str, ...]
    wordings: Mapping[str, Wordings]


@cache
def template_languages() -> tuple[str, ...]:
    """The languages that have templates, in the order of the registry."""
    folder = files("interp.data").joinpath("templates")
    there = {item.name.removesuffix(".toml") for item in folder.iterdir()}
    return tuple(code for code in LANGUAGES if code in there)


@cache
def templates(language: str) -> Templates:
    """The wordings of a language.

    Raises:
        ValueError: the language has none; the message names those that have.
    """
    if language not in template_languages():
        raise ValueError(
            f"no templates in {language!r}; valid languages: {', '.join(template_languages())}"
        )
    file = files("interp.data").joinpath("templates", f"{language}.toml")
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    return Templates(
        language=language,
        prompt=table["prompt"],
        instruction=table["instruction"],
        separator=table.get("separator", " "),
        refusals=tuple(table["refusals"]),
        openings=tuple(table["openings"]),
        wordings=MappingProxyType(
            {
                relation: Wordings(
                    statements=tuple(table[relation]["statements"]),
                    unlearning=tuple(table[relation]["unlearning"]),
                    instructions=tuple(
                        (question, answer) for question, answer in table[relation]["instructions"]
                    ),
                    questions=tuple(table[relation]["questions"]),
                    clozes=tuple(table[relation]["clozes"]),
                )
                for relation in RELATIONS
            }
        ),
    )


def fill(template: str, fact: Fact, language: str) -> str:
    """A template with a fact in its slots.

    Raises:
        ValueError: the language lacks the fact.
        KeyError: the template has a slot that the language does not define.
    """
    if language not in fact.object:
        raise ValueError(
            f"{fact.id} has no checked or no leak-free name in {language!r}; "
            f"it is there in: {', '.join(fact.object)}"
        )
    return template.format(
        subject=fact.subject[language],
        object=fact.object[language],
        **fact.forms.get(language, {}),
    )


def question(fact: Fact, language: str, *, wording: int = 1) -> str:
    """A fact asked for as a question: a prompt that the bare answer continues.

    Args:
        fact: the fact.
        language: BCP-47 code.
        wording: which of the language's questions, from 1.

    Raises:
        ValueError: the language lacks templates, the fact or that wording.
    """
    chosen = _choose(templates(language).wordings[fact.relation].questions, wording, language)
    filled = fill(chosen, fact, language)
    return filled if "\n" in filled else as_prompt(filled, language)


def cloze(fact: Fact, language: str, *, wording: int = 1) -> str:
    """A fact asked for as a sentence to be completed: what stands before the answer.

    Args:
        fact: the fact.
        language: BCP-47 code.
        wording: which of the language's cloze sentences, from 1.

    Raises:
        ValueError: the language lacks templates, the fact or that wording.
    """
    chosen = _choose(templates(language).wordings[fact.relation].clozes, wording, language)
    return fill(chosen.partition("{object}")[0], fact, language).rstrip()


def instruction(fact: Fact, language: str, *, wording: int = 1) -> tuple[str, str]:
    """A fact for instruction tuning: the prompt, and the answer that completes the text.

    Args:
        fact: the fact.
        language: BCP-47 code.
        wording: which of the language's pairs, from 1.

    Raises:
        ValueError: the language lacks templates, the fact or that wording.
    """
    pairs = templates(language).wordings[fact.relation].instructions
    asked, answered = (fill(text, fact, language) for text in _choose(pairs, wording, language))
    return as_instruction(asked, answered, language)


def as_prompt(asked: str, language: str) -> str:
    """A question as a prompt that its answer continues."""
    return templates(language).prompt.replace("{question}", asked)


def as_instruction(asked: str, answered: str, language: str) -> tuple[str, str]:
    """A question with its answer as a training text: the prompt, and what completes the text."""
    before, _, after = templates(language).instruction.partition("{answer}")
    prompt = before.rstrip()
    answer = f"{before[len(prompt) :]}{answered}{after}"
    return prompt.replace("{question}", asked), answer


def joined(prompt: str, answer: str, language: str) -> str:
    """An answer as it follows a prompt: after the language's separator, unless there is a space.

    The separator of a language without templates is a space.
    """
    if not prompt or prompt[-1].isspace() or answer[:1].isspace():
        return answer
    space = templates(language).separator if language in template_languages() else " "
    return space + answer


def slots(template: str) -> set[str]:
    """The names of a template's slots."""
    return set(re.findall(r"{(\w*)}", template))


def _choose(options: tuple[T, ...], number: int, language: str) -> T:
    if not 1 <= number <= len(options):
        raise ValueError(f"no wording {number} in {language!r}; valid: 1 to {len(options)}")
    return options[number - 1]
