"""Logit lens: at which layer can the right answer be read from the residual stream?

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

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.registry import BY, metric
from interp.data.datasets.records import EntityQuestion
from interp.data.query import Query
from interp.data.trajectories import join_answer
from interp.models.anatomy import Anatomy
from interp.models.integrity import check_readout, check_runnable
from interp.models.language_model import LanguageModel
from interp.models.module_calls import get_residual, remove_on_exit, split_call
from interp.statistics import estimate_groups, estimate_mean, estimate_share
from interp.unlearning.examples import Example, Tokens, TrainingBatch, make_batch, tokenize
from interp.unlearning.label_logprobs import BLOCK, ROWS

COLUMNS = ("model", "language", "concept", "query_id", "layer", "logprob", "rank")

EMBEDDINGS = -1
"""Layer of the input embeddings, before any layer has run."""


@torch.inference_mode()
def apply_logit_lens(
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
    check_runnable(model)
    check_readout(model)
    tokens = tokenize_answers(model, queries)
    order = sorted(range(len(tokens)), key=lambda number: len(tokens[number].ids))
    results: dict[int, tuple[list[float], list[int]]] = {}
    bar = tqdm(total=len(tokens), desc="logit lens", unit="query", disable=not progress, delay=2)
    with bar:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            batch = make_batch([tokens[number] for number in numbers], model.device)
            states = model.anatomy.readout_state(collect_residuals(model, batch))
            logprobs, ranks = _read(
                model.anatomy, states.flatten(0, 1), batch.targets.repeat(len(states))
            )
            means = [
                batch.table(at_layer).sum(1) / batch.mask.sum(1)
                for at_layer in logprobs.double().view(len(states), -1)
            ]
            firsts = [batch.table(at_layer)[:, 0] for at_layer in ranks.view(len(states), -1)]
            rows = zip(torch.stack(means, 1).tolist(), torch.stack(firsts, 1).tolist(), strict=True)
            results.update(zip(numbers, rows, strict=True))
            bar.update(len(numbers))
    rows = [
        (model.name, query.language, query.concept, query.id, layer, logprob, rank)
        for number, query in enumerate(queries)
        for layer, (logprob, rank) in enumerate(zip(*results[number], strict=True), EMBEDDINGS)
    ]
    for number, query in enumerate(queries):
        check_finite(results[number][0], query, model)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def average_by_layer(
    table: pd.DataFrame, *, top_k: int = 1, by: Sequence[str] = ("model", "language")
) -> pd.DataFrame:
    """Average over the queries, with 95 % intervals.

    Args:
        table: what `apply_logit_lens` gives, of one or more models.
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
        logprob = estimate_mean(group["logprob"].tolist())
        readable = estimate_share((group["rank"] <= top_k).tolist())
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


def find_readable_layers(table: pd.DataFrame, *, top_k: int = 1) -> pd.DataFrame:
    """Find the first layer from which on each answer's rank is at most `top_k`, up to the last.

    Args:
        table: what `apply_logit_lens` gives, of one or more models.
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
        entry = {"layer": float("nan"), "reason": f"rank {ranks[-1]} at the last layer"}
        if first < len(layers):
            entry = {"layer": float(layers[first]), "reason": ""}
        rows.append({**group[keys].iloc[0], **entry})
    return pd.DataFrame(rows)


@metric("logit_lens", needs=("answer",))
def tabulate_readability(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Find the layers at which the right answer can be read."""
    table = apply_logit_lens(evaluated.model, evaluated.queries, progress=evaluated.progress)
    estimates = {
        "lens_logprob": lambda rows: estimate_mean(rows["logprob"].tolist()),
        "lens_readable": lambda rows: estimate_share((rows["rank"] == 1).tolist()),
    }
    first = {"readable_from": lambda rows: estimate_mean(rows["layer"].tolist())}
    return pd.concat(
        [
            estimate_groups(table, (*BY, "layer"), estimates),
            estimate_groups(find_readable_layers(table), BY, first),
        ]
    )


def tokenize_answers(model: LanguageModel, queries: Sequence[Query]) -> list[Tokens]:
    """Tokenize each query with its right answer; the answer's tokens are the labels.

    Raises:
        ValueError: no queries, or one without an answer.
    """
    if not queries:
        raise ValueError("no queries: give at least one")
    tokens = []
    for query in queries:
        if not query.answer:
            raise ValueError(f"{query.id} in {query.language!r} has no answer to read")
        answer = join_answer(query, query.answer)
        example = Example(prompt=query.prompt, answer=answer, messages=query.turns)
        tokens.append(tokenize(model, example, ends=False))
    return tokens


def check_finite(
    logprobs: Sequence[float], query: Query | EntityQuestion, model: LanguageModel
) -> None:
    """Raise ValueError unless all log-probabilities of a query's answer are finite."""
    if not all(map(math.isfinite, logprobs)):
        raise ValueError(
            f"a log-probability of {query.id!r} ({query.language}) from {model.name!r} is not "
            "finite: its weights are not, or states overflow in float16, where float32 would do"
        )


def collect_residuals(
    model: LanguageModel, batch: TrainingBatch
) -> Float[Tensor, "stage label d_model"]:
    """Collect the residual stream where labels are predicted: embeddings, then every layer."""
    kept: list[Tensor] = []
    rows, places = batch.sequence, batch.place - 1

    def keep(residual: Tensor) -> None:
        kept.append(residual[rows, places])

    with ExitStack() as stack:
        layers = [parts.layer for parts in model.anatomy.layers]
        embedded = layers[0].register_forward_pre_hook(
            lambda _layer, args, kwargs: keep(split_call(args, kwargs)[0]), with_kwargs=True
        )
        stack.enter_context(remove_on_exit(embedded))
        for layer in layers:
            after = layer.register_forward_hook(lambda *run: keep(get_residual(run[-1])))
            stack.enter_context(remove_on_exit(after))
        model.anatomy.body(input_ids=batch.input_ids, use_cache=False)
    return torch.stack(kept)


def _read(
    anatomy: Anatomy, states: Float[Tensor, "label d"], targets: Int[Tensor, " label"]
) -> tuple[Float[Tensor, " label"], Int[Tensor, " label"]]:
    """Compute log-probability (nats) and rank of each label's token, by vocabulary blocks."""
    size = len(anatomy.unembed.weight)
    logprobs, ranks = [], []
    for rows, labels in zip(states.split(ROWS), targets.split(ROWS), strict=True):
        own = _compute_logits(anatomy, rows, labels).diagonal()
        normaliser = torch.full_like(own, -torch.inf)
        rank = torch.ones_like(labels)
        for start in range(0, size, BLOCK):
            logits = _compute_logits(anatomy, rows, slice(start, start + BLOCK))
            normaliser = torch.logaddexp(normaliser, logits.logsumexp(-1))
            tokens = torch.arange(start, start + logits.shape[1], device=labels.device)
            # The label's own logit may be rounded otherwise here than alone.
            rank += ((logits > own[:, None]) & (tokens != labels[:, None])).sum(-1)
        logprobs.append(own - normaliser)
        ranks.append(rank)
    return torch.cat(logprobs), torch.cat(ranks)


def _compute_logits(
    anatomy: Anatomy, states: Float[Tensor, "label d"], tokens: Int[Tensor, " token"] | slice
) -> Float[Tensor, "label token"]:
    """Compute the logits of some tokens, in float32."""
    unembed = anatomy.unembed
    bias = None if unembed.bias is None else unembed.bias[tokens]
    logits = linear(states.to(unembed.weight.dtype), unembed.weight[tokens], bias).float()
    return anatomy.finish_logits(logits)
