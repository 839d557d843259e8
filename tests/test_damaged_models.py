"""Damaged checkpoints, adapters and what is kept of training: refused in one sentence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random

import pandas as pd
import pytest
import torch

import interp
from experiments.cross_lingual.agreement import read_labels
from interp.pipelines import list_rows, read_stored_probes
from interp.unlearning import load_state, measure_second_moments, read_progress, save_state
from tests.helpers.damage import damage, refusal
from tests.helpers.tiny_models import save, tiny, tiny_model
from tests.test_safety import canary  # noqa: F401

COUNT = 16
"""Damaged inputs per file."""


@pytest.fixture(scope="module")
def vanilla():
    return tiny()


def checkpoint(folder: Path) -> Path:
    save(tiny(), folder)
    return folder


def in_parts(folder: Path) -> Path:
    model = tiny()
    model.model.save_pretrained(folder, max_shard_size="20KB")
    model.tokenizer.save_pretrained(folder)
    return folder


def adapter(folder: Path) -> Path:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["down_proj", "q_proj"])
    peft.get_peft_model(tiny_model(), config).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "name", "least"),
    [
        (checkpoint, "config.json", 8),
        (checkpoint, "tokenizer.json", 8),
        (checkpoint, "tokenizer_config.json", 6),
        (checkpoint, "generation_config.json", 0),
        (checkpoint, "model.safetensors", 8),
        (in_parts, "model.safetensors.index.json", 8),
        (adapter, "adapter_config.json", 6),
        (adapter, "adapter_model.safetensors", 8),
    ],
)
def test_damaged_checkpoints(make, name, least, vanilla, tmp_path):
    """Some settings matter to nobody, and one weight is as good as another."""
    file, rng = make(tmp_path / "m") / name, Random(name)
    content = file.read_bytes()
    num_refused = 0
    for _ in range(COUNT):
        damage(file, rng)
        load = lambda: interp.load(tmp_path / "m", like=vanilla)  # noqa: E731
        num_refused += bool(refusal(load, str(tmp_path / "m"))[0])
        file.write_bytes(content)
    assert num_refused >= least
    interp.load(tmp_path / "m", like=vanilla)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "../m/other.safetensors", "/x.safetensors", "", 7, None]
)
def test_an_index_names_safetensors_beside_it_alone(name, canary, tmp_path):  # noqa: F811
    file = in_parts(tmp_path / "m") / "model.safetensors.index.json"
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(canary)
    index = json.loads(file.read_text())
    for weight in index["weight_map"]:
        changed = index | {"weight_map": index["weight_map"] | {weight: name}}
        file.write_text(json.dumps(changed))
        assert "is damaged" in refusal(lambda: interp.load(tmp_path / "m"), file.name)[0]


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
def test_attention_out_of_a_repository_is_code_from_elsewhere(field, tmp_path):
    file = checkpoint(tmp_path / "m") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: "some/kernel"}))
    message, _ = refusal(lambda: interp.load(tmp_path / "m"), "some/kernel")
    assert "trust_remote_code=True" in message


def test_a_damaged_state_of_training(tmp_path):
    file, rng = tmp_path / "m.training_state.safetensors", Random(0)
    parameter = torch.nn.Parameter(torch.arange(6.0))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    progress = {"card": {"method": "gd"}, "history": [{"loss": 1.0}], "before": {}}
    save_state(file, {"p": parameter}, optimizer, progress)
    content = file.read_bytes()

    def read() -> dict:
        progress = read_progress(file)
        load_state(file, {"p": parameter}, optimizer, 1)
        return progress

    num_refused = 0
    for _ in range(COUNT):
        damage(file, rng)
        num_refused += bool(refusal(read, file.name)[0])
        file.write_bytes(content)
    assert num_refused >= 8
    assert read() == progress


def test_damaged_second_moments(vanilla, tmp_path):
    texts = ["w3 w4 w5 w6 w7 w8"] * 5

    def read() -> dict:
        return measure_second_moments(vanilla, [1], texts, cache=tmp_path, progress=False)

    whole = read()
    (file,) = tmp_path.iterdir()
    content, rng = file.read_bytes(), Random(0)
    num_refused = 0
    for _ in range(COUNT):
        damage(file, rng)
        num_refused += bool(refusal(read, file.name)[0])
        file.write_bytes(content)
    assert num_refused >= 8
    assert torch.equal(read()[1], whole[1])


def test_a_damaged_report_of_probes(vanilla, tmp_path):
    queries = interp.queries("capitals", languages=["en"], limit=2)
    inputs = {"models": {"before": "0a"}, "queries": list_rows(queries)}
    table = pd.DataFrame({"model": ["before"], "right": [True], "reason": [""]})
    table.to_csv(tmp_path / "probes.csv", index=False)
    for file in (tmp_path / "probes.json", tmp_path / "probes.csv"):
        digest = hashlib.sha256((tmp_path / "probes.csv").read_bytes()).hexdigest()
        (tmp_path / "probes.json").write_text(json.dumps(inputs | {"probes": digest}))
        content, rng = file.read_bytes(), Random(file.name)
        for _ in range(COUNT):
            damage(file, rng)
            message, answers = refusal(
                lambda: read_stored_probes(tmp_path, "0a", queries), str(tmp_path)
            )
            assert message or answers.empty or answers.equals(table)
            file.write_bytes(content)


def test_damaged_labels(tmp_path):
    file, rng = tmp_path / "labels.csv", Random(0)
    content = b"query_id,language,value,sample\nq1,de,1,0\nq2,de,,1\nq3,en,0.5,0\n"
    for _ in range(4 * COUNT):
        file.write_bytes(content)
        damage(file, rng)
        _, verdicts = refusal(lambda: read_labels(file), file.name)
        for verdict in verdicts or ():
            assert verdict.query_id
            assert verdict.language
            assert verdict.sample >= 0
    file.write_text("query_id,language,value\nq," + "x" * 200_000 + ",1\n")
    assert "no CSV file" in refusal(lambda: read_labels(file), file.name)[0]
    for line in ("q1", ",de,1", "q1,de,1,0.5", "q1,de,1,-1", "q1,de,yes,0"):
        file.write_text(f"query_id,language,value,sample\n{line}\n")
        assert "line 2" in refusal(lambda: read_labels(file), file.name)[0]
