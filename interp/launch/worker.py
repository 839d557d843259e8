"""Worker of a sweep: answers queries with V, and measures unlearned models cell by cell."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tqdm import tqdm

from interp.behaviour import AliasJudge, Answer
from interp.data.query import Query
from interp.data.trajectories import Trajectory, trajectories
from interp.launch.work_items import WorkItem
from interp.models.integrity import check_finite, check_known_by_weights
from interp.models.language_model import LanguageModel
from interp.models.loading import load
from interp.models.pairs import are_identical, check_pair
from interp.recovery.cost_estimate import CostEstimate, estimate_cost
from interp.recovery.pair import Direction, Pair
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
        # The unlearned model's name, and it with V by what is put into what.
        self._held: tuple[str, dict[Direction, Pair]] | None = None

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
        """Measure a cell. See `recovery.sweep.measure`; `known` says what V answers rightly."""
        configs = self.config.split_directions()
        table = pd.concat(
            [
                measure(
                    self._pair(unlearned, direction),
                    items,
                    config,
                    advance=lambda done: self.advance(done / len(configs)),
                )
                for direction, config in configs.items()
            ],
            ignore_index=True,
        )
        known = {(item.query.language, item.query.id): judge_known(item) for item in items}
        names = zip(table["language"], table["query_id"], strict=True)
        return table.assign(known=[known[name] for name in names])

    def estimate_cost(
        self, unlearned: LanguageModel | str, cells: Sequence[Sequence[Trajectory]]
    ) -> CostEstimate:
        """Estimate what measuring some cells takes. See `recovery.cost_estimate`."""
        configs = self.config.split_directions()
        direction, config = next(iter(configs.items()))
        estimate = estimate_cost(self._pair(unlearned, direction), cells, config)
        # The other direction runs as many layers.
        return estimate.times(len(configs)) if len(configs) > 1 else estimate

    def _pair(self, unlearned: LanguageModel | str, direction: Direction = "restore") -> Pair:
        name = unlearned if isinstance(unlearned, str) else unlearned.name
        if self._held is None or self._held[0] != name:
            # The model before goes first: there may be no room for another beside it.
            self._held = None
            if isinstance(unlearned, str):
                loaded = load(unlearned, like=self.vanilla)
            else:
                loaded = unlearned
                check_pair(self.vanilla, loaded)
            self._held = name, {}
            self._held[1]["restore"] = Pair(vanilla=self.vanilla, unlearned=loaded)
        pairs = self._held[1]
        if direction not in pairs:
            unlearned = pairs["restore"].unlearned
            pairs[direction] = Pair(vanilla=self.vanilla, unlearned=unlearned, direction=direction)
        return pairs[direction]


def judge_known(item: Trajectory) -> float:
    """Judge V's answer by its alias: 1 for a right one, 0 for a wrong one.

    NaN where the question has no right answer to compare with.
    """
    if not item.query.answer:
        return math.nan
    (verdict,) = AliasJudge()([Answer(query=item.query, text=item.answer)])
    return math.nan if verdict.value is None else verdict.value


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
