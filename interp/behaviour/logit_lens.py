"""The logit lens: at which layer can the right answer be read from the residual stream?

The residual stream at the input embeddings and after every layer goes through the final norm and
the unembedding, as if the layers above added nothing (nostalgebraist 2020). The right answer is
teacher-forced, so that its tokens are predicted at the last prompt position and at all answer
positions but the last. The last layer's reading is what the model says.

The rank is that of the answer's first token. Where many answers begin with the same one, as names
do that a tokenizer writes byte by byte (Armenian under Gemma's), a high rank says little: there the
log-probability, which is of all tokens, is what to read.

    read = pd.concat([logit_lens(vanilla, queries), logit_lens(unlearned, queries)])
    by_layer(read)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear
from tqdm.auto import tqdm

from interp.behaviour.measure import mean, share
from interp.data.query import Query
from interp.data.templates import joined
from interp.models.anatomy import Anatomy
from interp.models.language_model import LanguageModel
from interp.recovery.states import removing, residual_of, split_call
from interp.unlearning.examples import Batch, Example, Tokens, batch_of, tokenize
from interp.unlearning.readout import BLOCK, ROWS

COLUMNS = ("model", "language", "concept", "query_id", "layer", "logprob", "rank")

EMBEDDINGS = -1
"""The layer of the input embeddings, before any layer has run."""


@torch.inference_mode()
def logit_lens(
    model: LanguageModel, queries: Sequence[Query], *, batch_size: int = 32, progress: bool = True
) -> pd.DataFrame:
    """Read the right answers at every layer.

    Args:
        model: V or U.
        queries: what is asked; each needs an answer.
        batch_size: queries run at once.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        One row per query and layer (−1 for the embeddings, then from 0), with `COLUMNS`: `logprob`
        is the mean log-probability of the answer's tokens, in nats, `rank` that of its first token
        in the vocabulary at the last prompt position, 1 for the likeliest.

    Raises:
        ValueError: no queries, one without an answer, or a log-probability that is not finite.
    """
    tokens = right_answers(model, queries)
    order = sorted(range(len(tokens)), key=lambda number: len(tokens[number].ids))
    found: dict[int, tuple[list[float], list[int]]] = {}
    bar = tqdm(total=len(tokens), desc="logit lens", unit="query", disable=not progress, delay=2)
    with bar:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            batch = batch_of([tokens[number] for number in numbers], model.device)
            states = model.anatomy.readout_state(residuals(model, batch))
            logprobs, ranks = _read(
                model.anatomy, states.flatten(0, 1), batch.targets.repeat(len(states))
            )
            means = [
                batch.table(at_layer).sum(1) / batch.mask.sum(1)
                for at_layer in logprobs.double().view(len(states), -1)
            ]
            firsts = [batch.table(at_layer)[:, 0] for at_layer in ranks.view(len(states), -1)]
            rows = zip(torch.stack(means, 1).tolist(), torch.stack(firsts, 1).tolist(), strict=True)
            found.update(zip(numbers, rows, strict=True))
            bar.update(len(numbers))
    rows = [
        (model.name, query.language, query.concept, query.id, layer, logprob, rank)
        for number, query in enumerate(queries)
        for layer, (logprob, rank) in enumerate(zip(*found[number], strict=True), EMBEDDINGS)
    ]
    for number, query in enumerate(queries):
        check_finite(found[number][0], query, model)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def by_layer(
    table: pd.DataFrame, *, top_k: int = 1, by: Sequence[str] = ("model", "language")
) -> pd.DataFrame:
    """Means over the queries, with their 95 % intervals.

    Args:
        table: what `logit_lens` gives, of one or more models.
        top_k: an answer is readable where its rank is at most this.
        by: columns that make a group, besides the layer.

    Returns:
        One row per group and layer: `by`, `layer`, `logprob` with `ci_low` and `ci_high`
        (bootstrap), `readable` with `readable_low` and `readable_high` (a share; Wilson),
        `num_queries`. Groups come in order of first appearance.
    """
    keys = [*by, "layer"]
    rows = []
    for _, group in table.groupby(keys, sort=False, dropna=False):
        logprob = mean(group["logprob"].tolist())
        readable = share((group["rank"] <= top_k).tolist())
        rows.append(
            {
                **group[keys].iloc[0],
                "logprob": logprob.value,
                "ci_low": logprob.ci_low,
                "ci_high": logprob.ci_high,
                "readable": readable.value,
                "readable_low": readable.ci_low,
                "readable_high": readable.ci_high,
                "num_queries": len(group),
            }
        )
    return pd.DataFrame(rows)


def readable_from(table: pd.DataFrame, *, top_k: int = 1) -> pd.DataFrame:
    """The first layer from which on each answer's rank is at most `top_k`, up to the last.

    Args:
        table: what `logit_lens` gives, of one or more models.
        top_k: 1 for the likeliest token alone.

    Returns:
        One row per query: `model`, `language`, `concept`, `query_id`, `layer`, `reason`. The layer
        is NaN, with the reason, where the answer is not among the first `top_k` at the last layer.
    """
    keys = list(COLUMNS[:4])
    rows = []
    for _, group in table.groupby(keys, sort=False, dropna=False):
        group = group.sort_values("layer")
        layers, ranks = group["layer"].tolist(), group["rank"].tolist()
        missed = [number for number, rank in enumerate(ranks) if rank > top_k]
        first = missed[-1] + 1 if missed else 0
        found = {"layer": float("nan"), "reason": f"rank {ranks[-1]} at the last layer"}
        if first < len(layers):
            found = {"layer": float(layers[first]), "reason": ""}
        rows.append({**group[keys].iloc[0], **found})
    return pd.DataFrame(rows)


def right_answers(model: LanguageModel, queries: Sequence[Query]) -> list[Tokens]:
    """Each query with its right answer as token ids; the answer's are the labels.

    Raises:
        ValueError: no queries, or one without an answer.
    """
    if not queries:
        raise ValueError("no queries: give at least one")
    found = []
    for query in queries:
        if not query.answer:
            raise ValueError(f"{query.id} in {query.language!r} has no answer to read")
        answer = joined(query.prompt, query.answer, query.language)
        found.append(tokenize(model, Example(prompt=query.prompt, answer=answer)))
    return found


def check_finite(logprobs: Sequence[float], query: Query, model: LanguageModel) -> None:
    """Raise ValueError unless all log-probabilities of a query's answer are finite."""
    if not all(map(math.isfinite, logprobs)):
        raise ValueError(
            f"a log-probability of {query.id!r} ({query.language}) from {model.name!r} is not "
            "finite: its weights are not, or states overflow in float16, where float32 would do"
        )


def residuals(model: LanguageModel, batch: Batch) -> Float[Tensor, "stage label d_model"]:
    """The residual stream where labels are predicted: at the embeddings, then after every layer."""
    kept: list[Tensor] = []
    rows, places = batch.sequence, batch.place - 1

    def keep(residual: Tensor) -> None:
        kept.append(residual[rows, places])

    with ExitStack() as stack:
        layers = [parts.layer for parts in model.anatomy.layers]
        embedded = layers[0].register_forward_pre_hook(
            lambda _layer, args, kwargs: keep(split_call(args, kwargs)[0]), with_kwargs=True
        )
        stack.enter_context(removing(embedded))
        for layer in layers:
            after = layer.register_forward_hook(lambda *run: keep(residual_of(run[-1])))
            stack.enter_context(removing(after))
        model.anatomy.body(input_ids=batch.input_ids, use_cache=False)
    return torch.stack(kept)


def _read(
    anatomy: Anatomy, states: Float[Tensor, "label d"], targets: Int[Tensor, " label"]
) -> tuple[Float[Tensor, " label"], Int[Tensor, " label"]]:
    """Log-probability, in nats, and rank of each label's token, by blocks of the vocabulary."""
    size = len(anatomy.unembed.weight)
    logprobs, ranks = [], []
    for rows, labels in zip(states.split(ROWS), targets.split(ROWS), strict=True):
        own = _logits(anatomy, rows, labels).diagonal()
        normaliser = torch.full_like(own, -torch.inf)
        rank = torch.ones_like(labels)
        for start in range(0, size, BLOCK):
            logits = _logits(anatomy, rows, slice(start, start + BLOCK))
            normaliser = torch.logaddexp(normaliser, logits.logsumexp(-1))
            tokens = torch.arange(start, start + logits.shape[1], device=labels.device)
            # The label's own logit may be rounded otherwise here than alone.
            rank += ((logits > own[:, None]) & (tokens != labels[:, None])).sum(-1)
        logprobs.append(own - normaliser)
        ranks.append(rank)
    return torch.cat(logprobs), torch.cat(ranks)


def _logits(
    anatomy: Anatomy, states: Float[Tensor, "label d"], tokens: Int[Tensor, " token"] | slice
) -> Float[Tensor, "label token"]:
    """The logits of some tokens, in float32."""
    unembed = anatomy.unembed
    bias = None if unembed.bias is None else unembed.bias[tokens]
    logits = linear(states.to(unembed.weight.dtype), unembed.weight[tokens], bias).float()
    if anatomy.logit_cap is not None:
        logits = torch.tanh(logits / anatomy.logit_cap) * anatomy.logit_cap
    return logits
