"""Directories of checkpoints: which one is the model, full or adapter, and which files hold it.

Trainers leave more in a directory than a model: checkpoints, states, files of an earlier save.
Where what lies there could be two models, it is refused, as a file's age says nothing.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

from interp.files import list_files
from interp.models.tokenizers import UNREADABLE, VOCABULARY_FILES

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
FULL = (WHOLE, INDEX, PICKLE, PICKLE_INDEX)
"""Files that hold or list a full model's weights, in the order in which they are taken."""

ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")

MAX_INDEX = 1 << 26
"""Bytes of an index; the largest known have a seventh."""

SHARD = {INDEX: r"model-\d+-of-\d+\.safetensors", PICKLE_INDEX: r"pytorch_model-\d+-of-\d+\.bin"}


def find_last_checkpoint(spec: str, directory: Path) -> Path:
    """Find the last checkpoint of a trainer's output directory that holds no weights itself."""
    if _find_present(directory, FULL + ADAPTER) or any(_list_shards(directory, i) for i in SHARD):
        return directory
    steps = {
        int(entry.name.removeprefix("checkpoint-")): entry
        for entry in directory.iterdir()
        if re.fullmatch(r"checkpoint-[0-9]+", entry.name) and entry.is_dir()
    }
    if not steps:
        return directory
    last = steps[max(steps)]
    warnings.warn(
        f"{spec!r} holds {len(steps)} checkpoints and no model beside them: {last.name} is taken",
        stacklevel=4,
    )
    return last


def find_tokenizer(directory: Path) -> Path:
    """Find the directory of a checkpoint's tokenizer: its own, or the trainer's above it."""
    above = directory.absolute().parent
    if (
        re.fullmatch(r"checkpoint-[0-9]+", directory.absolute().name)
        and not _find_present(directory, VOCABULARY_FILES)
        and _find_present(above, VOCABULARY_FILES)
    ):
        return above
    return directory


def is_adapter(spec: str, directory: Path) -> bool:
    """Return whether a directory is an adapter's; warn of what is left of one beside a full model.

    Raises:
        ValueError: it holds both an adapter and a full model.
    """
    settings = "adapter_config.json"
    has_settings = (directory / settings).exists()
    adapters = _find_present(directory, ADAPTER)
    full = _find_present(directory, FULL) if (directory / "config.json").exists() else []
    if not full:
        return has_settings
    if has_settings and adapters:
        raise ValueError(
            f"{spec!r} holds both a full model ({full[0]}) and a PEFT adapter ({adapters[0]}): "
            "move one of them, with its configuration, to a directory of its own"
        )
    if has_settings or adapters:
        left = settings if has_settings else adapters[0]
        warnings.warn(
            f"{spec!r} holds a full model ({full[0]}), which is taken, and {left} of an adapter "
            "that is not complete",
            stacklevel=4,
        )
    return False


def check_adapter_weights(spec: str, directory: Path, *, allow_pickle: bool) -> None:
    """Raise ValueError unless a directory holds an adapter's weights in a form that is allowed."""
    _check_form(spec, directory, ADAPTER, allow_pickle=allow_pickle)


def list_weights(
    spec: str, directory: Path, *, allow_pickle: bool
) -> tuple[list[Path], list[Path]]:
    """List the files of a full model's weights, and others that could be taken for them.

    Args:
        spec: what the checkpoint is called in an error.
        directory: the checkpoint.
        allow_pickle: take pickles where there are no safetensors.

    Returns:
        The files that are read, as transformers chooses them (one whole file before shards), and
        those of another save: shards beside a whole file, or that no index names.

    Raises:
        ValueError: there are none, or none that is allowed, or an index is damaged.
    """
    _check_form(spec, directory, FULL, allow_pickle=allow_pickle)
    present = _find_present(directory, FULL)
    same_form = [name for name in present if "safetensors" in name] or present
    index = next((name for name in same_form if name in SHARD), None)
    named = [directory / name for name in _read_index(directory / index)] if index else []
    taken = named if same_form[0] in SHARD else [directory / same_form[0]]
    for file in taken:
        if not file.is_file():
            raise ValueError(f"{spec!r} lacks {file.name}, or it is no file")
    shards = _list_shards(directory, INDEX if "safetensors" in same_form[0] else PICKLE_INDEX)
    others = [file for file in dict.fromkeys([*named, *shards]) if file not in taken]
    return taken, [file for file in others if file.is_file()]


def _check_form(spec: str, directory: Path, names: tuple[str, ...], *, allow_pickle: bool) -> None:
    present = _find_present(directory, names)
    if not present:
        raise ValueError(f"{spec!r} holds no weights: {_explain_absence(directory, names[0])}")
    if not allow_pickle and not any("safetensors" in name for name in present):
        raise ValueError(
            f"{spec!r} holds its weights as a pickle, which can run code when opened: save it as "
            "safetensors, or pass allow_pickle=True if you trust it"
        )


def _explain_absence(directory: Path, wanted: str) -> str:
    """Say what stands where the weights should be, and what makes weights of it."""
    for entry in list_files(directory, "*"):
        name = entry.name
        if re.fullmatch(r"global_step\d+", name) and entry.is_dir():
            return (
                f"{name} holds a DeepSpeed engine's shards, which the zero_to_fp32.py beside them "
                "makes a model of (python zero_to_fp32.py . . --safe_serialization)"
            )
        if entry.is_dir() and (
            name.startswith("pytorch_model_fsdp") or any(entry.glob("*.distcp"))
        ):
            return (
                f"{name} holds FSDP's shards, which `accelerate merge-weights` makes a model of "
                f"(accelerate merge-weights {name} .)"
            )
        if name == "pytorch_model_fsdp.bin":
            return f"{name} holds FSDP's state: save it under the name {PICKLE} for transformers"
        if entry.suffix == ".gguf":
            return f"give the GGUF file in it, {str(entry)!r}"
        if re.fullmatch(r"consolidated.*\.(pth|safetensors)", name):
            return f"{name} is in the format of its makers: convert it to transformers' first"
        if any(re.fullmatch(pattern, name) for pattern in SHARD.values()):
            index = INDEX if name.endswith("safetensors") else PICKLE_INDEX
            return f"{name} is a shard, and {index} is missing"
    return f"{wanted} is missing"


def _find_present(directory: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if (directory / name).exists()]


def _list_shards(directory: Path, index: str) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if re.fullmatch(SHARD[index], entry.name))


def _read_index(index: Path) -> list[str]:
    """Return the files that an index names, which must lie beside it.

    Raises:
        ValueError: it names anything else.
    """
    ending = index.name.removesuffix(".index.json").rpartition(".")[2]
    try:
        if index.stat().st_size > MAX_INDEX:
            raise ValueError
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (*UNREADABLE, RecursionError):
        names = set()
    for name in names or {""}:
        if not re.fullmatch(rf"[^/\\\0]+\.{ending}", str(name)):
            raise ValueError(
                f"{str(index)!r} is damaged: it must name {ending} files beside it, not "
                f"{str(name)[:40]!r}"
            )
    return sorted(names)
