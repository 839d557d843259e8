"""Tensors in a checkpoint's files: names, shapes and bits, known before memory is taken for them.

Names are those of the model: the path of a wrapper that the weights were saved out of (a compiled,
parallel or PEFT model) is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.modeling_utils import load_state_dict

from interp.models.checkpoint_files import list_weights
from interp.models.gguf import summarize_error
from interp.models.pairs import have_same_bits

WRAPPERS = {
    "_orig_mod",  # torch.compile
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",  # Lightning Fabric
}
"""Parts of a name that wrappers put in, anywhere in it."""

PREFIXES = ("module.", "_module.", "base_model.model.")
"""What wrappers put in front of every name: DistributedDataParallel and DeepSpeed, Opacus, PEFT."""

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Precisions of weights as they are, by their names in safetensors."""

MAX_HEADER = 1 << 25
"""Bytes of names and shapes in a file of safetensors; the largest known have a tenth."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Tensor in a file.

    Attributes:
        file: where it is.
        key: its name there.
        shape: its shape.
        dtype: its precision, by the name in safetensors.
        value: itself, if it was unpickled.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    value: Tensor | None = None

    def read(self) -> Tensor:
        """Read it."""
        if self.value is not None:
            return self.value
        with safe_open(self.file, framework="pt") as opened:
            return opened.get_tensor(self.key)


def find_stored_tensors(
    spec: str, directory: Path, *, allow_pickle: bool
) -> dict[str, StoredTensor]:
    """Find a full model's tensors in a directory, by their names in the model.

    Args:
        spec: what the checkpoint is called in an error.
        directory: the checkpoint.
        allow_pickle: unpickle weights where there are no safetensors; no code is run.

    Raises:
        ValueError: there are none, a file is damaged, or two files say different things.
    """
    taken, others = list_weights(spec, directory, allow_pickle=allow_pickle)
    stored: dict[str, StoredTensor] = {}
    for file in taken:
        for key, tensor in _read_announced(spec, file).items():
            _add(spec, stored, key, tensor)
    for file in others:
        for key, tensor in _read_announced(spec, file).items():
            if key not in stored or not _are_same(stored[key], tensor):
                raise ValueError(
                    f"{spec!r} holds the weights of two saves, {taken[0].name} and {file.name}, "
                    f"which differ in {key}: remove the files of one"
                )
    return _unwrap(spec, stored)


@contextmanager
def open_tensors(stored: Mapping[str, StoredTensor]) -> Iterator[dict[str, Any]]:
    """Open files of tensors; yield tensors by name, as slices that are read when they are used."""
    with ExitStack() as stack:
        opened = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in sorted({tensor.file for tensor in stored.values() if tensor.value is None})
        }
        yield {
            name: opened[tensor.file].get_slice(tensor.key)
            if tensor.value is None
            else tensor.value
            for name, tensor in stored.items()
        }


def _read_announced(spec: str, file: Path) -> dict[str, StoredTensor]:
    if file.suffix != ".safetensors":
        return _unpickle(spec, file)
    try:
        _check_header(file)
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            return {
                key: StoredTensor(
                    file=file, key=key, shape=tuple(part.get_shape()), dtype=part.get_dtype()
                )
                for key, part in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{spec!r} could not be loaded: {file.name}: {summarize_error(error)}"
        ) from error


def _check_header(file: Path) -> None:
    """Raise ValueError if a file's header is none, before it is read into memory."""
    with file.open("rb") as opened:
        start = opened.read(24)
    if start == b"version https://git-lfs.":
        raise ValueError("a pointer of Git LFS, which `git lfs pull` replaces by the weights")
    if (size := int.from_bytes(start[:8], "little")) > MAX_HEADER:
        raise ValueError(f"its header announces {size} bytes, and at most {MAX_HEADER} are read")


def _unpickle(spec: str, file: Path) -> dict[str, StoredTensor]:
    """Read a pickled state dict; only tensors and plain containers are made of what it says."""
    try:
        written = load_state_dict(str(file), weights_only=True)
    except Exception as error:
        # Of whatever class: the file says what goes wrong. torch's own sentence advises to run it.
        raise ValueError(
            f"{spec!r} could not be loaded: {file.name} is damaged or holds more than tensors "
            f"({type(error).__name__}), and no code in it is run: save the model as safetensors"
        ) from error
    if not isinstance(written, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) and not value.is_meta
        for key, value in written.items()
    ):
        raise ValueError(
            f"{spec!r} could not be loaded: {file.name} must hold a state dict, tensors by name, "
            "as model.state_dict() returns it"
        )
    names = {dtype: name for name, dtype in FLOATS.items()}
    return {
        key: StoredTensor(
            file=file,
            key=key,
            shape=tuple(value.shape),
            dtype=names.get(value.dtype, str(value.dtype)),
            value=value,
        )
        for key, value in written.items()
    }


def _add(spec: str, stored: dict[str, StoredTensor], name: str, tensor: StoredTensor) -> None:
    """Add a tensor unless one of its name is there; one with other bits is refused."""
    known = stored.setdefault(name, tensor)
    if known is not tensor and not _are_same(known, tensor):
        raise ValueError(
            f"{spec!r} holds two tensors for {name}, {known.key} in {known.file.name} and "
            f"{tensor.key} in {tensor.file.name}, which differ: remove one"
        )


def _are_same(left: StoredTensor, right: StoredTensor) -> bool:
    return (left.shape, left.dtype) == (right.shape, right.dtype) and have_same_bits(
        left.read(), right.read()
    )


def _unwrap(spec: str, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Leave what wrappers put into names out of them, and say so."""
    paths = {
        key: ".".join(part for part in key.split(".") if part not in WRAPPERS) for key in stored
    }
    left_out = {part for key in stored for part in key.split(".") if part in WRAPPERS}
    while prefix := _find_common(list(paths.values())):
        left_out.add(prefix)
        paths = {key: name.removeprefix(prefix) for key, name in paths.items()}
    if not left_out:
        return dict(stored)
    warnings.warn(
        f"the names of {spec!r}'s weights are those of a wrapped model: "
        f"{', '.join(repr(part) for part in sorted(left_out))} is left out of them",
        stacklevel=6,
    )
    named: dict[str, StoredTensor] = {}
    for key, name in paths.items():
        _add(spec, named, name, stored[key])
    return named


def _find_common(names: Sequence[str]) -> str | None:
    return next(
        (prefix for prefix in PREFIXES if names and all(n.startswith(prefix) for n in names)),
        None,
    )
