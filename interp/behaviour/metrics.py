"""All measures of what a model says by their names, as `interp.evaluate` has them.

A metric is a function from a `Subject` to a table of measures. To add one, write the function and
name it in `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from interp.behaviour import prompting, quantisation, relearning
from interp.behaviour.alias import AliasJudge
from interp.behaviour.answers import Answer
from interp.behaviour.chat_judges import OccurrenceJudge, QualityJudge
from interp.behaviour.diversity import diversity
from interp.behaviour.drift import drift
from interp.behaviour.judges import occurrence, quality
from interp.behaviour.language_use import answer_languages, consistency
from interp.behaviour.logit_lens import logit_lens, readable_from
from interp.behaviour.measure import Measure, mean, measured, share
from interp.behaviour.memorization import measures as memorization_measures
from interp.behaviour.overlap import bleu, chrf
from interp.behaviour.probing import probe
from interp.behaviour.rouge import rouge_l_recall
from interp.behaviour.subject import Subject
from interp.behaviour.uds import falls, scores

COLUMNS = ("language", "concept", "metric", "layer", "value", "ci_low", "ci_high", "n", "reason")
"""Columns of a metric's table; those that it has no use for may be left out."""

BY = ("language", "concept")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric by name.

    Attributes:
        measure: what it says of a model.
        about: what it is, in one sentence.
        needs: of `answer` (queries with answers), `vanilla`, `baseline`, `taught`, `forget` and
            `judge`.
        is_kept: whether its table is kept in a file. Judges are asked anew: their verdicts are
            listed, and what failed before may be had now.
    """

    measure: Callable[[Subject], pd.DataFrame]
    about: str
    needs: tuple[str, ...] = ()
    is_kept: bool = True


def _accuracy(subject: Subject) -> pd.DataFrame:
    def right(rows: pd.DataFrame) -> Measure:
        chance = (1 / rows["num_candidates"]).mean()
        return share(rows["right"].tolist(), reason=f"chance is {chance:.3g}")

    table = probe(subject.model, subject.queries, progress=subject.progress)
    return measured(table, BY, {"accuracy": right})


def _alias(subject: Subject) -> pd.DataFrame:
    def found(rows: pd.DataFrame) -> Measure:
        return share([verdict.value == 1 for verdict in rows["verdict"]])

    return measured(subject.judged(AliasJudge()), BY, {"alias": found})


def _occurrence(subject: Subject) -> pd.DataFrame:
    judge = OccurrenceJudge(**_asked(subject, "occurrence"))
    return measured(
        subject.judged(judge), BY, {"o_f": lambda rows: occurrence(rows["verdict"].tolist())}
    )


def _quality(subject: Subject) -> pd.DataFrame:
    judge = QualityJudge(**_asked(subject, "quality"))
    return measured(
        subject.judged(judge), BY, {"q_r": lambda rows: quality(rows["verdict"].tolist())}
    )


def _asked(subject: Subject, kind: str) -> dict[str, Any]:
    cache = None if subject.folder is None else subject.folder / f"{kind}.jsonl"
    return {"by": subject.judge, "cache": cache, "progress": subject.progress}


def _overlap(subject: Subject) -> pd.DataFrame:
    def of(rows: pd.DataFrame) -> tuple[list[str], list[str]]:
        return rows["before"].tolist(), rows["said"].tolist()

    return measured(
        subject.asked,
        BY,
        {
            "bleu": lambda rows: bleu(*of(rows), rows["language"].iloc[0]),
            "chrf": lambda rows: chrf(*of(rows)),
        },
    )


def _rouge(subject: Subject) -> pd.DataFrame:
    recall = rouge_l_recall()
    table = subject.asked
    found = [
        recall(expected, said, code)
        for expected, said, code in zip(
            table["expected"], table["first_line"], table["language"], strict=True
        )
    ]
    return measured(
        table.assign(recall=found), BY, {"rouge_l": lambda rows: mean(rows["recall"].tolist())}
    )


def _consistency(subject: Subject) -> pd.DataFrame:
    return _by_concept(
        subject,
        lambda answers: consistency(answers, progress=subject.progress).rename(
            columns={"consistency": "value"}
        ),
    ).assign(metric="consistency")


def _answer_languages(subject: Subject) -> pd.DataFrame:
    assert subject.taught is not None
    table = _by_concept(
        subject,
        lambda answers: answer_languages(
            answers, taught=subject.taught or "", progress=subject.progress
        ),
    )
    table["metric"] = "answer_language/" + table["found"]
    return table.rename(columns={"share": "value"})


def _diversity(subject: Subject) -> pd.DataFrame:
    return _by_concept(subject, lambda answers: diversity(answers, progress=subject.progress))


def _memorization(subject: Subject) -> pd.DataFrame:
    return memorization_measures(subject.memorization)


def _probability(subject: Subject) -> pd.DataFrame:
    table = subject.memorization
    table = table.assign(probability=np.exp(-table["nll"] / table["num_tokens"]))
    return measured(table, BY, {"probability": lambda rows: mean(rows["probability"].tolist())})


def _uds(subject: Subject) -> pd.DataFrame:
    assert subject.vanilla is not None
    assert subject.baseline is not None
    table = scores(
        falls(
            subject.vanilla.model,
            subject.model,
            subject.baseline.model,
            subject.queries,
            progress=subject.progress,
        )
    )
    return measured(table, BY, {"uds": lambda rows: mean(rows["uds"].tolist())})


def _logit_lens(subject: Subject) -> pd.DataFrame:
    table = logit_lens(subject.model, subject.queries, progress=subject.progress)
    first = readable_from(table)
    return pd.concat(
        [
            measured(
                table,
                (*BY, "layer"),
                {
                    "lens_logprob": lambda rows: mean(rows["logprob"].tolist()),
                    "lens_readable": lambda rows: share((rows["rank"] == 1).tolist()),
                },
            ),
            measured(first, BY, {"readable_from": lambda rows: mean(rows["layer"].tolist())}),
        ]
    )


def _drift(subject: Subject) -> pd.DataFrame:
    """Parameters are in no language; their group stands where the concept does elsewhere."""
    assert subject.vanilla is not None
    table = drift(subject.vanilla.model, subject.model, progress=subject.progress)
    parts = [
        table.rename(columns={"group": "concept", name: "value", "num_parameters": "n"}).assign(
            metric=f"drift_{name}"
        )
        for name in ("cosine", "relative_change", "effective_rank")
    ]
    return pd.concat(parts).assign(language="")


def _quantisation(subject: Subject) -> pd.DataFrame:
    table = quantisation.robustness(
        {subject.model.name: subject.model}, subject.queries, progress=subject.progress
    )
    rounded = table.query("quantisation != @quantisation.UNROUNDED")
    return _accuracies(rounded, rounded["quantisation"].tolist())


def _prompts(subject: Subject) -> pd.DataFrame:
    table = prompting.robustness(
        {subject.model.name: subject.model}, subject.queries, progress=subject.progress
    )
    return _accuracies(table, table["variant"].tolist())


def _relearning(subject: Subject) -> pd.DataFrame:
    """What was not in the texts: its accuracy before and after, and the steps it took to return."""
    assert subject.vanilla is not None
    both = {"vanilla": subject.vanilla, "unlearned": subject}
    table = pd.concat([one.relearned.assign(model=name) for name, one in both.items()])
    table = table.query("part == @relearning.HELD_OUT")
    own = table.query("model == 'unlearned'")
    sizes = own.query("step == 0")[[*BY, "num_queries"]]
    steps = relearning.steps_to_recover(table).merge(sizes, on=list(BY))
    steps = steps.rename(columns={"steps": "value", "num_queries": "n"})
    ends = {"before relearning": own["step"].min(), "relearned": own["step"].max()}
    parts = [own.query("step == @step") for step in ends.values()]
    return pd.concat(
        [
            *(
                _accuracies(part, [name] * len(part))
                for name, part in zip(ends, parts, strict=True)
            ),
            steps.assign(metric="relearning_steps"),
        ]
    )


def _accuracies(table: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Probing accuracies under a condition per row, which becomes part of the metric's name."""
    chances = [f"chance is {chance:.3g}" for chance in table["chance"]]
    reasons = table["reason"] if "reason" in table else [""] * len(table)
    found = table.rename(columns={"accuracy": "value", "num_queries": "n"})
    return found.assign(
        metric=[f"accuracy/{condition}" for condition in conditions],
        reason=["; ".join(filter(None, pair)) for pair in zip(reasons, chances, strict=True)],
    )


def _by_concept(subject: Subject, measure: Callable[[list[Answer]], pd.DataFrame]) -> pd.DataFrame:
    """A table of each concept's answers."""
    groups: dict[str, list[Answer]] = {}
    for answer in subject.answers:
        groups.setdefault(answer.query.concept, []).append(answer)
    return pd.concat(
        [measure(answers).assign(concept=concept) for concept, answers in groups.items()]
    )


def _metric(
    measure: Callable[[Subject], pd.DataFrame], about: str, *needs: str, is_kept: bool = True
) -> Metric:
    return Metric(measure=measure, about=about, needs=needs, is_kept=is_kept)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": _metric(
            _accuracy, "share of questions whose answer ranks first among all candidates", "answer"
        ),
        "alias": _metric(
            _alias,
            "share of answers that contain the expected one or an alias, in any query language",
            "answer",
            is_kept=False,
        ),
        "o_f": _metric(
            _occurrence,
            "in how many of 100 answers a chat model finds the expected one (O_F of false facts)",
            "answer",
            "judge",
            is_kept=False,
        ),
        "q_r": _metric(
            _quality,
            "a chat model's score of the answers, 1 to 10 (Q_R of true facts)",
            "answer",
            "judge",
            is_kept=False,
        ),
        "rouge_l": _metric(_rouge, "ROUGE-L recall of the expected answer", "answer"),
        "overlap": _metric(
            _overlap, "BLEU and chrF of answers against those of the vanilla model", "vanilla"
        ),
        "consistency": _metric(_consistency, "share of answers in the question's language"),
        "answer_language": _metric(
            _answer_languages,
            "share of answers in English, the question's, the taught or another language",
            "taught",
        ),
        "diversity": _metric(_diversity, "distinct-1, -2, -3 and self-BLEU of the answers"),
        "memorization": _metric(
            _memorization,
            "memorization accuracy, perplexity and extraction strength of the expected answers",
            "answer",
        ),
        "probability": _metric(
            _probability, "probability per token of the expected answers", "answer"
        ),
        "logit_lens": _metric(
            _logit_lens, "at which layers the expected answer can be read", "answer"
        ),
        "uds": _metric(_uds, "unlearning depth score", "answer", "vanilla", "baseline"),
        "prompts": _metric(
            _prompts, "accuracy when asked in other words, languages, and with examples", "answer"
        ),
        "quantisation": _metric(
            _quantisation, "accuracy with weights rounded to 8 and to 4 bits", "answer"
        ),
        "relearning": _metric(
            _relearning,
            "accuracy on facts that are not in a short fine-tune on half of the forgotten ones",
            "answer",
            "vanilla",
            "forget",
        ),
        "drift": _metric(_drift, "how far the weights moved, by group and layer", "vanilla"),
    }
)
"""All metrics by name."""
