"""Run directories: killed at any moment, one is finished by the same command; a full disk, a
damaged file or another configuration never leaves something that would be trusted."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tokenizers.processors import TemplateProcessing

import interp
from interp import Query
from interp.files import LOCK, compute_digest
from interp.results import RunDirectory, read_losses, read_manifest, write_atomically
from tests.helpers import ROOT
from tests.helpers.samples import mark_rest
from tests.helpers.tiny_models import question, save, tiny, trajectory

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
        if file.is_file() and file.name != LOCK
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


def concurrent_runs(what: str, folder: Path, num_trials: int) -> str:
    """Return what went wrong when processes wrote to one directory at the same moment."""
    command = [sys.executable, "-m", "tests.helpers.concurrent_runs", what, folder, num_trials]
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_parts_that_run_at_once_lose_nothing(tmp_path):
    assert concurrent_runs("shards", tmp_path, 1) == ""
    assert concurrent_runs("configurations", tmp_path / "two", 3) == ""


@pytest.mark.slow
def test_many_parts_that_run_at_once_lose_nothing(tmp_path):
    assert concurrent_runs("shards", tmp_path, 20) == ""
    assert concurrent_runs("configurations", tmp_path / "two", 100) == ""


def test_a_later_versions_directory_is_refused_in_a_sentence(tmp_path):
    RunDirectory(tmp_path, {}).write_trajectories("en", [trajectory([5], [6])])
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert manifest["format"] == 1
    (tmp_path / "run.json").write_text(json.dumps(manifest | {"format": 2}))
    assert "written by a later version of interp (format 2" in refusal(
        lambda: read_manifest(tmp_path)
    )


# One model under several names


@pytest.fixture
def saved_pair(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, model in zip(("V", "U"), pair, strict=True):
        save(model, tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "U")
    return tmp_path


@pytest.mark.parametrize("vanilla", ["V/", "./V", "{}/V", "{}/x/../V"])
@pytest.mark.parametrize("unlearned", ["U/", "link", "{}/U"])
def test_a_path_spelled_otherwise_is_the_same_model(saved_pair, vanilla, unlearned, monkeypatch):
    (saved_pair / "x").mkdir()
    first = run((interp.load("V"), "U"), saved_pair / "run", queries=QUESTIONS[:2])
    monkeypatch.setattr("interp.launch.worker.measure", None)
    spelled = [name.format(saved_pair) for name in (vanilla, unlearned)]
    again = run((interp.load(spelled[0]), spelled[1]), saved_pair / "run", queries=QUESTIONS[:2])
    assert_equal(again.losses, first.losses)
    assert set(read_manifest(saved_pair / "run")["models"]) == {"V", "U"}


def test_shards_measured_under_other_names_have_one_name(saved_pair):
    whole = run((interp.load("V"), "U"), None).losses
    for part, names in enumerate([("V", "U"), (f"{saved_pair}/V", "U/")], start=1):
        run((interp.load(names[0]), names[1]), saved_pair / "run", shard=(part, 2))
    assert_equal(read_losses(saved_pair / "run"), whole)


def test_equal_models_in_two_directories_are_two(saved_pair):
    save(interp.load("U"), saved_pair / "U2")
    losses = run((interp.load("V"), ["U", "U2"]), saved_pair / "run").losses
    assert set(losses["unlearned"]) == {"U", "U2"}
    message = refusal(lambda: run((interp.load("V"), ["U", "U/"]), None))
    assert message == "'U/' and 'U' are one model: give it once"


# What answers depend on beside the weights


def change_end_tokens(model):
    model.model.generation_config.eos_token_id = [2, 9]


def change_special_tokens(model):
    backend = model.tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single="</s> $A", pair=None, special_tokens=[("</s>", 2)]
    )


def add_a_word(model):
    model.tokenizer.add_tokens(["two words"])


@pytest.mark.parametrize("change", [change_end_tokens, change_special_tokens, add_a_word])
def test_another_tokenizer_or_end_token_is_refused(saved_pair, change):
    run((interp.load("V"), "U"), saved_pair / "run", queries=QUESTIONS[:2])
    vanilla = interp.load("V")
    change(vanilla)
    message = refusal(
        lambda: run((vanilla, interp.load("U")), saved_pair / "run", queries=QUESTIONS[:2])
    )
    assert "another tokenizer of 'V', or with other special or end tokens" in message


def forget(folder: Path, *names: str) -> None:
    """Make a directory as an earlier version wrote it, without some entries."""
    manifest = read_manifest(folder)
    manifest.pop("format")
    for entry in manifest["models"].values():
        for name in names:
            entry.pop(name, None)
    whole = manifest | {"digest": compute_digest(manifest)}
    (folder / "run.json").write_text(json.dumps(whole))


def test_a_directory_that_does_not_name_the_tokenizer(saved_pair):
    """It is read and gone on with; its prompts tell whether the tokenizer is the same."""
    first = run((interp.load("V"), "U"), saved_pair / "run", shard=(1, 2)).losses
    forget(saved_pair / "run", "text_hash", "place")
    assert_equal(read_losses(saved_pair / "run"), first)
    vanilla = interp.load("V")
    change_special_tokens(vanilla)
    message = refusal(lambda: run((vanilla, "U"), saved_pair / "run"))
    assert "another tokenizer of 'V': the prompt of" in message
    assert_equal(
        run((interp.load("V"), "U/"), saved_pair / "run").losses,
        run((interp.load("V"), "U"), None).losses,
    )
    entries = read_manifest(saved_pair / "run")["models"]
    assert set(entries) == {"V", "U"}
    assert "text_hash" in entries["V"]


def test_other_versions_are_said_and_both_are_kept(saved_pair):
    run((interp.load("V"), "U"), saved_pair / "run", shard=(1, 2))
    manifest = read_manifest(saved_pair / "run")
    now = dict(manifest["versions"])
    manifest["versions"] = then = now | {"transformers": "5.0.0"}
    whole = manifest | {"digest": compute_digest(manifest)}
    (saved_pair / "run" / "run.json").write_text(json.dumps(whole))
    with pytest.warns(UserWarning, match=r"other versions: transformers 5\.0\.0 \(now"):
        run((interp.load("V"), "U"), saved_pair / "run")
    for _ in range(2):
        written = read_manifest(saved_pair / "run")
        assert (written["versions"], written["earlier_versions"]) == (now, [then])
        run((interp.load("V"), "U"), saved_pair / "run")


@pytest.mark.parametrize("target", ["file", "gone"])
def test_a_link_that_cannot_be_a_directory(pair, tmp_path, target):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / target)
    message = refusal(lambda: run(pair, tmp_path / "link", queries=QUESTIONS[:1]))
    assert f"{tmp_path / 'link'}' is a " in message
    (tmp_path / "runs").mkdir()
    (tmp_path / "there").symlink_to(tmp_path / "runs")
    run(pair, tmp_path / "there", queries=QUESTIONS[:1])
    assert (tmp_path / "there").is_symlink()
    assert (tmp_path / "runs" / "run.json").exists()


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


@pytest.mark.parametrize("num_writes", mark_rest(range(9), (0, 2, 7)))
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
