"""Workers on a Ray cluster, which may come and go.

Each worker is a process with V in it, loaded by its name, and one unlearned model at a time. The
driver, the process that calls `sweep`, workers out work one by one, gets the rows back and writes
them: nothing else writes or prints. A worker that dies, alone or with its machine, is replaced as
soon as the cluster has room, and what it was doing is given to another. Workers end with the
driver.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from interp.launch.ray_worker import RayWorker, check_same_model
from interp.launch.work_items import WorkItem
from interp.models.conversion import check_installed
from interp.models.language_model import LanguageModel
from interp.recovery.sweep_config import SweepConfig

MAX_DEATHS = 3
"""Workers that may die one after the other at the same item, or at their start."""

TOKEN_ADVICE = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what `ray get-auth-token` prints where the "
    "cluster was started"
)


@dataclass(kw_only=True, eq=False)
class RayWorkerHandle:
    """State of a worker, as the driver knows it.

    Attributes:
        actor: its handle.
        item: what it is doing; None while it starts, and when it has nothing to do.
        held: the unlearned model that it had last, by name.
        num_deaths: how many before it died, one after the other, before they had started.
    """

    actor: Any
    item: WorkItem | None = None
    held: str = ""
    num_deaths: int = 0


class RayWorkers:
    """Workers of a sweep. See `work_items.Workers`."""

    def __init__(
        self,
        remote: Any,
        setup: Mapping[str, Any],
        models: Mapping[str, LanguageModel | str],
        num_workers: int,
    ) -> None:
        """Ask for the workers; they start as the cluster has room.

        Args:
            remote: the actor class, `RayWorker`, with what each needs.
            setup: what `RayWorker.start` is given.
            models: the unlearned models, by name.
            num_workers: their number.
        """
        self._remote = remote
        self._setup = setup
        self._models = models
        self._handles: list[RayWorkerHandle] = []
        self._idle: list[RayWorkerHandle] = []
        self._busy: dict[Any, RayWorkerHandle] = {}
        self._deaths: Counter[WorkItem] = Counter()
        for _ in range(num_workers):
            self._start()

    def run(self, work: deque[WorkItem], bar: tqdm) -> Iterator[tuple[WorkItem, Any]]:
        """Do work until none is left. See `work_items.Workers`.

        Raises:
            ChildProcessError: `MAX_DEATHS` workers died one after the other at the same item.
            AuthenticationError: the cluster wants a token.
        """
        import ray
        from ray.exceptions import AuthenticationError, RayError, RayTaskError

        while work or any(handle.item for handle in self._busy.values()):
            while work and self._idle:
                self._give(self._idle.pop(0), work)
            working = [handle.item.label for handle in self._busy.values() if handle.item]
            bar.set_postfix_str(working[-1] if working else "waiting for workers")
            (done,), _ = ray.wait(list(self._busy), num_returns=1)
            handle = self._busy.pop(done)
            item, handle.item = handle.item, None
            try:
                result, messages = ray.get(done)
            except RayTaskError as error:
                raise error.cause from error
            except AuthenticationError:
                # No worker died: another would be kept out just so.
                raise
            except RayError:
                if item is not None:
                    work.appendleft(item)
                self._replace(handle, item)
                continue
            self._idle.append(handle)
            for message in messages:
                warnings.warn(message, stacklevel=5)
            if item is None:
                handle.num_deaths = 0
                continue
            model = self._models.get(item.unlearned)
            if item.method == "open" and isinstance(model, LanguageModel):
                check_same_model(model.name, result, model.content_hash())
            bar.update(item.num_queries)
            yield item, result

    def stop(self) -> None:
        """End all workers."""
        import ray

        for handle in self._handles:
            ray.kill(handle.actor)

    def _start(self, num_deaths: int = 0) -> None:
        handle = RayWorkerHandle(actor=self._remote.remote(), num_deaths=num_deaths)
        self._handles.append(handle)
        self._busy[handle.actor.start.remote(**self._setup)] = handle

    def _give(self, handle: RayWorkerHandle, work: deque[WorkItem]) -> None:
        """Give a worker the item that suits it best."""
        holders = Counter(other.held for other in self._handles)
        # On its own model if there is any, else on the one that the fewest others work on.
        item = min(work, key=lambda item: (item.unlearned != handle.held, holders[item.unlearned]))
        work.remove(item)
        handle.item, handle.held = item, item.unlearned
        self._busy[handle.actor.do.remote(item.method, item.arguments)] = handle

    def _replace(self, handle: RayWorkerHandle, item: WorkItem | None) -> None:
        """Replace a worker that died."""
        import ray

        self._handles.remove(handle)
        # It may only be out of reach.
        ray.kill(handle.actor)
        if item is None:
            num_deaths = handle.num_deaths + 1
        else:
            self._deaths[item] += 1
            num_deaths = self._deaths[item]
        if num_deaths == MAX_DEATHS:
            work = f"at {item.label or item.method}" if item else "while they loaded the model"
            raise ChildProcessError(
                f"{MAX_DEATHS} Ray workers died one after the other {work}: mostly memory has run "
                "out, so let fewer workers share a machine"
            )
        self._start(0 if item else num_deaths)


def import_ray() -> ModuleType:
    """Import Ray, told not to print what is dealt with here (unless it was imported before).

    Raises:
        ImportError: it is not installed, or too old.
    """
    # The first that can ask for a token.
    check_installed("ray", "2.52", extra="ray")
    # Its own way to silence a line, on standard output, for each worker that dies.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")
    import ray

    return ray


@contextmanager
def start_ray_workers(
    vanilla: LanguageModel,
    config: SweepConfig,
    *,
    models: Mapping[str, LanguageModel | str],
    address: str | None,
    num_workers: int | None,
    gpus_per_worker: float | None,
) -> Iterator[RayWorkers]:
    """Start workers for the length of a block, on a cluster that is there or for that long.

    Args:
        vanilla: V, as loaded by its name.
        config: what to measure.
        models: the unlearned models, by name.
        address: see `LaunchConfig`.
        num_workers: see `LaunchConfig`.
        gpus_per_worker: see `LaunchConfig`.

    Raises:
        ValueError: a model was not loaded from anywhere, there is no cluster, or no machine of it
            has what a worker needs.
        PermissionError: the cluster wants a token.
        ConnectionError: the cluster cannot be joined.
        ImportError: Ray is not installed, or too old.
    """
    ray = import_ray()
    for model in (vanilla, *models.values()):
        if isinstance(model, LanguageModel) and model.name.startswith("in-memory "):
            raise ValueError(
                f"Ray workers load models by name, and {model.name!r} is none: save it with "
                "save_pretrained and load it from there"
            )
    if gpus_per_worker is None:
        gpus_per_worker = 0 if vanilla.device.type == "cpu" else 1
    num_threads = torch.get_num_threads()
    needs = {"CPU": 1.0, "GPU": gpus_per_worker} if gpus_per_worker else {"CPU": num_threads}
    own = not ray.is_initialized()
    if own:
        _check_reachable(address)
    with _explain_refusal():
        workers = None
        try:
            if own:
                _join(ray, address)
            room = _count_room(ray.nodes(), needs, num_workers)
            workers = RayWorkers(
                ray.remote(
                    num_cpus=needs["CPU"],
                    num_gpus=gpus_per_worker,
                    max_restarts=0,
                    max_task_retries=0,
                )(RayWorker),
                {
                    "vanilla": vanilla.name,
                    "config": config,
                    "content_hash": vanilla.content_hash(),
                    "dtype": vanilla.dtype,
                    "packing": vanilla.packing,
                    "device": "cuda" if gpus_per_worker else "cpu",
                    "num_threads": num_threads,
                    "directory": Path.cwd(),
                },
                models,
                num_workers or room,
            )
            yield workers
        finally:
            if workers is not None:
                workers.stop()
            if own:
                ray.shutdown()


def _join(ray: ModuleType, address: str | None) -> None:
    """Join a cluster, or start one.

    Raises:
        ConnectionError: it cannot be joined; of a wrong token, Ray says no more than that.
    """
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        place = address or os.environ.get("RAY_ADDRESS")
        where = f"at {place!r}" if place else "on this machine"
        raise ConnectionError(
            f"the Ray cluster {where} cannot be joined: if it wants a token, {TOKEN_ADVICE}; else "
            "see that it still runs, with this version of Ray"
        ) from error


@contextmanager
def _explain_refusal() -> Iterator[None]:
    """Raise PermissionError, with what to do, where a cluster refuses who has not its token."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise PermissionError(
            f"the Ray cluster lets nobody in without its token: {TOKEN_ADVICE}"
        ) from error


def _check_reachable(address: str | None) -> None:
    """Raise ValueError if nothing answers there; Ray itself would try for minutes."""
    if address in (None, "auto", "local"):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address!r}: give HOST:PORT of the machine where "
            "`ray start --head` was run"
        ) from error


def _count_room(
    nodes: list[dict[str, Any]], needs: Mapping[str, float], num_workers: int | None
) -> int:
    """Count the workers that fit on the machines; warn where fewer fit than are asked for.

    Raises:
        ValueError: none fits.
    """
    # Tenths of a GPU fit ten times into one, whatever rounding says.
    room = sum(
        min(int(node["Resources"].get(kind, 0) / need + 1e-6) for kind, need in needs.items())
        for node in nodes
        if node["Alive"]
    )
    each = ", ".join(f"{need:g} {kind}" for kind, need in needs.items())
    if not room:
        raise ValueError(
            f"no machine of the Ray cluster has what a worker takes ({each}); without a GPU that "
            "is a CPU for each of torch's threads here, see OMP_NUM_THREADS"
        )
    if num_workers is not None and num_workers > room:
        warnings.warn(
            f"the Ray cluster has room for {room} of {num_workers} workers now ({each} each); the "
            "others start when there is more",
            stacklevel=6,
        )
    return room
