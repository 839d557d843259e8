"""The layer sweep, tied together: trajectories, losses, the run directory.

A cell is one language's block of questions for one unlearned model. Cells are independent of each
other: workers take them one after the other (`Worker`, of which there is one here and any number
in `launch.ray_cluster`), and `shard=(i, n)` splits them over any batch system.

1. Take V's answers from the run directory, or make them.
2. Open each unlearned model in turn and read its losses that the run directory has.
3. Measure the other cells, and store each as soon as it is done.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from torch.nn import Module
from tqdm.auto import tqdm

from interp.data.control_queries import controls as controls_of
from interp.data.queries import LINE_BREAK
from interp.data.query import Query, list_questions
from interp.data.trajectories import Trajectory, check_trajectories
from interp.launch.cells import (
    AnswerStore,
    LossStore,
    index_models,
    open_run_directory,
    select_shard,
    split_cells,
)
from interp.launch.options import AnswerOptions, LaunchConfig
from interp.launch.recovery import Recovery
from interp.launch.signature import select_options, takes_options
from interp.launch.work_items import Workers, WorkItem
from interp.launch.worker import LocalWorkers, Worker
from interp.models.language_model import LanguageModel, check_language_model
from interp.models.packed_weights import rounds_inputs
from interp.recovery.noise_floor import warn_of_noise
from interp.recovery.site_names import translate_site_name
from interp.recovery.sweep_config import DEFAULT_SITES, SweepConfig

BLOCK = 32
"""Questions per cell."""

BAR_FORMAT = "{desc}: {percentage:3.0f}% {bar} {n:.0f}/{total:.0f} [{elapsed}<{remaining}{postfix}]"


@takes_options(SweepConfig, AnswerOptions, LaunchConfig)
def sweep(
    vanilla: LanguageModel,
    unlearned: LanguageModel | str | os.PathLike[str] | Sequence[LanguageModel | str],
    answers: Sequence[Trajectory] | Sequence[Query],
    *,
    controls: bool | Sequence[Query] | Sequence[Trajectory] = False,
    never: LanguageModel | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> Recovery:
    """Restore every window of layers, site by site, and measure what returns.

    Args:
        vanilla: V.
        unlearned: U, of the same architecture and tokenizer; or several. A specification for
            `interp.load` is loaded when its turn comes.
        answers: V's trajectories on the questions; or the queries, trajectories are then made.
        controls: questions on what was to be kept, which are measured beside the others; True
            picks built-in ones (`interp.controls`).
        never: N, a model that never knew what U forgot, such as V before it was taught: it is
            measured like an unlearned one, and scores are compared with its (`Recovery.krs`).
        out: a run directory. What it holds already is not measured again. It may take several
            unlearned models, in one call or several.
        progress: show the plan and progress bars on standard error.

    Returns:
        What was measured; with `out`, all that the directory holds of these cells.

    Raises:
        TypeError: there is no such option, or what is given is no model or no question.
        ValueError: a setting is not valid, the models do not match or are identical, a weight is
            not finite, or `out` holds a run of another configuration.
        ImportError: the extra that a launcher or an engine needs is missing.
        ChildProcessError: Ray workers died at the same work again and again.
    """
    check_language_model(vanilla, "vanilla")
    unlearned = _list_unlearned(unlearned)
    never_name = None
    if never is not None:
        unlearned, never_name = _join_models(unlearned, _list_unlearned(never))
    answers = list_questions(answers, "answers", Trajectory, Query)
    answers = [*answers, *_list_controls(answers, controls)]
    check_trajectories(vanilla, answers)
    sites = tuple(translate_site_name(site, vanilla) for site in _list_sites(options))
    config = select_options(SweepConfig(), options | {"sites": sites})
    config.restorations(vanilla.num_layers)
    if config.variant == "hong2024":
        answers = _drop_stops(answers)
    launch = select_options(LaunchConfig(), options)
    num_tokens = select_options(AnswerOptions(), options).num_tokens
    models = index_models(unlearned)
    numbers = range(len(split_cells(answers, BLOCK)))
    keys = select_shard([(name, number) for name in models for number in numbers], launch.shard)
    if not keys:
        index, count = launch.shard
        raise ValueError(f"shard {index}/{count} holds no cells; there are too many shards")
    # A worker elsewhere loads models by their names.
    sources = models if launch.launcher == "local" else {name: name for name in models}
    store = None if out is None else open_run_directory(out, vanilla, answers, config, num_tokens)
    answer_store = AnswerStore(answers, store)
    opens = [
        WorkItem(
            method="open",
            arguments=(sources[name], store is not None or launch.launcher == "ray"),
            unlearned=name,
            label=_shorten(name),
        )
        for name in dict(keys)
    ]
    with _start_workers(vanilla, config, launch, models, progress) as workers:
        content_hash = _answer(workers, opens[0], answer_store, num_tokens, progress)
        losses = LossStore(keys, split_cells(answer_store.get_all(), BLOCK), store, never_name)
        _measure(workers, opens, content_hash, sources, losses, progress)
    recovery = Recovery(
        losses=losses.get_all(),
        never=None if never_name is None else losses.get_name(never_name),
    )
    if config.dtype_of(vanilla) != "float32" or rounds_inputs(vanilla.model):
        warn_of_noise(recovery.krs())
    return recovery


def _list_unlearned(given: Any) -> list[LanguageModel | str]:
    """Return unlearned models, or their specifications, as a list.

    Raises:
        TypeError: one is neither.
    """
    kinds = (LanguageModel, str, os.PathLike)
    if isinstance(given, Mapping):
        raise TypeError(
            "unlearned must be a model or a list of models, not a dict: give its values"
        )
    is_several = isinstance(given, Iterable) and not isinstance(given, (*kinds, Module))
    models: list[Any] = list(given) if is_several else [given]
    for model in models:
        if not isinstance(model, str | os.PathLike):
            check_language_model(model, "unlearned", also="a specification or ")
    return models


def _join_models(
    unlearned: list[LanguageModel | str], never: Sequence[LanguageModel | str]
) -> tuple[list[LanguageModel | str], str]:
    """Return the unlearned models with the one that never knew, and its name.

    Raises:
        ValueError: there is not one.
    """
    if len(never) != 1:
        raise ValueError(f"never must be one model that never knew, not {len(never)}")
    names = [
        model.name if isinstance(model, LanguageModel) else os.fspath(model)
        for model in (*unlearned, *never)
    ]
    # It may be among them already.
    return [*unlearned, *never] if names[-1] not in names[:-1] else unlearned, names[-1]


def _list_controls(
    answers: Sequence[Any], given: bool | Sequence[Query] | Sequence[Trajectory]
) -> list[Any]:
    """Return the questions to be measured as controls."""
    if given is False:
        return []
    if given is True:
        return [*controls_of(answers)]
    items = list_questions(given, "controls", Trajectory, Query)
    return [
        replace(item, query=replace(item.query, control=True))
        if isinstance(item, Trajectory)
        else replace(item, control=True)
        for item in items
    ]


def _drop_stops(answers: Sequence[Any]) -> list[Any]:
    """Return questions without stops, with a warning where somebody gave some.

    Raises:
        ValueError: an answer was made with a stop.
    """
    asked: list[Any] = []
    for item in answers:
        if isinstance(item, Trajectory) and item.query.stop:
            raise ValueError(
                f"hong2024 has no stops, and the answer to {item.query.id!r} "
                f"({item.query.language}) was made with {item.query.stop[0]!r}: make it without"
            )
        asked.append(replace(item, stop=()) if isinstance(item, Query) and item.stop else item)
    if any(isinstance(item, Query) and item.stop not in ((), LINE_BREAK) for item in answers):
        warnings.warn("hong2024 has no stops: answers go on past those given", stacklevel=5)
    return asked


def _list_sites(options: Mapping[str, Any]) -> Sequence[str]:
    sites = options.get("sites", DEFAULT_SITES)
    return [sites] if isinstance(sites, str) else sites


def _start_workers(
    vanilla: LanguageModel,
    config: SweepConfig,
    launch: LaunchConfig,
    models: Mapping[str, LanguageModel | str],
    progress: bool,
) -> AbstractContextManager[Workers]:
    if launch.launcher == "local":
        return nullcontext(LocalWorkers(worker=Worker(vanilla, config, progress=progress)))
    from interp.launch.ray_cluster import start_ray_workers

    return start_ray_workers(
        vanilla,
        config,
        models=models,
        address=launch.address,
        num_workers=launch.num_workers,
        gpus_per_worker=launch.gpus_per_worker,
    )


def _answer(
    workers: Workers, first: WorkItem, store: AnswerStore, num_tokens: int, progress: bool
) -> str:
    """Open the first unlearned model, answer what has no answer, and return its content hash."""
    items = [
        WorkItem(method="answer", arguments=(group, num_tokens), num_queries=len(group))
        for group in store.pending
    ]
    content_hash = ""
    with tqdm(
        total=sum(item.num_queries for item in items) + 1e-6,
        desc="answers",
        bar_format=BAR_FORMAT,
        # A worker in this process shows its own.
        disable=not progress or isinstance(workers, LocalWorkers),
    ) as bar:
        for item, result in workers.run(deque([first, *items]), bar):
            if item is first:
                content_hash = result
            else:
                store.add(result)
    return content_hash


def _measure(
    workers: Workers,
    opens: Sequence[WorkItem],
    content_hash: str,
    sources: Mapping[str, LanguageModel | str],
    losses: LossStore,
    progress: bool,
) -> None:
    """Measure all cells that are not known yet, model by model; the first is open already."""
    first, *others = opens
    with tqdm(
        total=sum(len(losses.cells[number].items) for _, number in losses.keys) + 1e-6,
        desc="sweep" if others else f"sweep {_shorten(first.unlearned)}",
        bar_format=BAR_FORMAT,
        # Layers differ in work: the mean speed tells the time left better than the latest.
        smoothing=0,
        disable=not progress,
    ) as bar:
        missing = losses.read_known(first.unlearned, content_hash)
        if progress and missing and isinstance(workers, LocalWorkers):
            _write_plan(workers, sources[first.unlearned], losses, missing, len(opens))
        items = _make_items(first.unlearned, missing, sources, losses, bar, bool(others))
        work = deque([*items, *others])
        for item, result in workers.run(work, bar):
            if item.method == "open":
                missing = losses.read_known(item.unlearned, result)
                items = _make_items(item.unlearned, missing, sources, losses, bar, bool(others))
                work.extendleft(reversed(items))
            else:
                losses.add(item.unlearned, item.key, result)


def _make_items(
    name: str,
    missing: Sequence[int],
    sources: Mapping[str, LanguageModel | str],
    losses: LossStore,
    bar: tqdm,
    labelled: bool,
) -> list[WorkItem]:
    """Return the missing cells of an unlearned model as work; move the bar by the known ones."""
    known = [number for model, number in losses.keys if model == name and number not in missing]
    bar.update(sum(len(losses.cells[number].items) for number in known))
    return [
        WorkItem(
            method="measure",
            arguments=(sources[name], losses.cells[number].items),
            unlearned=name,
            label=" ".join([_shorten(name)] * labelled + [losses.cells[number].language]),
            num_queries=len(losses.cells[number].items),
            key=number,
        )
        for number in missing
    ]


def _write_plan(
    workers: LocalWorkers,
    source: LanguageModel | str,
    losses: LossStore,
    missing: Sequence[int],
    num_models: int,
) -> None:
    cells = [
        [item for item in losses.cells[number].items if isinstance(item, Trajectory)]
        for number in missing
    ]
    estimate = workers.worker.estimate_cost(source, cells)
    each = f" for each of {num_models} models" if num_models > 1 else ""
    tqdm.write(f"{estimate}{each}", file=sys.stderr)


def _shorten(name: str) -> str:
    """Cut a long name at its start, as a path's end says more."""
    return name if len(name) <= 24 else "…" + name[-23:]
