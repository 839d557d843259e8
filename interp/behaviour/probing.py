"""Probing accuracy: which of the candidates does a model find likeliest? (PA)

Every candidate is put after the prompt; the one whose tokens have the lowest mean negative
log-likelihood is the model's guess. Knowledge shows so long before a model can say it, in languages
in which it writes nothing sensible. A guess at random is right once in the number of candidates:
chance is reported beside the accuracy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.registry import BY, metric
from interp.data.query import Query
from interp.data.trajectories import encode_query, join_answer
from interp.models.caching import make_cache, make_position_inputs, select_rows
from interp.models.integrity import check_readout, check_runnable
from interp.models.language_model import LanguageModel
from interp.statistics import Estimate, compute_wilson_interval, estimate_groups, estimate_share
from interp.unlearning.examples import pad_rows
from interp.unlearning.label_logprobs import compute_label_logprobs

COLUMNS = ("language", "concept", "query_id", "answer", "guess", "right", "rank", "num_candidates")

MAX_ROWS = 512
"""Candidates that are run together."""


def collect_candidates(queries: Sequence[Query]) -> list[tuple[str, ...]]:
    """Collect for each query the different answers of all queries of its language and concept.

    Raises:
        ValueError: a query without an answer, or one that would have a single candidate.
    """
    answers: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for query in queries:
        if not query.answer:
            raise ValueError(f"{query.id} in {query.language!r} has no answer to probe for")
        answers[query.language, query.concept][query.answer] = None
    for (language, concept), options in answers.items():
        if len(options) < 2:
            raise ValueError(
                f"the queries {concept!r} in {language!r} have one answer, "
                f"{next(iter(options))!r}; probing needs at least two candidates"
            )
    return [tuple(answers[query.language, query.concept]) for query in queries]


@torch.inference_mode()
def probe(
    model: LanguageModel,
    queries: Sequence[Query],
    *,
    candidates: Sequence[Sequence[str]] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Rank the candidates of each query.

    Args:
        model: the model.
        queries: what is asked; each needs an answer.
        candidates: for each query what is ranked, its answer among them; `candidates_of(queries)`
            if None.
        progress: show a progress bar on standard error.

    Returns:
        One row per query, with `COLUMNS`: `guess` is the likeliest candidate, `rank` that of the
        right answer, from 1. Of candidates that are equally likely the first is the guess.

    Raises:
        ValueError: an answer that is missing or not among its candidates, or fewer than two
            candidates.
    """
    check_runnable(model)
    check_readout(model)
    chosen = collect_candidates(queries) if candidates is None else [tuple(c) for c in candidates]
    if len(chosen) != len(queries):
        raise ValueError(f"{len(queries)} queries have {len(chosen)} lists of candidates")
    for query, options in zip(queries, chosen, strict=True):
        if query.answer not in options:
            raise ValueError(
                f"the answer {query.answer!r} of {query.id} in {query.language!r} is not among its "
                f"{len(options)} candidates"
            )
        if len(set(options)) < 2:
            raise ValueError(f"{query.id} in {query.language!r} needs at least two candidates")
    split = [
        _split(
            query.prompt,
            encode_query(model, query),
            [encode_query(model, query, join_answer(query, option)) for option in options],
        )
        for query, options in zip(queries, chosen, strict=True)
    ]
    scored = _score_candidates(model, split, progress=progress)
    rows = []
    for query, options, nll in zip(queries, chosen, scored, strict=True):
        scores = nll.tolist()
        right = scores[options.index(query.answer or "")]
        rows.append(
            {
                "language": query.language,
                "concept": query.concept,
                "query_id": query.id,
                "answer": query.answer,
                "guess": (guess := options[scores.index(min(scores))]),
                "right": guess == query.answer,
                "rank": 1 + sum(score < right for score in scores),
                "num_candidates": len(options),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def compute_accuracy(
    table: pd.DataFrame, *, by: Sequence[str] = ("language", "concept")
) -> pd.DataFrame:
    """Compute probing accuracy with its 95 % interval and chance.

    Args:
        table: what `probe` gives; of several models, with a column that tells them apart.
        by: columns that make a group.

    Returns:
        One row per group: `by`, `accuracy`, `ci_low`, `ci_high` (Wilson's score interval over
        queries), `chance` (the mean of one in the number of candidates), `num_queries`. Groups
        come in order of first appearance.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in table.to_dict("records"):
        groups.setdefault(tuple(row[column] for column in by), []).append(row)
    rows = []
    for key, group in groups.items():
        right = sum(bool(row["right"]) for row in group)
        low, high = compute_wilson_interval(right, len(group))
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "accuracy": right / len(group),
                "ci_low": low,
                "ci_high": high,
                "chance": sum(1 / row["num_candidates"] for row in group) / len(group),
                "num_queries": len(group),
            }
        )
    return pd.DataFrame(rows)


def check_candidates(evaluated: EvaluatedModel) -> None:
    """Refuse queries that would have a single candidate."""
    collect_candidates(evaluated.queries)


@metric("accuracy", needs=("answer",), check=check_candidates)
def tabulate_accuracy(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Measure the share of questions whose answer ranks first among all candidates."""

    def estimate(rows: pd.DataFrame) -> Estimate:
        chance = (1 / rows["num_candidates"]).mean()
        return estimate_share(rows["right"].tolist(), reason=f"chance is {chance:.3g}")

    table = probe(evaluated.model, evaluated.queries, progress=evaluated.progress)
    return estimate_groups(table, BY, {"accuracy": estimate})


def name_conditions(table: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Turn accuracies under one condition a row into a metric's table.

    Args:
        table: rows of `compute_accuracy`, with a `reason` if there is one.
        conditions: of each row, what becomes part of the metric's name.
    """
    chances = [f"chance is {chance:.3g}" for chance in table["chance"]]
    reasons = table["reason"] if "reason" in table else [""] * len(table)
    return table.rename(columns={"accuracy": "value", "num_queries": "n"}).assign(
        metric=[f"accuracy/{condition}" for condition in conditions],
        reason=["; ".join(filter(None, pair)) for pair in zip(reasons, chances, strict=True)],
    )


def compute_candidate_nll(
    model: LanguageModel, prompt: str, continuations: Sequence[str]
) -> Float[Tensor, " candidate"]:
    """Compute each continuation's mean negative log-likelihood, in nats per token.

    Args:
        model: the model.
        prompt: text; the tokenizer's usual special tokens are added.
        continuations: texts to follow it, with the space that stands between.

    Raises:
        ValueError: a prompt of which no token is left when a continuation is joined to it.
    """
    whole = [model.encode(prompt + text) for text in continuations]
    return _score_candidates(model, [_split(prompt, model.encode(prompt), whole)], progress=False)[
        0
    ]


@torch.inference_mode()
def _score_candidates(
    model: LanguageModel, split: Sequence[tuple[list[int], list[list[int]]]], *, progress: bool
) -> list[Float[Tensor, " candidate"]]:
    """Score candidates of many prompts, as `_split` gives them; see `compute_candidate_nll`.

    Prompts of the same length are run together, so that nothing is padded before what is scored.
    """
    order = sorted(range(len(split)), key=lambda number: len(split[number][0]))
    results: dict[int, Tensor] = {}
    bar = tqdm(total=len(split), desc="probing", unit="query", disable=not progress, delay=2)
    with bar:
        for _, same in groupby(order, key=lambda number: len(split[number][0])):
            for batch in _make_batches(list(same), [len(rows) for _, rows in split]):
                scores = _score_batch(model, [split[number] for number in batch])
                results.update(zip(batch, scores, strict=True))
                bar.update(len(batch))
    return [results[number] for number in range(len(split))]


def _make_batches(numbers: list[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield numbers in batches of at most `MAX_ROWS` candidates, or of one number."""
    batch: list[int] = []
    total = 0
    for number in numbers:
        if batch and total + sizes[number] > MAX_ROWS:
            yield batch
            batch, total = [], 0
        batch.append(number)
        total += sizes[number]
    yield batch


def _score_batch(
    model: LanguageModel, prompts: Sequence[tuple[list[int], list[list[int]]]]
) -> list[Float[Tensor, " candidate"]]:
    """Score prompts of one length, each with the tokens of its candidates.

    A prompt is read once; its keys and values serve all its candidates. Logits are formed only
    where a candidate's token is predicted.
    """
    device, anatomy = model.device, model.anatomy

    def put(values: object) -> Tensor:
        return torch.tensor(values, device=device)

    rows = [(number, row) for number, (_, candidates) in enumerate(prompts) for row in candidates]
    cache = make_cache(model.model)
    states = anatomy.body(
        input_ids=put([prompt for prompt, _ in prompts]), past_key_values=cache, use_cache=True
    ).last_hidden_state[:, -1]
    prompt = put([number for number, _ in rows])
    first = anatomy.logits(states).float().log_softmax(-1)
    nll = -first[prompt, put([row[0] for _, row in rows])]
    longer = [(at, number, row) for at, (number, row) in enumerate(rows) if len(row) > 1]
    if longer:
        select_rows(cache, put([number for _, number, _ in longer]))
        # The last token predicts nothing that is scored.
        ids = pad_rows([row for _, _, row in longer], device)[0][:, :-1]
        num_read = len(prompts[0][0]) + ids.shape[1]
        places = make_position_inputs(
            anatomy.body, torch.ones_like(ids[:, :1]).expand(-1, num_read), ids.shape[1]
        )
        states = anatomy.body(
            input_ids=ids, past_key_values=cache, use_cache=True, **places
        ).last_hidden_state
        where = [(i, place) for i, (*_, row) in enumerate(longer) for place in range(len(row) - 1)]
        at, places = (put(column) for column in zip(*where, strict=True))
        targets = put([token for *_, row in longer for token in row[1:]])
        following = compute_label_logprobs(anatomy, states[at, places], targets)
        nll = nll.index_add(0, put([at for at, _, _ in longer])[at], -following)
    nll = nll / put([len(row) for _, row in rows])
    return list(nll.split([len(candidates) for _, candidates in prompts]))


def _split(
    prompt: str, alone: Sequence[int], continued: Sequence[Sequence[int]]
) -> tuple[list[int], list[list[int]]]:
    """Return the tokens that all share, and those of each continuation after them.

    A tokenizer may join the prompt's end with a continuation: then what they share is shorter.

    Args:
        prompt: the prompt.
        alone: its tokens.
        continued: those of the prompt with each continuation.
    """
    whole = [list(token_ids) for token_ids in continued]
    limit = min(len(alone), *(len(ids) - 1 for ids in whole))
    shared = 0
    while shared < limit and len({ids[shared] for ids in whole}) == 1:
        shared += 1
    if not shared:
        raise ValueError(f"the prompt {prompt!r} has no token that all its candidates share")
    return whole[0][:shared], [ids[shared:] for ids in whole]
