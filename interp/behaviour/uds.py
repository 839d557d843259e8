"""Unlearning depth score: is the knowledge gone from the states, or only from the output?

Lee, Kim & Jo 2026 (arXiv:2605.24614). A state of the unlearned model U is put into a run of the
vanilla model V, which knows the answer and can read it from a state that still holds it. The same
is done with a baseline B that never saw the facts. With s(y) the mean log-probability of the
answer's tokens, teacher-forced, for every layer ℓ:

    fall_U(ℓ) = s_V(y) − s_V←U(y)     residual stream after layer ℓ := U's
    fall_B(ℓ) = s_V(y) − s_V←B(y)     residual stream after layer ℓ := B's
    erased(ℓ) = clip(fall_U / fall_B, 0, 1)             where fall_B > τ
    UDS       = Σ fall_B · erased / Σ fall_B            over those layers

for each query alone; a score of several is the mean over queries that have one. 1: as if never
seen. 0: all of it can still be read. Layers at which B's state costs no more than τ = 0.05 nats do
not count, and a query without any other layer has no score.

As in the paper's code, states are replaced at the positions that predict the answer alone: the last
prompt position up to the last answer token but one. The paper's questions (`read_uds`) are scored
as that code scores them: the words of the answer that lead up to the entity count as prompt, prompt
and rest are tokenized apart, and the entity's tokens alone are scored. The code takes the last
layer's state after the final norm, which V's run then norms again: `final_norm=True` does, too;
by default it is the residual stream in every layer.

    table = measure_falls(vanilla, unlearned, clean, read_uds("forget10_filtered.json").records)
    average_scores(score_queries(table), "uds")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.logit_lens import check_finite, collect_residuals, tokenize_answers
from interp.behaviour.registry import BY, metric
from interp.data.datasets.records import EntityQuestion
from interp.data.query import Query
from interp.models.caching import make_cache, make_position_inputs, select_rows
from interp.models.integrity import check_readout
from interp.models.language_model import LanguageModel
from interp.models.pairs import check_pair
from interp.recovery.module_hooks import replace_output
from interp.statistics import estimate_groups, estimate_mean
from interp.unlearning.examples import Tokens, make_batch
from interp.unlearning.label_logprobs import compute_label_logprobs

KEYS = ("unlearned", "language", "concept", "query_id")
COLUMNS = (*KEYS, "layer", "logprob", "fall_unlearned", "fall_baseline")

THRESHOLD = 0.05
"""τ, in nats per token."""

MAX_ROWS = 512
"""Runs of V, each on one query, at once."""


@torch.inference_mode()
def measure_falls(
    vanilla: LanguageModel,
    unlearned: LanguageModel,
    baseline: LanguageModel,
    queries: Sequence[Query | EntityQuestion],
    *,
    final_norm: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure how much log-probability V loses by a state of U's, and by one of the baseline's.

    Args:
        vanilla: V, which knows the answers.
        unlearned: U.
        baseline: a model that never saw the facts, such as the clean one of a contamination.
        queries: what is asked; each needs an answer, of which all tokens are scored, or an entity.
        final_norm: take the last layer's state after the final norm, as the released code does.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        One row per query and layer, with `COLUMNS`: `logprob` is V's own, `fall_unlearned` and
        `fall_baseline` what it is less with the other's state after that layer, all three in nats,
        means over the answer's tokens.

    Raises:
        ValueError: no queries, one without an answer, models that do not match, a tokenizer that
            cannot tell where an entity stands, or a log-probability that is not finite.
    """
    for model in (unlearned, baseline):
        check_pair(vanilla, model)
    check_readout(vanilla)
    donors = (unlearned, baseline)
    tokens = [
        tokenize_entity(vanilla, query)
        if isinstance(query, EntityQuestion)
        else tokenize_answers(vanilla, [query])[0]
        for query in queries
    ]
    if not tokens:
        raise ValueError("no queries: give at least one")
    order = sorted(range(len(tokens)), key=lambda number: tokens[number].first_label)
    count = max(1, MAX_ROWS // (2 * vanilla.num_layers + 1))
    results: dict[int, list[float]] = {}
    bar = tqdm(total=len(tokens), desc="depth", unit="query", disable=not progress, delay=2)
    with bar:
        for _, same in groupby(order, key=lambda number: tokens[number].first_label):
            numbers = list(same)
            for start in range(0, len(numbers), count):
                chosen = numbers[start : start + count]
                batch = [tokens[number] for number in chosen]
                scored = _patch_states(vanilla, donors, batch, final_norm=final_norm)
                results.update(zip(chosen, scored.T.tolist(), strict=True))
                bar.update(len(chosen))
    rows = []
    for number, query in enumerate(queries):
        *patched, own = results[number]
        check_finite([own, *patched[: vanilla.num_layers]], query, unlearned)
        check_finite(patched, query, baseline)
        about = (unlearned.name, query.language, query.concept, query.id)
        for layer in range(vanilla.num_layers):
            lower, lowest = patched[layer], patched[vanilla.num_layers + layer]
            rows.append((*about, layer, own, own - lower, own - lowest))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def compute_erasure(table: pd.DataFrame, *, threshold: float = THRESHOLD) -> pd.DataFrame:
    """Compute the share of each layer's knowledge that is erased, for each query.

    Args:
        table: what `measure_falls` gives, of one or more unlearned models.
        threshold: τ, in nats per token.

    Returns:
        The rows of the table with `erased`, from 0 to 1, and `reason`: why it is NaN.
    """
    counts = table["fall_baseline"] > threshold
    share = (table["fall_unlearned"] / table["fall_baseline"]).clip(0, 1).where(counts)
    reason = f"the baseline's state costs no more than {threshold:g} nats"
    return table.assign(erased=share, reason=["" if known else reason for known in counts])


def score_queries(table: pd.DataFrame, *, threshold: float = THRESHOLD) -> pd.DataFrame:
    """Compute the unlearning depth score of each query.

    Args:
        table: what `measure_falls` gives, of one or more unlearned models.
        threshold: τ, in nats per token.

    Returns:
        One row per query: `unlearned`, `language`, `concept`, `query_id`, `uds`, `num_layers` that
        count, and `reason`: why the score is NaN.
    """
    rows = []
    for _, group in table.groupby(list(KEYS), sort=False, dropna=False):
        layers = compute_erasure(group, threshold=threshold).dropna(subset="erased")
        weights = layers["fall_baseline"]
        score, reason = math.nan, f"no state of the baseline costs more than {threshold:g} nats"
        if len(layers):
            score, reason = (weights * layers["erased"]).sum() / weights.sum(), ""
        entry = {"uds": score, "num_layers": len(layers), "reason": reason}
        rows.append({**group[list(KEYS)].iloc[0], **entry})
    return pd.DataFrame(rows)


def average_scores(
    table: pd.DataFrame, column: str, *, by: Sequence[str] = ("unlearned", "language")
) -> pd.DataFrame:
    """Average over the queries, with 95 % bootstrap intervals.

    Args:
        table: what `score_queries` gives, or `erased`.
        column: `uds`, or `erased`, which wants `layer` among `by`.
        by: columns that make a group.

    Returns:
        One row per group: `by`, the column, `ci_low`, `ci_high`, `num_queries` that have a value,
        and `reason`: how many have none. Groups come in order of first appearance.
    """
    rows = []
    for _, group in table.groupby(list(by), sort=False, dropna=False):
        estimate = estimate_mean(group[column].tolist())
        rows.append(
            {
                **group[list(by)].iloc[0],
                column: estimate.value,
                "ci_low": estimate.ci_low,
                "ci_high": estimate.ci_high,
                "num_queries": estimate.n,
                "reason": estimate.reason,
            }
        )
    return pd.DataFrame(rows)


@metric("uds", needs=("answer", "vanilla", "baseline"), uses=("records",))
def tabulate_depth(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Compute the unlearning depth score."""
    vanilla, baseline = evaluated.vanilla, evaluated.baseline
    assert vanilla is not None
    assert baseline is not None
    models = (vanilla.model, evaluated.model, baseline.model)
    records = {(record.id, record.language): record for record in evaluated.records}
    questions: list[Query | EntityQuestion] = []
    for query in evaluated.queries:
        record = records.get((query.id, query.language))
        questions.append(record if isinstance(record, EntityQuestion) else query)
    table = score_queries(measure_falls(*models, questions, progress=evaluated.progress))
    return estimate_groups(table, BY, {"uds": lambda rows: estimate_mean(rows["uds"].tolist())})


def tokenize_entity(model: LanguageModel, question: EntityQuestion) -> Tokens:
    """Tokenize a question up to the end of its entity, whose tokens are the labels.

    As the released code of UDS: prompt and continuation are tokenized apart, and a token that holds
    any character of the entity is the entity's.

    Raises:
        ValueError: the tokenizer cannot tell which characters a token stands for.
    """
    text = question.continuation
    begins = text.index(question.entity)
    ends = begins + len(question.entity)
    try:
        encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except NotImplementedError:
        raise ValueError(
            f"the tokenizer of {model.name!r} cannot tell which tokens are the entity's; UDS on "
            "entities needs a fast tokenizer"
        ) from None
    spans = enumerate(encoded["offset_mapping"])
    inside = [number for number, (first, last) in spans if last > begins and first < ends]
    prompt, rest = model.encode(question.prompt), tuple(encoded["input_ids"][: inside[-1] + 1])
    model.check_token_ids(rest)
    return Tokens(ids=prompt + rest, first_label=len(prompt) + inside[0])


def _patch_states(
    vanilla: LanguageModel,
    donors: Sequence[LanguageModel],
    rows: Sequence[Tokens],
    *,
    final_norm: bool,
) -> Float[Tensor, "run query"]:
    """Compute mean log-probabilities of answers that begin at the same position.

    The runs are V's with the state of each donor after each layer, donor by donor, and V's own.
    What stands before the first position that is replaced is the same in all runs: its keys and
    values are computed once.
    """
    batch = make_batch(rows, vanilla.device)
    body, num_layers = vanilla.anatomy.body, vanilla.num_layers
    start, stop = rows[0].first_label - 1, batch.input_ids.shape[1] - 1
    num_runs = len(donors) * num_layers + 1
    repeated = torch.arange(len(rows), device=vanilla.device).repeat(num_runs)
    cache = make_cache(vanilla.model)
    if start:
        body(input_ids=batch.input_ids[:, :start], past_key_values=cache, use_cache=True)
        select_rows(cache, repeated)
    given = [collect_residuals(donor, batch)[1:] for donor in donors]
    if final_norm:
        for donor, states in zip(donors, given, strict=True):
            normed = donor.anatomy.readout_state(states[-1])
            if normed.shape != states[-1].shape:
                raise ValueError(
                    f"final_norm is for models whose unembedding reads the residual stream, and "
                    f"{donor.name!r} projects it first"
                )
            states[-1] = normed
    with ExitStack() as stack:
        for layer, parts in enumerate(vanilla.anatomy.layers):
            shape = (num_runs, *batch.mask.shape)
            where = torch.zeros(shape, dtype=torch.bool, device=vanilla.device)
            states = given[0].new_zeros(*shape, given[0].shape[-1])
            for number, of_donor in enumerate(given):
                run = number * num_layers + layer
                where[run] = batch.mask
                states[run, batch.mask] = of_donor[layer]
            replaced = replace_output(parts.layer, states.flatten(0, 1), where.flatten(0, 1))
            stack.enter_context(replaced)
        ids = batch.input_ids[repeated, start:stop]
        read = torch.ones_like(batch.input_ids[repeated, :stop])
        places = make_position_inputs(body, read, stop - start)
        final = body(
            input_ids=ids, past_key_values=cache, use_cache=True, **places
        ).last_hidden_state
    final = final.unflatten(0, (num_runs, -1))[:, batch.mask]
    logprobs = compute_label_logprobs(
        vanilla.anatomy, final.flatten(0, 1), batch.targets.repeat(num_runs)
    ).double()
    sums = [batch.table(of_run).sum(1) for of_run in logprobs.view(num_runs, -1)]
    return torch.stack(sums) / batch.mask.sum(1)
