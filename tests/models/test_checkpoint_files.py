"""What a directory holds: saves beside each other, what is left of adapters, trainers' outputs."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.models.loading import load
from interp.models.pairs import are_identical
from tests.helpers import tiny_models
from tests.helpers.tiny_models import save, tokenizer

tiny = partial(tiny_models.tiny, num_layers=2)

SHARDS = {"max_shard_size": "8KB"}


def refusal(directory: Path, **options) -> str:
    """Return the sentence in which loading is refused."""
    with pytest.raises(ValueError, match=re.escape(str(directory))) as caught:
        load(directory, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Two saves in one directory


def test_an_old_whole_file_beside_newer_shards_is_refused(tmp_path):
    save(tiny(seed=1), tmp_path)
    tiny(seed=2).model.save_pretrained(tmp_path, **SHARDS)
    for like in (None, tiny()):
        message = refusal(tmp_path, like=like)
        assert "two saves, model.safetensors and model-00001-of-0000" in message
    (tmp_path / "model.safetensors").unlink()
    assert are_identical(load(tmp_path), tiny(seed=2))


def test_a_whole_file_beside_its_own_shards_is_one_save(tmp_path, no_warning):
    save(tiny(seed=1), tmp_path)
    tiny(seed=1).model.save_pretrained(tmp_path, **SHARDS)
    assert are_identical(load(tmp_path, like=tiny()), tiny(seed=1))


def test_shards_that_the_index_does_not_name_are_refused(tmp_path):
    tiny(seed=1).model.save_pretrained(tmp_path / "old", max_shard_size="4KB")
    tiny(seed=2).model.save_pretrained(tmp_path / "new", **SHARDS)
    tokenizer().save_pretrained(tmp_path / "new")
    last = max((tmp_path / "old").glob("model-*"))
    shutil.copy(last, tmp_path / "new")
    assert last.name in refusal(tmp_path / "new")


def test_whole_file_beside_shards_of_another_save_without_index(tmp_path):
    tiny(seed=1).model.save_pretrained(tmp_path, **SHARDS)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "model.safetensors.index.json is missing" in refusal(tmp_path)
    save(tiny(seed=2), tmp_path / "n")
    shutil.copy(tmp_path / "n" / "model.safetensors", tmp_path)
    assert "two saves" in refusal(tmp_path)


def test_two_pickles_of_two_saves_are_refused(tmp_path):
    save(tiny(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny(seed=1).model.state_dict(), tmp_path / "pytorch_model.bin")
    shard = "pytorch_model-00001-of-00001.bin"
    state = tiny(seed=2).model.state_dict()
    torch.save(state, tmp_path / shard)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, shard)}))
    message = refusal(tmp_path, allow_pickle=True)
    assert "pytorch_model.bin" in message
    assert shard in message
    (tmp_path / "pytorch_model.bin").unlink()
    assert are_identical(load(tmp_path, allow_pickle=True), tiny(seed=2))


def test_files_in_the_format_of_the_makers_are_no_second_save(tmp_path, no_warning):
    save(tiny(seed=1), tmp_path)
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"something else")
    assert are_identical(load(tmp_path), tiny(seed=1))


def test_a_shard_that_is_missing_is_named(tmp_path):
    tiny().model.save_pretrained(tmp_path, **SHARDS)
    last = max(tmp_path.glob("model-*"))
    last.unlink()
    assert f"lacks {last.name}" in refusal(tmp_path, like=tiny())
    last.mkdir()
    assert f"lacks {last.name}" in refusal(tmp_path, like=tiny())


def test_a_tensor_in_two_shards(tmp_path):
    tiny().model.save_pretrained(tmp_path, **SHARDS)
    first, *_, last = sorted(tmp_path.glob("model-*"))
    state, name = load_file(last), min(load_file(first))
    save_file(state | {name: load_file(first)[name]}, last, metadata={"format": "pt"})
    assert are_identical(load(tmp_path, like=tiny()), tiny())
    save_file(state | {name: load_file(first)[name] + 1}, last, metadata={"format": "pt"})
    message = refusal(tmp_path, like=tiny())
    assert f"two tensors for {name}" in message
    assert first.name in message
    assert last.name in message


# Adapters and full models


def leave_adapter(directory: Path, *, weights: bool) -> None:
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if weights:
        save_file({"x": torch.zeros(1)}, directory / "adapter_model.safetensors")


@pytest.mark.parametrize("like", [None, tiny()])
def test_left_over_adapter_config_is_said_and_the_full_model_taken(tmp_path, like):
    save(tiny(seed=1), tmp_path)
    leave_adapter(tmp_path, weights=False)
    with pytest.warns(
        UserWarning, match=r"full model \(model.safetensors\), which is taken, and ad"
    ):
        assert are_identical(load(tmp_path, like=like), tiny(seed=1))


def test_left_over_adapter_weights_are_said(tmp_path):
    save(tiny(seed=1), tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.warns(UserWarning, match="adapter_model.safetensors of an adapter"):
        assert are_identical(load(tmp_path), tiny(seed=1))


@pytest.mark.parametrize("shards", [{}, SHARDS])
def test_full_model_and_adapter_in_one_directory_are_refused(tmp_path, shards):
    tiny().model.save_pretrained(tmp_path, **shards)
    leave_adapter(tmp_path, weights=True)
    message = refusal(tmp_path, like=tiny())
    assert "both a full model (model.safetensors" in message
    assert "adapter_model.safetensors" in message


# Outputs of trainers


def trained(root: Path, *, step: int = 10, tokenizer_in: str = "") -> Path:
    """A checkpoint below a trainer's output directory, as files lie there."""
    place = root / f"checkpoint-{step}"
    tiny(seed=1).model.save_pretrained(place)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (place / name).write_bytes(b"a pickle")
    (root / "training_args.bin").write_bytes(b"a pickle")
    tokenizer(pad_token="w9").save_pretrained(root / tokenizer_in)
    return place


@pytest.mark.parametrize("left", ["config.json", "adapter_config.json", "generation_config.json"])
def test_settings_alone_beside_a_checkpoint(tmp_path, left):
    place = trained(tmp_path)
    (tmp_path / left).write_bytes((place / "config.json").read_bytes())
    with pytest.warns(UserWarning, match="checkpoint-10 is taken"):
        loaded = load(tmp_path, like=tiny())
    assert are_identical(loaded, tiny(seed=1))
    # The tokenizer that was trained with, not V's.
    assert loaded.tokenizer.pad_token == "w9"


def test_tokenizer_of_the_root(tmp_path, no_warning):
    """Without V, and where the checkpoint itself is named."""
    place = trained(tmp_path)
    assert load(place).tokenizer.pad_token == "w9"
    tokenizer(pad_token="w8").save_pretrained(place)
    assert load(place).tokenizer.pad_token == "w8"


def test_a_models_own_neighbours_lend_no_tokenizer(tmp_path):
    save(tiny(), tmp_path)
    tiny(seed=1).model.save_pretrained(tmp_path / "unlearned")
    assert "holds no tokenizer" in refusal(tmp_path / "unlearned")


def test_a_model_beside_checkpoints_is_taken(tmp_path, no_warning):
    trained(tmp_path)
    tiny(seed=2).model.save_pretrained(tmp_path)
    assert are_identical(load(tmp_path), tiny(seed=2))


@pytest.mark.parametrize(
    ("left", "says"),
    [
        ("global_step10/zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py"),
        ("pytorch_model_fsdp_0/__0_0.distcp", "accelerate merge-weights pytorch_model_fsdp_0"),
        ("model_0/__0_0.distcp", "accelerate merge-weights model_0"),
        ("pytorch_model_fsdp.bin", "pytorch_model.bin"),
        ("consolidated.00.pth", "convert it"),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json is missing"),
        ("optimizer.pt", "model.safetensors is missing"),
        ("m.gguf", "give the GGUF file in it"),
    ],
)
@pytest.mark.parametrize("below", [False, True])
def test_shards_of_trainers_name_what_makes_a_model_of_them(tmp_path, left, says, below):
    place = tmp_path / "checkpoint-7" if below else tmp_path
    (place / left).parent.mkdir(parents=True, exist_ok=True)
    (place / left).touch()
    tiny().model.config.save_pretrained(place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = refusal(tmp_path)
    assert "holds no weights" in message
    assert says in message


def test_a_model_beside_shards_of_deepspeed_is_taken(tmp_path, no_warning):
    save(tiny(seed=1), tmp_path)
    (tmp_path / "global_step10").mkdir()
    (tmp_path / "latest").write_text("global_step10")
    assert are_identical(load(tmp_path), tiny(seed=1))


# Paths


def test_links_and_paths_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    for name in ("loop", "gone"):
        assert "is a link that leads nowhere" in refusal(tmp_path / name)
    assert "cannot be read as a path" in refusal(tmp_path / ("x" * 300))
    assert "cannot be read as a path" in refusal(Path("~nobody-of-this-name/model"))

    def deny(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", deny)
    assert "Permission denied" in refusal(tmp_path)


def test_a_link_to_a_model_is_one(tmp_path, no_warning):
    save(tiny(seed=1), tmp_path / "m")
    (tmp_path / "link").symlink_to("m")
    assert are_identical(load(tmp_path / "link"), tiny(seed=1))
