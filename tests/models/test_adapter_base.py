"""Whether V is the model that an adapter was trained on is told by where the two are."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

import interp
from interp.models.adapter_base import MAX_CHAIN, warn_of_other_base
from tests.helpers.tiny_models import save, tiny
from tests.models.test_adapters import train

peft = pytest.importorskip("peft")

# What peft says at every adapter that is made.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]

SHA, OTHER_SHA = "a1" * 20, "b2" * 20
LORA = {"r": 2, "target_modules": ["q_proj"]}


def config(base: object, revision: str | None = None):
    return peft.LoraConfig(**LORA, base_model_name_or_path=base, revision=revision)


def vanilla(place: str, *, name: str = "V"):
    """A model in memory that was read from a place."""
    model = tiny(num_layers=1)
    model.model.config.name_or_path, model.name = place, name
    return model


def record(adapter: Path, **changes: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A Hub's cache with two snapshots of Owner/model, the first of them on main and on v1."""
    folder = tmp_path / "hub" / "models--Owner--model"
    for commit in (SHA, OTHER_SHA):
        (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    for name in ("main", "v1"):
        (folder / "refs" / name).write_text(SHA)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    (tmp_path / "old" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to("runs/model")
    monkeypatch.chdir(tmp_path)
    return folder / "snapshots"


@pytest.mark.parametrize(
    "recorded",
    ["{}/runs/model", "{}/runs/model/", "runs/model", "./runs/../runs/model//", "link", "{}/link"],
)
@pytest.mark.parametrize("used", ["runs/model", "{}/link", "{}/runs/model/"])
def test_spellings_of_a_directory_are_silent(cache, tmp_path, recorded, used):
    recorded, used = (place.format(tmp_path) for place in (recorded, used))
    warn_of_other_base("A", config(recorded), vanilla(used))
    # What a person calls it counts as well as what its configuration says.
    warn_of_other_base("A", config(recorded), vanilla("", name=used))
    # A revision says nothing about a directory.
    warn_of_other_base("A", config(recorded, "v1"), vanilla(used))


@pytest.mark.parametrize(
    ("recorded", "revision", "used"),
    [
        ("Owner/model", None, "{}/" + SHA),
        ("owner/Model", None, "{}/" + OTHER_SHA),
        ("Owner/model", SHA, "{}/" + SHA),
        ("Owner/model", SHA[:8], "{}/" + SHA),
        ("Owner/model", "main", "{}/" + SHA),
        ("Owner/model", "v1", "{}/" + SHA + "/"),
        ("Owner/model", "v1", "Owner/model@v1"),
        ("Owner/model", "main", "Owner/model"),
        ("Owner/model@v1", None, "{}/" + SHA),
        ("/of/another/machine/models--Owner--model/snapshots/" + SHA, None, "{}/" + SHA),
        ("{}/" + SHA, None, "Owner/model@" + SHA),
        ("gpt2", None, "/gone/models--gpt2/snapshots/" + SHA),
        ("", "v1", "{}/" + OTHER_SHA),
        ("gemma-3-270m", None, "gemma-3-270m"),
        ("/one/gguf-1/" + "c" * 64, None, "/other/gguf-1/" + "c" * 64),
    ],
)
def test_spellings_of_a_model_of_the_hub_are_silent(cache, recorded, revision, used):
    warn_of_other_base("A", config(recorded.format(cache), revision), vanilla(used.format(cache)))


def test_a_download_under_the_name_of_the_hub_is_silent(cache, tmp_path):
    (tmp_path / "Owner" / "model").mkdir(parents=True)
    like = vanilla(str(tmp_path / "Owner" / "model"))
    os.chdir(tmp_path / "runs")
    warn_of_other_base("A", config("Owner/model"), like)
    with pytest.warns(UserWarning, match="trained on 'Owner/model@v1' and is merged into 'V'"):
        warn_of_other_base("A", config("Owner/model", "v1"), like)


@pytest.mark.parametrize(
    ("recorded", "used"),
    [
        ("{}/old/model", "{}/runs/model"),
        ("old/model", "runs/model"),
        ("/of/another/machine/runs/model", "{}/runs/model"),
        ("Owner/model", "{}/runs/model"),
        ("Owner/model", "Other/model"),
        ("Owner/model", "model"),
        ("model", "{}/runs/model"),
        ("model", "Owner/model"),
        ("{}/runs/model", "Owner/model"),
        ("gemma-3-270m", "gemma-3-270m-it"),
        ("/one/gguf-1/" + "c" * 64, "/one/gguf-1/" + "d" * 64),
        ("/one/runs/checkpoint-10", "/one/runs/checkpoint-20"),
        ("C:\\models\\x", "{}/runs/model"),
        ("~nobody-of-this-name/model", "{}/runs/model"),
        ("x" * 5000, "{}/runs/model"),
        ("a\0b", "{}/runs/model"),
        ("Owner/model", ""),
    ],
)
def test_another_base_is_warned_of_with_both_names(cache, tmp_path, recorded, used):
    recorded, used = (place.format(tmp_path) for place in (recorded, used))
    name = used or "V"
    with pytest.warns(UserWarning, match="is merged into") as caught:
        warn_of_other_base("A", config(recorded), vanilla(used, name=name))
    (said,) = (str(warning.message) for warning in caught)
    assert said.startswith(
        f"the adapter 'A' was trained on {recorded!r} and is merged into {name!r}"
    )


@pytest.mark.parametrize(
    ("revision", "used", "says"),
    [
        ("v2", "{}/" + SHA, SHA),
        (OTHER_SHA, "{}/" + SHA, SHA),
        ("main", "{}/" + OTHER_SHA, OTHER_SHA),
        ("v2", "Owner/model@v1", "v1"),
        (OTHER_SHA[:8], "{}/" + SHA, SHA),
        ("v2", "Owner/model", "unknown"),
        ("../../../../runs", "{}/" + SHA, SHA),
    ],
)
def test_another_revision_is_warned_of_with_both(cache, revision, used, says):
    shown = says if says == "unknown" else repr(says)
    said = f"revision {re.escape(repr(revision))} of 'owner/model' .* of revision {shown}: "
    with pytest.warns(UserWarning, match=said) as caught:
        warn_of_other_base("A", config("Owner/model", revision), vanilla(used.format(cache)))
    assert len(caught) == 1


def test_the_commit_that_transformers_notes_is_the_revision(cache):
    model = vanilla("Owner/model")
    model.model.config._commit_hash = SHA
    warn_of_other_base("A", config("Owner/model", SHA[:10]), model)
    with pytest.warns(UserWarning, match=f"revision '{OTHER_SHA}' .* of revision '{SHA}'"):
        warn_of_other_base("A", config("Owner/model", OTHER_SHA), model)


# Through load


@pytest.fixture
def adapter(tmp_path) -> Path:
    base = tiny(num_layers=1)
    save(base, tmp_path / "V")
    train(base.model, peft.LoraConfig(**LORA), tmp_path / "A")
    record(tmp_path / "A", base_model_name_or_path=str(tmp_path / "V"))
    return tmp_path / "A"


def test_what_a_trainer_records_is_silent_and_a_copy_is_not(adapter, tmp_path):
    interp.load(adapter, like=interp.load(f"{tmp_path}/V/"))
    save(tiny(num_layers=1), tmp_path / "b" / "V")
    with pytest.warns(UserWarning, match="is merged into") as caught:
        interp.load(adapter, like=interp.load(tmp_path / "b" / "V"))
    assert [warning.filename for warning in caught] == [__file__]


def test_a_model_with_an_adapter_inside_is_not_its_base(adapter, tmp_path):
    first = interp.load(adapter)
    assert first.model.config.name_or_path == str(adapter)
    train(first.model, peft.LoraConfig(**LORA), tmp_path / "B")
    record(tmp_path / "B", base_model_name_or_path=str(adapter))
    interp.load(tmp_path / "B", like=first)
    vanilla = interp.load(tmp_path / "V")
    first = interp.load(adapter, like=vanilla)
    assert vanilla.model.config.name_or_path == str(tmp_path / "V")
    with pytest.warns(UserWarning, match=f"trained on '{tmp_path}/V' and is merged into"):
        interp.load(adapter, like=first)


def test_bases_of_bases_are_read(adapter, tmp_path):
    """B on A on V is V with A's matrices and B's."""
    first = interp.load(adapter)
    train(first.model, peft.LoraConfig(**LORA), tmp_path / "B")
    record(tmp_path / "B", base_model_name_or_path=str(adapter))
    second = interp.load(tmp_path / "B")
    expected = interp.load(tmp_path / "B", like=first)
    assert second.content_hash() == expected.content_hash() != first.content_hash()


def refusal(adapter: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(str(adapter))) as caught:
        interp.load(adapter)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_an_adapter_on_itself(adapter, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(adapter)
    monkeypatch.chdir(tmp_path)
    for base in (str(adapter), "A", "./A/", "link", "~/A"):
        monkeypatch.setenv("HOME", str(tmp_path))
        record(adapter, base_model_name_or_path=base)
        assert "names itself as the model that it was trained on" in refusal(adapter)


def test_adapters_on_one_another(adapter, tmp_path):
    others = [tmp_path / name for name in "BC"]
    for other, base in zip(others, (adapter, tmp_path / "B"), strict=True):
        train(tiny(num_layers=1).model, peft.LoraConfig(**LORA), other)
        record(other, base_model_name_or_path=str(base))
    record(adapter, base_model_name_or_path=str(tmp_path / "C"))
    message = refusal(adapter)
    places = ", ".join(repr(str(tmp_path / name)) for name in "ACBA")
    assert f"in a circle as the model that they were trained on ({places})" in message


def test_adapters_without_end(adapter, tmp_path):
    for number in range(MAX_CHAIN + 1):
        place = tmp_path / str(number)
        place.mkdir()
        for file in adapter.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        record(place, base_model_name_or_path=str(tmp_path / str(number + 1)))
    assert f"more than {MAX_CHAIN} adapters stand on one another" in refusal(tmp_path / "0")


@pytest.mark.parametrize(
    ("base", "says"),
    [
        (None, "does not name the model"),
        ("", "does not name the model"),
        ("/no/such/place", "does not exist"),
        ("{}/A/adapter_config.json", "is a file"),
        ("{}/empty", "holds neither config.json"),
        ("a\0b", "does not exist"),
        ("x" * 500, "cannot be read as a path"),
        ("x" * 5000, "for 'base_model_name_or_path', which must be"),
        (3, "has '3' for 'base_model_name_or_path'"),
        (["a"], "for 'base_model_name_or_path', which must be"),
        (True, "has 'True' for 'base_model_name_or_path'"),
        ({"a": 1}, "for 'base_model_name_or_path', which must be"),
    ],
)
def test_a_base_that_is_none(adapter, tmp_path, base, says):
    (tmp_path / "empty").mkdir()
    record(
        adapter, base_model_name_or_path=base.format(tmp_path) if isinstance(base, str) else base
    )
    assert says in refusal(adapter)


@pytest.mark.parametrize("revision", [3, ["main"], False])
def test_a_revision_that_is_none(adapter, revision):
    record(adapter, revision=revision)
    assert "for 'revision'" in refusal(adapter)
