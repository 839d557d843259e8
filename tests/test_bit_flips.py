"""One flipped bit, anywhere in a finished run or a finished model, is seen or changes nothing."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from interp.files import DIGESTS
from interp.results import RunDirectory, read_losses, read_manifest
from interp.unlearning import (
    RunStore,
    Trained,
    load_state,
    read_card,
    read_progress,
    save_state,
)
from tests.helpers.damage import refusal
from tests.helpers.tiny_models import question, tiny


@pytest.fixture(scope="module")
def models():
    return tiny(num_layers=2), tiny(seed=1, num_layers=2)


def read_run(folder: Path) -> str:
    manifest = read_manifest(folder)
    answers = RunDirectory(folder, manifest["config"]).read_trajectories("en")
    # As text, since NaN differs from itself.
    return repr([manifest, answers, read_losses(folder).to_dict("records")])


def flip_bits(folder: Path, read, count: int, seed: int) -> Counter[str]:
    """Flip bits one at a time, in files by turns, and read what is there."""
    rng, seen = random.Random(seed), Counter()
    whole = read(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    for number in range(count):
        path = paths[number % len(paths)]
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        kept = path.read_bytes()
        path.write_bytes(content)
        message, value = refusal(lambda: read(folder), str(folder))
        harmless = "harmless" if value == whole else f"silent: {path.name}"
        seen["refused" if message else harmless] += 1
        path.write_bytes(kept)
    return seen


def check_flips(models, folder: Path, count: int, seed: int) -> None:
    vanilla, unlearned = models
    settings = {"sites": ["coef"], "window": 1, "num_tokens": 4, "progress": False}
    queries = [question(number) for number in range(3)]
    interp.sweep(vanilla, unlearned, queries, out=folder / "run", **settings)
    seen = flip_bits(folder / "run", read_run, count // 2, seed)
    assert seen.keys() <= {"refused", "harmless"}, seen
    assert seen["refused"] > count / 4

    store = RunStore(folder / "model", {"method": "gd"})
    store.finish(Trained(model=unlearned, history=[{"loss": 0.5}], reason="num_steps"))

    def read_model(place: Path) -> object:
        return [interp.load(place, like=vanilla).content_hash(), read_card(place)]

    assert flip_bits(folder / "model", read_model, count // 2, seed) == {"refused": count // 2}


def test_flipped_bits(models, tmp_path):
    check_flips(models, tmp_path, 60, seed=0)


@pytest.mark.slow
def test_many_flipped_bits(models, tmp_path):
    check_flips(models, tmp_path, 400, seed=1)


def test_flipped_bits_in_a_state_of_training(tmp_path):
    parameter = torch.nn.Parameter(torch.arange(64.0))
    optimizer = torch.optim.AdamW([parameter])
    (parameter**2).sum().backward()
    optimizer.step()
    progress = {"card": {"method": "gd"}, "history": [{"loss": 1.0}], "before": {}}
    file = tmp_path / "m.training_state.safetensors"
    save_state(file, {"p": parameter}, optimizer, progress)

    def read(_folder: Path) -> str:
        progress = read_progress(file)
        load_state(file, {"p": parameter}, optimizer, 1)
        moments = optimizer.state[parameter]
        return repr([progress, parameter.tolist(), *(moments[name].tolist() for name in moments)])

    seen = flip_bits(tmp_path, read, 200, seed=0)
    assert seen.keys() <= {"refused", "harmless"}, seen
    assert seen["refused"] > 180


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json' is missing"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json' is damaged"),
        (lambda folder: tiny(seed=7).model.save_pretrained(folder), "' is damaged, or was changed"),
        (lambda folder: (folder / DIGESTS).write_text("{}"), f"{DIGESTS}' is damaged"),
    ],
)
def test_a_finished_model_that_was_changed(change, says, models, tmp_path):
    """What a person changed on purpose loads once the digests are gone."""
    vanilla, unlearned = models
    store = RunStore(tmp_path / "m", {"method": "gd"})
    store.finish(Trained(model=unlearned, history=[], reason="num_steps"))
    (tmp_path / "m" / "notes.txt").write_text("of one's own")
    interp.load(tmp_path / "m", like=vanilla)
    change(tmp_path / "m")
    assert says in refusal(lambda: interp.load(tmp_path / "m"), str(tmp_path))[0]


def test_a_model_without_digests_loads(models, tmp_path):
    store = RunStore(tmp_path / "m", {"method": "gd"})
    store.finish(Trained(model=models[1], history=[], reason="num_steps"))
    (tmp_path / "m" / DIGESTS).unlink()
    assert interp.load(tmp_path / "m").content_hash() == models[1].content_hash()


def test_losses_do_not_depend_on_what_other_systems_leave(models, tmp_path):
    settings = {"sites": ["coef"], "window": 1, "num_tokens": 4, "progress": False}
    losses = interp.sweep(*models, [question(0)], out=tmp_path, **settings).losses
    shard = next((tmp_path / "losses").iterdir())
    for name in (f"._{shard.name}", ".DS_Store", ".nfs0000001", f"~{shard.name}", "Thumbs.db"):
        (shard.parent / name).write_bytes(b"\0\5\26\7")
    pd.testing.assert_frame_equal(read_losses(tmp_path), losses)
