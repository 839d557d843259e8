"""Work items of a sweep, and the protocol of the workers that do them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm import tqdm


@dataclass(frozen=True, kw_only=True, eq=False)
class WorkItem:
    """Call of a method of `Worker`, which any worker can carry out.

    Attributes:
        method: its name.
        arguments: its arguments.
        unlearned: the unlearned model that it is about, by name; "" if none.
        label: its name in a progress bar.
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
    """Workers that do work items."""

    def run(self, work: deque[WorkItem], bar: tqdm) -> Iterator[tuple[WorkItem, Any]]:
        """Do work until none is left, also what is added meanwhile.

        Yields:
            Each item with its result, as soon as it is done.
        """
        ...
