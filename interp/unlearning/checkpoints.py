"""Checkpoints: models as Hugging Face directories with a card, and the state of a run.

A directory is complete or not there at all, and has the digests of its files, which are compared
when it is loaded. The state of a run under way is one file, written anew
after every evaluation: trained weights, the optimiser's moments and the history, with a digest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from interp.files import compute_digest, write_atomically, write_digests, write_folder_atomically
from interp.models.language_model import LanguageModel

CARD = "unlearning.json"
STATE = "training_state.safetensors"

DIGEST = "digest"
"""Entry of a state's metadata, and of a card, with the digest of all else in it."""

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """LoRA adapter.

    Attributes:
        config: peft's LoraConfig.
        tensors: its weights, under the names that peft gives them in a file.
    """

    config: Any
    tensors: Mapping[str, Tensor]


def save(
    model: LanguageModel,
    directory: str | os.PathLike[str],
    *,
    card: Mapping[str, object],
    adapter: Adapter | None = None,
) -> Path:
    """Write a model as a Hugging Face directory with a card, complete or not at all.

    Args:
        model: what to save; its tokenizer goes along.
        directory: where to; replaced if it exists.
        card: how the model came about, written to `unlearning.json`.
        adapter: if given, it is written instead of the model, as a PEFT directory.

    Raises:
        OSError: it cannot be written there, as on a disk that is full; what was there stays.
    """
    target = Path(directory)

    def write(folder: Path) -> None:
        if adapter is None:
            model.model.save_pretrained(folder)
        else:
            adapter.config.save_pretrained(folder)
            save_file(dict(adapter.tensors), folder / "adapter_model.safetensors")
        model.tokenizer.save_pretrained(folder)
        text = json.dumps(card, ensure_ascii=False, indent=2)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")
        write_digests(folder)

    with _raise_os_errors(target):
        write_folder_atomically(target, write)
    return target


def save_state(
    path: Path,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
    *,
    good: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write the state of a run: `progress` is JSON, such as the step and the history.

    `good` are weights of the same parameters that the run may go back to, if it keeps any.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        tensors[f"parameter/{name}"] = parameter.detach().contiguous()
        for moment in _MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment].contiguous()
        if name in good:
            tensors[f"good/{name}"] = good[name].contiguous()
    text = json.dumps(progress)
    metadata = {"progress": text, DIGEST: compute_digest([text, _hash_tensors(tensors)])}
    with _raise_os_errors(path):
        write_atomically(path, lambda scratch: save_file(tensors, scratch, metadata=metadata))


@contextmanager
def _raise_os_errors(target: Path) -> Iterator[None]:
    """Raise OSError where safetensors cannot write, as on a disk that is full."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{str(target)!r} could not be written: {error}") from error


def load_state(
    path: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int
) -> dict[str, Tensor]:
    """Put the state of a run back into its parameters and its optimiser.

    Args:
        path: the file.
        trained: parameters by name.
        optimizer: AdamW over these parameters.
        step: how many steps it has taken.

    Returns:
        The weights that it may go back to; empty if it kept none.

    Raises:
        ValueError: the file is damaged, or of other parameters.
    """
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            _check_state(path, file)
            for name, parameter in trained.items():
                parameter.copy_(file.get_tensor(f"parameter/{name}"))
                if step:
                    optimizer.state[parameter] = {"step": torch.tensor(float(step))} | {
                        moment: file.get_tensor(f"{moment}/{name}").to(parameter.device)
                        for moment in _MOMENTS
                    }
            held = set(file.keys())
            return {
                name: file.get_tensor(f"good/{name}").to(parameter.device)
                for name, parameter in trained.items()
                if f"good/{name}" in held
            }
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _damaged_file_error(path) from error


def read_progress(path: Path) -> dict[str, Any]:
    """Return what `save_state` was given as progress.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            _check_state(path, file)
            progress = json.loads(file.metadata()["progress"])
        if progress.keys() >= {"card", "history", "before"}:
            return progress
    except (
        SafetensorError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        pass
    raise _damaged_file_error(path)


def _check_state(path: Path, file: Any) -> None:
    """Compare a state's contents with its digest; those of earlier versions have none."""
    metadata = file.metadata()
    if DIGEST in metadata:
        hashes = _hash_tensors(file)
        if metadata[DIGEST] != compute_digest([metadata["progress"], hashes]):
            raise _damaged_file_error(path)


def _hash_tensors(tensors: Any) -> list[list[object]]:
    """Hash tensors one by one, of a mapping or an open file (about a second per GB)."""
    read = getattr(tensors, "get_tensor", None) or tensors.__getitem__
    rows = []
    for name in sorted(tensors.keys()):
        tensor = read(name)
        data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest = hashlib.sha256(data).hexdigest()
        rows.append([name, str(tensor.dtype), list(tensor.shape), digest])
    return rows


def _damaged_file_error(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged: delete it, and the run begins anew")
