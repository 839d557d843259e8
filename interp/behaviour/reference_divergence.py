"""Reference divergence: how far a model has moved from V on what V says by itself.

On texts that V wrote (`interp.data.samples`), at every token that V drew:

    reference KL = mean of KL(V ‖ U)             in nats per token
    perplexity   = exp(mean of −log p_U(token))   V's own beside it

The token's mean KL is what the log-likelihood of V's own words loses on average. It sees what
ranking candidates cannot: a model that still ranks the right answer first and writes nonsense.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.memorization import estimate_perplexity
from interp.behaviour.registry import check_languages, metric
from interp.data.samples import Sample, sample_texts
from interp.models.integrity import check_readout, check_runnable
from interp.models.language_model import LanguageModel
from interp.models.pairs import check_pair
from interp.statistics import Estimate, bootstrap, estimate_groups, make_undefined
from interp.unlearning.examples import Tokens, TrainingBatch, make_batch
from interp.unlearning.label_logprobs import compare_at_labels

COLUMNS = ("model", "language", "text", "num_tokens", "kl", "nll", "nll_vanilla")


def measure_divergence(
    vanilla: LanguageModel,
    model: LanguageModel,
    samples: Sequence[Sample],
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure a model's divergence from V on texts that V wrote.

    Args:
        vanilla: V.
        model: U.
        samples: what V wrote.
        batch_size: texts run at once.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        One row per text, with `COLUMNS`: its number in its language, its tokens that were drawn,
        and of these the sums of KL(V ‖ U) and of the negative log-likelihoods under U and V, in
        nats.

    Raises:
        ValueError: no samples, or models that do not match or cannot run.
    """
    if not samples:
        raise ValueError("no samples: give at least one text")
    for each in (vanilla, model):
        check_runnable(each)
        check_readout(each)
    check_pair(vanilla, model)
    return compute_divergence(vanilla, model, samples, batch_size=batch_size, progress=progress)


@torch.inference_mode()
def compute_divergence(
    vanilla: LanguageModel,
    model: LanguageModel,
    samples: Sequence[Sample],
    *,
    batch_size: int = 16,
    kept: dict[int, Tensor] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure a divergence as `measure_divergence`, of a model that is known to be made of V.

    It may be in training, with adapters inside.

    Args:
        vanilla: V.
        model: U.
        samples: what V wrote.
        batch_size: texts run at once.
        kept: V's states by batch, filled by the first call and read by those that follow, with the
            same samples and batch size.
        progress: see `measure_divergence`.
    """
    kept = {} if kept is None else kept
    order = sorted(range(len(samples)), key=lambda n: len(samples[n].prompt_ids))
    sums: dict[int, list[float]] = {}
    bar = tqdm(total=len(samples), desc="divergence", unit="text", disable=not progress, delay=2)
    with bar:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            rows = [
                Tokens(
                    ids=samples[number].prompt_ids + samples[number].token_ids,
                    first_label=len(samples[number].prompt_ids),
                )
                for number in numbers
            ]
            batch = make_batch(rows, vanilla.device)
            if start not in kept:
                kept[start] = _compute_states(vanilla, batch)
            kl, after, before = compare_at_labels(
                model.anatomy,
                _compute_states(model, batch),
                vanilla.anatomy,
                kept[start],
                batch.targets,
            )
            of_rows = [
                batch.table(value.double()).sum(1).tolist() for value in (kl, -after, -before)
            ]
            sums.update(zip(numbers, map(list, zip(*of_rows, strict=True)), strict=True))
            bar.update(len(numbers))
    counts: dict[str, int] = {}
    table = []
    for number, sample in enumerate(samples):
        text = counts.get(sample.language, 0)
        counts[sample.language] = text + 1
        about = (model.name, sample.language, text, len(sample.token_ids))
        table.append((*about, *sums[number]))
    return pd.DataFrame(table, columns=list(COLUMNS))


def _compute_states(model: LanguageModel, batch: TrainingBatch) -> Float[Tensor, "label d"]:
    states = model.anatomy.body(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return states[batch.sequence, batch.place - 1]


def estimate_divergence(
    table: pd.DataFrame, *, by: Sequence[str] = ("model", "language")
) -> pd.DataFrame:
    """Estimate reference KL and perplexities, with 95 % bootstrap intervals over texts.

    Args:
        table: what `measure_divergence` gives, of one or more models.
        by: columns that make a group.

    Returns:
        See `interp.statistics.estimate_groups`: `reference_kl`, `reference_perplexity` and
        `vanilla_perplexity`.
    """

    return estimate_groups(
        table,
        by,
        {
            "reference_kl": _estimate_kl,
            "reference_perplexity": estimate_perplexity,
            "vanilla_perplexity": partial(estimate_perplexity, column="nll_vanilla"),
        },
    )


def _estimate_kl(rows: pd.DataFrame) -> Estimate:
    kl, tokens = rows["kl"].to_numpy(), rows["num_tokens"].to_numpy()
    if failed := int(np.isnan(kl).sum()):
        return make_undefined(f"the divergence on {failed} of {len(rows)} texts is no number")
    return bootstrap(len(rows), lambda items: float(kl[items].sum() / tokens[items].sum()))


@metric("reference_kl", needs=("vanilla",), check=check_languages)
def tabulate_divergence(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Measure KL(V ‖ U) and perplexity on texts that V wrote in the languages of the queries."""
    assert evaluated.vanilla is not None
    vanilla = evaluated.vanilla.model
    languages = list(dict.fromkeys(query.language for query in evaluated.queries))
    samples = sample_texts(vanilla, languages, progress=evaluated.progress)
    table = measure_divergence(vanilla, evaluated.model, samples, progress=evaluated.progress)
    return estimate_divergence(table, by=("language",)).assign(concept="")
