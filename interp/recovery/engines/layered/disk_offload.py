"""Disk offload of rows that wait for their next layer: memory first, then CPU or disk."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Mapping
from typing import BinaryIO

import torch
from torch import Tensor

from interp.recovery.batches import send

Rows = tuple[Tensor, ...]
"""Residual stream of a row in every segment, [batch, pos, d_model] each."""


class OffloadedRows:
    """Rows of one pass, by name. Those without room wait on disk; a GPU's on the CPU.

    A row is read and written once per layer, which takes little time beside running the layer. The
    file is one without a name in the directory for temporary files (`TMPDIR`); it goes with the
    `with` block, or with a process that is killed.
    """

    def __init__(self, room: int) -> None:
        """Start empty.

        Args:
            room: bytes that rows may take where they are computed.
        """
        self._room = room
        self._here: dict[Hashable, Rows] = {}
        self._on_cpu: dict[Hashable, tuple[Rows, torch.device]] = {}
        self._on_disk: dict[Hashable, tuple[Rows, int]] = {}
        self._file: BinaryIO | None = None
        # Where rows stood in the file that were dropped: all are of one size.
        self._free: list[int] = []
        self._end = 0

    def __enter__(self) -> OffloadedRows:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._file is not None:
            self._file.close()

    def put(self, rows: Mapping[Hashable, Rows]) -> None:
        """Keep rows that were computed together: all of them here, or none."""
        size = sum(map(_count_bytes, rows.values()))
        if size <= self._room:
            self._room -= size
            self._here.update(rows)
            return
        for name, row in rows.items():
            if row[0].device.type == "cpu":
                self._write(name, row)
            else:
                # Nobody waits: the device copies a row out before it copies it back.
                parts = tuple(part.to("cpu", non_blocking=True) for part in row)
                self._on_cpu[name] = parts, row[0].device

    def get(self, name: Hashable) -> Rows:
        """Return a row on the device where it was computed."""
        if name in self._here:
            return self._here[name]
        if name in self._on_cpu:
            parts, device = self._on_cpu[name]
            return tuple(send(part, device) for part in parts)
        return self._read(name)

    def drop(self, name: Hashable) -> None:
        """Forget a row."""
        if name in self._here:
            self._room += _count_bytes(self._here.pop(name))
        elif name in self._on_disk:
            self._free.append(self._on_disk.pop(name)[1])
        else:
            del self._on_cpu[name]

    def _write(self, name: Hashable, row: Rows) -> None:
        if self._file is None:
            # Closed at the end of the block.
            self._file = tempfile.TemporaryFile(prefix="interp-")  # noqa: SIM115
        if self._free:
            place = self._free.pop()
        else:
            place, self._end = self._end, self._end + _count_bytes(row)
        self._file.seek(place)
        for part in row:
            self._file.write(_view_bytes(part.contiguous()))
        # Tensors without numbers tell the shapes.
        self._on_disk[name] = tuple(part.to("meta") for part in row), place

    def _read(self, name: Hashable) -> Rows:
        shapes, place = self._on_disk[name]
        assert self._file is not None
        self._file.seek(place)
        row = tuple(torch.empty_like(shape, device="cpu") for shape in shapes)
        for part in row:
            if self._file.readinto(_view_bytes(part)) < part.nbytes:  # pyright: ignore[reportAttributeAccessIssue]
                raise OSError(
                    "the temporary file is shorter than what was written to it; run the sweep again"
                )
        return row


def _count_bytes(row: Rows) -> int:
    return sum(part.nbytes for part in row)


def _view_bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
