"""What Lu & Koehn 2024 saw, as findings: numbers of outcomes that must be above 0.

What was taught or unlearned in one language is compared with the clean baseline, which never read
the false facts, on the same questions: a model that guesses gets as much. "Almost nothing" and "no
large effect" are at most `TOLERANCE`, the share that the paper's stopping rule lets go of true
facts. Where there are several sources, numbers are their mean. Intervals are over facts
(`compared`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from interp.behaviour.measure import Measure, undefined
from interp.data.corpus import REAL_LANGUAGE
from interp.languages import language
from interp.study.contrasts import Curves, contrast
from interp.study.cross_lingual.outcomes import CELL, CLEAN, RANKING, TAUGHT, Rates, compared
from interp.study.rows import where
from interp.study.study import Finding

TOLERANCE = 0.2

Cell = tuple[str, str, str]
"""Source, unlearning, query language."""


def findings(
    outcomes: pd.DataFrame,
    ranks: pd.DataFrame,
    losses: pd.DataFrame,
    *,
    judge: str,
    quality: str,
    note: str = "",
) -> list[Finding]:
    """Every signature of the paper, seen or not.

    Args:
        outcomes: of all models, see `interp.study.cross_lingual.outcomes`.
        ranks: those of the LoRA study, with the rank in `unlearning`; empty without any.
        losses: of the sweeps, with the columns `source` and `unlearning`; empty without any.
        judge: the one who looks for false facts.
        quality: the one who scores true facts.
        note: what differs from the paper, said beside every finding.
    """
    false = where(outcomes, concept="fake")
    true = where(outcomes, concept="real", judge=quality)
    by_judge = where(false, judge=judge)
    answers_by = "alias" if judge == RANKING else judge
    by_rank = where(ranks, concept="fake", judge=judge) if len(ranks) else ranks
    found = [
        *_spread(by_judge),
        _never(where(false, judge=answers_by), answers_by),
        *_left(by_judge),
        *_pushed(by_judge),
        *_combined(by_judge),
        _kept(true),
        _ranks(by_rank),
        _agreement(where(false, unlearning=TAUGHT), judge),
        _recovery(losses),
    ]
    return [replace(each, note="; ".join(filter(None, (each.note, note)))) for each in found]


def _spread(fake: pd.DataFrame) -> list[Finding]:
    """Fig. 2: what was taught in one language comes back in all, most in that one."""
    cells = _cells(fake)
    own = [cell for cell in cells if cell[1] == TAUGHT and cell[2] == cell[0]]
    others = [
        (first, (first[0], TAUGHT, code))
        for first in own
        for code in _languages(cells)
        if code != first[0]
    ]
    elsewhere = [(cell, _clean(cell)) for _, cell in others if cell[2] != REAL_LANGUAGE]
    return [
        _lu(
            "fake information comes back most in the language that it was taught in",
            "Fig. 2",
            "share found in the language taught − mean share in the other query languages",
            _gap(fake, others),
        ),
        _lu(
            "fake information comes back where it was taught",
            "Fig. 2",
            "share found in the language taught − that of the clean baseline",
            _gap(fake, [(cell, _clean(cell)) for cell in own]),
        ),
        _lu(
            "it spreads to languages in which it was never read",
            "Fig. 2",
            "share found in other languages than English and the one taught − clean baseline",
            _gap(fake, elsewhere),
        ),
    ]


def _never(fake: pd.DataFrame, judge: str) -> Finding:
    """Fig. 2's clean baseline, by what it says: ranking candidates is right by chance, too."""
    cells = [cell for cell in _cells(fake) if cell[0] == CLEAN]
    measure = undefined("no answers of a clean baseline")
    if cells:
        measure = compared(fake, lambda rates: TOLERANCE - _mean([rates[cell] for cell in cells]))
    return _lu(
        "fake information is never found without having been taught",
        "Fig. 2",
        f"{TOLERANCE:g} − share of the clean baseline's answers in which it is found",
        measure,
        f"judge: {judge}",
    )


def _left(fake: pd.DataFrame) -> list[Finding]:
    """Figs. 3 and 4: what unlearning in one language leaves in another, above the baseline."""

    def left(mix: str, code: str | None, where: str, signature: str, figure: str) -> Finding:
        """In a language, in all of a tier, or in the source language (None)."""
        pairs = [
            (cell, _clean(cell))
            for cell in _unlearned(fake, mix)
            if (cell[2] == cell[0] if code is None else _is(cell, code))
        ]
        quantity = f"share still found in {where} − that of the clean baseline"
        return _lu(signature, figure, quantity, _gap(fake, pairs))

    source = "the language taught"
    return [
        left("english", None, source, "English unlearning leaves a share in the source language",
             "Fig. 3 (−55 %, then a plateau)"),
        left("english", "low", "low-resource languages",
             "English unlearning leaves a share in low-resource languages", "Fig. 3"),
        left("same", REAL_LANGUAGE, "English", "unlearning in the source language leaves English",
             "Fig. 4 (+11 %)"),
        left("family", None, source,
             "unlearning in a related language leaves the source language", "Fig. 4"),
    ]  # fmt: skip


def _pushed(fake: pd.DataFrame) -> list[Finding]:
    """Fig. 5: what unlearning in twenty languages adds in others."""

    def pushed(code: str, where: str, percent: str) -> Finding:
        pairs = [
            (cell, (cell[0], TAUGHT, cell[2]))
            for cell in _unlearned(fake, "multilingual")
            if _is(cell, code)
        ]
        signature = f"multilingual unlearning pushes it to {where}"
        quantity = f"share found in {where}, after − before"
        return _lu(signature, f"Fig. 5 ({percent})", quantity, _gap(fake, pairs))

    return [
        pushed(REAL_LANGUAGE, "English", "+30 %"),
        pushed("low", "low-resource languages", "+117 %"),
    ]


def _combined(fake: pd.DataFrame) -> list[Finding]:
    """Fig. 6: unlearning in English and the source language."""
    there = {*_cells(fake)}
    after = [cell for cell in _unlearned(fake, "combined") if _clean(cell) in there]

    def least(rates: Rates) -> float:
        by_source: dict[str, list[float]] = {}
        for cell in after:
            by_source.setdefault(cell[0], []).append(rates[cell] - rates[_clean(cell)])
        return TOLERANCE - _mean([max(gaps) for gaps in by_source.values()])

    own = [((cell[0], "english", cell[2]), cell) for cell in after if cell[2] == cell[0]]
    return [
        _lu(
            "unlearning in English and the source language leaves almost nothing anywhere",
            "Fig. 6",
            f"{TOLERANCE:g} − (share still found − clean baseline) in the worst query language",
            compared(fake, least) if after else undefined("this preset lacks the mix combined"),
            "the worst language is chosen anew in every resample, which is hard on the claim",
        ),
        _lu(
            "it removes more from the source language than English alone",
            "Figs. 3 and 6",
            "share still found in the language taught, English − combined",
            _gap(fake, own),
        ),
    ]


def _kept(real: pd.DataFrame) -> Finding:
    """The stopping rule: true facts fall by a fifth at most."""
    after = [
        cell for cell in _cells(real) if cell[1] not in (TAUGHT, CLEAN) and cell[2] == REAL_LANGUAGE
    ]
    measure = undefined("no model was asked for true facts in English")
    if after:
        measure = compared(
            real,
            lambda rates: _mean(
                [rates[cell] - (1 - TOLERANCE) * rates[cell[0], TAUGHT, cell[2]] for cell in after]
            ),
        )
    return _lu(
        "unlearning keeps the true facts",
        "section 5 (their stopping rule)",
        "score of true facts in English after − 80 % of that before, mean over mixes",
        measure,
    )


def _ranks(fake: pd.DataFrame) -> Finding:
    """Fig. 8: false facts in the language taught, by rank."""
    cells = [cell for cell in _cells(fake) if cell[2] == cell[0]] if len(fake) else []
    measure = undefined("fewer than two ranks were tried")
    if len(cells) > 1:
        measure = compared(
            fake,
            lambda rates: (
                TOLERANCE - max(rates[cell] for cell in cells) + min(rates[cell] for cell in cells)
            ),
        )
    return _lu(
        "the rank of LoRA has no large effect on unlearning",
        "Fig. 8",
        f"{TOLERANCE:g} − largest difference between ranks, share found in the language taught",
        measure,
        "the largest difference of resamples errs on the side of an effect",
    )


def _agreement(fake: pd.DataFrame, judge: str) -> Finding:
    """Fig. 7, of the judge and the next one that says yes or no."""
    other = next(
        (name for name in fake["judge"] if name != judge and not name.startswith("quality")), None
    )
    measure = undefined("there is one judge")
    if other is not None:
        keys = ["source", "language", "query_id"]
        first, second = (
            where(fake, judge=name).dropna(subset=["value"]) for name in (judge, other)
        )
        both = first.merge(second, on=keys, suffixes=("_first", "_second"))
        values = {"first": both["value_first"], "second": both["value_second"]}
        values["both"] = values["first"] * values["second"]
        sides = [both[keys].assign(side=name, value=each) for name, each in values.items()]
        found = compared(pd.concat(sides), kappa_of_shares, by=["side", "source", "language"])
        low, high = max(found.ci_low, -1.0), min(found.ci_high, 1.0)
        measure = replace(found, ci_low=low, ci_high=high)
    return _lu(
        "two judges agree on what is fake information",
        "Fig. 7",
        f"Cohen's kappa of {judge} and {other or 'another judge'}",
        measure,
    )


def kappa_of_shares(rates: Rates) -> float:
    """Cohen's kappa of two judges who say yes or no.

    Args:
        rates: mean yeses by (`first`, …), (`second`, …) and (`both`, …), with equally many answers
            in each.

    Returns:
        NaN where both gave one and the same verdict to everything.
    """
    first, second, both = (
        _mean([value for key, value in rates.items() if key[0] == side])
        for side in ("first", "second", "both")
    )
    agreed = 1 - first - second + 2 * both
    expected = first * second + (1 - first) * (1 - second)
    return (agreed - expected) / (1 - expected) if expected < 1 else float("nan")


def _recovery(losses: pd.DataFrame) -> Finding:
    """Where it sits when it hides: the order of the sites in every query language."""
    measure = undefined("no sweep had both value and coef+attn")
    if not losses.empty and {"value", "coef+attn"} <= {*losses["site"]}:

        def least(curves: Curves) -> float:
            cells = {key[:-1] for key in curves}
            return min(
                max(curves[*cell, "coef+attn"]) - max(curves[*cell, "value"]) for cell in cells
            )

        measure = contrast(losses, least, by=CELL)
    return Finding(
        signature="in every query language it returns with states, not with value vectors",
        source="Hong et al., Fig. 1, here per query language",
        quantity="KRS at the best window, coef+attn − value, in the cell where that is least",
        measure=measure,
    )


def _lu(signature: str, where: str, quantity: str, measure: Measure, *notes: str) -> Finding:
    source = f"Lu & Koehn, {where}"
    note = "; ".join(notes)
    return Finding(
        signature=signature, source=source, quantity=quantity, measure=measure, note=note
    )


def _gap(outcomes: pd.DataFrame, pairs: Sequence[tuple[Cell, Cell]]) -> Measure:
    """The mean over pairs of cells, of the first's share less the second's."""
    there = {*_cells(outcomes)}
    kept = [pair for pair in pairs if there.issuperset(pair)]
    if not kept:
        return undefined("this preset has no such model or query language")
    return compared(
        outcomes,
        lambda rates: _mean([rates[first] - rates[second] for first, second in kept]),
    )


def _cells(outcomes: pd.DataFrame) -> list[Cell]:
    rows = outcomes.drop_duplicates(list(CELL))
    return [(row["source"], row["unlearning"], row["language"]) for row in rows.to_dict("records")]


def _unlearned(outcomes: pd.DataFrame, mix: str) -> list[Cell]:
    """Cells of a mix; where English is the source language, mixes say nothing of it."""
    return [cell for cell in _cells(outcomes) if cell[1] == mix and cell[0] != REAL_LANGUAGE]


def _is(cell: Cell, code: str) -> bool:
    """Whether a cell's query language is this one or of this tier, and not the source language."""
    return cell[2] != cell[0] and code in (cell[2], language(cell[2]).tier)


def _clean(cell: Cell) -> Cell:
    return (CLEAN, CLEAN, cell[2])


def _languages(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(code for _, _, code in cells))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
