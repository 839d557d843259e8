"""Predictors of the transfer of unlearning to other languages (Neplenbroek et al. 2025).

    table = reductions(accuracies, unlearned_in=["de"], overlap=subword_overlap(model, texts, "de"))
    transfer(table)

How much of the knowledge each language lost is held against its share of web text, its tier,
whether it is of the family or in the script of a language that unlearning was in, and how many
subwords it shares with it. Languages are few, so p-values are of exact permutation tests as far as
these can be counted out, and a p-value of one predictor is not corrected for there being several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from interp import LanguageModel
from interp.languages import get_language
from interp.statistics import Estimate, bootstrap, make_undefined

COLUMNS = ("predictor", "statistic", "value", "ci_low", "ci_high", "p_value", "n", "reason")

GRADED = ("web_share", "jaccard", "weighted_jaccard")
"""Predictors that are numbers: Spearman's rank correlation."""

BINARY = ("high_resource", "same_family", "same_script")
"""Predictors that are true or false: the difference of the mean reductions."""

LEAST_LANGUAGES = 3

NUM_PERMUTATIONS = 50_000
"""More permutations than this are drawn, not counted out: all of up to eight languages are."""


def compute_reductions(
    table: pd.DataFrame, *, unlearned_in: Sequence[str], overlap: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Compute how much of what it knew each language lost, and what may predict that.

    Args:
        table: a row per language with `language`, `before` and `after`: accuracies or rates that
            unlearning is to bring down, and `chance` if they have one. Other columns are kept:
            `correlates_figure.plot_transfer` draws `reduction_low` and `reduction_high`.
        unlearned_in: BCP-47 codes of the languages that unlearning was in.
        overlap: what `measure_subword_overlap` gives.

    Returns:
        The table with `reduction`, (before − after) / before, which is NaN with a `reason` where
        there was nothing to reduce; `unlearned_in`, whether unlearning was in that language; and
        the predictors `GRADED` (the overlaps if given) and `BINARY`, of which family and script
        are compared with any language that unlearning was in.

    Raises:
        ValueError: a column is missing, a language is duplicate or not registered, or there is
            no language that unlearning was in.
    """
    if missing := [name for name in ("language", "before", "after") if name not in table]:
        raise ValueError(f"the table of rates lacks the columns {', '.join(missing)}")
    if not unlearned_in or isinstance(unlearned_in, str):
        raise ValueError(f"unlearned_in must be a list of language codes, not {unlearned_in!r}")
    if (twice := table["language"].duplicated()).any():
        raise ValueError(
            f"duplicate language {next(iter(table['language'][twice]))!r} in the table of "
            "rates: give one model's rates at a time"
        )
    base = [get_language(code) for code in unlearned_in]
    rows = []
    for row in table.to_dict("records"):
        known = get_language(row["language"])
        value, reason = _compute_reduction(row["before"], row["after"], row.get("chance"))
        rows.append(
            {
                **row,
                "reduction": value,
                "reason": reason,
                "unlearned_in": known in base,
                "web_share": np.nan if known.web_share is None else known.web_share,
                "high_resource": known.tier == "high",
                "same_family": known.family in {each.family for each in base},
                "same_script": known.script in {each.script for each in base},
            }
        )
    merged = pd.DataFrame(rows)
    return merged if overlap is None else merged.merge(overlap, on="language", how="left")


def correlate_reductions(table: pd.DataFrame) -> pd.DataFrame:
    """Correlate predictors with the reduction, over the languages that unlearning was not in.

    Of a predictor that is a number: Spearman's ρ, which does not ask for a shape of the relation,
    so that web shares need no logarithm. Of one that is true or false: the difference of the mean
    reductions. It is in the units of the reduction, while the point-biserial correlation, which
    tests the same, also shrinks where one group is small, as families are.

    Args:
        table: what `compute_reductions` gives.

    Returns:
        `COLUMNS`, a row per predictor that the table has: `value` from −1 to 1, its 95 % bootstrap
        interval over languages, and the two-sided p-value of a permutation test. `n` are
        languages; the reason names those left out. NaN with the reason of fewer than three
        languages, or of ones that are all alike; no interval where a group is a single language.

    Raises:
        ValueError: the table is not one of reductions.
        ImportError: scipy is not installed.
    """
    if missing := [name for name in ("reduction", "unlearned_in", *BINARY) if name not in table]:
        raise ValueError(f"the table of reductions lacks the columns {', '.join(missing)}")
    others = table.loc[~table["unlearned_in"].astype(bool)]
    rows = []
    for name in (name for name in (*GRADED, *BINARY) if name in table):
        x, y = (others[column].to_numpy(float) for column in (name, "reduction"))
        measure, p_value = _associate(x, y, binary=name in BINARY)
        statistic = "difference of means" if name in BINARY else "Spearman's rho"
        row = {"predictor": name, "statistic": statistic, **vars(measure), "p_value": p_value}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def measure_subword_overlap(
    model: LanguageModel, texts_by_language: Mapping[str, Sequence[str]], base: str
) -> pd.DataFrame:
    """Measure how many of their tokens languages share with one, in parallel texts.

    Args:
        model: the model, of which only the tokenizer is used; special tokens do not count.
        texts_by_language: for every language the same texts, such as prompts.
        base: code of the language that the others are compared with, one of them.

    Returns:
        A row per language, the base too: `language`; `jaccard`, the share of the different tokens
        of both that are tokens of each; `weighted_jaccard`, the same of their relative frequencies
        (sum of the smaller ones over sum of the larger ones), so that frequent tokens count more:
        between scripts these are punctuation and spaces. NaN where there are no tokens.

    Raises:
        ValueError: the base has no texts, or languages have different numbers of texts.
    """
    if base not in texts_by_language:
        raise ValueError(f"no texts in {base!r}; valid: {', '.join(texts_by_language)}")
    expected = len(texts_by_language[base])
    counts = {}
    for code, texts in texts_by_language.items():
        if len(texts) != expected:
            raise ValueError(
                f"parallel texts are as many in every language: {len(texts)} in {code!r}, but "
                f"{expected} in {base!r}"
            )
        counts[code] = Counter(
            token
            for text in texts
            for token in model.tokenizer(text, add_special_tokens=False)["input_ids"]
        )
    rows = [
        {"language": code, **_compute_jaccard(counts[base], own)} for code, own in counts.items()
    ]
    return pd.DataFrame(rows)


def _compute_reduction(before: float, after: float, chance: float | None) -> tuple[float, str]:
    if np.isnan(before) or np.isnan(after):
        return np.nan, f"there is no rate {'before' if np.isnan(before) else 'after'} unlearning"
    floor = 0.0 if chance is None or np.isnan(chance) else chance
    if before <= floor:
        name = f"chance, {floor:.3g}" if floor else "0"
        return np.nan, f"there was nothing to lose: {before:.3g} before is not above {name}"
    return (before - after) / before, ""


def _associate(
    predictor: np.ndarray, reduction: np.ndarray, *, binary: bool
) -> tuple[Estimate, float]:
    """Compute the statistic with its interval, and its p-value."""
    known = ~np.isnan(predictor) & ~np.isnan(reduction)
    x, y = predictor[known], reduction[known]
    reasons = []
    if lacking := int((~known).sum()):
        reasons.append(f"{lacking} of {len(known)} languages left out: a value is lacking")
    if len(x) < LEAST_LANGUAGES:
        reasons.append(f"{len(x)} languages are too few, {LEAST_LANGUAGES} are needed")
    elif len({*x}) == 1:
        reasons.append("the predictor is the same for all languages")
    elif len({*y}) == 1 and not binary:
        reasons.append("the reduction is the same in all languages")
    else:
        statistic = _compute_difference if binary else _compute_spearman
        measure = bootstrap(len(x), lambda items: statistic(x[items], y[items]))
        if binary and min(x.sum(), (1 - x).sum()) == 1:
            reasons.append("no interval: a group is a single language")
            measure = replace(measure, ci_low=np.nan, ci_high=np.nan)
        return replace(measure, reason="; ".join(reasons)), _compute_p_value(x, y, binary=binary)
    return make_undefined("; ".join(reasons)), np.nan


def _compute_difference(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the mean of y where x is true less that where x is false; NaN if one has none."""
    if len({*x}) == 1:
        return np.nan
    return y[x == 1].mean() - y[x == 0].mean()


def _compute_spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Correlate ranks, tied ones at their mean; NaN if all are tied."""
    if len({*x}) == 1 or len({*y}) == 1:
        return np.nan
    ranks = _import_stats().rankdata([x, y], axis=1)
    return float(np.corrcoef(ranks)[0, 1])


def _compute_p_value(x: np.ndarray, y: np.ndarray, *, binary: bool) -> float:
    """Compute the share of permutations of the reductions that go with the predictor as much."""
    if not binary:
        x, y = _import_stats().rankdata([x, y], axis=1)
    # Of the same values, both statistics rise with the sum of products.
    test = _import_stats().permutation_test(
        (y,),
        lambda dealt, axis: (x * dealt).sum(axis),
        permutation_type="pairings",
        n_resamples=NUM_PERMUTATIONS,
        rng=0,
    )
    return float(test.pvalue)


def _import_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(
            "correlations need the package scipy: pip install 'interp[behaviour]'"
        ) from error
    return stats


def _compute_jaccard(a: Counter[int], b: Counter[int]) -> dict[str, float]:
    if not a or not b:
        return {"jaccard": np.nan, "weighted_jaccard": np.nan}
    shares = [(a[token] / a.total(), b[token] / b.total()) for token in a.keys() | b.keys()]
    return {
        "jaccard": len(a.keys() & b.keys()) / len(shares),
        "weighted_jaccard": sum(map(min, shares)) / sum(map(max, shares)),
    }
