"""Seconds, peak memory and the speed of matrix products, on a CPU or a GPU."""

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psutil
import torch

T = TypeVar("T")


def timed(
    call: Callable[[], T], repeats: int, *, device: str | torch.device = "cpu"
) -> tuple[list[float], T]:
    """Time each call in seconds (a GPU's by CUDA events); return them and the last result."""
    seconds = []
    result: Any = None
    on_gpu = torch.device(device).type == "cuda"
    for _ in range(repeats):
        if on_gpu:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = call()
            stop.record()
            torch.cuda.synchronize()
            seconds.append(start.elapsed_time(stop) / 1000)
        else:
            began = time.perf_counter()
            result = call()
            seconds.append(time.perf_counter() - began)
    return seconds, result


def peak_memory(call: Callable[[], object], *, device: str | torch.device = "cpu") -> int:
    """Measure the bytes that a call takes at its peak beyond what was held before.

    On a CPU resident memory, sampled every 5 ms; on a GPU what torch allocated.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    process, ended = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.005):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        ended.set()
        watcher.join()
    return most - before


def matrix_speed(
    *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, repeats: int = 20
) -> float:
    """Measure floating-point operations per second of a large matrix product."""
    size = 8192 if torch.device(device).type == "cuda" else 2048
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds, _ = timed(lambda: one @ other, repeats, device=device)
    return 2 * size**3 / statistics.median(seconds[repeats // 4 :])
