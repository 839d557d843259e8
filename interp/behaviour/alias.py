"""Alias matching: does an answer contain what its query asks for? Spelling decides, no model.

    verdicts = AliasJudge()(answers)

Letters are compared after Unicode compatibility folding, without case and accents, and with the
spellings that a script leaves open made one: hamza and the forms of alef, yeh, kaf and heh in
Arabic and Urdu; nukta, nasals and final virama in Indian scripts; ё; և. Scripts with spaces are
compared word by word, others (Chinese, Japanese, Thai …) as parts of the text. A word may have the
endings of its language's inflection, and the prefixes that Arabic and Hebrew write as one with it.

It errs on answers that name the right thing in passing ("cities other than Riyadh", "the province
of Baghdad") and on names in another language than the question's (`collect_aliases` helps with
those). On 580 answers in twelve languages that were labelled by hand first
(`tests/labelled_answers.jsonl`) it agrees with people on 97 % of those that it was made with and
98 % of those held out. They also decided two rules: of a list of guesses only the first counts, as
people took none of the three others for an answer; negation and other names before the right one
are not looked for, as one answer each would change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import pandas as pd

from interp.behaviour.answers import Answer
from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.judges import Verdict, make_verdict, select_text
from interp.behaviour.registry import BY, metric
from interp.behaviour.spelling import POINT, SIGNS, UNSPACED, has_sign, is_sign, normalise_text
from interp.data.facts import RELATIONS, select_facts
from interp.statistics import Estimate, estimate_groups, estimate_share

_ENDINGS: Mapping[str, str] = {
    "en": "s",
    "de": "s n en e es em",
    "nl": "s n en e",
    "sv": "s n en ar or er et a",
    "fr": "s e es",
    "es": "s es a as",
    "ca": "s es a",
    "pt": "s es a",
    "it": "",
    "ru": "а я о е и ы у ю ой ей ою ею ом ем ам ям ами ями ах ях ов ев "
    "ого его ому ему им ым ими ыми их ых ую юю ое ее ие ые",
    "uk": "а я о е і ї и у ю ой ей ою єю ею ом ем єм ам ям ами ями ах ях ів їв ові еві "
    "ого ього ому ьому ій им ім ими іми их іх ую юю",
    "pl": "a i y u e ę ą ie o em iem om ami ach ów owi ego emu ej im ym imi ymi ich ych "
    "iego iemu iej",
    "el": "α ας ο ος ου ον ω ων ους οι η ης ες ια ιου ιων",
    "hy": "ը ն ի ին ու ում ից ով ան յի յին յում յից յով ներ ները ներով",
    "hi": "ा े ों ओं",
    "ur": "ہ ا ے وں ز",
    "ar": "ة ات ان ين",
    "he": "ית ים",
    "id": "nya",
    "ms": "nya",
    "jv": "e ne",
}
"""Endings that may follow a name, or its stem."""

_DROPPED: Mapping[str, str] = {
    "it": "o a e",
    "ru": "а я ь й ый ий ая ое",
    "uk": "а я ь й ий а є",
    "pl": "a i y",
    "el": "α ας ο ος η ης",
    "hy": "ի",
    "hi": "ा",
    "ur": "ہ ا یہ",
    "ar": "ة",
    "sv": "a",
}
"""Endings that a name loses before another."""

_ANY_ENDING = {"bn", "eu", "fi", "hu", "ko", "ta", "te", "tr"}
"""Languages that put case endings and particles one after another."""

_LONGEST_ENDING = 4
_SHORTEST_STEM = 3

_MOST_JOINED = 6
"""Words of a name that may be written together. With more, a hostile answer to a hostile name (many
times the same letter) could be cut into them in more ways than can be tried."""

_ARTICLE = "ال"
_PREFIXES = {
    "ar": rf"[وف]?(?:[بک]?{_ARTICLE}|لل|[بکل])?",
    "he": "[ושכ]{0,2}[בהלמ]{0,2}",
}
"""Prefixes of a name that are part of the word: and, in, to, the."""

_COMMA = re.compile("[،、，;；؛]|(?<![0-9]),|,(?![0-9])")
_LONGEST_ITEM = 20
"""Characters of a list's piece."""
_SHORTEST_LIST = 4

_KATAKANA = "\u30a1-\u30fa\u30fc"


@dataclass(frozen=True, kw_only=True)
class AliasJudge:
    """Says yes if an answer contains its query's answer or one of its aliases.

    Attributes:
        whole_text: look at all that was said, and not only at its first line.
    """

    whole_text: bool = False

    name = "alias"

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        """Judge answers; the reason of a yes is the name that was found.

        Raises:
            ValueError: a query without an answer.
        """
        verdicts = []
        for answer in answers:
            text = select_text(answer, whole_text=self.whole_text)
            given = dict.fromkeys((str(answer.query.answer), *answer.query.aliases))
            language = answer.query.language
            names = [name for name in given if normalise_text(name, language) or is_sign(name)]
            match = next((name for name in names if has_name(text, name, language)), None)
            reason = f"no {' / '.join(names)}" if match is None else f"contains {match}"
            if not names:
                reason = f"{answer.query.answer!r} has nothing to look for"
            value = float(match is not None) if names else None
            verdicts.append(
                make_verdict(answer, judge=self.name, value=value, reason=reason, text=text)
            )
        return verdicts


@metric("alias", needs=("answer",), is_kept=False)
def tabulate_alias(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Measure the share of answers that contain the expected one or an alias, in any language."""

    def estimate(rows: pd.DataFrame) -> Estimate:
        values = [verdict.value for verdict in rows["verdict"] if verdict.value is not None]
        without = len(rows) - len(values)
        reason = f"{without} of {len(rows)} answers have no verdict" if without else ""
        return estimate_share([value == 1 for value in values], reason=reason)

    return estimate_groups(evaluated.judge_answers(AliasJudge()), BY, {"alias": estimate})


def has_name(text: str, name: str, language: str) -> bool:
    """Return whether a text in a language contains a name, in any spelling and inflection of it.

    A name within a longer one of the built-in facts is not meant: Berlin (柏林) in Dublin
    (都柏林), Africa in South Africa. A name without letters and digits is looked for as it is (€).

    Raises:
        ValueError: the name has nothing to look for.
    """
    if not normalise_text(name, language):
        return has_sign(text, name)
    pattern = _compile_name(name, language)
    kept = _remove_from_lists(text, pattern, language)
    # An apostrophe or a hyphen within a word may be written or not: N'Djamena, Ndjamena.
    return any(
        _has_pattern(normalise_text(kept, language, joined=joined), pattern, name, language)
        for joined in (False, True)
    )


def _has_pattern(words: str, pattern: re.Pattern[str], name: str, language: str) -> bool:
    if pattern.search(words):
        for longer in _find_longer_names(name, language):
            words = longer.sub("|", words)
    return pattern.search(words) is not None


def _remove_from_lists(text: str, pattern: re.Pattern[str], language: str) -> str:
    """Remove a name from a text where it is one of a list and not its first.

    A list is four or more short pieces in a row, from comma to comma.
    """
    kept = []
    for short, run in groupby(
        _COMMA.split(text), lambda piece: len(normalise_text(piece, language)) <= _LONGEST_ITEM
    ):
        first, *others = run
        if short and len(others) >= _SHORTEST_LIST - 1:
            others = [
                piece for piece in others if not pattern.fullmatch(normalise_text(piece, language))
            ]
        kept += [first, *others]
    return ",".join(kept)


@cache
def _find_longer_names(name: str, language: str) -> list[re.Pattern[str]]:
    """Return those names of the built-in facts in a language that have this one in them."""
    shorter = _compile_name(name, language)
    words = normalise_text(name, language)
    return [
        longer
        for known, longer in _compile_known_names(language).items()
        if shorter.search(known) and not longer.search(words)
    ]


@cache
def _compile_known_names(language: str) -> dict[str, re.Pattern[str]]:
    """Return the patterns of countries, capitals, currencies and so on, by their words."""
    return {
        normalise_text(there[language], language): _compile_name(there[language], language)
        for relation in RELATIONS
        for fact in select_facts(relation)
        for there in (fact.subject, fact.object)
        if language in there
    }


@cache
def _compile_name(name: str, language: str) -> re.Pattern[str]:
    # Initials with full stops are found with spaces between them, too.
    words = normalise_text(name.replace(".", ". "), language).split()
    if re.search(r"\d\.\d", name):
        words = normalise_text(name, language).split()
    if not words:
        raise ValueError(f"{name!r} has no letters to look for")
    # A language or a mark of one letter is another with a sign behind it: C, C++.
    end = f"(?! {SIGNS.pattern})" if len(words[-1]) == 1 and not SIGNS.match(words[-1]) else ""
    whole = " ".join(words)
    if re.search(f"[{UNSPACED}]", whole):
        end += f"(?![{_KATAKANA}])" if re.search(f"[{_KATAKANA}]$", whole) else ""
        return re.compile(" ?".join(map(re.escape, words)) + end)
    space = " ?" if len(words) <= _MOST_JOINED else " "
    forms = space.join(_compile_word(word, language) for word in words)
    return re.compile(rf"(?<!\S){forms}(?!\S){end}")


def _compile_word(word: str, language: str) -> str:
    """Return a pattern of a word in all its forms."""
    if SIGNS.match(word):
        return word
    prefix = ""
    if language in _PREFIXES:
        prefix = _PREFIXES[language]
        if language == "ar":
            word = word.removeprefix(_ARTICLE)
    if language in _ANY_ENDING:
        # A longer number is another.
        ending = rf"(?![\d{POINT}])" if word[-1].isdecimal() else ""
        return rf"{prefix}{word}{ending}\S{{0,{_LONGEST_ENDING}}}"
    if len(word) < _SHORTEST_STEM:
        return prefix + word
    added, dropped = (
        normalise_text(table.get(language, "")).split() for table in (_ENDINGS, _DROPPED)
    )
    forms = [word + ending for ending in ("", *added)]
    for ending in dropped:
        stem = word.removesuffix(ending)
        if stem != word and len(stem) >= _SHORTEST_STEM:
            forms += [stem + other for other in ("", *dropped, *added)]
    return f"{prefix}(?:{'|'.join(forms)})"
