"""Languages in which a model answers: Lu & Koehn's table, and language consistency.

Languages are told by `language_identification`: with caution, so that short answers stay
undetermined. Intervals take answers for independent, also several samples of one query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
from tqdm.auto import tqdm

from interp.behaviour.answers import Answer
from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.language_identification import (
    explain_unidentifiable,
    find_scripts,
    identify_languages,
    list_identifiable,
)
from interp.behaviour.registry import check_languages, metric
from interp.languages import get_language
from interp.statistics import Estimate, estimate_share, make_undefined

KINDS = ("english", "question", "taught", "another", "undetermined")
"""Languages in an answer: English, the question's language, that of the fake data, another."""

COLUMNS = ("language", "found", "share", "ci_low", "ci_high", "n", "reason")
CONSISTENCY_COLUMNS = ("language", "consistency", "ci_low", "ci_high", "n", "reason")


def measure_answer_languages(
    answers: Sequence[Answer],
    *,
    taught: str,
    candidates: Sequence[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure in how many answers which languages occur (Lu & Koehn, Table 1).

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
    for code, among, identified in _identify_answers(answers, ["en", taught], candidates, progress):
        named = {"english": "en", "question": code, "taught": taught}
        untold = [each for each in named.values() if each not in list_identifiable()]
        kept = [_drop_undetermined(each, among) for each in identified]
        for kind in KINDS:
            if lacking := [each for each in untold if kind == "another" or named.get(kind) == each]:
                measure = make_undefined(explain_unidentifiable(lacking[0]))
            elif kind == "undetermined":
                measure = estimate_share([not each for each in kept])
            elif kind == "another":
                measure = estimate_share([bool(each - {*named.values()}) for each in kept])
            else:
                measure = estimate_share([named[kind] in each for each in kept])
            rows.append(_make_row(measure, {"language": code, "found": kind}, "share"))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def measure_consistency(
    answers: Sequence[Answer],
    *,
    candidates: Sequence[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the share of answers in the prompt's language (Neplenbroek et al. 2025).

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
    for code, _, identified in _identify_answers(answers, ["en"], candidates, progress):
        measure = make_undefined(explain_unidentifiable(code))
        if code in list_identifiable():
            undetermined = {f"und-{script}" for script in find_scripts([code])} | {""}
            most = [(*each, "")[0] for each in identified]
            kept = [each == code for each in most if each not in undetermined]
            left_out = len(most) - len(kept)
            reason = f"{left_out} of {len(most)} answers left out: undetermined"
            measure = estimate_share(kept, reason=reason if left_out else "")
        rows.append(_make_row(measure, {"language": code}, "consistency"))
    return pd.DataFrame(rows, columns=list(CONSISTENCY_COLUMNS))


def check_identification(evaluated: EvaluatedModel) -> None:
    """Refuse to go on without py3langid, or with languages that are not registered."""
    check_languages(evaluated)
    list_identifiable()


def check_taught(evaluated: EvaluatedModel) -> None:
    """Refuse what `check_identification` does, and a taught language that is not registered."""
    check_identification(evaluated)
    get_language(evaluated.taught or "")


@metric("consistency", check=check_identification)
def tabulate_consistency(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Measure the share of answers in the question's language."""
    return evaluated.measure_by_concept(
        lambda answers: measure_consistency(answers, progress=evaluated.progress).rename(
            columns={"consistency": "value"}
        )
    ).assign(metric="consistency")


@metric("answer_language", needs=("taught",), check=check_taught)
def tabulate_answer_languages(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Measure the share of answers in English, the question's, the taught or another language."""
    taught = evaluated.taught
    assert taught is not None
    table = evaluated.measure_by_concept(
        lambda answers: measure_answer_languages(
            answers, taught=taught, progress=evaluated.progress
        )
    )
    table["metric"] = "answer_language/" + table["found"]
    return table.rename(columns={"share": "value"})


def _identify_answers(
    answers: Sequence[Answer],
    needed: Sequence[str],
    candidates: Sequence[str] | None,
    progress: bool,
) -> list[tuple[str, list[str], list[tuple[str, ...]]]]:
    """Identify, for each language of questions, its candidates and the languages of each answer.

    The question's language is the first candidate, then those that are needed as well.
    """
    among: dict[str, list[str]] = {}
    identified: dict[str, list[tuple[str, ...]]] = {}
    bar = tqdm(answers, desc="languages", unit="answer", delay=2, disable=not progress)
    for answer in bar:
        code = answer.query.language
        if code not in among:
            first = [
                each for each in (code, *needed) if get_language(each).code in list_identifiable()
            ]
            others = list_identifiable() if candidates is None else candidates
            among[code], identified[code] = list(dict.fromkeys([*first, *others])), []
        identified[code].append(identify_languages(answer.text, among[code]))
    return [(code, among[code], identified[code]) for code in identified]


def _drop_undetermined(languages: Iterable[str], candidates: Sequence[str]) -> set[str]:
    """Drop what is undetermined; a script that no candidate has tells of another language."""
    return {*languages} - {f"und-{script}" for script in find_scripts(candidates)}


def _make_row(measure: Estimate, keys: dict[str, str], name: str) -> dict[str, object]:
    return {**keys, **vars(measure), name: measure.value}
