"""What workers are asked, and what they promise."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm import tqdm


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A call of a `Worker`'s method, which any worker can carry out.

    Attributes:
        method: its name.
        arguments: what it is given.
        unlearned: the unlearned model that it is about, by name; "" if none.
        label: what a progress bar calls it.
        num_queries: the number of questions.
        key: whose result it is.
    """

    method: str
    arguments: tuple[Any, ...]
    unlearned: str = ""
    label: str = ""
    num_queries: int = 0
    key: Any = None


class Workers(Protocol):
    """Those who do tasks."""

    def run(self, tasks: deque[Task], bar: tqdm) -> Iterator[tuple[Task, Any]]:
        """Do tasks until none is left, also those that are added meanwhile.

        Yields:
            Each task with its result, as soon as it is done.
        """
        ...
