"""Teacher-forced scores of every token of many texts, without keeping the logits.

Where a token y is predicted, with p the distribution of the next token: log p(y); whether y is the
likeliest token; and the mean and the standard deviation of log p(z) for z drawn from p, which say
how probable a token could be there. Logits are formed block by block of the vocabulary; the
blocks' moments are put together by the law of total variance, in which nothing cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp.models.anatomy import Anatomy
from interp.models.integrity import check_readout, check_runnable
from interp.models.language_model import LanguageModel
from interp.unlearning.examples import Example, Tokens, make_batch, tokenize
from interp.unlearning.label_logprobs import BLOCK, ROWS


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """Scores of one text's labels, in float32 on the CPU.

    Attributes:
        logprobs: log p(y) of each label's token, in nats.
        is_argmax: whether it is the likeliest token (of equally likely ones the first id is).
        mean_logprob: E log p(z), z ~ p: the negative entropy of the prediction, in nats.
        std_logprob: the standard deviation of log p(z), in nats.
    """

    logprobs: Float[Tensor, " label"]
    is_argmax: Bool[Tensor, " label"]
    mean_logprob: Float[Tensor, " label"]
    std_logprob: Float[Tensor, " label"]


@torch.inference_mode()
def score_labels(
    model: LanguageModel,
    examples: Sequence[Example],
    *,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> list[LabelScores]:
    """Score the labels of examples: answers after prompts; where there is no prompt, all tokens
    but the first. Scores do not depend on the batches, but for rounding.

    Args:
        model: the model.
        examples: the texts; the result keeps their order.
        batch_tokens: tokens run at once, padding included (at least one text is).
        progress: show a progress bar on standard error if it takes more than two seconds.

    Raises:
        ValueError: a text without a label, or longer than the model's context.
    """
    check_runnable(model)
    check_readout(model)
    rows = [_tokenize(model, example) for example in examples]
    blocks = _split_vocabulary(model.anatomy)
    results: dict[int, LabelScores] = {}
    bar = tqdm(total=len(rows), desc="scores", unit="text", delay=2, disable=not progress)
    with bar:
        for numbers in _make_batches([len(row.ids) for row in rows], batch_tokens):
            batch = make_batch([rows[number] for number in numbers], model.device)
            states = model.anatomy.body(
                input_ids=batch.input_ids, use_cache=False
            ).last_hidden_state[batch.sequence, batch.place - 1]
            chunks = zip(states.split(ROWS), batch.targets.split(ROWS), strict=True)
            scored = [_score(blocks, *chunk) for chunk in chunks]
            columns = [torch.cat(column).cpu() for column in zip(*scored, strict=True)]
            counts = [rows[number].num_labels for number in numbers]
            parts = zip(*(column.split(counts) for column in columns), strict=True)
            for number, (logprobs, is_argmax, mean, std) in zip(numbers, parts, strict=True):
                results[number] = LabelScores(
                    logprobs=logprobs, is_argmax=is_argmax, mean_logprob=mean, std_logprob=std
                )
            bar.update(len(numbers))
    return [results[number] for number in range(len(rows))]


def _tokenize(model: LanguageModel, example: Example) -> Tokens:
    row = tokenize(model, example)
    context = getattr(model.text_config, "max_position_embeddings", None)
    if context is not None and len(row.ids) > context:
        raise ValueError(
            f"the text {(example.prompt + example.answer)[:60]!r} has {len(row.ids)} tokens, more "
            f"than the model's context of {context}; cut it first"
        )
    return row


def _make_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield numbers of texts, longest first, so that what does not fit in memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // lengths[order[start]])
        yield order[start : start + size]
        start += size


def _split_vocabulary(anatomy: Anatomy) -> list[Anatomy]:
    """Split the model by parts of the vocabulary: its logits are capped as they should."""
    weights = anatomy.unembed.weight.split(BLOCK)
    bias = anatomy.unembed.bias
    biases = [None] * len(weights) if bias is None else bias.split(BLOCK)
    parts = []
    for weight, part in zip(weights, biases, strict=True):
        linear = nn.Linear(*reversed(weight.shape), bias=part is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if part is not None:
            linear.bias = nn.Parameter(part, requires_grad=False)
        parts.append(replace(anatomy, unembed=linear))
    return parts


def _score(
    blocks: Sequence[Anatomy], states: Float[Tensor, "label d"], targets: Int[Tensor, " label"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the attributes of `LabelScores`, for the labels of all texts of a batch."""
    label = states.new_full(targets.shape, torch.nan, dtype=torch.float32)
    largest, likeliest, normaliser, mean, variance = columns = [], [], [], [], []
    start = 0
    for block in blocks:
        logits = block.logits(states).float()
        width = logits.shape[-1]
        here = (targets >= start) & (targets < start + width)
        place = (targets - start).clamp(0, width - 1)
        label = torch.where(here, logits.gather(-1, place[:, None])[:, 0], label)
        top, first = logits.max(-1)
        # Relative to the block's largest logit, so that rounding is as small as it can be.
        logits -= top[:, None]
        weights = logits.exp()
        total = weights.sum(-1)
        centre = torch.linalg.vecdot(weights, logits) / total
        spread = torch.linalg.vecdot(weights, logits.sub_(centre[:, None]).square_()) / total
        for column, value in zip(
            columns, (top, first + start, top + total.log(), centre, spread), strict=True
        ):
            column.append(value)
        start += width
    tops, normalisers = torch.stack(largest), torch.stack(normaliser)
    whole = normalisers.logsumexp(0)
    # Each block's share of the probability, and its mean log-probability.
    shares, means = (normalisers - whole).exp(), torch.stack(mean) + (tops - whole)
    centre = (shares * means).sum(0)
    spread = (shares * (torch.stack(variance) + (means - centre).square())).sum(0)
    chosen = torch.stack(likeliest).gather(0, tops.argmax(0)[None])[0]
    return label - whole, chosen == targets, centre, spread.sqrt()
