"""Rows from JSON, tables, plain lines and the Hub, with the place of each for errors."""

import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from interp.tables import read_cells

Source = str | PathLike[str]

MAX_LINE_BYTES = 16 * 2**20
"""Longest line that is parsed; no data set has entries of more."""

_SEPARATORS = {".csv": ",", ".tsv": "\t"}

_NOT_READ: Mapping[str, tuple[bytes | tuple[bytes, ...], str]] = {
    "compressed": ((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"), "unpack it first"),
    "a spreadsheet or an archive": (b"PK\x03\x04", "export the sheet as CSV, or unpack it first"),
    "UTF-16 text": ((b"\xff\xfe", b"\xfe\xff"), "save it as UTF-8"),
}
"""Kinds of files that are not read: how they begin, and what to do."""

_HUB = re.compile(
    r"hub:(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?"
    r"(:(?P<config>[\w./-]+))?(:(?P<split>[\w.-]+))?"
)


def read_rows(source: Source) -> list[tuple[str, dict[str, Any]]]:
    """Read the rows of a source, each with its place as an error names it.

    A file is JSON Lines, a JSON array or object, whatever its name (`{"data": [...]}` holds its
    rows), Parquet, or by its ending CSV or TSV, whose cells are texts and lacking where nothing is
    in them. From the Hub: `hub:OWNER/NAME[@REVISION][:CONFIG][:SPLIT]`, read with the package
    `datasets`; a CONFIG that ends in .json or .jsonl is a file in the repository, SPLIT is `train`
    if not given.

    Raises:
        ValueError: the source is missing, malformed or empty (file, line and field named).
        ImportError: a Hub name without the package `datasets`.
    """
    if str(source).startswith("hub:"):
        entries = _read_hub_rows(str(source))
    else:
        path = _check_exists(source)
        entries = _read_file_rows(path)
    rows = []
    for where, row in entries:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a JSON object is needed, not {_name_type(row)}")
        rows.append((where, row))
    if not rows:
        raise ValueError(f"{source} holds no entries")
    return rows


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Read the lines of a text file without their ends, each with its place; empty lines stay."""
    lines = []
    for where, raw in _read_raw_lines(path):
        line = _decode(raw, where).strip()
        lines.append((where, check_text(line, where, "sentence") if line else ""))
    if not any(line for _, line in lines):
        raise ValueError(f"{path} holds no entries")
    return lines


def get_stem(source: Source) -> str:
    """Return the name of a source without folders and ending, for ids."""
    if hub := _HUB.fullmatch(str(source)):
        source = hub["config"] or hub["name"]
    return re.sub(r"\.(jsonl?|csv|tsv|parquet)$", "", Path(source).name)


def require_field(row: Mapping[str, Any], field: str, where: str) -> Any:
    """Return the value of a field, which must be there."""
    if row.get(field) is None:
        raise ValueError(f"{where}: the field {field!r} is missing")
    return row[field]


def check_text(value: object, where: str, field: str) -> str:
    """Return a field's value, which must be text, not empty and encodable as UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {field!r} must be text, not {_name_type(value)}")
    if not value.strip():
        raise ValueError(f"{where}: {field!r} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{where}: {field!r} holds half of a surrogate pair") from None
    return value


def check_texts(value: object, where: str, field: str) -> tuple[str, ...]:
    """Return a field's value, which must be a list of at least one text."""
    return tuple(check_text(entry, where, field) for entry in check_list(value, where, field))


def check_list(value: object, where: str, field: str) -> list[Any]:
    """Return a field's value, which must be a list that is not empty."""
    if not isinstance(value, list):
        raise ValueError(f"{where}: {field!r} must be a list, not {_name_type(value)}")
    if not value:
        raise ValueError(f"{where}: {field!r} is empty")
    return value


def check_object(value: object, where: str, field: str) -> dict[str, Any]:
    """Return a field's value, which must be an object, by language or by name."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {field!r} must be an object, not {_name_type(value)}")
    return value


def check_count(value: object, where: str, field: str) -> int:
    """Return a field's value, which must be a whole number from 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(
            f"{where}: {field!r} must be a whole number from 0, not {reprlib.repr(value)}"
        )
    return value


def _check_exists(source: Source) -> Path:
    path = Path(source)
    if not path.is_file():
        raise ValueError(
            f"no data file {str(source)!r}; give the path of a file, or a Hub name as "
            "hub:OWNER/NAME:CONFIG:SPLIT"
        )
    return path


def _read_raw_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(raw) > MAX_LINE_BYTES:
                raise ValueError(f"{where}: longer than {MAX_LINE_BYTES // 2**20} MiB")
            yield where, raw


def _read_line_rows(path: Path) -> Iterator[tuple[str, object]]:
    for where, raw in _read_raw_lines(path):
        if raw.strip():
            yield where, _parse(_decode(raw.rstrip(), where), where)


def _read_file_rows(path: Path) -> Iterator[tuple[str, object]]:
    with path.open("rb") as file:
        start = file.read(1024)
    for kind, (beginnings, advice) in _NOT_READ.items():
        if start.startswith(beginnings):
            raise ValueError(f"{path} is {kind}: {advice}")
    if start.startswith(b"PAR1") or path.suffix == ".parquet":
        return _read_parquet_rows(path)
    if path.suffix in _SEPARATORS:
        return _read_table_rows(path)
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return _read_array_rows(path)
    if (rows := _read_object(path)) is not None:
        return iter(rows)
    return _read_line_rows(path)


def _read_table_rows(path: Path) -> Iterator[tuple[str, object]]:
    text = _decode(path.read_bytes(), str(path))
    header, *rows = read_cells(text, str(path), separator=_SEPARATORS[path.suffix]) or [("", [])]
    names = [name.strip() for name, _ in header[1]]
    if len(names) == 1 and (other := next((sign for sign in ";\t,|" if sign in names[0]), None)):
        raise ValueError(
            f"{path}: its columns are separated by {other!r}; a {path.suffix} file is separated by "
            f"{_SEPARATORS[path.suffix]!r}"
        )
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{path}: duplicate column {reprlib.repr(repeated)}")
    for where, cells in rows:
        yield where, {name: text for name, (text, _) in zip(names, cells, strict=True) if text}


def _read_parquet_rows(path: Path) -> Iterator[tuple[str, object]]:
    # Takes a tenth of a second to import.
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no readable Parquet file: {reason}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, record {number}", row


def _read_object(path: Path) -> list[tuple[str, object]] | None:
    """Read a file that is one JSON object: rows under `data`, or a row written over lines.

    Returns:
        None of JSON Lines, and of what is no JSON: its reader names the line.
    """
    lines = (raw for _, raw in _read_raw_lines(path) if raw.strip(b"\xef\xbb\xbf \t\r\n"))
    first, second = next(lines, b""), next(lines, None)
    is_line = _is_json(first)
    if (is_line and second is not None) or not (is_line or _is_json(path.read_bytes())):
        return None
    row = _parse(_decode(path.read_bytes(), str(path)), str(path), lines=True)
    if isinstance(row, dict) and isinstance(row.get("data"), list):
        return [(f"{path}, record {i}", each) for i, each in enumerate(row["data"], start=1)]
    return None if is_line else [(f"{path}, record 1", row)]


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def _read_array_rows(path: Path) -> Iterator[tuple[str, object]]:
    raw = path.read_bytes()
    try:
        whole_text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text (byte {error.start})") from None
    for number, row in enumerate(_parse(whole_text, str(path), lines=True), start=1):
        yield f"{path}, record {number}", row


def _read_hub_rows(source: str) -> Iterator[tuple[str, object]]:
    parts = _HUB.fullmatch(source)
    if parts is None:
        raise ValueError(
            f"{source!r} is no Hub name; it is written hub:OWNER/NAME[@REVISION][:CONFIG][:SPLIT]"
        )
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise ImportError(
            f"reading {source} needs the package datasets: pip install datasets"
        ) from error
    config = parts["config"]
    is_file = config is not None and config.endswith((".json", ".jsonl"))
    try:
        table = datasets.load_dataset(
            parts["name"],
            name=None if is_file else config,
            data_files=config if is_file else None,
            split=parts["split"] or "train",
            revision=parts["revision"],
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{source} could not be loaded from the Hub: {reason}") from error
    except datasets.exceptions.DatasetsError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{source} cannot be read: {reason}") from error
    for number, row in enumerate(table, start=1):
        yield f"{source}, record {number}", row


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text (byte {error.start})") from None


def _parse(written: str, where: str, *, lines: bool = False) -> Any:
    def no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        row: dict[str, object] = {}
        for key, value in pairs:
            if key in row:
                raise ValueError(f"duplicate field {reprlib.repr(key)}")
            row[key] = value
        return row

    try:
        return json.loads(written, object_pairs_hook=no_repeats)
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}" if lines else where
        raise ValueError(f"{place}: not valid JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise ValueError(f"{where}: not valid JSON (nested too deeply)") from None
    except ValueError as error:
        # A repeated field, or an integer with more digits than Python converts.
        raise ValueError(f"{where}: {str(error).splitlines()[0]}") from None


def _name_type(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
