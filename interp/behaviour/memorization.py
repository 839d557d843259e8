"""Memorization of texts: three measures from one teacher-forced forward.

- `memorization_accuracy` (MA): the share of tokens that are the likeliest after what precedes them
  (Tirumala et al. 2022, Jang et al. 2023).
- `perplexity` (PPL): exp of the mean negative log-likelihood of a token.
- `extraction_strength` (ES): 1 − k/n, where after k of a text's n tokens greedy decoding says all
  the rest (after Carlini et al. 2021, as in OpenUnlearning, Dorna et al. 2025).

MA and PPL are of the tokens of all texts together, ES is the mean over texts; all intervals come
from resampling texts. The tokens are those of the answer where a text has a prompt.

    table = memorization(model, texts("capitals", languages=["en", "de"]))
    measures(table)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool
from torch import Tensor

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.registry import BY, metric
from interp.behaviour.token_scores import score_labels
from interp.data.corpus import Text
from interp.data.texts import make_texts
from interp.models.language_model import LanguageModel
from interp.statistics import Estimate, bootstrap, estimate_groups, estimate_mean, make_undefined
from interp.unlearning.examples import make_examples

COLUMNS = (
    "language",
    "concept",
    "text_id",
    "num_tokens",
    "num_right",
    "nll",
    "extraction_strength",
)


def measure_memorization(
    model: LanguageModel, texts: Sequence[Text], *, progress: bool = True
) -> pd.DataFrame:
    """Score texts.

    Args:
        model: the model.
        texts: prompts with answers, or whole texts.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        One row per text, with `COLUMNS`: `concept` is the text's kind, `num_tokens` how many of its
        tokens are scored, `num_right` how many of them are the likeliest, `nll` their summed
        negative log-likelihood in nats.

    Raises:
        ValueError: a text that is empty, or longer than the model's context.
    """
    rows = []
    for text, scores in zip(
        texts, score_labels(model, make_examples(texts), progress=progress), strict=True
    ):
        rows.append(
            {
                "language": text.language,
                "concept": text.kind,
                "text_id": text.id,
                "num_tokens": len(scores.logprobs),
                "num_right": int(scores.is_argmax.sum()),
                "nll": -scores.logprobs.double().sum().item(),
                "extraction_strength": compute_extraction_strength(scores.is_argmax),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def compute_extraction_strength(is_argmax: Bool[Tensor, " label"]) -> float:
    """Compute the share of a text that greedy decoding says once it has read what precedes it.

    As long as greedy decoding goes right it reads what teacher forcing reads: what it says of the
    text is the longest ending of which every token is the likeliest.

    OpenUnlearning gives 1/n where not even the last token is right; here that is 0.
    """
    wrong = (~is_argmax).nonzero()
    start = 0 if not len(wrong) else int(wrong[-1]) + 1
    return 1 - start / len(is_argmax)


def estimate_memorization(
    table: pd.DataFrame, *, by: Sequence[str] = ("language", "concept")
) -> pd.DataFrame:
    """Estimate MA, PPL and ES of each group, with 95 % intervals.

    Args:
        table: what `measure_memorization` gives; of several models, with a column that tells
            them apart.
        by: columns that make a group.

    Returns:
        As `interp.statistics.estimate_groups`, with the metrics of the module's table.
    """
    return estimate_groups(
        table,
        by,
        {
            "memorization_accuracy": _estimate_accuracy,
            "perplexity": estimate_perplexity,
            "extraction_strength": lambda group: estimate_mean(
                group["extraction_strength"].tolist()
            ),
        },
    )


@metric("memorization", needs=("answer",))
def tabulate_memorization(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Measure memorization accuracy, perplexity and extraction strength of the right answers."""
    return estimate_memorization(evaluated.compute_once(_score_queries))


@metric("probability", needs=("answer",))
def tabulate_probability(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Average the probability per token of the right answers."""
    table = evaluated.compute_once(_score_queries)
    table = table.assign(probability=np.exp(-table["nll"] / table["num_tokens"]))
    return estimate_groups(
        table, BY, {"probability": lambda rows: estimate_mean(rows["probability"].tolist())}
    )


def _score_queries(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Score each query's right answer."""
    texts = make_texts(evaluated.queries)
    return measure_memorization(evaluated.model, texts, progress=evaluated.progress)


def _estimate_accuracy(group: pd.DataFrame) -> Estimate:
    right, tokens = group["num_right"].to_numpy(), group["num_tokens"].to_numpy()
    return bootstrap(len(group), lambda items: float(right[items].sum() / tokens[items].sum()))


def estimate_perplexity(group: pd.DataFrame, column: str = "nll") -> Estimate:
    """Estimate exp of the mean negative log-likelihood of a token, of all texts together.

    Args:
        group: a row per text, with `num_tokens`.
        column: sums over a text's tokens, in nats.
    """
    nll, tokens = group[column].to_numpy(), group["num_tokens"].to_numpy()
    if failed := int(np.isnan(nll).sum()):
        return make_undefined(f"the log-likelihood of {failed} of {len(group)} texts is no number")

    def statistic(items: np.ndarray) -> float:
        # Of a model that is past all help, exp overflows to infinity.
        with np.errstate(over="ignore"):
            return float(np.exp(nll[items].sum() / tokens[items].sum()))

    return bootstrap(len(group), statistic)
