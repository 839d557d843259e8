"""Diversity of answers: distinct-n (Li et al. 2016) and self-BLEU (Zhu et al. 2018).

Unlearning can leave a model that says the same to everything. Both depend on length and number:
distinct-n falls the more tokens there are, since a language has so many words, and self-BLEU rises
with the number of answers that one is compared with. So compare only models asked the same
queries, with the same number of tokens and of samples, and languages with care, since tokens are
characters in some of them.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from statistics import NormalDist
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from interp.behaviour.answers import Answer
from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.overlap import choose_tokenizer, make_bleu
from interp.behaviour.registry import check_languages, metric
from interp.languages import get_language
from interp.statistics import Estimate, estimate_mean, make_undefined

COLUMNS = ("language", "metric", "value", "ci_low", "ci_high", "n", "reason")

_BY_CHARACTER = {"zh", "zh-Hant", "ja", "th"}

Ngram: TypeAlias = tuple[str, ...]


def measure_diversity(
    answers: Sequence[Answer],
    *,
    within: Literal["query", "language"] = "language",
    progress: bool = True,
) -> pd.DataFrame:
    """Measure distinct-1 to distinct-3 and self-BLEU, by language of the question.

    Args:
        answers: answers of a model; all that was said counts.
        within: which answers are held against each other: all of a language, or the samples of one
            query, of which the mean over queries is taken (greedy answers have one only).
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        `COLUMNS`, a row per language and metric (`distinct-1` …, `self-BLEU`), with 95 % intervals:
        `within` a language those of `compute_distinct` and `compute_self_bleu`, otherwise
        bootstrap ones over queries. `n` are answers, or queries.

    Raises:
        ValueError: a language is not registered, or `within` is neither of the two.
        ImportError: sacrebleu is not installed.
    """
    if within not in ("query", "language"):
        raise ValueError(f"answers are compared within a query or a language, not {within!r}")
    groups: dict[str, dict[object, list[str]]] = {}
    for answer in answers:
        key = answer.query if within == "query" else None
        by_key = groups.setdefault(answer.query.language, {})
        by_key.setdefault(key, []).append(answer.text)
    rows = []
    total = sum(map(len, groups.values())) * len(_METRICS)
    with tqdm(total=total, desc="diversity", unit="group", delay=2, disable=not progress) as bar:
        for code, by_key in groups.items():
            for name, metric in _METRICS.items():
                estimates = []
                for texts in by_key.values():
                    estimates.append(metric(texts, code))
                    bar.update()
                measure = (
                    estimates[0]
                    if within == "language"
                    else estimate_mean([one.value for one in estimates])
                )
                rows.append({"language": code, "metric": name, **vars(measure)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def check_diversity(evaluated: EvaluatedModel) -> None:
    """Refuse to go on without sacrebleu, or with languages that are not registered."""
    check_languages(evaluated)
    make_bleu("en")


@metric("diversity", check=check_diversity)
def tabulate_diversity(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Compute distinct-1, -2, -3 and self-BLEU of the answers."""
    return evaluated.measure_by_concept(
        lambda answers: measure_diversity(answers, progress=evaluated.progress)
    )


def compute_distinct(texts: Sequence[str], code: str, *, order: int) -> Estimate:
    """Compute the share of different n-grams in all n-grams of all texts (Li et al. 2016).

    Args:
        texts: answers in one language.
        code: its BCP-47 code, which says what a token is (`tokenize_text`).
        order: n.

    Returns:
        From 0, always the same, to 1, nothing twice, with a 95 % jackknife interval over answers
        (a bootstrap would count drawing an answer twice as repetition). Answers of fewer than n
        tokens have no n-grams; `n` are the others.

    Raises:
        ValueError: the language is not registered.
    """
    counted = [Counter(_list_ngrams(tokenize_text(text, code), order)) for text in texts]
    counts = [counter for counter in counted if counter]
    short = len(texts) - len(counts)
    reason = f"{short} of {len(texts)} answers have fewer than {order} tokens" if short else ""
    if not counts:
        return make_undefined(reason or "no answers")
    holders = Counter(ngram for counter in counts for ngram in counter)
    totals = np.array([counter.total() for counter in counts])
    # What only this answer says is gone without it.
    alone = np.array([sum(holders[ngram] == 1 for ngram in counter) for counter in counts])
    value = len(holders) / totals.sum()
    low = high = np.nan
    if len(counts) > 1:
        without = (len(holders) - alone) / (totals.sum() - totals)
        half = NormalDist().inv_cdf(0.975) * np.sqrt((len(counts) - 1) * without.var())
        low, high = max(0.0, value - half), min(1.0, value + half)
    return Estimate(
        value=float(value), ci_low=float(low), ci_high=float(high), n=len(counts), reason=reason
    )


def compute_self_bleu(texts: Sequence[str], code: str) -> Estimate:
    """Compute the mean sentence BLEU of each text against all others (Zhu et al. 2018).

    Args:
        texts: answers in one language.
        code: its BCP-47 code, which chooses the tokenizer (`overlap.choose_tokenizer`).

    Returns:
        From 0, nothing in common, to 100, all the same, with a 95 % bootstrap interval over texts
        (somewhat narrow, since every text is also a reference of the others). Empty texts are left
        out.

    Raises:
        ValueError: the language is not registered.
        ImportError: sacrebleu is not installed.
    """
    metric = make_bleu(code)
    orders = range(1, metric.max_ngram_order + 1)
    kept = [tokenized for text in texts if (tokenized := metric.tokenizer(text.strip()).split())]
    reasons = [choose_tokenizer(code)[1]]
    if empty := len(texts) - len(kept):
        reasons.append(f"{empty} of {len(texts)} answers left out: empty")
    if len(kept) < 2:
        reasons.append("there are no two answers to compare")
        return make_undefined("; ".join(filter(None, reasons)))
    counts = [
        Counter(ngram for order in orders for ngram in _list_ngrams(words, order)) for words in kept
    ]
    # Of every n-gram the largest count in a text, which text has it, and the largest of the others.
    first: dict[Ngram, tuple[int, int]] = {}
    second: Counter[Ngram] = Counter()
    for text, counter in enumerate(counts):
        for ngram, count in counter.items():
            largest, _ = first.get(ngram, (0, -1))
            if count > largest:
                first[ngram], second[ngram] = (count, text), largest
            else:
                second[ngram] = max(second[ngram], count)
    lengths = Counter(map(len, kept))
    scores = []
    for text, (words, counter) in enumerate(zip(kept, counts, strict=True)):
        right, total = Counter[int](), Counter[int]()
        for ngram, count in counter.items():
            largest, holder = first[ngram]
            total[len(ngram)] += count
            right[len(ngram)] += min(count, second[ngram] if holder == text else largest)
        # The closest of the others' lengths, the shorter of two.
        others = lengths - Counter([len(words)])
        closest = min(others, key=lambda length: (abs(length - len(words)), length))
        score = metric.compute_bleu(
            [right[order] for order in orders],
            [total[order] for order in orders],
            len(words),
            closest,
            smooth_method=metric.smooth_method,
            effective_order=metric.effective_order,
        )
        scores.append(score.score)
    return estimate_mean(scores, reason="; ".join(filter(None, reasons)))


def tokenize_text(text: str, code: str) -> list[str]:
    """Split a text into words without punctuation; characters in Chinese, Japanese and Thai.

    Raises:
        ValueError: the language is not registered.
    """
    words = ["".join(run) for is_word, run in groupby(text, key=_is_of_a_word) if is_word]
    return list("".join(words)) if get_language(code).code in _BY_CHARACTER else words


def _is_of_a_word(char: str) -> bool:
    """Return whether it is a letter, a mark, a digit, or a joiner of Arabic and Indian scripts."""
    category = unicodedata.category(char)
    return category[0] in "LMN" or category == "Cf"


def _list_ngrams(words: Sequence[str], order: int) -> list[Ngram]:
    return [tuple(words[at : at + order]) for at in range(len(words) - order + 1)]


_METRICS: dict[str, Callable[[Sequence[str], str], Estimate]] = {
    **{f"distinct-{order}": partial(compute_distinct, order=order) for order in (1, 2, 3)},
    "self-BLEU": compute_self_bleu,
}
