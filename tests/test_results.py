"""Run directories: killed at any moment, one is finished by the same command; a full disk, a
damaged file or another configuration never leaves something that would be trusted."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pandas as pd
import pytest

import interp
from interp import Query
from interp.results import RunDirectory, read_losses, read_manifest, write_atomically
from tests.helpers.tiny_models import question, tiny, trajectory

LANGUAGES = ("en", "de", "zh")
QUESTIONS = [question(n, language=code) for code in LANGUAGES for n in range(7)]
KEY = ["unlearned", "language", "query_id", "site", "layer"]
SETTINGS = {"sites": ["coef", "attn", "value"], "window": 3, "num_tokens": 6, "progress": False}


@pytest.fixture(scope="module")
def pair():
    return tiny("llama"), tiny("llama", seed=1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Two questions to a cell: four cells in each of three languages."""
    monkeypatch.setattr("interp.launch.sweep.BLOCK", 2)


def run(pair, out: Path | None, **changes):
    return interp.sweep(*pair, changes.pop("queries", QUESTIONS), out=out, **(SETTINGS | changes))


def ordered(losses: pd.DataFrame) -> pd.DataFrame:
    return losses.sort_values(KEY, ignore_index=True)


def assert_equal(actual: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert not actual.duplicated(KEY).any()
    pd.testing.assert_frame_equal(ordered(actual), ordered(expected), check_exact=True)


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def refusal(call, kind=ValueError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is written


def test_the_directory_holds_what_was_measured(pair, tmp_path):
    recovery = run(pair, tmp_path)
    alone = run(pair, None).losses
    assert_equal(read_losses(tmp_path), recovery.losses)
    assert_equal(recovery.losses, alone)
    assert len(alone) == 3 * 7 * 3 * 5
    assert len(list((tmp_path / "losses").iterdir())) == 3 * 4
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert {name: entry["content_hash"] for name, entry in manifest["models"].items()} == {
        model.name: model.content_hash() for model in pair
    }
    assert manifest["config"]["sites"] == ["coef", "attn", "value"]
    assert manifest["config"]["window"] == 3
    assert manifest["versions"]["torch"]
    answers = interp.trajectories(pair[0], QUESTIONS, num_tokens=6, progress=False)
    english = pd.read_parquet(tmp_path / "trajectories" / "en.parquet")
    assert [tuple(ids) for ids in english["answer_ids"]] == [a.answer_ids for a in answers[:7]]
    assert list(english["answer"]) == [a.answer for a in answers[:7]]


def test_trajectories_come_back_as_they_were(tmp_path):
    store = RunDirectory(tmp_path, {})
    queries = [
        Query(id="1", language="zh-Hans", prompt="首都\n是", answer="巴黎", concept="capitals"),
        Query(id="2", language="zh-Hans", prompt='"quoted"\t', answer=None),
        Query(id="3", language="zh-Hans", prompt=" ", answer=""),
    ]
    for number, given in enumerate([queries, queries[1:2]]):
        made = [trajectory([5, 6, 7], [8] * k, query=q) for k, q in enumerate(given)]
        store = RunDirectory(tmp_path / str(number), {})
        assert store.read_trajectories("zh-Hans") is None
        store.write_trajectories("zh-Hans", made)
        assert store.read_trajectories("zh-Hans") == made


def test_a_second_run_measures_nothing(pair, tmp_path, monkeypatch):
    first = run(pair, tmp_path).losses
    before = files(tmp_path)
    monkeypatch.setattr("interp.launch.worker.measure", None)
    monkeypatch.setattr("interp.launch.worker.trajectories", None)
    assert_equal(run(pair, tmp_path).losses, first)
    assert files(tmp_path) == before


def test_several_unlearned_models(pair, tmp_path):
    vanilla, unlearned = pair
    other = tiny("llama", seed=2)
    first = run(pair, tmp_path).losses
    second = run((vanilla, other), tmp_path).losses
    assert set(second["unlearned"]) == {"U2"}
    assert_equal(read_losses(tmp_path), pd.concat([first, second]))
    manifest = read_manifest(tmp_path)["models"]
    assert {name: entry["role"] for name, entry in manifest.items()} == {
        "V": "vanilla",
        "U": "unlearned",
        "U2": "unlearned",
    }
    assert (unlearned.name, other.name) == ("U", "U2")


def test_languages_that_look_alike_are_kept_apart(pair, tmp_path):
    queries = [question(n, language=code) for code in ("pt-BR", "pt_BR") for n in range(2)]
    alone = run(pair, None, queries=queries).losses
    assert_equal(run(pair, tmp_path, queries=queries).losses, alone)
    assert_equal(run(pair, tmp_path, queries=queries).losses, alone)


# Shards


def test_shards_together_are_the_whole(pair, tmp_path):
    whole = run(pair, None).losses
    parts = [run(pair, tmp_path / "one", shard=(i, 5)).losses for i in (3, 1, 5, 2, 4)]
    assert all(0 < len(part) < len(whole) for part in parts)
    assert_equal(pd.concat(parts), whole)
    assert_equal(read_losses(tmp_path / "one"), whole)
    apart = [run(pair, tmp_path / str(i), shard=(i, 2)).losses for i in (1, 2)]
    assert_equal(pd.concat(apart), whole)


def test_shards_that_are_no_shards(pair):
    for shard in [(0, 2), (3, 2), (1, 0), (-1, 2)]:
        assert f"{shard[0]}/{shard[1]}" in refusal(lambda shard=shard: run(pair, None, shard=shard))
    assert "13/13" in refusal(lambda: run(pair, None, shard=(13, 13)))


# Killed


@pytest.mark.parametrize("content", [b"", b"half", None])
def test_partial_files_are_not_trusted(pair, tmp_path, content):
    expected = run(pair, tmp_path).losses
    shards = sorted((tmp_path / "losses").glob("*.parquet"))
    # As if killed while this shard, the manifest and the answers were written.
    for file in (shards[4], tmp_path / "trajectories" / "de.parquet", tmp_path / "run.json"):
        scratch = file.with_name(f".{file.name}.123.partial")
        scratch.write_bytes(file.read_bytes() if content is None else content)
    shards[4].unlink()
    (tmp_path / "trajectories" / "de.parquet").unlink()
    assert len(read_losses(tmp_path)) == len(expected) - 2 * 3 * 5
    assert_equal(run(pair, tmp_path).losses, expected)
    assert_equal(read_losses(tmp_path), expected)


# Another configuration


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"window": 5}, "another window (3, now 5)"),
        ({"sites": ["coef", "attn"]}, 'another sites (["coef", "attn", "value"], now ["coef'),
        ({"variant": "hong2024"}, 'another variant ("paper", now "hong2024")'),
        ({"positions": "prompt"}, "another positions"),
        ({"direction": "corrupt"}, "another direction"),
        ({"distance": "kl"}, "another distance"),
        ({"engine": "full"}, "another engine"),
        ({"num_tokens": 5}, "another queries"),
        ({"queries": QUESTIONS[:-1]}, "another num_queries (21, now 20)"),
        ({"queries": [*QUESTIONS[:-1], question(99, language="zh")]}, "another queries"),
    ],
)
def test_another_configuration_is_refused(pair, tmp_path, changes, says):
    run(pair, tmp_path)
    before = files(tmp_path)
    message = refusal(lambda: run(pair, tmp_path, **changes))
    assert says in message
    assert str(tmp_path) in message
    assert files(tmp_path) == before


def test_other_models_are_refused(pair, tmp_path):
    vanilla, unlearned = pair
    run(pair, tmp_path)
    before = files(tmp_path)
    other = tiny("llama", seed=2)
    other.name = "V"
    assert "another vanilla model under the name 'V'" in refusal(
        lambda: run((other, unlearned), tmp_path)
    )
    other.name = "W"
    assert "'V', now \"W\"" in refusal(lambda: run((other, unlearned), tmp_path)).replace(
        '"V"', "'V'"
    )
    other.name = "U"
    assert "another unlearned model under the name 'U'" in refusal(
        lambda: run((vanilla, other), tmp_path)
    )
    assert files(tmp_path) == before


def test_two_runs_begun_at_once(tmp_path):
    """Both find an empty directory; the first result decides whose it is."""
    first, second, same = (RunDirectory(tmp_path, {"window": w}) for w in (3, 5, 3))
    for store, name in ((first, "U"), (second, "U"), (same, "U2")):
        store.add_model("unlearned", name, "hash of " + name)
    first.write_trajectories("en", [trajectory([5], [6])])
    table = pd.DataFrame({"loss": [1.0]})
    path = second.losses_path("U", "hash", "en", 0)
    assert "another window (3, now 5)" in refusal(lambda: second.write_losses(path, table))
    assert not path.exists()
    same.write_losses(path, table)
    assert set(read_manifest(tmp_path)["models"]) == {"U", "U2"}


# Damage


@pytest.mark.parametrize("keep", [0, 100, -10])
def test_a_damaged_shard(pair, tmp_path, keep):
    expected = run(pair, tmp_path).losses
    shard = sorted((tmp_path / "losses").iterdir())[2]
    shard.write_bytes(shard.read_bytes()[:keep])
    for call in (lambda: read_losses(tmp_path), lambda: run(pair, tmp_path)):
        message = refusal(call)
        assert str(shard) in message
        assert "damaged" in message
    shard.unlink()
    assert_equal(run(pair, tmp_path).losses, expected)


def test_damaged_answers(pair, tmp_path):
    run(pair, tmp_path)
    answers = tmp_path / "trajectories" / "de.parquet"
    answers.write_bytes(b"PAR1")
    assert str(answers) in refusal(lambda: run(pair, tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"config": {}}'])
def test_a_damaged_manifest(pair, tmp_path, content):
    run(pair, tmp_path)
    (tmp_path / "run.json").write_text(content)
    for call in (lambda: read_losses(tmp_path), lambda: run(pair, tmp_path)):
        message = refusal(call)
        assert "run.json" in message
        assert "damaged" in message


def test_what_is_no_run_directory(tmp_path):
    store = RunDirectory(tmp_path, {})
    assert "run.json is missing" in refusal(lambda: read_losses(tmp_path))
    store.write_trajectories("en", [trajectory([5], [6])])
    assert "no losses yet" in refusal(lambda: read_losses(tmp_path))


# A full disk


@pytest.mark.parametrize("num_writes", range(9))
def test_a_full_disk(pair, tmp_path, monkeypatch, num_writes):
    """Disk full when a file is moved into place, or half-way through writing it."""
    expected = run(pair, tmp_path / "undisturbed").losses
    replace, to_parquet = os.replace, pd.DataFrame.to_parquet
    written = 0

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def moved(source, target):
        nonlocal written
        if written == num_writes:
            full()
        written += 1
        replace(source, target)

    def half(self, path, **options):
        if written == num_writes:
            Path(path).write_bytes(b"PAR1 and a half")
            full()
        to_parquet(self, path, **options)

    for name, patched in (("moved", moved), ("half", half)):
        out = tmp_path / name
        written = 0
        with monkeypatch.context() as patch:
            if name == "moved":
                patch.setattr(os, "replace", moved)
            else:
                patch.setattr(os, "replace", moved)
                patch.setattr(pd.DataFrame, "to_parquet", patched)
            message = refusal(lambda out=out: run(pair, out), OSError)
        assert "No space left" in message
        left = files(out)
        assert len(left) <= num_writes
        assert not [file for file in left if "partial" in file]
        for file in left:
            if file.endswith(".parquet"):
                pd.read_parquet(out / file)
        assert_equal(run(pair, out).losses, expected)


def test_write_atomically(tmp_path):
    file = tmp_path / "deep" / "file.txt"
    write_atomically(file, lambda scratch: scratch.write_text("one"))
    assert file.read_text() == "one"

    def fail(scratch: Path) -> None:
        scratch.write_text("two, but ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, fail)
    assert files(tmp_path) == {"deep/file.txt": b"one"}
