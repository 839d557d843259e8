"""The header of a GGUF file: its values and the list of its tensors, read within the file's bounds.

The libraries that read these files go on over the end of a damaged one for as long as a length in
it says, and know their own part of the keys. This reader takes every key, and no more than there
is. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

Value = int | float | bool | str | list[int | float | bool]

# The types of values, by the numbers that the format gives them.
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# A type of tensors.
_FLOAT32 = 0

# A setting per layer is shorter, a vocabulary longer.
_LONGEST_LIST = 4096


@dataclass(frozen=True)
class Tensor:
    """A tensor's shape (the fastest axis first), its type's number and where its data begin."""

    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def size(self) -> int:
        """The number of its entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file announces.

    Attributes:
        file: the file.
        order: its byte order, as `struct` writes it.
        values: by key; lists of strings and lists of more than 4,096 entries are left out.
        tensors: by name.
        start_of_data: where the tensors' data begin.
    """

    file: Path
    order: str
    values: dict[str, Value]
    tensors: dict[str, Tensor]
    start_of_data: int

    @property
    def architecture(self) -> str:
        """The model's architecture, with which the keys of its settings begin."""
        return str(self.values.get("general.architecture", ""))

    @property
    def settings(self) -> dict[str, Value]:
        """The architecture's own settings, by what follows its name."""
        start = f"{self.architecture}."
        return {k.removeprefix(start): v for k, v in self.values.items() if k.startswith(start)}

    def get_number(self, key: str, default: float = 0.0) -> float:
        """Return one of the architecture's settings; the default where it is left out.

        Raises:
            ValueError: it is no number.
        """
        value = self.settings.get(key, default)
        if not isinstance(value, int | float):
            raise ValueError(f"its setting {key} = {value!r} is no number")
        return value

    def read_floats(self, name: str) -> np.ndarray:
        """Read a tensor that is kept in float32.

        Returns:
            its numbers in float64, `[size]`.

        Raises:
            ValueError: it is kept in another type, or lies beyond the end of the file.
        """
        tensor = self.tensors[name]
        if tensor.type != _FLOAT32:
            raise ValueError(f"its tensor {name!r} is not in float32")
        with self.file.open("rb") as opened:
            opened.seek(self.start_of_data + tensor.offset)
            data = _read(opened, 4 * tensor.size, os.fstat(opened.fileno()).st_size)
        return np.frombuffer(data, dtype=f"{self.order}f4").astype(np.float64)


def read_header(file: Path) -> Header:
    """Read a file's header.

    Raises:
        ValueError, struct.error: it is damaged.
    """
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        _, version = struct.unpack("<II", opened.read(8))
        # As the format's own reader recognises the byte order.
        order = "<" if version & 0xFFFF else ">"

        def number(form: str) -> int:
            form = order + form
            return struct.unpack(form, opened.read(struct.calcsize(form)))[0]

        def text() -> str:
            return _read(opened, number("Q"), size).decode("utf-8", errors="replace")

        def value(kind: int) -> Value | None:
            if kind == _STRING:
                return text()
            if kind == _ARRAY:
                return array(number("I"), number("Q"))
            if kind not in _FORMS:
                raise ValueError(f"a value of its header is of the unknown type {kind}")
            return number(_FORMS[kind])

        def array(kind: int, count: int) -> Value | None:
            if kind in _FORMS:
                form = f"{order}{count}{_FORMS[kind]}"
                data = _read(opened, count * struct.calcsize(order + _FORMS[kind]), size)
                return list(struct.unpack(form, data)) if count <= _LONGEST_LIST else None
            for _ in range(count):
                if kind == _STRING:
                    _read(opened, number("Q"), size)
                else:
                    value(kind)
            return None

        num_tensors, num_values = number("Q"), number("Q")
        values, tensors = {}, {}
        for _ in range(num_values):
            key = text()
            found = value(number("I"))
            if found is not None:
                values[key] = found
        for _ in range(num_tensors):
            name = text()
            shape = tuple(number("Q") for _ in range(number("I")))
            tensors[name] = Tensor(shape, type=number("I"), offset=number("Q"))
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"its tensors are aligned to {alignment!r} bytes")
        start_of_data = -(-opened.tell() // alignment) * alignment
    return Header(file, order, values, tensors, start_of_data)


def refuse_setting(key: str, value: Value) -> ValueError:
    """Return the error for a setting that no configuration can hold."""
    return ValueError(f"its setting {key} = {value!r} cannot be taken over")


def _read(opened: BinaryIO, num_bytes: int, size: int) -> bytes:
    if opened.tell() + num_bytes > size:
        raise ValueError("the file ends within its header")
    return opened.read(num_bytes)
