"""V's own greedy answers, as token ids: what V, U and R are teacher-forced on.

For a query: prompt → V's greedy next T tokens, ended early by an end-of-sequence token, which does
not belong to the answer. The ids are kept as they are, never decoded and tokenized again (but for
`hong2024`, which does just that because the released notebooks do).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tqdm.auto import tqdm

from interp.data.query import Query, list_questions
from interp.models.generation import generate_continuations
from interp.models.language_model import LanguageModel, check_language_model


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Query with V's answer to it.

    Attributes:
        query: the question.
        prompt_ids: the prompt's tokens, special tokens included.
        answer_ids: the answer's tokens, n of them, n ≤ T.
        answer: the answer as text, for people.
        scored: positions whose logits are compared. The paper's are those that predict the
            answer: the last prompt position up to the last answer token but one.
        reason: why nothing is scored, where `scored` is empty.
    """

    query: Query
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: str
    scored: range
    reason: str = ""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and answer."""
        return self.prompt_ids + self.answer_ids


def trajectories(
    vanilla: LanguageModel,
    queries: Sequence[Query],
    *,
    num_tokens: int = 30,
    batch_size: int = 32,
    progress: bool = True,
) -> list[Trajectory]:
    """Generate V's greedy answers, made once and reused for every unlearned model.

    Args:
        vanilla: V.
        queries: the questions; the result keeps their order.
        num_tokens: T, the longest answer in tokens.
        batch_size: queries answered at once (sorted by length, padded on the left).
        progress: show a progress bar on standard error.

    Raises:
        TypeError: `vanilla` is no LanguageModel, or a question no Query.
        ValueError: no queries, `num_tokens` below 1, or a prompt that does not fit the model's
            context together with its answer.
    """
    check_language_model(vanilla, "vanilla")
    queries = list_questions(queries, "queries", Query)
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, not {num_tokens}")
    prompts = [encode_prompt(vanilla, query, num_tokens) for query in queries]
    answers: dict[int, tuple[int, ...]] = {}
    continuations = generate_continuations(
        vanilla, prompts, num_tokens=num_tokens, batch_size=batch_size
    )
    bar = tqdm(total=len(queries), desc="answers", unit="query", disable=not progress)
    with bar:
        for index, answer in continuations:
            answers[index] = answer
            bar.update()
    return [
        Trajectory(
            query=query,
            prompt_ids=prompts[index],
            answer_ids=answers[index],
            answer=vanilla.decode(answers[index]),
            scored=range(len(prompts[index]) - 1, len(prompts[index]) + len(answers[index]) - 1),
            reason="" if answers[index] else "nothing scored: the answer is empty",
        )
        for index, query in enumerate(queries)
    ]


def score_as_hong2024(answers: Sequence[Trajectory], vanilla: LanguageModel) -> list[Trajectory]:
    """Convert trajectories to those that the notebooks released with Hong et al. 2024 score.

    Prompt and answer are decoded without special tokens and tokenized again; the logits of the
    last n positions are compared (one position later than those that predict the answer); n is
    the number of generated tokens minus the end-of-sequence tokens in the whole left-padded row,
    so that it shrinks by the row's padding. One language's questions about one concept are one
    padded batch, as in the notebooks. A tokenizer that ends every text with a special token, which
    those of the notebooks do not, is used without it here as everywhere.
    """
    widths: defaultdict[tuple[str, str], int] = defaultdict(int)
    for item in answers:
        group = (item.query.language, item.query.concept)
        widths[group] = max(widths[group], len(item.prompt_ids))
    rescored = []
    for item in answers:
        padding = widths[item.query.language, item.query.concept] - len(item.prompt_ids)
        # Where the tokenizer begins with its end-of-sequence token, the prompt holds one too.
        in_prompt = item.prompt_ids.count(vanilla.tokenizer.eos_token_id)
        num_scored = len(item.answer_ids) - padding - in_prompt
        token_ids = vanilla.encode(vanilla.decode(item.token_ids, skip_special_tokens=True))
        rescored.append(
            replace(
                item,
                prompt_ids=token_ids,
                answer_ids=(),
                scored=range(max(0, len(token_ids) - max(0, num_scored)), len(token_ids)),
                reason=""
                if num_scored > 0
                else f"nothing scored: hong2024 counts {num_scored} answer tokens after taking "
                f"off {padding + in_prompt} end-of-sequence and padding tokens",
            )
        )
    return rescored


def check_trajectories(vanilla: LanguageModel, answers: Sequence[object]) -> None:
    """Raise ValueError if a trajectory among questions has a token that the model does not."""
    for item in answers:
        if isinstance(item, Trajectory):
            vanilla.check_token_ids(item.token_ids)


def encode_prompt(model: LanguageModel, query: Query, num_tokens: int) -> tuple[int, ...]:
    """Encode a query's prompt as token ids, with room for an answer of `num_tokens`.

    Raises:
        ValueError: the prompt has no tokens, or does not fit the model's context with its answer.
    """
    token_ids = model.encode(query.prompt)
    context = getattr(model.text_config, "max_position_embeddings", None)
    if not token_ids:
        raise ValueError(
            f"the prompt of {query.id!r} ({query.language}) has no tokens; give it some text"
        )
    if context is not None and len(token_ids) + num_tokens > context:
        raise ValueError(
            f"the prompt of {query.id!r} ({query.language}) has {len(token_ids)} tokens; with "
            f"{num_tokens} answer tokens that is more than the model's context of {context}"
        )
    return token_ids
