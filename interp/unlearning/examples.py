"""Training examples, their tokens, and which of them a step draws.

A draw depends on the seed and the step alone, so that a run that was interrupted goes on with the
examples that it would have had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.data.chat import Message
from interp.data.corpus import Text
from interp.data.counterfactuals import hash_text
from interp.models.chat import encode_chat
from interp.models.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Example:
    """Text to train on: the model reads the prompt, the loss is on the answer alone.

    Attributes:
        prompt: text without a label; "" where all of the text is labelled.
        answer: the labelled text, the space before it included.
        language: BCP-47 code, "" if it does not matter.
        group: examples of the same group, other than "", are one sequence in several languages:
            each time it is drawn, its language is drawn anew (Choi et al. 2024), or all sequences
            stay in a language for some steps; see `Draws`.
        messages: the chat that is answered, in the chat template of the tokenizer; the label is
            then the answer and its end of turn. Empty for a text that is read as it is.
    """

    prompt: str
    answer: str
    language: str = ""
    group: str = ""
    messages: tuple[Message, ...] = ()


def make_examples(texts: Iterable[Text], *, parallel: bool = False) -> list[Example]:
    """Make examples of texts.

    Args:
        texts: of a corpus.
        parallel: texts of the same id and wording are one sequence in several languages.
    """
    return [
        Example(
            prompt=text.prompt,
            answer=text.answer,
            language=text.language,
            group=f"{text.id}/{text.wording}" if parallel and text.wording else "",
            messages=text.messages,
        )
        for text in texts
    ]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Example as token ids; labels are the tokens from `first_label` on."""

    ids: tuple[int, ...]
    first_label: int

    @property
    def num_labels(self) -> int:
        """Number of tokens that the loss is on."""
        return len(self.ids) - self.first_label


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """Examples padded on the right.

    Attributes:
        input_ids: token ids; padding repeats a row's last token, which no real position sees.
        positions: True at real positions.
        sequence: the row of each label.
        place: the position of each label's token; it is predicted one position earlier.
        mask: which cells of the table [sequence label] are labels; the labels fill it row by row.
    """

    input_ids: Int[Tensor, "sequence pos"]
    positions: Bool[Tensor, "sequence pos"]
    sequence: Int[Tensor, " token"]
    place: Int[Tensor, " token"]
    mask: Bool[Tensor, "sequence label"]

    def table(self, values: Tensor) -> Tensor:
        """Arrange values of the labels [token] as a table [sequence label], zero at padding."""
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)

    @property
    def targets(self) -> Int[Tensor, " token"]:
        """Token ids of the labels."""
        return self.input_ids[self.sequence, self.place]


def tokenize(model: LanguageModel, example: Example, *, ends: bool = True) -> Tokens:
    """Tokenize an example as the whole text is, with the tokenizer's usual special tokens.

    A tokenizer may join the prompt's end with the answer: labels are what the prompt alone does not
    have. The first token of all is never a label, since nothing predicts it.

    A chat has the tokens of the chat template, as OpenUnlearning makes them; there what the
    template writes behind the end of turn (a line break), and an end-of-sequence token, are labels,
    too.

    Args:
        model: the model.
        example: the example.
        ends: whether an answer in a chat has its end of turn.

    Raises:
        ValueError: the example has no label, or is a chat that the tokenizer has no template for.
    """
    if example.messages:
        turns = [asdict(message) for message in example.messages]
        prompt = encode_chat(model, turns)
        whole = encode_chat(model, turns, example.answer, ends=ends)
        shared = count_shared_tokens(prompt, whole)
    else:
        prompt = model.encode(example.prompt) if example.prompt else ()
        whole = model.encode(example.prompt + example.answer)
        shared = count_shared_tokens(prompt, whole)
        # A tokenizer that ends every text with a special token: the answer comes before it.
        if example.answer and shared == len(whole) > 1:
            shared -= 1
    first_label = max(1, shared)
    if not example.answer or len(whole) <= first_label:
        raise ValueError(
            f"the example {(example.prompt + example.answer)[:60]!r} has no token to learn from: "
            "its answer is empty"
        )
    return Tokens(ids=tuple(whole), first_label=first_label)


def count_shared_tokens(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """Count the tokens that two texts share from the beginning."""
    pairs = enumerate(zip(prompt, whole, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(whole)))


def pad_rows(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """Pad token ids on the right with each row's last, and mark the real positions.

    Under causal attention no real position sees the padding.
    """
    lengths = torch.tensor([len(row) for row in rows], device=device)
    width = max(map(len, rows))
    ids = [[*row, *[row[-1]] * (width - len(row))] for row in rows]
    return (
        torch.tensor(ids, device=device),
        torch.arange(width, device=device) < lengths[:, None],
    )


def make_batch(rows: Sequence[Tokens], device: torch.device) -> TrainingBatch:
    """Make a batch of rows of tokens.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("a batch needs at least one example")
    input_ids, positions = pad_rows([row.ids for row in rows], device)
    where = [(i, p) for i, row in enumerate(rows) for p in range(row.first_label, len(row.ids))]
    sequence, place = (torch.tensor(column, device=device) for column in zip(*where, strict=True))
    counts = torch.tensor([row.num_labels for row in rows], device=device)
    return TrainingBatch(
        input_ids=input_ids,
        positions=positions,
        sequence=sequence,
        place=place,
        mask=torch.arange(int(counts.max()), device=device) < counts[:, None],
    )


class Draws:
    """Order of the examples: all sequences in random order, then all in another, and so on.

    Args:
        examples: what is drawn from; versions of a sequence are those of the same group.
        seed: of the order.
        purpose: what tells the draws of one set from those of another.
        steps_per_language: steps in which every sequence comes in its first version, then in its
            second, and so on; 0 to draw a version anew each time.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        seed: int,
        purpose: str,
        steps_per_language: int = 0,
    ) -> None:
        groups: dict[str, list[int]] = {}
        for number, example in enumerate(examples):
            groups.setdefault(example.group or f"\0{number}", []).append(number)
        self._groups = list(groups.values())
        self._seed, self._purpose = seed, purpose
        self._steps_per_language = steps_per_language
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        """Count the sequences, versions in several languages counted once."""
        return len(self._groups)

    def indices(self, step: int, size: int) -> list[int]:
        """Return the examples that a step, from 0, gets; at most as many as there are sequences."""
        size = min(size, len(self))
        indices = []
        for count in range(step * size, (step + 1) * size):
            epoch, place = divmod(count, len(self))
            group = self._groups[self._order(epoch)[place]]
            version = 0
            if self._steps_per_language:
                version = step // self._steps_per_language % len(group)
            elif len(group) > 1:
                version = self._random("language", count).randint(0, len(group) - 1)
            indices.append(group[version])
        return indices

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            order = list(range(len(self)))
            draw = self._random("order", epoch)
            for last in range(len(order) - 1, 0, -1):
                other = draw.randint(0, last)
                order[last], order[other] = order[other], order[last]
            self._orders[epoch] = order
        return self._orders[epoch]

    def _random(self, what: str, number: int) -> _Stream:
        return _Stream(f"{self._seed}/{self._purpose}/{what}/{number}")


class _Stream:
    """Stream of random integers, the same on every machine and under every version of Python."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0

    def randint(self, low: int, high: int) -> int:
        """Draw an integer from `low` to `high`, both included."""
        self._count += 1
        number = int.from_bytes(hash_text(f"{self._name}/{self._count}")[:8], "big")
        return low + number % (high - low + 1)
