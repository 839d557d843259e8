"""TOFU's metrics: what is left of fictitious authors, and of all else (Maini et al. 2024).

Of each question: the probability of the answer, the ROUGE-L recall of what the model says, and the
truth ratio, which asks whether wrong answers are as likely as the right one in other words. Of a
model: its utility on what it should keep, and its forget quality, which is high where its truth
ratios are distributed as those of a model that never saw the forget set.

    records = read_tofu("forget10_perturbed.json")
    queries = make_queries(records, template="Question: {question}\\nAnswer:")
    answers = generate(model, queries, num_tokens=200)
    table = score_questions(model, records, answers, kind="forget")
    average_scores(table)

The paper and its released code differ; `variant="tofu-code"` does as the code, and as
OpenUnlearning (Dorna et al. 2025) after it:

- the truth ratio's mean over wrong answers is arithmetic in the paper, geometric in the code;
- choices are compared by P(a|q) in the paper, by P(a|q)^(1/|a|) in the code.

In both variants the answer's tokens are those of its text; the code scores an end-of-sequence token
after them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from torch import Tensor

from interp.behaviour.answers import Answer
from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.registry import metric
from interp.behaviour.rouge import make_rouge_scorer
from interp.behaviour.tofu_sets import (
    KINDS,
    Kind,
    check_forget_set,
    check_records,
    check_utility,
    find_records,
)
from interp.behaviour.token_scores import score_labels
from interp.data.datasets.records import QuestionAnswer
from interp.data.query import Query
from interp.data.trajectories import join_answer
from interp.models.language_model import LanguageModel
from interp.statistics import Estimate, bootstrap, estimate_groups, estimate_mean, make_undefined
from interp.unlearning.examples import Example

Variant = Literal["paper", "tofu-code"]

METRICS = ("probability", "rouge", "truth_score")

COLUMNS = ("language", "query_id", "kind", "variant", "said", *METRICS, "truth_ratio", "reason")


def score_questions(
    model: LanguageModel,
    records: Iterable[QuestionAnswer],
    answers: Sequence[Answer],
    *,
    kind: Kind,
    variant: Variant = "paper",
    progress: bool = True,
) -> pd.DataFrame:
    """Score what a model says to the questions of one of TOFU's sets, and how likely it finds what.

    Args:
        model: the model.
        records: the set, with perturbed answers and, but for `choices`, a paraphrased one.
        answers: what the model said to each question, greedily; only the first line counts, as base
            models go on to other questions. Probabilities are of texts after the same prompts.
        kind: `forget`; `retain`; or `choices` (Real Authors, World Facts), where the perturbed
            answers are what there is to choose from, and the answer stands for its paraphrase.
        variant: `paper` or `tofu-code`; see the module.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        One row per question, with `COLUMNS`. `probability` is P(a|q)^(1/|a|), |a| in tokens; among
        choices the answer's share of all of them. `rouge` is that of `make_rouge_scorer`.
        `truth_ratio` is R, the mean of P(â|q)^(1/|â|) over wrong answers â by that of the
        paraphrase; `truth_score` is max(0, 1 − R), on the forget set min(R, 1/R), as the code has
        it. What is not defined is NaN, with its `reason`.

    Raises:
        ValueError: no such kind or variant, or answers to other questions than the records'.
        ImportError: the package rouge_score is not installed.
    """
    for name, value, valid in (("kind", kind, Kind), ("variant", variant, Variant)):
        if value not in get_args(valid):
            raise ValueError(f"unknown {name} {value!r}; valid: {', '.join(get_args(valid))}")
    records = list(records)
    if [(record.id, record.language) for record in records] != [
        (answer.query.id, answer.query.language) for answer in answers
    ]:
        raise ValueError(
            f"the {len(answers)} answers are not those to the {len(records)} records; give one to "
            "each record's question, in the same order"
        )
    recall = make_rouge_scorer()
    texts = [
        _make_examples(record, answer.query, kind)
        for record, answer in zip(records, answers, strict=True)
    ]
    different = list(dict.fromkeys(chain.from_iterable(texts)))
    scored = score_labels(model, different, progress=progress)
    logprobs = {
        text: scores.logprobs.double() for text, scores in zip(different, scored, strict=True)
    }
    rows = []
    for record, answer, own in zip(records, answers, texts, strict=True):
        rouge = recall(record.answer, answer.first_line, record.language)
        missing = {
            "no paraphrased answer": not _get_paraphrase(record, kind),
            "no perturbed answers": not record.perturbed_answers,
            "no words in the answer": np.isnan(rouge),
            "log-probabilities that are no numbers": any(
                logprobs[text].isnan().any() for text in own
            ),
        }
        rows.append(
            {
                "language": record.language,
                "query_id": record.id,
                "kind": kind,
                "variant": variant,
                "said": answer.first_line,
                "rouge": rouge,
                **_score_likelihoods(record, [logprobs[text] for text in own], kind, variant),
                "reason": "; ".join(reason for reason, holds in missing.items() if holds),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def average_scores(table: pd.DataFrame, *, by: Sequence[str] = ("language",)) -> pd.DataFrame:
    """Average a set's metrics (`METRICS`), with 95 % intervals.

    Args:
        table: what `score_questions` gives; of several models, with a column that tells them apart.
        by: columns that make a group.

    Returns:
        As `interp.statistics.estimate_groups`.
    """
    return estimate_groups(
        table,
        by,
        {name: lambda group, name=name: estimate_mean(group[name].tolist()) for name in METRICS},
    )


def compute_model_utility(
    retain: pd.DataFrame, real_authors: pd.DataFrame, world_facts: pd.DataFrame
) -> pd.DataFrame:
    """Compute the harmonic mean of each set's mean probability, ROUGE-L recall and truth score.

    Args:
        retain: what `score_questions` gives of the retain set.
        real_authors: of Real Authors, as choices.
        world_facts: of World Facts, as choices.

    Returns:
        One row per language, as of `interp.statistics.estimate_groups`: `model_utility`, 0
        where one of the nine is 0; its interval is from resampling questions.

    Raises:
        ValueError: a table of another kind of set, or tables of different variants.
    """
    tables = {"retain": retain, "real_authors": real_authors, "world_facts": world_facts}
    for name, table in tables.items():
        _check(name, table, "retain" if name == "retain" else "choices", retain)
    whole = pd.concat([table.assign(set=name) for name, table in tables.items()])

    def utility(group: pd.DataFrame) -> Estimate:
        values = group[list(METRICS)].to_numpy(dtype=float)
        of_set = [(group["set"] == name).to_numpy() for name in tables]

        def statistic(items: np.ndarray) -> float:
            drawn = [values[items[members[items]]] for members in of_set]
            if not all(map(len, drawn)):
                return np.nan
            return compute_harmonic_mean(np.concatenate([rows.mean(0) for rows in drawn]))

        for name, members in zip(tables, of_set, strict=True):
            lacking = np.isnan(values[members]).any(1).sum()
            if lacking or not members.any():
                many = f"{lacking} questions without a value" if lacking else "no questions"
                return make_undefined(f"{name} has {many}")
        return bootstrap(len(group), statistic)

    return estimate_groups(whole, ("language",), {"model_utility": utility})


def compute_forget_quality(unlearned: pd.DataFrame, retrained: pd.DataFrame) -> pd.DataFrame:
    """Test whether truth ratios on the forget set are distributed as in a model that never saw it.

    The p-value of the two-sample Kolmogorov-Smirnov test, which is high where they are; it knows
    neither which question a ratio belongs to nor which model is better.

    Args:
        unlearned: what `score_questions` gives of the forget set.
        retrained: the same of a model that was trained on the retain set alone.

    Returns:
        One row per language, as of `interp.statistics.estimate_groups`, without an interval;
        `n` is the number of questions.

    Raises:
        ValueError: tables of another kind of set, of different variants or questions.
        ImportError: the package scipy is not installed.
    """
    try:
        from scipy.stats import ks_2samp
    except ImportError as error:
        raise ImportError(
            "forget quality needs the package scipy: pip install 'interp[behaviour]'"
        ) from error
    for name, table in (("unlearned", unlearned), ("retrained", retrained)):
        _check(name, table, "forget", unlearned)
    keys = ["language", "query_id"]
    questions = [sorted(table[keys].itertuples(index=False)) for table in (unlearned, retrained)]
    if questions[0] != questions[1]:
        raise ValueError("the two models were asked different questions; ask both the same")
    whole = pd.concat([unlearned.assign(model=0), retrained.assign(model=1)])

    def quality(group: pd.DataFrame) -> Estimate:
        samples = [rows["truth_ratio"].to_numpy() for _, rows in group.groupby("model")]
        num = len(samples[0])
        if lacking := int(np.isnan(samples).sum()):
            return make_undefined(f"{lacking} of {2 * num} truth ratios are not defined")
        test: Any = ks_2samp(samples[0], samples[1])
        return Estimate(value=float(test.pvalue), ci_low=np.nan, ci_high=np.nan, n=num)

    return estimate_groups(whole, ("language",), {"forget_quality": quality})


@metric("tofu", needs=("answer", "records"), check=check_records)
def tabulate_sets(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Average probability, ROUGE-L recall and truth score of each of TOFU's sets.

    The set's name stands where the concept does elsewhere.
    """
    tables = evaluated.compute_once(_score_sets)
    whole = pd.concat([table.assign(concept=name) for name, table in tables.items()])
    table = average_scores(whole, by=("language", "concept"))
    return table.assign(metric="tofu_" + table["metric"])


@metric("model_utility", needs=("answer", "records"), check=check_utility)
def tabulate_model_utility(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Compute the harmonic mean of TOFU's scores on what should be retained.

    It needs questions of three sets: retain, real authors and world facts.
    """
    tables = evaluated.compute_once(_score_sets)
    empty = pd.DataFrame(columns=list(COLUMNS))
    parts = [tables.get(name, empty) for name in KINDS if name != "forget"]
    return compute_model_utility(*parts).assign(concept="")


@metric("forget_quality", needs=("answer", "records", "baseline"), check=check_forget_set)
def tabulate_forget_quality(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Test whether truth ratios on TOFU's forget set are those of a model that never saw it."""
    assert evaluated.baseline is not None
    both = [each.compute_once(_score_sets) for each in (evaluated, evaluated.baseline)]
    return compute_forget_quality(*(tables["forget"] for tables in both)).assign(concept="forget")


def _score_sets(evaluated: EvaluatedModel) -> dict[str, pd.DataFrame]:
    """Score the questions of each of TOFU's sets, in order of first appearance."""
    groups: dict[str, list[tuple[QuestionAnswer, Answer]]] = {}
    for (name, record), answer in zip(find_records(evaluated), evaluated.answers, strict=True):
        groups.setdefault(name, []).append((record, answer))
    return {
        name: score_questions(
            evaluated.model,
            [record for record, _ in pairs],
            [answer for _, answer in pairs],
            kind=KINDS[name],
            progress=evaluated.progress,
        )
        for name, pairs in groups.items()
    }


def compute_choice_probability(logprobs: Sequence[float]) -> float:
    """Compute the share of the first of several choices in their summed probability.

    Args:
        logprobs: of each choice, in nats.
    """
    return float(np.exp(logprobs[0] - np.logaddexp.reduce(logprobs)))


def compute_log_truth_ratio(
    paraphrase: float, wrong: Sequence[float], *, variant: Variant
) -> float:
    """Compute log R: wrong answers' mean probability by that of the right one in other words.

    Args:
        paraphrase: mean log-probability of its tokens, in nats: log P(ã|q)^(1/|ã|).
        wrong: the same of each wrong answer, at least one.
        variant: their probabilities' mean is arithmetic (`paper`) or geometric (`tofu-code`).
    """
    if variant == "paper":
        return float(np.logaddexp.reduce(wrong) - np.log(len(wrong)) - paraphrase)
    return float(np.mean(wrong) - paraphrase)


def compute_harmonic_mean(values: np.ndarray) -> float:
    """Compute the harmonic mean of numbers that are not negative; 0 where one of them is 0."""
    with np.errstate(divide="ignore", over="ignore"):
        return float(len(values) / (1 / values).sum())


def _get_paraphrase(record: QuestionAnswer, kind: Kind) -> str | None:
    return record.answer if kind == "choices" else record.paraphrased_answer


def _make_examples(record: QuestionAnswer, query: Query, kind: Kind) -> list[Example]:
    """Return the answer, its paraphrase (itself if it has none) and the wrong ones."""
    paraphrase = _get_paraphrase(record, kind) or record.answer
    return [
        Example(prompt=query.prompt, answer=join_answer(query, text), messages=query.turns)
        for text in (record.answer, paraphrase, *record.perturbed_answers)
    ]


def _score_likelihoods(
    record: QuestionAnswer, logprobs: Sequence[Tensor], kind: Kind, variant: Variant
) -> dict[str, float]:
    """Compute `probability`, `truth_score` and `truth_ratio` of `_make_examples`' tokens."""
    means = [values.mean().item() for values in logprobs]
    probability, log_ratio = float(np.exp(means[0])), np.nan
    if len(means) > 2 and _get_paraphrase(record, kind):
        log_ratio = compute_log_truth_ratio(means[1], means[2:], variant=variant)
    if kind == "choices":
        compared = [values.sum().item() for values in logprobs] if variant == "paper" else means
        right, _, *wrong = compared
        probability = compute_choice_probability([right, *wrong]) if wrong else np.nan
    with np.errstate(over="ignore"):
        ratio = float(np.exp(log_ratio))
    score = np.exp(-abs(log_ratio)) if kind == "forget" else np.maximum(0, 1 - ratio)
    return {"probability": probability, "truth_score": float(score), "truth_ratio": ratio}


def _check(name: str, table: pd.DataFrame, kind: Kind, other: pd.DataFrame) -> None:
    if {*table["kind"]} - {kind}:
        raise ValueError(
            f"the table {name} must be of kind {kind!r}, not {table['kind'].iloc[0]!r}"
        )
    variants = {*table["variant"], *other["variant"]}
    if len(variants) > 1:
        raise ValueError(f"the tables are of different variants: {', '.join(sorted(variants))}")
