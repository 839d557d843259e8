"""Tables as CSV files that give back every text, number and missing number.

Texts that look like numbers stand in quotes, and so do those with a carriage return, which pandas
writes bare and then reads as the end of a row. What is in quotes is text when it is read; `007`,
`1e3`, `NA` and `nan` are texts without them, too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from interp.files import write_atomically

_CELL = r'"((?:[^"]|"")*)"|([^"{sep}\r\n][^{sep}\r\n]*)?'
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:e[+-]\d\d+)?|-?inf")
_WHOLE_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)")
_TRUTH = {"True": True, "False": False}

Cell = tuple[str, bool]
"""Text of a cell, and whether it stands in quotes."""


def write_csv(path: str | PathLike[str], table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all: UTF-8, a header, commas, no index."""
    columns = [_format_column(table.iloc[:, place]) for place in range(table.shape[1])]
    header = [_quote(str(name)) for name in table.columns]
    text = format_rows([header, *zip(*columns, strict=True)])
    write_atomically(Path(path), lambda scratch: scratch.write_bytes(text.encode("utf-8")))


def format_rows(rows: Iterable[Sequence[str]]) -> str:
    """Format rows of cells, each in quotes where it needs them, as the text of a file."""
    # An empty line would be no row.
    return "".join((",".join(cells) or '""') + "\n" for cells in rows)


def quote_cell(text: str) -> str:
    """Put a cell's text into quotes."""
    return '"' + text.replace('"', '""') + '"'


def read_csv(path: str | PathLike[str], *, texts: Collection[str] = ()) -> pd.DataFrame:
    """Read a table as it was written; also one that pandas or a spreadsheet wrote.

    A column is of numbers if each cell with something in it is a number as Python writes it,
    without quotes; a cell with nothing in it is then NaN. In all other columns it is an empty text.

    Args:
        path: the file.
        texts: columns that are texts whatever they look like, in files without quotes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, or no table (named by file and row).
    """
    path = Path(path)
    rows = read_cells(path.read_bytes().decode("utf-8-sig"), str(path))
    if not rows:
        return pd.DataFrame()
    (_, header), *others = rows
    names = [text for text, _ in header]
    columns: list[tuple[Cell, ...]] = [()] * len(names)
    if others:
        columns = list(zip(*(cells for _, cells in others), strict=True))
    return pd.DataFrame(
        {
            place: pd.Series([text for text, _ in column], dtype=str)
            if names[place] in texts
            else _parse_column(column)
            for place, column in enumerate(columns)
        },
        columns=list(range(len(names))),
    ).set_axis(names, axis="columns")


def read_cells(text: str, name: str, *, separator: str = ",") -> list[tuple[str, list[Cell]]]:
    """Cut a text into rows of cells, each with its place as an error names it.

    Raises:
        ValueError: rows of different lengths, or a quotation mark without its other.
    """
    cell = re.compile(_CELL.replace("{sep}", re.escape(separator)))
    rows: list[tuple[str, list[Cell]]] = []
    line = 1
    position = 0
    while position < len(text):
        cells: list[Cell] = []
        where = f"{name}, line {line}"
        while True:
            match = cell.match(text, position)
            assert match is not None
            quoted = match[1] is not None
            cells.append((match[1].replace('""', '"') if quoted else match[2] or "", quoted))
            position = match.end()
            ahead = text[position : position + 1]
            if ahead not in ("", separator, "\n", "\r"):
                raise ValueError(f"{where}: a quotation mark does not stand around a whole cell")
            position += 1
            if ahead != separator:
                break
        if ahead == "\r" and text[position : position + 1] == "\n":
            position += 1
        line += 1 + sum(_count_lines(content) for content, _ in cells)
        if cells == [("", False)]:
            continue
        if rows and len(cells) != len(rows[0][1]):
            raise ValueError(f"{where}: {len(cells)} cells, and the header has {len(rows[0][1])}")
        rows.append((where, cells))
    return rows


def _count_lines(text: str) -> int:
    return len(re.findall("\r\n|\r|\n", text))


def _format_column(column: pd.Series) -> list[str]:
    values = column.tolist() if column.dtype == object else list(column)
    # Without any quotes a column of empty texts could be one of missing numbers.
    empty = '""' if {value for value in values if isinstance(value, str)} == {""} else ""
    return [_format(value, empty) for value in values]


def _format(value: Any, empty: str) -> str:
    if isinstance(value, str):
        return _quote(str(value)) if value else empty
    if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)):
        return ""
    text = str(value)
    return text if pd.api.types.is_bool(value) or _NUMBER.fullmatch(text) else _quote(text)


def _quote(text: str) -> str:
    looks_else = _NUMBER.fullmatch(text) or text in _TRUTH or text.strip() != text
    if looks_else or re.search('[",\r\n\ufeff]', text) or _reads_as_number(text):
        return quote_cell(text)
    return text


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse_column(cells: tuple[Cell, ...]) -> pd.Series:
    given = [text for text, quoted in cells if text or quoted]
    if any(quoted for _, quoted in cells):
        return pd.Series([text for text, _ in cells], dtype=str)
    if given and len(given) == len(cells) and all(text in _TRUTH for text in given):
        return pd.Series([_TRUTH[text] for text in given], dtype=bool)
    if not all(_NUMBER.fullmatch(text) for text in given):
        return pd.Series([text for text, _ in cells], dtype=str)
    if cells and len(given) == len(cells) and all(map(_WHOLE_NUMBER.fullmatch, given)):
        whole = [int(text) for text in given]
        if all(-(2**63) <= number < 2**63 for number in whole):
            return pd.Series(whole, dtype="int64")
        return pd.Series(given, dtype=str)
    return pd.Series([float(text) if text else float("nan") for text, _ in cells], dtype=float)
