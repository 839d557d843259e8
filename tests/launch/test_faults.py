"""Kills and faults: a sweep that is killed over and over ends as one that was left alone.

Children are killed with SIGKILL before their n-th file operation, half-way through a file, or
after a random time; what is there then is whole, and the last run does only what is missing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

import interp
import interp.launch.sweep as sweep_module
from interp import files
from interp.results import read_losses, read_manifest
from tests.helpers import ROOT
from tests.helpers.tiny_models import question, save, tiny

KEY = ["unlearned", "language", "query_id", "site", "layer"]
UNLEARNED = ("U", "U2")
QUESTIONS = [question(n, language=code) for code in ("en", "zh-Hant") for n in range(6)]


def sweep_all(models: Path, out: Path) -> None:
    """Both unlearned models against V, from disk, two questions to a cell."""
    sweep_module.BLOCK = 2
    vanilla = interp.load(models / "V")
    for name in UNLEARNED:
        unlearned = interp.load(models / name, like=vanilla)
        vanilla.name, unlearned.name = "V", name
        interp.sweep(
            vanilla,
            unlearned,
            QUESTIONS,
            sites=["coef", "value"],
            window=3,
            num_tokens=4,
            out=out,
            progress=False,
        )


def killed_at(manner: str, moment: float, out: Path) -> None:
    """Arrange for this process to kill itself; `delay` is for the parent to do."""
    count = 0

    def due() -> bool:
        nonlocal count
        count += 1
        return count > moment

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def operation(event: str, args: tuple) -> None:
        changes = event in ("os.rename", "os.remove", "os.mkdir") or (
            event == "open" and isinstance(args[1], str) and "w" in args[1]
        )
        if changes and str(args[0]).startswith(str(out)) and due():
            die()

    def half(write):
        def write_half(path: Path, written) -> None:
            def and_die(scratch: Path) -> None:
                written(scratch)
                if due():
                    whole = scratch.read_bytes()
                    scratch.write_bytes(whole[: len(whole) // 2])
                    die()

            write(path, and_die)

        return write_half

    if manner == "operation":
        sys.addaudithook(operation)
    elif manner == "half":
        import interp.results

        interp.results.write_atomically = half(files.write_atomically)


# A process that has imported everything, and makes a child for every sweep it is told to do.
SERVER = """
import os, sys
import torch
import transformers.models.llama.modeling_llama
from tests.launch import test_faults
torch.set_num_threads(1)
for line in sys.stdin:
    models, out, manner, moment = line.split()
    if (child := os.fork()) == 0:
        out = test_faults.Path(out)
        test_faults.killed_at(manner, float(moment), out)
        test_faults.sweep_all(test_faults.Path(models), out)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("V", *UNLEARNED)):
        save(tiny(seed=seed), folder / name)
    return folder


@pytest.fixture(scope="module")
def undisturbed(models):
    out = models / "undisturbed"
    block = sweep_module.BLOCK
    sweep_all(models, out)
    sweep_module.BLOCK = block
    return out


@pytest.fixture(scope="module")
def sweep(models):
    """Run a sweep in another process that is killed at a moment; whether it was."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(out: Path, manner: str = "", moment: float = 0) -> bool:
            print(models, out, manner or "none", moment, file=server.stdin, flush=True)
            child = int(server.stdout.readline())
            if manner == "delay":
                time.sleep(moment)
                # It is waited for below, so that its number is still its own.
                os.kill(child, signal.SIGKILL)
            status = int(server.stdout.readline())
            assert status in (0, signal.SIGKILL)
            return status == signal.SIGKILL

        yield run


def in_order(losses: pd.DataFrame) -> pd.DataFrame:
    return losses.sort_values(KEY, ignore_index=True)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def manifest_of(out: Path) -> dict:
    """Read a manifest, its models in the order of their names."""
    manifest = read_manifest(out)
    return manifest | {"models": dict(sorted(manifest["models"].items()))}


def shards(out: Path) -> dict[str, tuple[bytes, int]]:
    """Return the contents of every shard and its inode, which is another if rewritten."""
    return {
        path.name: (path.read_bytes(), path.stat().st_ino)
        for path in (out / "losses").glob("*.parquet")
    }


def check_killed(sweep, undisturbed: Path, folder: Path, num_kills: int, seed: int) -> Counter:
    """Kill sweeps, five times in each directory, then let each come to its end; how it went."""
    rng = random.Random(seed)
    expected = in_order(read_losses(undisturbed))
    whole = len(shards(undisturbed))
    seen = Counter()
    out, in_this = folder / "run-0", 0
    while sum(seen[manner] for manner in ("operation", "half", "delay")) < num_kills:
        manner = rng.choice(["operation", "half", "delay"])
        # A whole sweep has some 80 operations on 15 files and takes half a second.
        moment = {
            "operation": rng.randrange(40),
            "half": rng.randrange(5),
            "delay": rng.uniform(0.05, 0.4),
        }[manner]
        before = shards(out)
        killed = sweep(out, manner, moment)
        after = shards(out)
        # What was there stays as it is.
        assert before.items() <= after.items()
        seen[manner] += killed
        seen["within"] += killed and 0 < len(after) < whole
        if after:
            part = in_order(read_losses(out))
            same = expected.merge(part[KEY], on=KEY)[expected.columns]
            pd.testing.assert_frame_equal(part, same, check_exact=True)
        in_this += 1
        if in_this == 5 or not killed:
            finish(sweep, undisturbed, out, expected)
            out, in_this = folder / f"run-{sum(seen.values())}", 0
    finish(sweep, undisturbed, out, expected)
    return seen


def finish(sweep, undisturbed: Path, out: Path, expected: pd.DataFrame) -> None:
    """Let a sweep come to its end: nothing is lost, doubled or different, and nothing left over."""
    before = shards(out)
    assert not sweep(out)
    assert before.items() <= shards(out).items()
    losses = in_order(read_losses(out))
    assert not losses.duplicated(KEY).any()
    pd.testing.assert_frame_equal(losses, expected, check_exact=True)
    assert names(out) == names(undisturbed)
    assert manifest_of(out) == manifest_of(undisturbed)
    for path in (undisturbed / "trajectories").iterdir():
        pd.testing.assert_frame_equal(
            pd.read_parquet(path), pd.read_parquet(out / "trajectories" / path.name)
        )


def test_a_sweep_killed_at_five_moments(sweep, undisturbed, tmp_path):
    seen = check_killed(sweep, undisturbed, tmp_path, 5, seed=0)
    assert seen["within"] >= 1, seen


@pytest.mark.slow
def test_a_sweep_killed_at_fifty_moments(sweep, undisturbed, tmp_path):
    seen = check_killed(sweep, undisturbed, tmp_path, 50, seed=1)
    assert min(seen[manner] for manner in ("operation", "half", "delay")) >= 5, seen
    assert seen["within"] >= 15, seen


# Files and folders


def dead_process() -> int:
    """Return the id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_what_killed_processes_left_goes_and_what_others_write_stays(tmp_path):
    scratch = []
    files.write_atomically(tmp_path / "f", lambda path: (scratch.append(path), path.touch()))
    own = str(os.getpid())
    assert f".{own}." in scratch[0].name

    def left_by(process: int, name: str = "f", age: float = 0.0, container: str = "") -> Path:
        written = scratch[0].name.replace(f".{own}.", f".{process}.").replace(".f.", f".{name}.")
        if container:
            written = written.replace(files._hash_process_space(), container)
        path = tmp_path / written
        path.write_text("half")
        os.utime(path, (time.time() - age,) * 2)
        return path

    day = 25 * 3600.0
    gone = [
        left_by(dead_process()),
        left_by(1, container="0123abcd", age=day),
        tmp_path / ".f.0123abcd.1.partial",
    ]
    gone[-1].write_text("half, by an earlier version")
    os.utime(gone[-1], (0, 0))
    stays = [
        left_by(os.getppid()),
        left_by(os.getppid(), "f", age=day, container=files._hash_process_space()),
        left_by(dead_process(), "g"),
        # In another container every number is another process.
        left_by(dead_process(), container="0123abcd"),
        left_by(int(own), container="4567cdef"),
    ]
    files.write_atomically(tmp_path / "f", lambda path: path.write_text("whole"))
    assert (tmp_path / "f").read_text() == "whole"
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in stays)


def test_no_two_writers_share_a_scratch_name(tmp_path, monkeypatch):
    """Containers have the same host name and process numbers, threads the same process."""
    monkeypatch.setattr("os.getpid", lambda: 7)
    monkeypatch.setattr("platform.node", lambda: "container")
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        def fill(folder: Path) -> None:
            (folder / "name").write_text(str(number))
            barrier.wait()
            assert [path.name for path in folder.iterdir()] == ["name"]
            assert (folder / "name").read_text() == str(number)

        files.write_folder_atomically(tmp_path / str(number % 2) / "m", fill)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(0, 16, 2)))
    assert names(tmp_path) == ["0/m/name"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk" / "m").mkdir(parents=True)
    (tmp_path / "m").symlink_to(tmp_path / "disk" / "m")
    files.write_folder_atomically(tmp_path / "m", lambda folder: (folder / "c").write_text("new"))
    assert (tmp_path / "m").is_symlink()
    assert (tmp_path / "disk" / "m" / "c").read_text() == "new"


def test_a_link_that_leads_nowhere_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    for target in (tmp_path / "runs" / "a" / "f", tmp_path / "runs" / "f"):
        with pytest.raises(ValueError, match=r"is a link to .*gone', which does not exist"):
            files.write_atomically(target, lambda path: path.touch())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, and a folder is needed"):
        files.write_atomically(tmp_path / "file" / "f", lambda path: path.touch())


@pytest.mark.parametrize("moment", range(4))
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, moment):
    """Killed before each rename and removal in turn: the old folder, none, or the new one."""
    target = tmp_path / "m"
    target.mkdir()
    for name in ("a", "b"):
        (target / name).write_text("old")
    if (child := os.fork()) == 0:
        count = 0

        def kill(event: str, _args: tuple) -> None:
            nonlocal count
            if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
                count += 1
                if count > moment:
                    os._exit(9)

        sys.addaudithook(kill)
        files.write_folder_atomically(target, lambda folder: (folder / "c").write_text("new"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    contents = {path.name: path.read_text() for path in target.iterdir()} if target.exists() else {}
    assert contents in ({"a": "old", "b": "old"}, {}, {"c": "new"})
    assert (contents == {"c": "new"}) == (moment > 2)
    files.write_folder_atomically(target, lambda folder: (folder / "c").write_text("new"))
    assert names(tmp_path) == ["m/c"]


def test_the_state_of_a_run_that_was_killed_at_its_very_end_goes(tmp_path):
    from interp.unlearning import RunStore, Trained

    model = tiny()
    store = RunStore(tmp_path / "m", {"method": "gd"})
    store.finish(Trained(model=tiny(), history=[{"loss": 0.5}], reason="num_steps"))
    store.state.write_bytes(b"of the run that is finished")
    run = store.load_finished(model)
    assert run is not None
    assert (run.history, run.reason) == ([{"loss": 0.5}], "num_steps")
    assert not store.state.exists()
    card = json.loads((tmp_path / "m" / "unlearning.json").read_text())
    assert card["method"] == "gd"
