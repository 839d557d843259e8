"""Processes that write to one run directory at the same moment.

    python -m tests.helpers.concurrent_runs shards FOLDER NUM_TRIALS
    python -m tests.helpers.concurrent_runs configurations FOLDER NUM_TRIALS

Children are forked from a process without threads, and wait for each other at the start. It prints
a line for every trial that went wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from interp.results import RunDirectory, read_losses, read_manifest

NUM_SHARDS = 30


def run_at_once(jobs: list[Callable[[], None]]) -> list[str]:
    """Run jobs in a process each; return their errors, "" for those that had none."""
    start_read, start_write = os.pipe()
    children = []
    for job in jobs:
        report_read, report_write = os.pipe()
        if (child := os.fork()) == 0:
            os.close(start_write)
            os.read(start_read, 1)
            error = "ended without a report"
            try:
                job()
                error = ""
            except (ValueError, OSError) as caught:
                error = f"{type(caught).__name__}: {caught}"
            finally:
                os.write(report_write, error.encode()[:4000])
                os._exit(0)
        os.close(report_write)
        children.append((child, report_read))
    os.close(start_read)
    # All children read the end of the pipe together.
    os.close(start_write)
    errors = []
    for child, report in children:
        with os.fdopen(report, "rb") as opened:
            errors.append(opened.read().decode())
        os.waitpid(child, 0)
    return errors


def write_shard(folder: Path, config: dict[str, object], name: str) -> None:
    """Measure one unlearned model, as a part of a sweep does."""
    store = RunDirectory(folder, config)
    store.add_model("vanilla", "V", "0123", text_hash="89ab")
    store.add_model("unlearned", name, "4567")
    table = pd.DataFrame({"unlearned": [name], "loss_unlearned": [1.0]})
    store.write_losses(store.losses_path(name, "4567", "de", 0), table)


def check_shards(folder: Path) -> str:
    """Begin a run in many parts at once; return what is wrong then."""
    names = [f"U{number}" for number in range(NUM_SHARDS)]
    errors = run_at_once([lambda n=name: write_shard(folder, {"window": 5}, n) for name in names])
    if any(errors):
        return max(errors)
    models, measured = read_manifest(folder)["models"], set(read_losses(folder)["unlearned"])
    if models.keys() != {"V", *names} or measured != set(names):
        return f"{len(models)} models and the losses of {len(measured)}"
    return ""


def check_configurations(folder: Path) -> str:
    """Begin two runs at once; one must have the directory, the other leave nothing in it."""
    jobs = [
        lambda w=window, n=name: write_shard(folder, {"window": w}, f"{n} of {w}")
        for name in ("U", "U2")
        for window in (3, 5)
    ]
    errors = run_at_once(jobs)
    window = read_manifest(folder)["config"]["window"]
    measured = set(read_losses(folder)["unlearned"])
    if measured != {f"U of {window}", f"U2 of {window}"}:
        return f"window {window}, and losses of {sorted(measured)}"
    refused = [error for error in errors if "another window" in error]
    return "" if len(refused) == 2 == len([*filter(None, errors)]) else str(errors)


if __name__ == "__main__":
    check = {"shards": check_shards, "configurations": check_configurations}[sys.argv[1]]
    for trial in range(int(sys.argv[3])):
        if wrong := check(Path(sys.argv[2]) / str(trial)):
            print(f"trial {trial}: {wrong}")
