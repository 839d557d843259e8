"""Worker of a sweep: answers queries with V, and measures unlearned models cell by cell."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tqdm import tqdm

from interp.data.query import Query
from interp.data.trajectories import Trajectory, trajectories
from interp.launch.work_items import WorkItem
from interp.models.integrity import check_finite, check_known_by_weights
from interp.models.language_model import LanguageModel
from interp.models.loading import load
from interp.models.pairs import are_identical, check_pair
from interp.recovery.cost_estimate import CostEstimate, estimate_cost
from interp.recovery.pair import Pair
from interp.recovery.sweep import measure
from interp.recovery.sweep_config import SweepConfig


class Worker:
    """Holder of V, and of one unlearned model at a time."""

    def __init__(
        self, vanilla: LanguageModel, config: SweepConfig, *, progress: bool = False
    ) -> None:
        self.vanilla = vanilla
        self.config = config
        self.progress = progress
        self.advance: Callable[[float], object] = lambda _questions: None
        self._held: tuple[str, Pair] | None = None

    def answer(self, queries: Sequence[Query], num_tokens: int) -> list[Trajectory]:
        """Return V's answers."""
        return trajectories(self.vanilla, queries, num_tokens=num_tokens, progress=self.progress)

    def open(self, unlearned: LanguageModel | str, hashed: bool) -> str:
        """Load an unlearned model and check that it can be measured.

        Returns:
            Its content hash, if asked for, else "".

        Raises:
            ValueError: it cannot be loaded, does not match V, or is V; or one of the two does
                more than its weights say, see `models.integrity`.
        """
        pair = self._pair(unlearned)
        for model in (self.vanilla, pair.unlearned):
            check_finite(model.name, model.model)
            check_known_by_weights(model)
        if are_identical(self.vanilla, pair.unlearned):
            raise ValueError(
                f"{pair.unlearned.name!r} is identical to {self.vanilla.name!r}: nothing was "
                "unlearned, so the KRS is undefined"
            )
        self.config.check_models(self.vanilla, pair.unlearned)
        return pair.unlearned.content_hash() if hashed else ""

    def measure(self, unlearned: LanguageModel | str, items: Sequence[Trajectory]) -> pd.DataFrame:
        """Measure the losses of a cell. See `recovery.sweep.measure`."""
        return measure(self._pair(unlearned), items, self.config, advance=self.advance)

    def estimate_cost(
        self, unlearned: LanguageModel | str, cells: Sequence[Sequence[Trajectory]]
    ) -> CostEstimate:
        """Estimate what measuring some cells takes. See `recovery.cost_estimate`."""
        return estimate_cost(self._pair(unlearned), cells, self.config)

    def _pair(self, unlearned: LanguageModel | str) -> Pair:
        name = unlearned if isinstance(unlearned, str) else unlearned.name
        if self._held is None or self._held[0] != name:
            # The model before goes first: there may be no room for another beside it.
            self._held = None
            if isinstance(unlearned, str):
                loaded = load(unlearned, like=self.vanilla)
            else:
                loaded = unlearned
                check_pair(self.vanilla, loaded)
            pair = Pair(vanilla=self.vanilla, unlearned=loaded, direction=self.config.direction)
            self._held = (name, pair)
        return self._held[1]


@dataclass(frozen=True, kw_only=True)
class LocalWorkers:
    """One worker, in this process. See `work_items.Workers`."""

    worker: Worker

    def run(self, work: deque[WorkItem], bar: tqdm) -> Iterator[tuple[WorkItem, Any]]:
        """Do work until none is left."""
        self.worker.advance = bar.update
        while work:
            item = work.popleft()
            bar.set_postfix_str(item.label)
            yield item, getattr(self.worker, item.method)(*item.arguments)
