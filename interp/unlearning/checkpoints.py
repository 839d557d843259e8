"""Checkpoints: models as Hugging Face directories with a card, and the state of a run.

A directory is complete or not there at all. The state of a run under way is one file, written anew
after every evaluation: trained weights, the optimiser's moments and the history.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from interp.files import write_atomically, write_folder_atomically
from interp.models.language_model import LanguageModel

CARD = "unlearning.json"
STATE = "training_state.safetensors"

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

    with _raise_os_errors(target):
        write_folder_atomically(target, write)
    return target


def save_state(
    path: Path,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
) -> None:
    """Write the state of a run: `progress` is JSON, such as the step and the history."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        tensors[f"parameter/{name}"] = parameter.detach().contiguous()
        for moment in _MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment].contiguous()
    metadata = {"progress": json.dumps(progress)}
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
) -> None:
    """Put the state of a run back into its parameters and its optimiser.

    Args:
        path: the file.
        trained: parameters by name.
        optimizer: AdamW over these parameters.
        step: how many steps it has taken.

    Raises:
        ValueError: the file is damaged, or of other parameters.
    """
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(file.get_tensor(f"parameter/{name}"))
                if step:
                    optimizer.state[parameter] = {"step": torch.tensor(float(step))} | {
                        moment: file.get_tensor(f"{moment}/{name}").to(parameter.device)
                        for moment in _MOMENTS
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


def _damaged_file_error(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged: delete it, and the run begins anew")
