"""Free memory of a device, and the bytes that models take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from interp.models.language_model import LanguageModel
from interp.models.low_rank import LowRankSum


def measure_free_memory(device: torch.device, *, root: Path = Path("/")) -> int:
    """Return the bytes that could be allocated now on a device.

    On a CPU that is what the machine has left without swapping, or the control group (a container,
    a batch job), whichever is less.

    Args:
        device: where.
        root: of the file system, in which Linux reports memory.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    return max(0, min(_measure_machine(root), *_measure_groups(root)))


def _measure_machine(root: Path) -> int:
    meminfo = root / "proc/meminfo"
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            name, _, size = line.partition(":")
            if name == "MemAvailable":
                return int(size.split()[0]) * 1024
    # No Linux: half of what there is.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _measure_groups(root: Path) -> Iterator[int]:
    """Yield the bytes below the limit of each control group around this process."""
    # A number that is no limit, for a machine without groups.
    yield 1 << 62
    membership = root / "proc/self/cgroup"
    if not membership.exists():
        return
    for line in membership.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            place, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            place = root / "sys/fs/cgroup/memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # In a container the group's path may be one that is not mounted there.
        for path in (Path(group), *Path(group).parents):
            folder = place / path.relative_to("/")
            most = _read_number(folder / limit)
            used = _read_number(folder / usage)
            if most is not None and used is not None:
                yield most - used + _count_evictable(folder / "memory.stat")


def _read_number(file: Path) -> int | None:
    text = file.read_text().strip() if file.exists() else ""
    return int(text) if text.isdigit() else None


def _count_evictable(stat: Path) -> int:
    """Return the bytes of files that count as used and that the kernel drops when it needs room."""
    if not stat.exists():
        return 0
    sizes = dict(line.split() for line in stat.read_text().splitlines())
    return int(sizes.get("total_inactive_file", sizes.get("inactive_file", 0)))


def count_bytes(*models: LanguageModel) -> list[int]:
    """Count the bytes that each model's weights add to those of the models before it."""
    seen: set[int] = set()
    return [sum(_iterate_new_bytes(model, seen)) for model in models]


def _iterate_new_bytes(model: LanguageModel, seen: set[int]) -> Iterator[int]:
    tensors: list[Tensor] = list(chain(model.model.parameters(), model.model.buffers()))
    for tensor in tensors:
        parts = [tensor]
        if isinstance(tensor, LowRankSum):
            yield tensor.own_bytes
            parts = [] if tensor.low_rank is None else [tensor.base]
        for part in parts:
            if part.data_ptr() not in seen:
                seen.add(part.data_ptr())
                yield part.nbytes
