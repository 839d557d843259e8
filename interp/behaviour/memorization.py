"""How much of a text does a model know by heart? Three answers from one teacher-forced forward.

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

from interp.behaviour.measure import Measure, mean, measured, resampled, undefined
from interp.behaviour.token_scores import label_scores
from interp.data.corpus import Text
from interp.models.language_model import LanguageModel
from interp.unlearning.examples import examples_of

COLUMNS = (
    "language",
    "concept",
    "text_id",
    "num_tokens",
    "num_right",
    "nll",
    "extraction_strength",
)


def memorization(
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
        texts, label_scores(model, examples_of(texts), progress=progress), strict=True
    ):
        rows.append(
            {
                "language": text.language,
                "concept": text.kind,
                "text_id": text.id,
                "num_tokens": len(scores.logprobs),
                "num_right": int(scores.is_argmax.sum()),
                "nll": -scores.logprobs.double().sum().item(),
                "extraction_strength": extraction_strength(scores.is_argmax),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def extraction_strength(is_argmax: Bool[Tensor, " label"]) -> float:
    """The share of a text that greedy decoding says by itself, once it has read what precedes it.

    As long as greedy decoding goes right it reads what teacher forcing reads: what it says of the
    text is the longest ending of which every token is the likeliest.

    OpenUnlearning gives 1/n where not even the last token is right; here that is 0.
    """
    wrong = (~is_argmax).nonzero()
    start = 0 if not len(wrong) else int(wrong[-1]) + 1
    return 1 - start / len(is_argmax)


def measures(table: pd.DataFrame, *, by: Sequence[str] = ("language", "concept")) -> pd.DataFrame:
    """MA, PPL and ES of each group, with 95 % intervals.

    Args:
        table: what `memorization` gives; of several models, with a column that tells them apart.
        by: columns that make a group.

    Returns:
        As `interp.behaviour.measure.measured`, with the metrics of the module's table.
    """
    return measured(
        table,
        by,
        {
            "memorization_accuracy": _accuracy,
            "perplexity": _perplexity,
            "extraction_strength": lambda group: mean(group["extraction_strength"].tolist()),
        },
    )


def _accuracy(group: pd.DataFrame) -> Measure:
    right, tokens = group["num_right"].to_numpy(), group["num_tokens"].to_numpy()
    return resampled(len(group), lambda items: float(right[items].sum() / tokens[items].sum()))


def _perplexity(group: pd.DataFrame) -> Measure:
    nll, tokens = group["nll"].to_numpy(), group["num_tokens"].to_numpy()
    if failed := int(np.isnan(nll).sum()):
        return undefined(f"the log-likelihood of {failed} of {len(group)} texts is no number")

    def statistic(items: np.ndarray) -> float:
        # Of a model that is past all help, exp overflows to infinity.
        with np.errstate(over="ignore"):
            return float(np.exp(nll[items].sum() / tokens[items].sum()))

    return resampled(len(group), statistic)
