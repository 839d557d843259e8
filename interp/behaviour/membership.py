"""Can one tell from a model which texts it was trained on? Membership inference attacks.

An attack gives every text a score, higher for what the model seems to have seen:

- `loss`: the mean log-probability of its tokens (Yeom et al. 2018).
- `min_k`: the same of its least probable tokens, a share k of them (Min-K%, Shi et al. 2024).
- `min_k_plus_plus`: the mean of its lowest (log p(y) − μ)/σ, a share k of them; μ and σ are the
  mean and the standard deviation of log p(z), z drawn from the prediction p (Min-K%++, Zhang et
  al. 2024).

How well scores tell members (the forget set) from non-members (texts like them that the model never
saw) says how much it still carries of the members. An AUC of 0.5 says that nothing tells them
apart; less, that unlearning made the members stand out the other way.

    table = attack(model, forget, held_out)
    measures(table)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from torch import Tensor

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.registry import metric
from interp.behaviour.token_scores import LabelScores, score_labels
from interp.data.corpus import Text
from interp.models.language_model import LanguageModel
from interp.statistics import Estimate, bootstrap, estimate_groups, make_undefined
from interp.unlearning.examples import make_examples

COLUMNS = ("language", "concept", "text_id", "member", "attack", "score")

MIN_STD = 1e-3
"""σ is at least this, in nats: where a prediction is certain, Min-K%++ is not defined. So is it in
OpenUnlearning."""


def run_attacks(
    model: LanguageModel,
    members: Sequence[Text],
    non_members: Sequence[Text],
    *,
    share: float = 0.2,
    progress: bool = True,
) -> pd.DataFrame:
    """Score texts by all attacks.

    Args:
        model: the model.
        members: texts that it was trained on.
        non_members: texts like them that it never saw.
        share: k of Min-K%, above 0 and at most 1; at least one token of a text is taken.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        One row per text and attack, with `COLUMNS`; `concept` is the text's kind.

    Raises:
        ValueError: k out of its range, or a text that is empty or longer than the model's context.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share k must lie above 0 and at most at 1, not {share}")
    texts = [*members, *non_members]
    scored = score_labels(model, make_examples(texts), progress=progress)
    rows = [
        {
            "language": text.language,
            "concept": text.kind,
            "text_id": text.id,
            "member": number < len(members),
            "attack": name,
            "score": score,
        }
        for number, (text, scores) in enumerate(zip(texts, scored, strict=True))
        for name, score in compute_attack_scores(scores, share=share).items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def compute_attack_scores(scores: LabelScores, *, share: float = 0.2) -> dict[str, float]:
    """Compute each attack's score of a text: higher for what the model seems to have seen."""
    normalised = (scores.logprobs - scores.mean_logprob) / scores.std_logprob.clamp(min=MIN_STD)
    return {
        "loss": scores.logprobs.mean().item(),
        "min_k": _average_least(scores.logprobs, share),
        "min_k_plus_plus": _average_least(normalised, share),
    }


def estimate_attacks(
    table: pd.DataFrame,
    *,
    by: Sequence[str] = ("language", "attack"),
    rates: Sequence[float] = (0.01, 0.05),
) -> pd.DataFrame:
    """Estimate how well each attack tells members from non-members, with 95 % intervals.

    Args:
        table: what `run_attacks` gives; of several models, with a column that tells them apart.
        by: columns that make a group.
        rates: false positive rates at which the true positive rate is reported.

    Returns:
        As `interp.statistics.estimate_groups`, with the metrics `auc` and, for each rate, such as
        0.01, `tpr@0.01`. `n` counts members and non-members.

    Raises:
        ValueError: a rate out of its range, above 0 and at most 1.
    """
    if wrong := [rate for rate in rates if not 0 < rate <= 1]:
        raise ValueError(f"a false positive rate must lie above 0 and at most at 1, not {wrong[0]}")
    metrics = {"auc": partial(_estimate, rate=None)}
    metrics |= {f"tpr@{rate:g}": partial(_estimate, rate=rate) for rate in rates}
    return estimate_groups(table, by, metrics)


@metric("membership", needs=("forget", "holdout"))
def tabulate_membership(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Measure how well attacks tell the texts to forget from held-out ones, per language."""
    members, non_members = evaluated.forget, evaluated.holdout
    table = run_attacks(evaluated.model, members, non_members, progress=evaluated.progress)
    table = estimate_attacks(table)
    names = table["metric"] + "/" + table["attack"]
    return table.assign(metric="membership_" + names, concept="")


def compute_auc(members: np.ndarray, non_members: np.ndarray) -> float:
    """Compute the probability that a member scores higher than a non-member, ties counting half.

    That is the area under the ROC curve (the Mann-Whitney statistic); NaN without either.
    """
    if not len(members) or not len(non_members):
        return math.nan
    ordered = np.sort(non_members)
    below = np.searchsorted(ordered, members, side="left")
    not_above = np.searchsorted(ordered, members, side="right")
    return float((below + not_above).mean() / (2 * len(ordered)))


def compute_true_positive_rate(members: np.ndarray, non_members: np.ndarray, rate: float) -> float:
    """Compute the largest share of members above a threshold that a `rate` of non-members exceeds.

    NaN without members or non-members.
    """
    if not len(members) or not len(non_members):
        return math.nan
    descending = np.append(np.sort(non_members)[::-1], -np.inf)
    return float((members > descending[_count_allowed(len(non_members), rate)]).mean())


def _estimate(group: pd.DataFrame, rate: float | None) -> Estimate:
    scores, member = group["score"].to_numpy(), group["member"].to_numpy(dtype=bool)
    num_members, num_others = int(member.sum()), int((~member).sum())
    if not num_members or not num_others:
        return make_undefined(
            f"{num_members} members and {num_others} non-members: both are needed"
        )
    if failed := int(np.isnan(scores).sum()):
        return make_undefined(f"the score of {failed} of {len(group)} texts is no number")
    if rate is not None and not _count_allowed(num_others, rate):
        return make_undefined(
            f"a false positive rate of {rate:g} needs at least {math.ceil(1 / rate - 1e-9)} "
            f"non-members, not {num_others}"
        )

    def statistic(items: np.ndarray) -> float:
        drawn, flags = scores[items], member[items]
        if rate is None:
            return compute_auc(drawn[flags], drawn[~flags])
        return compute_true_positive_rate(drawn[flags], drawn[~flags], rate)

    return bootstrap(len(group), statistic)


def _count_allowed(num_non_members: int, rate: float) -> int:
    """Return how many false positives a rate allows."""
    return math.floor(rate * num_non_members + 1e-9)


def _average_least(values: Tensor, share: float) -> float:
    count = max(1, math.floor(share * len(values) + 1e-9))
    return values.sort().values[:count].mean().item()
