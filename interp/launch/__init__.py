"""Where the work runs: here, in this process, or on a Ray cluster.

`sweep` ties the rooms together: trajectories, losses, the run directory. A cell is one language's
block of questions for one unlearned model. Cells are independent of each other: workers take them
one after the other (`Worker`, of which there is one here and any number in `launch.cluster`), and
`shard=(i, n)` splits them over any batch system.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from interp.data.query import Query
from interp.data.trajectories import Trajectory, trajectories
from interp.launch.directory import Answers, Cell, Losses, open_run
from interp.launch.options import Launcher, by_name, check_launcher, check_shard, part
from interp.launch.recovery import Recovery
from interp.launch.tasks import Task
from interp.models.language_model import LanguageModel
from interp.models.loading import load
from interp.models.pairs import check_pair, identical
from interp.models.precision import Dtype
from interp.recovery.names import site_name
from interp.recovery.noise import warn_of_noise
from interp.recovery.pair import Direction, Pair
from interp.recovery.plan import Plan, plan
from interp.recovery.scoring import Distance
from interp.recovery.sites import Positions
from interp.recovery.sweep import DEFAULT_SITES, Remote, SweepConfig, Variant, measure

__all__ = ["Recovery", "Worker", "check_launcher", "check_shard", "sweep"]

BLOCK = 32
"""Questions per cell."""

BAR_FORMAT = "{desc}: {percentage:3.0f}% {bar} {n:.0f}/{total:.0f} [{elapsed}<{remaining}{postfix}]"


class Worker:
    """V, and one unlearned model at a time."""

    def __init__(
        self, vanilla: LanguageModel, config: SweepConfig, *, progress: bool = False
    ) -> None:
        self.vanilla = vanilla
        self.config = config
        self.progress = progress
        self.advance: Callable[[float], object] = lambda _questions: None
        self._held: tuple[str, Pair] | None = None

    def answer(self, queries: Sequence[Query], num_tokens: int) -> list[Trajectory]:
        """V's answers."""
        return trajectories(self.vanilla, queries, num_tokens=num_tokens, progress=self.progress)

    def open(self, unlearned: LanguageModel | str, hashed: bool) -> str:
        """Load an unlearned model and see that it can be measured.

        Returns:
            Its content hash, if asked for, else "".

        Raises:
            ValueError: it cannot be loaded, does not match V, or is V.
        """
        pair = self._pair(unlearned)
        if identical(self.vanilla, pair.unlearned):
            raise ValueError(
                f"{pair.unlearned.name!r} is identical to {self.vanilla.name!r}: nothing was "
                "unlearned, so the KRS is undefined"
            )
        self.config.check_models(self.vanilla, pair.unlearned)
        return pair.unlearned.content_hash() if hashed else ""

    def measure(self, unlearned: LanguageModel | str, items: Sequence[Trajectory]) -> pd.DataFrame:
        """The losses of a cell. See `recovery.sweep.measure`."""
        return measure(self._pair(unlearned), items, self.config, advance=self.advance)

    def plan(self, unlearned: LanguageModel | str, cells: Sequence[Sequence[Trajectory]]) -> Plan:
        """What measuring some cells will take. See `recovery.plan`."""
        return plan(self._pair(unlearned), cells, self.config)

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
class Here:
    """One worker, in this process."""

    worker: Worker

    def run(self, tasks: deque[Task], bar: tqdm) -> Iterator[tuple[Task, Any]]:
        """See `Workers`."""
        self.worker.advance = bar.update
        while tasks:
            task = tasks.popleft()
            bar.set_postfix_str(task.label)
            yield task, getattr(self.worker, task.method)(*task.arguments)


def sweep(
    vanilla: LanguageModel,
    unlearned: LanguageModel | str | os.PathLike[str] | Sequence[LanguageModel | str],
    answers: Sequence[Trajectory] | Sequence[Query],
    *,
    sites: Sequence[str] = DEFAULT_SITES,
    window: int = 5,
    num_tokens: int = 30,
    engine: str = "layered",
    variant: Variant = "paper",
    positions: Positions = "all",
    direction: Direction = "restore",
    distance: Distance = "logit_mse",
    remote: Remote = False,
    dtype: Dtype | None = None,
    out: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] = (1, 1),
    launcher: Launcher = "local",
    address: str | None = None,
    num_workers: int | None = None,
    gpus_per_worker: float | None = None,
    progress: bool = True,
) -> Recovery:
    """Restore every window of layers, site by site, and measure what returns.

    Args:
        vanilla: V.
        unlearned: U, of the same architecture and tokenizer; or several. What is a specification
            for `interp.load` is loaded when its turn comes.
        answers: V's trajectories on the questions; or the queries, trajectories are then made.
        sites: sites or several joined by "+": coef, attn, value and the controls key,
            attn_weights, norms, unembed, mlp_out, resid; or TransformerLens' hook names and module
            paths, see `recovery.names.site_name`.
        window: number of layers restored together, odd.
        num_tokens: T, tokens per answer; used where queries are given.
        engine: `layered`, `full` for the reference, `transformer_lens` or `nnsight`.
        variant: `paper` or `hong2024`.
        positions: where activation sites are restored: `all`, `prompt`, `answer`.
        direction: `restore` puts V's parts into U, `corrupt` U's parts into V.
        distance: `logit_mse`, `kl` or `answer_logprob`.
        remote: with the engine `nnsight`, True runs the forwards on NDIF, where V is hosted, and
            needs a key of it and a U that is a LoRA adapter on V; "local" simulates that here.
        dtype: the models' own precision if None, "float32", "bfloat16" or "float16"; or "tf32" or
            "bf32" for rounded matrix products of float32 models, "mixed" for bfloat16 models scored
            in float32, see `models.precision`. Where its noise floor exceeds the effect, a warning
            says so.
        out: a run directory. What it holds already is not measured again. It may take several
            unlearned models, in one call or several.
        shard: (i, n): only the i-th (from 1) of n parts of the cells, which stand model by model.
        launcher: `local` measures in this process, `ray` on the workers of a Ray cluster, which
            load V and U themselves, by name; see docs/clusters.md.
        address: of the Ray cluster; if None, the one that runs on this machine (or that
            RAY_ADDRESS names), else one that lasts as long as the sweep.
        num_workers: Ray workers; as many as there is room for if None.
        gpus_per_worker: the part of a GPU that a Ray worker takes; 1 if None and V is on one, else
            0, a worker then takes as many CPUs as torch has threads here.
        progress: show the plan and progress bars on standard error.

    Returns:
        What was measured; with `out`, all that the directory holds of these cells.

    Raises:
        ValueError: a setting is not valid, the models do not match or are identical, a loss is
            not finite, or `out` holds a run of another configuration.
        ImportError: the extra that a launcher or an engine needs is missing.
        ChildProcessError: Ray workers died at the same work again and again.
    """
    config = SweepConfig(
        sites=tuple(site_name(site, vanilla) for site in sites),
        window=window,
        engine=engine,
        variant=variant,
        positions=positions,
        direction=direction,
        distance=distance,
        remote=remote,
        dtype=dtype,
    )
    config.restorations(vanilla.num_layers)
    check_shard(shard)
    check_launcher(launcher, address, num_workers, gpus_per_worker)
    if not answers:
        raise ValueError("no queries: give at least one")
    models = by_name(unlearned)
    places = part(
        [(name, number) for name in models for number in range(len(_cells(answers)))], shard
    )
    if not places:
        raise ValueError(f"shard {shard[0]}/{shard[1]} holds no cells; there are too many shards")
    # A worker elsewhere loads models by their names.
    sources = models if launcher == "local" else {name: name for name in models}
    store = None if out is None else open_run(out, vanilla, answers, config, num_tokens)
    made = Answers(answers, store)
    if launcher == "local":
        launched = nullcontext(Here(worker=Worker(vanilla, config, progress=progress)))
    else:
        from interp.launch.cluster import cluster

        launched = cluster(
            vanilla,
            config,
            models=models,
            address=address,
            num_workers=num_workers,
            gpus_per_worker=gpus_per_worker,
        )
    first, *others = [
        Task(
            method="open",
            arguments=(sources[name], store is not None or launcher == "ray"),
            unlearned=name,
            label=_short(name),
        )
        for name in dict(places)
    ]
    asking = [
        Task(method="answer", arguments=(group, num_tokens), num_queries=len(group))
        for group in made.waiting
    ]
    with launched as workers:
        bar = tqdm(
            total=sum(task.num_queries for task in asking) + 1e-6,
            desc="answers",
            bar_format=BAR_FORMAT,
            # A worker in this process shows its own.
            disable=not progress or launcher == "local",
        )
        content_hash = ""
        with bar:
            for task, result in workers.run(deque([first, *asking]), bar):
                if task is first:
                    content_hash = result
                else:
                    made.keep(result)
        cells = _cells(made.all())
        losses = Losses(places, cells, store)
        bar = tqdm(
            total=sum(len(cells[number].items) for _, number in places) + 1e-6,
            desc="sweep" if others else f"sweep {_short(first.unlearned)}",
            bar_format=BAR_FORMAT,
            # Layers differ in work: the mean speed tells the time left better than the latest.
            smoothing=0,
            disable=not progress,
        )

        def begun(name: str, content_hash: str) -> list[Task]:
            """The cells of an unlearned model that are not known yet."""
            missing = losses.begin(name, content_hash)
            if progress and missing and isinstance(workers, Here) and name == first.unlearned:
                asked = [
                    [item for item in cells[number].items if isinstance(item, Trajectory)]
                    for number in missing
                ]
                told = workers.worker.plan(sources[name], asked)
                models = f" for each of {len(others) + 1} models" if others else ""
                tqdm.write(f"{told}{models}", file=sys.stderr)
            known = [place for place in places if place[0] == name and place[1] not in missing]
            bar.update(sum(len(cells[number].items) for _, number in known))
            return [
                Task(
                    method="measure",
                    arguments=(sources[name], cells[number].items),
                    unlearned=name,
                    label=" ".join([_short(name)] * bool(others) + [cells[number].language]),
                    num_queries=len(cells[number].items),
                    key=number,
                )
                for number in missing
            ]

        with bar:
            tasks = deque([*begun(first.unlearned, content_hash), *others])
            for task, result in workers.run(tasks, bar):
                if task.method == "open":
                    tasks.extendleft(reversed(begun(task.unlearned, result)))
                else:
                    losses.keep(task.unlearned, task.key, result)
    recovery = Recovery(losses=losses.all())
    if config.dtype_of(vanilla) != "float32":
        warn_of_noise(recovery.krs())
    return recovery


def _cells(answers: Sequence[Trajectory] | Sequence[Query]) -> list[Cell]:
    """Blocks of questions, languages in order of first appearance."""
    by_language: dict[str, list[Trajectory | Query]] = {}
    for item in answers:
        query = item.query if isinstance(item, Trajectory) else item
        by_language.setdefault(query.language, []).append(item)
    return [
        Cell(language=language, block=block, items=items[start : start + BLOCK])
        for language, items in by_language.items()
        for block, start in enumerate(range(0, len(items), BLOCK))
    ]


def _short(name: str) -> str:
    return name if len(name) <= 24 else "…" + name[-23:]
