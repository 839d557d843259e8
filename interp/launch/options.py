"""Options of a sweep that are about where it runs, checked; importing them is instant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Launcher = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Length of the answers.

    Attributes:
        num_tokens: longest answer, in tokens.
    """

    num_tokens: int = 30


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Where a sweep runs.

    Attributes:
        launcher: local (this process), or ray (workers of a Ray cluster, which load both models
            themselves, by name; see docs/clusters.md).
        address: the Ray cluster; by default the one on this machine (or that RAY_ADDRESS names),
            else one made for this sweep.
        num_workers: Ray workers; as many as there is room for by default.
        gpus_per_worker: part of a GPU that a Ray worker takes, 0 to 1; 1 by default if the vanilla
            model is on one here, else 0: a worker then takes as many CPUs as torch has threads.
        shard: measure only the i-th of n parts of the work (from 1), for batch systems.
    """

    launcher: Launcher = "local"
    address: str | None = None
    num_workers: int | None = None
    gpus_per_worker: float | None = None
    shard: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        index, count = self.shard
        if not 1 <= index <= count:
            raise ValueError(f"shard must be i/n with 1 ≤ i ≤ n, not {index}/{count}")
        if self.launcher not in get_args(Launcher):
            raise ValueError(
                f"unknown launcher {self.launcher!r}; valid: {', '.join(get_args(Launcher))}"
            )
        if self.launcher == "local":
            for name in ("address", "num_workers", "gpus_per_worker"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(f"{name}={value!r} needs the launcher ray")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {self.num_workers}")
        if self.gpus_per_worker is not None and not 0 <= self.gpus_per_worker <= 1:
            raise ValueError(f"gpus_per_worker must be from 0 to 1, not {self.gpus_per_worker}")
