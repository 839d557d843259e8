"""In which languages a model answers: Lu & Koehn's table, and language consistency.

Languages are told by `interp.behaviour.identification`: with caution, so that short answers stay
undetermined. Intervals take answers for independent, also several samples of one query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
from tqdm.auto import tqdm

from interp.behaviour.answers import Answer
from interp.behaviour.identification import identifiable, languages_of, scripts_of, why_untold
from interp.behaviour.measure import Measure, share, undefined
from interp.languages import language

KINDS = ("english", "question", "taught", "another", "undetermined")
"""What may occur in an answer: English, the question's language, that of the fake data, another."""

COLUMNS = ("language", "found", "share", "ci_low", "ci_high", "n", "reason")
CONSISTENCY_COLUMNS = ("language", "consistency", "ci_low", "ci_high", "n", "reason")


def answer_languages(
    answers: Sequence[Answer],
    *,
    taught: str,
    candidates: Sequence[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """In how many answers which languages occur, by language of the question (Lu & Koehn, Table 1).

    Args:
        answers: answers of a model; all that was said counts.
        taught: the language of the fake data.
        candidates: the languages that answers may be in, besides English, the question's and the
            taught one; `identifiable()` if None.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        `COLUMNS`, per language a row for each of `KINDS`: the share of answers in which it occurs
        with Wilson's 95 % interval. Several may occur in an answer, and the question's language may
        be English or the taught one. `undetermined` are answers of which no language is told. NaN
        with the reason where a language cannot be told.

    Raises:
        ValueError: a language is not registered, or a candidate cannot be told.
        ImportError: py3langid is not installed.
    """
    rows = []
    for code, among, found in _told(answers, ["en", taught], candidates, progress):
        named = {"english": "en", "question": code, "taught": taught}
        untold = [each for each in named.values() if each not in identifiable()]
        told = [_without_undetermined(each, among) for each in found]
        for kind in KINDS:
            if lacking := [each for each in untold if kind == "another" or named.get(kind) == each]:
                measure = undefined(why_untold(lacking[0]))
            elif kind == "undetermined":
                measure = share([not each for each in told])
            elif kind == "another":
                measure = share([bool(each - {*named.values()}) for each in told])
            else:
                measure = share([named[kind] in each for each in told])
            rows.append(_row(measure, {"language": code, "found": kind}, "share"))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def consistency(
    answers: Sequence[Answer],
    *,
    candidates: Sequence[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The share of answers in the prompt's language (Neplenbroek et al. 2025), by language.

    An answer in several languages counts by the one that most of it is in. Undetermined answers are
    left out, and counted in the reason; not so those in another script than the prompt's, which are
    in another language whichever it is.

    Args:
        answers: answers of a model; all that was said counts.
        candidates: the languages that answers may be in, besides English and the prompt's;
            `identifiable()` if None.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        `CONSISTENCY_COLUMNS`, a row per language, with Wilson's 95 % interval; NaN with the reason
        for a language that cannot be told.

    Raises:
        ValueError: a language is not registered, or a candidate cannot be told.
        ImportError: py3langid is not installed.
    """
    rows = []
    for code, _, found in _told(answers, ["en"], candidates, progress):
        measure = undefined(why_untold(code))
        if code in identifiable():
            undetermined = {f"und-{script}" for script in scripts_of([code])} | {""}
            most = [(*each, "")[0] for each in found]
            kept = [each == code for each in most if each not in undetermined]
            left_out = len(most) - len(kept)
            reason = f"{left_out} of {len(most)} answers left out: undetermined"
            measure = share(kept, reason=reason if left_out else "")
        rows.append(_row(measure, {"language": code}, "consistency"))
    return pd.DataFrame(rows, columns=list(CONSISTENCY_COLUMNS))


def _told(
    answers: Sequence[Answer],
    needed: Sequence[str],
    candidates: Sequence[str] | None,
    progress: bool,
) -> list[tuple[str, list[str], list[tuple[str, ...]]]]:
    """By language of the question: it, what its answers may be in, and what each of them is in.

    The question's language is the first candidate, then those that are needed as well.
    """
    among: dict[str, list[str]] = {}
    found: dict[str, list[tuple[str, ...]]] = {}
    bar = tqdm(answers, desc="languages", unit="answer", delay=2, disable=not progress)
    for answer in bar:
        code = answer.query.language
        if code not in among:
            first = [each for each in (code, *needed) if language(each).code in identifiable()]
            others = identifiable() if candidates is None else candidates
            among[code], found[code] = list(dict.fromkeys([*first, *others])), []
        found[code].append(languages_of(answer.text, among[code]))
    return [(code, among[code], found[code]) for code in found]


def _without_undetermined(found: Iterable[str], candidates: Sequence[str]) -> set[str]:
    """What was told; a script that no candidate has tells that it is another language."""
    return {*found} - {f"und-{script}" for script in scripts_of(candidates)}


def _row(measure: Measure, keys: dict[str, str], name: str) -> dict[str, object]:
    return {**keys, **vars(measure), name: measure.value}
