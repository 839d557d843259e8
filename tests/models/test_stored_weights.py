"""Names of stored tensors: wrappers' are left out and said, and none stands for two tensors."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.models.loading import load
from interp.models.pairs import are_identical
from tests.helpers import tiny_models
from tests.helpers.tiny_models import save

tiny = partial(tiny_models.tiny, num_layers=2)


def refusal(directory: Path, **options) -> str:
    with pytest.raises(ValueError, match=re.escape(repr(str(directory)))) as caught:
        load(directory, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(directory: Path, rename: Callable[[str], str], **more: torch.Tensor) -> None:
    file = directory / "model.safetensors"
    state = {rename(name): tensor.clone() for name, tensor in load_file(file).items()}
    save_file(state | more, file, metadata={"format": "pt"})


def in_layers(part: str) -> Callable[[str], str]:
    return lambda name: re.sub(r"(layers\.\d+\.)", rf"\1{part}.", name)


RENAMINGS = {
    "_orig_mod": lambda name: f"_orig_mod.{name}",
    "module.": lambda name: f"module.{name}",
    "base_model.model.": lambda name: f"base_model.model.{name}",
    "_fsdp_wrapped_module": lambda name: f"_fsdp_wrapped_module.{name}",
    "_module.": lambda name: f"_module.{name}",
}
NESTED = {
    "distributed and compiled": lambda name: f"module._orig_mod.{name}",
    "compiled and PEFT": lambda name: f"_orig_mod.base_model.model.{name}",
    "DeepSpeed of DDP": lambda name: f"module.module.{name}",
    "FSDP in layers": in_layers("_fsdp_wrapped_module"),
    "FSDP of checkpointed layers": lambda name: (
        "_fsdp_wrapped_module." + in_layers("_fsdp_wrapped_module._checkpoint_wrapped_module")(name)
    ),
    "compiled layers": in_layers("_orig_mod"),
}


@pytest.mark.parametrize("renaming", [*RENAMINGS, *NESTED])
def test_names_of_wrapped_models(tmp_path, renaming):
    save(tiny(seed=1), tmp_path)
    rewrite(tmp_path, (RENAMINGS | NESTED)[renaming])
    says = re.escape(renaming) if renaming in RENAMINGS else "wrapped model: '"
    with pytest.warns(UserWarning, match=says) as caught:
        loaded = load(tmp_path, like=tiny() if renaming in NESTED else None)
    assert len(caught) == 1
    assert are_identical(loaded, tiny(seed=1))
    assert loaded.content_hash() == tiny(seed=1).content_hash()
    # Saved again, it has its own names.
    loaded.model.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(
        tiny().model.state_dict()
    )


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "gemma3"])
def test_wrapped_models_of_other_architectures(tmp_path, architecture):
    save(tiny(architecture, seed=1), tmp_path)
    rewrite(tmp_path, RENAMINGS["module."])
    with pytest.warns(UserWarning, match="module"):
        loaded = load(tmp_path, like=tiny(architecture))
    assert are_identical(loaded, tiny(architecture, seed=1))


def test_a_wrapped_pickle(tmp_path):
    save(tiny(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = {f"_orig_mod.{name}": value for name, value in tiny(seed=1).model.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    for like in (None, tiny()):
        with pytest.warns(UserWarning, match="_orig_mod"):
            assert are_identical(load(tmp_path, like=like, allow_pickle=True), tiny(seed=1))


def test_names_that_stand_for_two_tensors(tmp_path):
    save(tiny(), tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = tiny(seed=1).model.get_parameter(name).clone()
    rewrite(tmp_path, str, **{name.removeprefix("model."): weight})
    for like in (None, tiny()):
        assert f"two tensors for {name}" in refusal(tmp_path, like=like)
    save(tiny(), tmp_path)
    rewrite(tmp_path, str, **{name.replace("mlp", "_orig_mod.mlp"): weight})
    with pytest.warns(UserWarning, match="_orig_mod"):
        assert f"two tensors for {name}" in refusal(tmp_path)


def test_a_prefix_that_only_some_names_have_is_refused(tmp_path):
    save(tiny(), tmp_path)
    rewrite(tmp_path, lambda name: name if "lm_head" in name else f"module.{name}")
    message = refusal(tmp_path, like=tiny())
    assert "the first model.embed_tokens.weight" in message
    assert "the first module.model.embed_tokens.weight" in message


# Files that are no weights


class Attack:
    """Writes a file when it is unpickled without care."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_pickles_that_are_no_state_dict(tmp_path):
    save(tiny(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    file, place = tmp_path / "pytorch_model.bin", tmp_path / "pwned"
    torch.save(tiny().model.state_dict(), file)
    whole = file.read_bytes()
    contents = {
        "empty": b"",
        "text": b"hello",
        "cut": whole[: len(whole) // 2],
        "no pickle inside": b"PK\x03\x04" + bytes(100),
        "hostile": pickle.dumps({"x": Attack(place)}, protocol=2),
        "deep": b"(" * 100_000,
        "plain": pickle.dumps([1, 2], protocol=2),
    }
    for what, content in contents.items():
        file.write_bytes(content)
        assert "could not be loaded: pytorch_model.bin" in refusal(tmp_path, allow_pickle=True), (
            what
        )
    for other in ({"state_dict": tiny().model.state_dict()}, [torch.zeros(1)], {1: torch.zeros(1)}):
        torch.save(other, file)
        assert "must hold a state dict" in refusal(tmp_path, allow_pickle=True)
    torch.save({"x": Attack(place)}, file)
    assert "could not be loaded" in refusal(tmp_path, allow_pickle=True)
    assert not place.exists()


@pytest.mark.parametrize("like", [None, tiny()], ids=["alone", "like"])
def test_safetensors_that_are_none(tmp_path, like):
    save(tiny(), tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    announced = (1 << 60).to_bytes(8, "little")
    for content in (b"", whole[:-1], announced + whole[8:], (10**8).to_bytes(8, "little") + b"{}"):
        file.write_bytes(content)
        assert "could not be loaded: model.safetensors: " in refusal(tmp_path, like=like)
    # A header as long as it says, of spaces.
    file.write_bytes((1 << 26).to_bytes(8, "little") + b"{}" + b" " * ((1 << 26) - 2))
    assert "header announces 67108864 bytes" in refusal(tmp_path, like=like)
    file.write_bytes(pointer)
    assert "git lfs pull" in refusal(tmp_path, like=like)
