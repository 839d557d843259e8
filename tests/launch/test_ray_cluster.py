"""Workers on Ray: whatever dies, rows are those of a local run; what cannot be is one sentence."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
from tqdm import tqdm

import interp
import interp.launch.sweep as sweep_module
from interp import cli
from interp.data import write_queries
from interp.launch import cells, ray_cluster, worker
from interp.launch.ray_cluster import RayWorkers
from interp.launch.work_items import WorkItem
from interp.results import read_losses
from tests.helpers import ROOT
from tests.helpers.tiny_models import question, save, tiny

ray = ray_cluster.import_ray()

pytestmark = pytest.mark.usefixtures("unchecked")

LANGUAGES = ("en", "de", "zh")
KEY = ["unlearned", "language", "query_id", "site", "layer"]
MODELS = ["./U", "./U2"]
SETTINGS = {"sites": ["coef", "attn"], "window": 3, "num_tokens": 6, "progress": False}
QUESTIONS = [question(n, language=code) for code in LANGUAGES for n in range(8)]
NUM_CELLS = 2 * 3 * 4
SMALL = {"object_store_memory": 80_000_000, "include_dashboard": False, "log_to_driver": False}


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    """V and two unlearned models, and questions."""
    home = tmp_path_factory.mktemp("disk")
    for name, seed in {"V": 0, "U": 1, "U2": 2}.items():
        save(tiny("llama", seed=seed), home / name)
    save(tiny("qwen2", seed=1), home / "qwen")
    write_queries(QUESTIONS, home / "q.jsonl")
    return home


@pytest.fixture(scope="module", autouse=True)
def shut_down():
    yield
    ray.shutdown()


@pytest.fixture
def here() -> str:
    """The address of Ray on this machine, with room for two workers."""
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, logging_level="ERROR", **SMALL)
    return ray.get_runtime_context().gcs_address


@pytest.fixture(autouse=True)
def at_home(disk, monkeypatch):
    """Models are named by relative paths; two questions to a cell."""
    monkeypatch.chdir(disk)
    monkeypatch.setattr(sweep_module, "BLOCK", 2)


@pytest.fixture(scope="module")
def expected(disk) -> pd.DataFrame:
    """What a local run measures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(disk)
        patch.setattr(sweep_module, "BLOCK", 2)
        return interp.sweep(interp.load("./V"), MODELS, QUESTIONS, **SETTINGS).losses


def run(out: Path | None = None, models=MODELS, **changes) -> pd.DataFrame:
    options = SETTINGS | {"launcher": "ray", "num_workers": 2} | changes
    return interp.sweep(interp.load("./V"), models, QUESTIONS, out=out, **options).losses


def assert_equal(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """The same rows to the last bit, in any order."""
    assert not found.duplicated(KEY).any()
    one, other = (table.sort_values(KEY, ignore_index=True) for table in (found, expected))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def workers(of: int | None = None) -> dict[int, str]:
    """The worker processes below a process (this one), and what they are doing."""
    found = {}
    for process in psutil.Process(of).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())
            if title.startswith("ray::RayWorker"):
                found[process.pid] = title.strip()
    return found


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def disturbed(monkeypatch):
    """Do something when so many cells are measured; and see which work was lost."""
    keep, lost = sweep_module.LossStore.add, RayWorkers._replace
    moments: dict[int, Callable[[], object]] = {}
    seen: list[WorkItem | None] = []

    def keep_and_do(self, *args):
        keep(self, *args)
        if action := moments.pop(len(self._tables), None):
            action()

    def note(self, hand, task):
        seen.append(task)
        lost(self, hand, task)

    monkeypatch.setattr(sweep_module.LossStore, "add", keep_and_do)
    monkeypatch.setattr(RayWorkers, "_replace", note)
    return moments, seen


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_one(rng: random.Random) -> None:
    """Kill a worker, if there is any."""
    if found := sorted(workers()):
        kill(rng.choice(found))


@pytest.mark.slow
def test_a_worker_is_killed(here, expected, tmp_path, disturbed, capfd, monkeypatch):
    """By the command line: rows, files and answers are those of a local run, without any noise."""
    moments, lost = disturbed
    moments[4] = lambda: kill_one(random.Random(0))
    out = tmp_path / "run"
    args = ["sweep", "--vanilla", "./V", "--unlearned", *MODELS, "--queries", "q.jsonl"]
    args += ["--sites", "coef", "attn", "--window", "3", "--num-tokens", "6", "--out", str(out)]
    cli.main([*args, "--launcher", "ray", "--num-workers", "2"])
    printed = capfd.readouterr()
    assert printed.out.count("\n") == 1
    assert printed.out.startswith("losses in ")
    bars = {line.partition(":")[0] for line in printed.err.replace("\r", "\n").split("\n") if line}
    # transformers shows how it loads the driver's model.
    assert bars == {"Loading weights", "answers", "sweep"}, printed.err
    assert "100%" in printed.err
    assert lost
    assert_equal(read_losses(out), expected)
    assert len(list((out / "losses").iterdir())) == NUM_CELLS
    # A local run finds everything done.
    monkeypatch.setattr(worker, "measure", None)
    monkeypatch.setattr(worker, "trajectories", None)
    local = interp.sweep(interp.load("./V"), MODELS, QUESTIONS, out=out, **SETTINGS).losses
    pd.testing.assert_frame_equal(local, expected, check_exact=True)


@pytest.mark.slow
def test_ordinary_errors_are_those_of_a_local_run(here):
    message = "does not match './V'"
    for launcher in ({"launcher": "local", "num_workers": None}, {"num_workers": 1}):
        with pytest.raises(ValueError, match=message) as caught:
            run(models=["./qwen"], **launcher)
        assert "\n" not in str(caught.value)


# The driver's part, with workers that only pretend.


def done(remote, tasks: list[WorkItem], num_workers: int = 2) -> list[tuple[WorkItem, object]]:
    """What workers of a class make of tasks."""
    hands = RayWorkers(ray.remote(num_cpus=1)(remote), {}, {}, num_workers)
    try:
        with tqdm(disable=True) as bar:
            return list(hands.run(deque(tasks), bar))
    finally:
        hands.stop()


def task(unlearned: str, *arguments: object, method: str = "measure") -> WorkItem:
    return WorkItem(method=method, arguments=arguments, unlearned=unlearned, label=unlearned)


def pretending():
    """A class that Ray sends by value: the workers need not know this file."""

    class Pretender:
        def start(self):
            return None, []

        def do(self, method, arguments):
            if method == "die":
                os._exit(1)
            if method == "fail":
                raise ValueError("the cell is bad")
            time.sleep(0.02)
            return (os.getpid(), *arguments), [arguments[0]] if method == "warn" else []

    return Pretender


def test_cells_of_a_model_stay_with_one_worker(here):
    tasks = [task(name, number) for number in range(6) for name in ("U", "U2")]
    found = done(pretending(), tasks)
    assert sorted((t.unlearned, number) for t, (_, number) in found) == sorted(
        (t.unlearned, t.arguments[0]) for t in tasks
    )
    first_pids = {t.unlearned: pid for t, (pid, _) in found[:2]}
    if len(set(first_pids.values())) == 2:
        assert {(t.unlearned, pid) for t, (pid, _) in found[:8]} == set(first_pids.items())


@pytest.mark.slow
def test_a_cell_that_kills_its_workers(here):
    with pytest.raises(ChildProcessError, match="3 Ray workers died one after the other at bad"):
        done(pretending(), [task("good", 1), task("bad", method="die")])


@pytest.mark.slow
def test_workers_that_cannot_start(here):
    class Unborn:
        def start(self):
            os._exit(1)

    with pytest.raises(ChildProcessError, match=r"3 Ray workers .* while they loaded the model"):
        done(Unborn, [task("U", 1)])


def test_an_error_is_the_workers_and_warnings_are_shown(here):
    with pytest.raises(ValueError, match=r"^the cell is bad$"):
        done(pretending(), [task("U", method="fail")])
    with pytest.warns(UserWarning, match="mind the gap"):
        done(pretending(), [task("U", "mind the gap", method="warn")])


# What is refused before anything starts


def refusal(call, kind=ValueError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_ray(monkeypatch):
    from importlib import metadata

    def version(name: str) -> str:
        if name == "ray":
            raise metadata.PackageNotFoundError(name)
        return metadata.version(name)

    monkeypatch.setattr("interp.models.conversion.version", version)
    assert "pip install 'interp[ray]'" in refusal(run, ImportError)


def test_models_that_have_no_name():
    model = tiny("llama", seed=1)
    unnamed = interp.LanguageModel(model.model, model.tokenizer)
    for models in ([unnamed], ["./U", unnamed]):
        assert "save_pretrained" in refusal(lambda models=models: run(models=models))


def test_settings_of_the_launcher():
    assert "valid: local, ray" in refusal(lambda: run(launcher="slurm"))
    assert "num_workers must be at least 1, not 0" in refusal(lambda: run(num_workers=0))
    assert "from 0 to 1, not 2" in refusal(lambda: run(gpus_per_worker=2))
    assert "num_workers=2 needs the launcher ray" in refusal(lambda: run(launcher="local"))
    assert "duplicate unlearned model './U'" in refusal(lambda: run(models=["./U", "./U"]))
    assert "no unlearned models" in refusal(lambda: run(models=[]))


def test_no_cluster():
    for address in ("nonsense", "127.0.0.1:1", "ray://127.0.0.1:1"):
        message = refusal(lambda address=address: ray_cluster._check_reachable(address))
        assert f"no Ray cluster answers at {address!r}" in message


def test_room():
    """Workers per machine: by CPUs, by GPUs, by parts of GPUs; the dead give none."""

    def room(needs, num_workers=None):
        return ray_cluster._count_room(nodes, needs, num_workers)

    nodes = [
        {"Alive": True, "Resources": {"CPU": 5.0}},
        {"Alive": True, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert room({"CPU": 2}) == 2 + 32
    assert room({"CPU": 1.0, "GPU": 1.0}) == 8
    assert room({"CPU": 1.0, "GPU": 0.1}) == 64
    assert room({"CPU": 1.0, "GPU": 0.2}) == 40
    with pytest.warns(UserWarning, match=r"room for 8 of 9 workers now \(1 CPU, 1 GPU each\)"):
        assert room({"CPU": 1.0, "GPU": 1.0}, 9) == 8
    del nodes[1:]
    assert "(1 CPU, 1 GPU)" in refusal(lambda: room({"CPU": 1.0, "GPU": 1.0}))


def test_shards_are_neighbours_and_all():
    places = [(name, number) for name in "UVW" for number in range(4)]
    assert cells.select_shard(places, (1, 3)) == [("U", number) for number in range(4)]
    assert cells.select_shard(places, (2, 6)) == [("U", 2), ("U", 3)]
    assert [cells.select_shard(places, (index, 1)) for index in (1,)] == [places]
    for count in range(1, 16):
        parts = [cells.select_shard(places, (index, count)) for index in range(1, count + 1)]
        assert [place for part in parts for place in part] == places
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


# Faults


@pytest.mark.slow
def test_workers_are_killed_at_random_moments(here, expected, tmp_path, disturbed):
    moments, lost = disturbed
    rng = random.Random(0)
    work: list[WorkItem | None] = []
    for number in range(20):
        moments.clear()
        lost.clear()
        strikes = []

        def soon(strikes=strikes) -> None:
            """A cell takes some 20 ms; to look for workers takes longer."""
            if found := sorted(workers()):
                after, victim = rng.uniform(0, 0.03), rng.choice(found)
                strikes.append(threading.Timer(after, kill, [victim]))
                strikes[-1].start()

        def while_they_start(after: float) -> None:
            wait_for(workers)
            time.sleep(after)
            kill_one(rng)

        def both_ready() -> None:
            wait_for(lambda: sum("start" not in title for title in workers().values()) == 2)

        for _ in range(rng.choice([1, 2])):
            moments[rng.randrange(2, NUM_CELLS - 4)] = soon
        if rng.random() < 0.6:
            moments[1] = both_ready
        else:
            strikes.append(threading.Thread(target=while_they_start, args=[rng.uniform(0, 3)]))
            strikes[-1].start()
        assert_equal(run(tmp_path / str(number)), expected)
        assert_equal(read_losses(tmp_path / str(number)), expected)
        for strike in strikes:
            strike.join()
        work += lost
    assert work.count(None) >= 2
    assert len(work) - work.count(None) >= 10


@pytest.mark.slow
def test_a_node_joins_and_is_lost(expected, tmp_path, disturbed):
    from ray.cluster_utils import Cluster

    moments, lost = disturbed
    ray.shutdown()
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=machines.address, logging_level="ERROR", log_to_driver=False)
    joined = []

    def join() -> None:
        before = set(workers())
        joined.append(machines.add_node(num_cpus=1))
        titles = []
        # A second worker starts there, and is ready.
        wait_for(
            lambda: (
                titles.extend(title for pid, title in workers().items() if pid not in before)
                or ("ray::RayWorker.start" in titles and titles[-1] == "ray::RayWorker")
            )
        )

    def leave() -> None:
        machines.remove_node(joined[0], allow_graceful=False)

    moments.update({3: join, 10: leave})
    try:
        with pytest.warns(UserWarning, match="room for 1 of 2 workers"):
            found = run(tmp_path)
        assert_equal(found, expected)
        assert_equal(read_losses(tmp_path), expected)
        assert not moments
        # The machine took its worker's cell along.
        assert [work for work in lost if work is not None]
    finally:
        ray.shutdown()
        machines.shutdown()


DRIVER = """
import sys
from tests.launch import test_ray_cluster as test
test.sweep_module.BLOCK = 2
test.run(test.Path(sys.argv[1]), address=sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("address", ["local", "here"])
def test_the_driver_is_lost(here, disk, expected, tmp_path, address):
    """Its workers end, and a rerun does only what is missing."""
    shards = tmp_path / "losses"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", DRIVER, str(tmp_path), here if address == "here" else address]
    with subprocess.Popen(command, cwd=disk, env=env) as driver:
        wait_for(lambda: len(list(shards.glob("*.parquet"))) >= 3)
        left = workers(driver.pid if address == "local" else None)
        driver.kill()
    assert left
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in left))
    before = {file: file.stat().st_mtime_ns for file in shards.glob("*.parquet")}
    assert 3 <= len(before) < NUM_CELLS
    assert_equal(run(tmp_path), expected)
    assert_equal(read_losses(tmp_path), expected)
    assert before.items() <= {file: file.stat().st_mtime_ns for file in shards.iterdir()}.items()
