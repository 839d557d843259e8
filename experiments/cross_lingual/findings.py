"""Findings: signatures of Lu & Koehn 2024 as numbers of outcomes that must be above 0.

What was taught or unlearned in one language is compared with the clean baseline, which never read
the false facts, on the same questions: a model that guesses gets as much. "Almost nothing" and "no
large effect" are at most `TOLERANCE`, the share that the paper's stopping rule lets go of true
facts. Where there are several sources, numbers are their mean. Intervals are over facts
(`compare_outcomes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from experiments.cross_lingual.config import Config
from experiments.cross_lingual.tables import CELL, CLEAN, RANKING, TAUGHT, Rates, compare_outcomes
from experiments.study import Finding, select_rows
from interp.data import REAL_LANGUAGE
from interp.languages import get_language
from interp.recovery import Curves, contrast
from interp.report import Table
from interp.statistics import Estimate, make_undefined

TOLERANCE = 0.2

Cell = tuple[str, str, str]
"""Source, unlearning, query language."""


def make_findings(
    measurements: Mapping[str, pd.DataFrame], tables: Mapping[str, Table], config: Config
) -> list[Finding]:
    """Judge every signature of the paper.

    Args:
        measurements: what `run.measure` returns.
        tables: unused; every paper's findings may read its tables.
        config: the settings.
    """
    del tables
    by = config.judge.model if config.judge else ""
    return judge_signatures(
        measurements["outcomes"],
        measurements["ranks"],
        measurements["losses"],
        judge=f"occurrence by {by}" if by else RANKING,
        quality=f"quality by {by}" if by else RANKING,
        note=config.note,
    )


def judge_signatures(
    outcomes: pd.DataFrame,
    ranks: pd.DataFrame,
    losses: pd.DataFrame,
    *,
    judge: str,
    quality: str,
    note: str = "",
) -> list[Finding]:
    """Judge every signature of the paper on outcomes.

    Args:
        outcomes: of all models, see `experiments.cross_lingual.tables`.
        ranks: those of the LoRA study, with the rank in `unlearning`; empty without any.
        losses: of the sweeps, with the columns `source` and `unlearning`; empty without any.
        judge: the one who looks for false facts.
        quality: the one who scores true facts.
        note: what differs from the paper, said beside every finding.
    """
    false = select_rows(outcomes, concept="fake")
    true = select_rows(outcomes, concept="real", judge=quality)
    by_judge = select_rows(false, judge=judge)
    answers_by = "alias" if judge == RANKING else judge
    by_rank = select_rows(ranks, concept="fake", judge=judge) if len(ranks) else ranks
    findings = [
        *_judge_spread(by_judge),
        _judge_baseline(select_rows(false, judge=answers_by), answers_by),
        *_judge_left(by_judge),
        *_judge_pushed(by_judge),
        *_judge_combined(by_judge),
        _judge_kept(true),
        _judge_ranks(by_rank),
        _judge_agreement(select_rows(false, unlearning=TAUGHT), judge),
        _judge_recovery(losses),
    ]
    return [replace(each, note="; ".join(filter(None, (each.note, note)))) for each in findings]


def _judge_spread(fake: pd.DataFrame) -> list[Finding]:
    """Judge Fig. 2: what was taught in one language comes back in all, most in that one."""
    cells = _list_cells(fake)
    own = [cell for cell in cells if cell[1] == TAUGHT and cell[2] == cell[0]]
    others = [
        (first, (first[0], TAUGHT, code))
        for first in own
        for code in _list_languages(cells)
        if code != first[0]
    ]
    elsewhere = [(cell, _get_baseline(cell)) for _, cell in others if cell[2] != REAL_LANGUAGE]
    return [
        _make_finding(
            "fake information comes back most in the language that it was taught in",
            "Fig. 2",
            "share found in the language taught − mean share in the other query languages",
            _compare_cells(fake, others),
        ),
        _make_finding(
            "fake information comes back where it was taught",
            "Fig. 2",
            "share found in the language taught − that of the clean baseline",
            _compare_cells(fake, [(cell, _get_baseline(cell)) for cell in own]),
        ),
        _make_finding(
            "it spreads to languages in which it was never read",
            "Fig. 2",
            "share found in other languages than English and the one taught − clean baseline",
            _compare_cells(fake, elsewhere),
        ),
    ]


def _judge_baseline(fake: pd.DataFrame, judge: str) -> Finding:
    """Judge Fig. 2's clean baseline, by what it says: rankings are right by chance, too."""
    cells = [cell for cell in _list_cells(fake) if cell[0] == CLEAN]
    measure = make_undefined("no answers of a clean baseline")
    if cells:
        measure = compare_outcomes(
            fake, lambda rates: TOLERANCE - _average([rates[cell] for cell in cells])
        )
    return _make_finding(
        "fake information is never found without having been taught",
        "Fig. 2",
        f"{TOLERANCE:g} − share of the clean baseline's answers in which it is found",
        measure,
        f"judge: {judge}",
    )


def _judge_left(fake: pd.DataFrame) -> list[Finding]:
    """Judge Figs. 3 and 4: what unlearning in one language leaves in another, above chance."""

    def left(mix: str, code: str | None, where: str, signature: str, figure: str) -> Finding:
        """Compare in a language, in all of a tier, or in the source language (None)."""
        pairs = [
            (cell, _get_baseline(cell))
            for cell in _select_mix(fake, mix)
            if (cell[2] == cell[0] if code is None else _is_in(cell, code))
        ]
        quantity = f"share still found in {where} − that of the clean baseline"
        return _make_finding(signature, figure, quantity, _compare_cells(fake, pairs))

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


def _judge_pushed(fake: pd.DataFrame) -> list[Finding]:
    """Judge Fig. 5: what unlearning in twenty languages adds in others."""

    def pushed(code: str, where: str, percent: str) -> Finding:
        pairs = [
            (cell, (cell[0], TAUGHT, cell[2]))
            for cell in _select_mix(fake, "multilingual")
            if _is_in(cell, code)
        ]
        signature = f"multilingual unlearning pushes it to {where}"
        quantity = f"share found in {where}, after − before"
        return _make_finding(
            signature, f"Fig. 5 ({percent})", quantity, _compare_cells(fake, pairs)
        )

    return [
        pushed(REAL_LANGUAGE, "English", "+30 %"),
        pushed("low", "low-resource languages", "+117 %"),
    ]


def _judge_combined(fake: pd.DataFrame) -> list[Finding]:
    """Judge Fig. 6: unlearning in English and the source language."""
    there = {*_list_cells(fake)}
    after = [cell for cell in _select_mix(fake, "combined") if _get_baseline(cell) in there]

    def least(rates: Rates) -> float:
        by_source: dict[str, list[float]] = {}
        for cell in after:
            by_source.setdefault(cell[0], []).append(rates[cell] - rates[_get_baseline(cell)])
        return TOLERANCE - _average([max(gaps) for gaps in by_source.values()])

    own = [((cell[0], "english", cell[2]), cell) for cell in after if cell[2] == cell[0]]
    return [
        _make_finding(
            "unlearning in English and the source language leaves almost nothing anywhere",
            "Fig. 6",
            f"{TOLERANCE:g} − (share still found − clean baseline) in the worst query language",
            compare_outcomes(fake, least)
            if after
            else make_undefined("this preset lacks the mix combined"),
            "the worst language is chosen anew in every resample, which is hard on the claim",
        ),
        _make_finding(
            "it removes more from the source language than English alone",
            "Figs. 3 and 6",
            "share still found in the language taught, English − combined",
            _compare_cells(fake, own),
        ),
    ]


def _judge_kept(real: pd.DataFrame) -> Finding:
    """Judge the stopping rule: true facts fall by a fifth at most."""
    after = [
        cell
        for cell in _list_cells(real)
        if cell[1] not in (TAUGHT, CLEAN) and cell[2] == REAL_LANGUAGE
    ]
    measure = make_undefined("no model was asked for true facts in English")
    if after:
        measure = compare_outcomes(
            real,
            lambda rates: _average(
                [rates[cell] - (1 - TOLERANCE) * rates[cell[0], TAUGHT, cell[2]] for cell in after]
            ),
        )
    return _make_finding(
        "unlearning keeps the true facts",
        "section 5 (their stopping rule)",
        "score of true facts in English after − 80 % of that before, mean over mixes",
        measure,
    )


def _judge_ranks(fake: pd.DataFrame) -> Finding:
    """Judge Fig. 8: false facts in the language taught, by rank."""
    cells = [cell for cell in _list_cells(fake) if cell[2] == cell[0]] if len(fake) else []
    measure = make_undefined("fewer than two ranks were tried")
    if len(cells) > 1:
        measure = compare_outcomes(
            fake,
            lambda rates: (
                TOLERANCE - max(rates[cell] for cell in cells) + min(rates[cell] for cell in cells)
            ),
        )
    return _make_finding(
        "the rank of LoRA has no large effect on unlearning",
        "Fig. 8",
        f"{TOLERANCE:g} − largest difference between ranks, share found in the language taught",
        measure,
        "the largest difference of resamples errs on the side of an effect",
    )


def _judge_agreement(fake: pd.DataFrame, judge: str) -> Finding:
    """Judge Fig. 7, of the judge and the next one that says yes or no."""
    other = next(
        (name for name in fake["judge"] if name != judge and not name.startswith("quality")), None
    )
    measure = make_undefined("there is one judge")
    if other is not None:
        keys = ["source", "language", "query_id"]
        first, second = (
            select_rows(fake, judge=name).dropna(subset=["value"]) for name in (judge, other)
        )
        both = first.merge(second, on=keys, suffixes=("_first", "_second"))
        values = {"first": both["value_first"], "second": both["value_second"]}
        values["both"] = values["first"] * values["second"]
        sides = [both[keys].assign(side=name, value=each) for name, each in values.items()]
        estimate = compare_outcomes(
            pd.concat(sides), compute_share_kappa, by=["side", "source", "language"]
        )
        low, high = max(estimate.ci_low, -1.0), min(estimate.ci_high, 1.0)
        measure = replace(estimate, ci_low=low, ci_high=high)
    return _make_finding(
        "two judges agree on what is fake information",
        "Fig. 7",
        f"Cohen's kappa of {judge} and {other or 'another judge'}",
        measure,
    )


def compute_share_kappa(rates: Rates) -> float:
    """Compute Cohen's kappa of two judges who say yes or no.

    Args:
        rates: mean yeses by (`first`, …), (`second`, …) and (`both`, …), with equally many answers
            in each.

    Returns:
        NaN where both gave one and the same verdict to everything.
    """
    first, second, both = (
        _average([value for key, value in rates.items() if key[0] == side])
        for side in ("first", "second", "both")
    )
    agreed = 1 - first - second + 2 * both
    expected = first * second + (1 - first) * (1 - second)
    return (agreed - expected) / (1 - expected) if expected < 1 else float("nan")


def _judge_recovery(losses: pd.DataFrame) -> Finding:
    """Judge where it sits when it hides: the order of the sites in every query language."""
    measure = make_undefined("no sweep had both value and coef+attn")
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


def _make_finding(
    signature: str, where: str, quantity: str, measure: Estimate, *notes: str
) -> Finding:
    source = f"Lu & Koehn, {where}"
    note = "; ".join(notes)
    return Finding(
        signature=signature, source=source, quantity=quantity, measure=measure, note=note
    )


def _compare_cells(outcomes: pd.DataFrame, pairs: Sequence[tuple[Cell, Cell]]) -> Estimate:
    """Return the mean over pairs of cells, of the first's share less the second's."""
    there = {*_list_cells(outcomes)}
    kept = [pair for pair in pairs if there.issuperset(pair)]
    if not kept:
        return make_undefined("this preset has no such model or query language")
    return compare_outcomes(
        outcomes,
        lambda rates: _average([rates[first] - rates[second] for first, second in kept]),
    )


def _list_cells(outcomes: pd.DataFrame) -> list[Cell]:
    rows = outcomes.drop_duplicates(list(CELL))
    return [(row["source"], row["unlearning"], row["language"]) for row in rows.to_dict("records")]


def _select_mix(outcomes: pd.DataFrame, mix: str) -> list[Cell]:
    """Return the cells of a mix; where English is the source language, mixes say nothing of it."""
    return [cell for cell in _list_cells(outcomes) if cell[1] == mix and cell[0] != REAL_LANGUAGE]


def _is_in(cell: Cell, code: str) -> bool:
    """Return whether a cell's language is this one or of this tier, and not the source language."""
    return cell[2] != cell[0] and code in (cell[2], get_language(cell[2]).tier)


def _get_baseline(cell: Cell) -> Cell:
    return (CLEAN, CLEAN, cell[2])


def _list_languages(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(code for _, _, code in cells))


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
