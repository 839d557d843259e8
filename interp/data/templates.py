"""Templates that word facts, per language, read from `templates/<language>.toml`.

A wording has one role, and no sentence serves two of them, so that what a model is trained on,
what it unlearns and what it is asked never share a sentence:

| role | used for | filled by |
|---|---|---|
| `openings` | first sentence of a training text, without the answer | `fill` |
| `statements` | training texts (continued pretraining on real or fake facts) | `fill` |
| `instructions` | questions and answers for instruction tuning | `format_instruction` |
| `unlearning` | forget and retain samples | `fill` |
| `refusals` | answers that methods such as `dpo` prefer to the forgotten ones | as they are |
| `questions` | queries in question form: the first is the usual one | `format_question` |
| `clozes` | queries in cloze form: a sentence that ends in the answer | `format_cloze` |

To add a language: a file here, whose section `names` holds its names as `names/<language>.toml`
does (those have CLDR's too, see `scripts/build_facts.py`); docs/own-language.md has an example.
Slots are `{subject}`, `{object}` and the inflected phrases that the language's names define. A
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
"""Forms of a query about a fact."""


@dataclass(frozen=True, kw_only=True)
class Wordings:
    """Wordings of one relation in one language, by role; see the module's table."""

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
def list_template_languages() -> tuple[str, ...]:
    """Return the languages that have templates, in the order of the registry."""
    folder = files("interp.data").joinpath("templates")
    there = {item.name.removesuffix(".toml") for item in folder.iterdir()}
    return tuple(code for code in LANGUAGES if code in there)


@cache
def read_templates(language: str) -> Templates:
    """Read the wordings of a language.

    Raises:
        ValueError: the language has none; the message names those that have.
    """
    if language not in list_template_languages():
        raise ValueError(
            f"no templates in {language!r}; valid languages: {', '.join(list_template_languages())}"
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
    """Fill a template's slots with a fact.

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


def format_question(fact: Fact, language: str, *, wording: int = 1) -> str:
    """Format a fact as a question: a prompt that the bare answer continues.

    Args:
        fact: the fact.
        language: BCP-47 code.
        wording: which of the language's questions, from 1.

    Raises:
        ValueError: the language lacks templates, the fact or that wording.
    """
    chosen = _choose(read_templates(language).wordings[fact.relation].questions, wording, language)
    filled = fill(chosen, fact, language)
    return filled if "\n" in filled else wrap_question(filled, language)


def format_cloze(fact: Fact, language: str, *, wording: int = 1) -> str:
    """Format a fact as a sentence to be completed: what stands before the answer.

    Args:
        fact: the fact.
        language: BCP-47 code.
        wording: which of the language's cloze sentences, from 1.

    Raises:
        ValueError: the language lacks templates, the fact or that wording.
    """
    chosen = _choose(read_templates(language).wordings[fact.relation].clozes, wording, language)
    return fill(chosen.partition("{object}")[0], fact, language).rstrip()


def format_instruction(fact: Fact, language: str, *, wording: int = 1) -> tuple[str, str]:
    """Format a fact for instruction tuning: the prompt, and the answer that completes the text.

    Args:
        fact: the fact.
        language: BCP-47 code.
        wording: which of the language's pairs, from 1.

    Raises:
        ValueError: the language lacks templates, the fact or that wording.
    """
    pairs = read_templates(language).wordings[fact.relation].instructions
    question, answer = (fill(text, fact, language) for text in _choose(pairs, wording, language))
    return wrap_instruction(question, answer, language)


def wrap_question(question: str, language: str) -> str:
    """Put a question into the language's prompt, which its answer continues."""
    return read_templates(language).prompt.replace("{question}", question)


def wrap_instruction(question: str, answer: str, language: str) -> tuple[str, str]:
    """Put a question and its answer into a training text: the prompt, and what completes it."""
    before, _, after = read_templates(language).instruction.partition("{answer}")
    prompt = before.rstrip()
    completion = f"{before[len(prompt) :]}{answer}{after}"
    return prompt.replace("{question}", question), completion


def add_separator(prompt: str, answer: str, language: str) -> str:
    """Put the language's separator before an answer that follows a prompt without a space.

    The separator of a language without templates is a space.
    """
    if not prompt or prompt[-1].isspace() or answer[:1].isspace():
        return answer
    space = read_templates(language).separator if language in list_template_languages() else " "
    return space + answer


def find_slots(template: str) -> set[str]:
    """Return the names of a template's slots."""
    return set(re.findall(r"{(\w*)}", template))


def _choose(options: tuple[T, ...], number: int, language: str) -> T:
    if not 1 <= number <= len(options):
        raise ValueError(f"wording {number} is out of range 1 to {len(options)} in {language!r}")
    return options[number - 1]
