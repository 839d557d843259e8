"""What a sweep is told about where to run, checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from interp.models.language_model import LanguageModel

Launcher = Literal["local", "ray"]
LAUNCHERS: tuple[Launcher, ...] = ("local", "ray")


def check_shard(shard: tuple[int, int]) -> None:
    """Raise ValueError unless shard is (i, n) with 1 ≤ i ≤ n."""
    index, count = shard
    if not 1 <= index <= count:
        raise ValueError(f"shard must be i/n with 1 ≤ i ≤ n, not {index}/{count}")


def check_launcher(
    launcher: str,
    address: str | None = None,
    num_workers: int | None = None,
    gpus_per_worker: float | None = None,
) -> None:
    """Raise ValueError unless the launcher is known and may have these settings."""
    if launcher not in LAUNCHERS:
        raise ValueError(f"unknown launcher {launcher!r}; valid are {', '.join(LAUNCHERS)}")
    if launcher == "local":
        settings = {
            "address": address,
            "num_workers": num_workers,
            "gpus_per_worker": gpus_per_worker,
        }
        for name, value in settings.items():
            if value is not None:
                raise ValueError(f"{name}={value!r} needs the launcher ray")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, not {num_workers}")
    if gpus_per_worker is not None and not 0 <= gpus_per_worker <= 1:
        raise ValueError(f"gpus_per_worker must be from 0 to 1, not {gpus_per_worker}")


def by_name(
    unlearned: LanguageModel | str | os.PathLike[str] | Sequence[LanguageModel | str],
) -> dict[str, LanguageModel | str]:
    """The unlearned models, or their specifications."""
    given = [unlearned] if isinstance(unlearned, LanguageModel | str | os.PathLike) else unlearned
    found: dict[str, LanguageModel | str] = {}
    for item in given:
        source = item if isinstance(item, LanguageModel) else os.fspath(item)
        name = source.name if isinstance(source, LanguageModel) else source
        if name in found:
            raise ValueError(f"the unlearned model {name!r} stands twice")
        found[name] = source
    if not found:
        raise ValueError("no unlearned models: give at least one")
    return found


def part(places: list[tuple[str, int]], shard: tuple[int, int]) -> list[tuple[str, int]]:
    """The i-th of n equal parts; neighbours stay together, as they share an unlearned model."""
    index, count = shard
    start, stop = (-(-len(places) * number // count) for number in (index - 1, index))
    return places[start:stop]
