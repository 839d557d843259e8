"""A Ray cluster that asks for a token: who has none is told so, and no worker is taken for dead."""

from __future__ import annotations

import pickle
import re
import tomllib
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from tqdm import tqdm

from interp.launch import ray_cluster
from interp.launch.work_items import WorkItem
from interp.recovery import SweepConfig
from tests.helpers import ROOT

ray = ray_cluster.import_ray()
exceptions = pytest.importorskip("ray.exceptions")

VANILLA = SimpleNamespace(
    name="V",
    device=torch.device("cpu"),
    dtype=torch.float32,
    packing=None,
    content_hash=lambda: "hash",
)


@pytest.fixture
def pretended(monkeypatch):
    """A cluster in which nothing runs: every reply is 1. Whatever is put in a list is noted."""
    noted: dict[str, list] = {"init": [], "start": [], "kill": []}

    def refer(**setup: object) -> object:
        noted["start"].append(setup)
        return object()

    actor = SimpleNamespace(
        start=SimpleNamespace(remote=refer),
        do=SimpleNamespace(remote=lambda *_: object()),
    )
    for name, stand_in in {
        "is_initialized": lambda: False,
        "init": lambda **options: noted["init"].append(options),
        "nodes": lambda: [{"Alive": True, "Resources": {"CPU": 64.0}}],
        "remote": lambda **_: lambda _: SimpleNamespace(remote=lambda: actor),
        "wait": lambda left, **_: (left[:1], left[1:]),
        "get": lambda _: (1, []),
        "kill": noted["kill"].append,
        "shutdown": lambda: None,
    }.items():
        monkeypatch.setattr(ray, name, stand_in)
    return noted


def work(address: str | None = None) -> list[object]:
    """Do one item with one worker of the cluster."""
    item = WorkItem(method="measure", arguments=())
    with (
        ray_cluster.start_ray_workers(
            VANILLA,
            SweepConfig(),
            models={"U": "U"},
            address=address,
            num_workers=1,
            gpus_per_worker=0,
        ) as workers,
        tqdm(disable=True) as bar,
    ):
        return [result for _, result in workers.run(deque([item]), bar)]


def raising(error: Exception):
    def stand_in(*_args: object, **_options: object) -> None:
        raise error

    return stand_in


def test_the_pretended_cluster_works(pretended):
    assert work() == [1]
    assert (len(pretended["start"]), len(pretended["kill"])) == (1, 1)


@pytest.mark.parametrize("call", ["init", "nodes", "wait", "get", "kill"])
def test_who_has_no_token_is_told_at_any_time(pretended, monkeypatch, call):
    refusal = exceptions.AuthenticationError("no authentication token was found.\nSee http://x")
    monkeypatch.setattr(ray, call, raising(refusal))
    with pytest.raises(PermissionError) as caught:
        work()
    assert str(caught.value) == (
        "the Ray cluster lets nobody in without its token: set RAY_AUTH_MODE=token, and "
        "RAY_AUTH_TOKEN to what `ray get-auth-token` prints where the cluster was started"
    )
    # Nobody is started in the place of a worker that did not die.
    assert len(pretended["start"]) == (0 if call in ("init", "nodes") else 1)


def test_a_refusal_that_a_worker_met_is_one_too(pretended, monkeypatch):
    """As a worker's error it comes wrapped."""
    refusal = exceptions.AuthenticationError("x")
    wrapped = exceptions.RayTaskError("do", "traceback", refusal)
    monkeypatch.setattr(ray, "get", raising(wrapped))
    with pytest.raises(PermissionError, match="RAY_AUTH_TOKEN"):
        work()


def test_a_worker_that_died_is_still_replaced(pretended, monkeypatch):
    monkeypatch.setattr(ray, "get", raising(exceptions.WorkerCrashedError()))
    with pytest.raises(ChildProcessError, match="3 Ray workers died"):
        work()
    assert len(pretended["start"]) == 3


@pytest.mark.parametrize(
    ("address", "variable", "where"),
    [
        (None, None, "on this machine"),
        (None, "head:1", "at 'head:1'"),
        ("local", "head:1", "at 'local'"),
    ],
)
def test_what_ray_says_of_a_wrong_token_is_explained(
    pretended, monkeypatch, address, variable, where
):
    """After half a minute it says no more than that it failed to connect."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    monkeypatch.setattr(ray, "init", raising(ConnectionError("Failed to connect\nat 10.0.0.1")))
    with pytest.raises(ConnectionError) as caught:
        work(address)
    message = str(caught.value)
    assert message.startswith(f"the Ray cluster {where} cannot be joined: if it wants a token, set")
    assert "RAY_AUTH_TOKEN" in message
    assert "\n" not in message


def test_no_variable_of_the_environment_goes_to_the_cluster(pretended, monkeypatch):
    """Neither as Ray's runtime environment nor among what a worker is given."""
    monkeypatch.setenv("HF_TOKEN", "s3cret-of-a-person")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret-of-a-cluster")
    work()
    (options,) = pretended["init"]
    assert set(options) == {"address", "include_dashboard", "log_to_driver", "logging_level"}
    assert b"s3cret" not in pickle.dumps((options, pretended["start"]))


def test_older_versions_of_ray_are_refused(monkeypatch):
    """The oldest is that of both extras."""
    monkeypatch.setattr("interp.models.conversion.version", lambda _: "2.51.2")
    with pytest.raises(ImportError, match=r"needs ray 2\.52 or newer, not 2\.51\.2"):
        ray_cluster.import_ray()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    for name in ("ray", "dev"):
        assert [need for need in extras[name] if re.match(r"ray\b", need)] == ["ray>=2.52"]
