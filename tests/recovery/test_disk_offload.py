"""Rows that wait for their next layer come back as they were, wherever they waited."""

from __future__ import annotations

import os

import pytest
import torch

from interp.recovery.engines import layered
from interp.recovery.engines.layered.disk_offload import OffloadedRows
from interp.recovery.engines.layered.row_budget import RowBudget
from interp.recovery.sites import NOTHING, make_windows
from tests.helpers.tiny_models import mixed_trajectories, tiny_pair


def rows_of(count: int, dtype: torch.dtype = torch.float32) -> dict:
    """Rows of two segments, cut from one tensor each, of 10 numbers altogether."""
    first = torch.randn(count, 2, 3).to(dtype).split(1)
    second = torch.randn(4, count, 1).to(dtype).transpose(0, 1).split(1)
    return dict(enumerate(zip(first, second, strict=True)))


def file_size(shelf: OffloadedRows) -> int:
    return 0 if shelf._file is None else os.fstat(shelf._file.fileno()).st_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("room", [0, 100, 1 << 20])
def test_rows_come_back(dtype, room):
    rows = rows_of(5, dtype)
    with OffloadedRows(room) as shelf, torch.inference_mode():
        shelf.put(rows)
        for name, row in rows.items():
            found = shelf.get(name)
            assert [part.dtype for part in found] == [dtype, dtype]
            assert all(map(torch.equal, found, row))


def test_rows_wait_on_disk_only_where_there_is_no_room():
    """Rows of 40 bytes, room for three: two stay, of the next two both go, one more stays."""
    rows = rows_of(5)
    with OffloadedRows(120) as shelf:
        shelf.put({name: rows[name] for name in (0, 1)})
        assert file_size(shelf) == 0
        shelf.put({name: rows[name] for name in (2, 3)})
        shelf.get(2)
        assert file_size(shelf) == 80
        shelf.put({4: rows[4]})
        assert shelf.get(4) is rows[4]
        assert file_size(shelf) == 80


def test_dropped_rows_make_room():
    rows = rows_of(5)
    with OffloadedRows(80) as shelf:
        shelf.put({name: rows[name] for name in (0, 1)})
        shelf.put({2: rows[2]})
        shelf.drop(0)
        shelf.put({3: rows[3]})
        assert shelf.get(3) is rows[3]
        shelf.drop(2)
        # Where row 2 was in the file.
        shelf.put({4: rows[4]})
        assert all(map(torch.equal, shelf.get(4), rows[4]))
        assert file_size(shelf) == 40
        with pytest.raises(KeyError):
            shelf.get(0)
        with pytest.raises(KeyError):
            shelf.get(2)


def test_the_file_has_no_name_and_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with OffloadedRows(0) as shelf:
        shelf.put(rows_of(1))
        assert not list(tmp_path.iterdir())
        file = shelf._file
    assert file.closed


def test_what_the_file_lost_is_no_row():
    with OffloadedRows(0) as shelf:
        shelf.put(rows_of(2))
        shelf.get(0)
        shelf._file.truncate(50)
        with pytest.raises(OSError, match="shorter than what was written"):
            shelf.get(1)


@pytest.mark.parametrize("num_bytes", [0, 2_000, 6_000])
def test_a_pass_whose_rows_wait_outside(num_bytes, monkeypatch):
    pair, items = tiny_pair(), mixed_trajectories(3)
    restorations = [NOTHING, *make_windows("coef", num_layers=5, window=3)]
    expected = layered.measure(pair, items, restorations).losses
    written = []
    write = OffloadedRows._write
    monkeypatch.setattr(
        OffloadedRows,
        "_write",
        lambda self, name, row: (written.append(name), write(self, name, row)),
    )
    budget = RowBudget(chunk_tokens=100, bytes=num_bytes)
    found = layered.measure(pair, items, restorations, budget=budget).losses
    assert written
    torch.testing.assert_close(found, expected)
