"""What git keeps of a study or of the demo: small pictures, findings, and tables under 100 kB.

    python scripts/publish.py runs/dissect-full figures/dissect

1. Pictures get at most 1,600 pixels of width and 256 colours.
2. Numbers in tables get six significant digits. Of a table that is still over 100 kB, `answers`
   keeps every n-th row, `answer_language` the false facts, and any other is left in the run
   directory.
3. `study.json` lists what was kept, with the pictures' captions, so that `interp report` makes its
   page of tables and findings from it; with the interactive figures, from the run directory.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from PIL import Image

from interp.tables import format_rows, quote_cell, read_cells

WIDTH = 1600
"""Pixels: twice the width of a page of documentation."""

MOST_BYTES = 100_000
"""Of a table."""

SAMPLED = "answers"
"""The table whose rows stand for themselves, so that some of them are worth having."""

FAKE_ONLY = "answer_language"
"""The table of which the rows about false facts are what the paper shows."""

_LONG_NUMBER = re.compile(r"-?\d+\.\d{6,}(e[+-]?\d+)?")


def publish(source: Path, target: Path) -> None:
    """Copy what git keeps of a directory; what the target held before is removed."""
    shutil.rmtree(target, ignore_errors=True)
    study = source / "study.json"
    pictures = target / "figures" if study.is_file() else target
    pictures.mkdir(parents=True)
    for path in sorted((source / "figures").glob("*.png")):
        compress(path, pictures / path.name)
    if study.is_file():
        (target / "tables").mkdir()
        for path in sorted((source / "tables").glob("*.csv")):
            if text := shorten(path):
                (target / "tables" / path.name).write_text(text, encoding="utf-8")
        shutil.copy(source / "findings.md", target)
        write_index(study, target)
    elif (source / "accuracy.csv").is_file():
        shutil.copy(source / "accuracy.csv", target)


def compress(source: Path, target: Path) -> None:
    """Write a picture no wider than `WIDTH`, in a palette of 256 colours."""
    picture = Image.open(source).convert("RGB")
    if picture.width > WIDTH:
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    # A palette that covers all colours: one by medians loses the rare end of a colour scale.
    small = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(target, "PNG", optimize=True)


def shorten(path: Path) -> str:
    """Return a table of at most `MOST_BYTES`, or "" if only its rows' loss would make it so."""
    read = read_cells(path.read_bytes().decode("utf-8"), str(path))
    header, *rows = ([_rounded(*cell) for cell in cells] for _, cells in read)
    if path.stem == FAKE_ONLY:
        concept = header.index("concept")
        rows = [row for row in rows if row[concept] == "fake"]
    step = 1
    while len((text := format_rows([header, *rows[::step]])).encode()) > MOST_BYTES:
        if path.stem != SAMPLED:
            return ""
        step += 1
    return text


def write_index(study: Path, target: Path) -> None:
    """Write study.json for what the target has; captions of pictures move to `pictures`."""
    index = json.loads(study.read_text(encoding="utf-8"))
    kept = {path.stem for path in (target / "tables").iterdir()}
    index["tables"] = {name: text for name, text in index["tables"].items() if name in kept}
    index["pictures"], index["figures"] = index["figures"], {}
    text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
    (target / "study.json").write_text(text, encoding="utf-8")


def _rounded(cell: str, quoted: bool) -> str:
    if quoted:
        return quote_cell(cell)
    return f"{float(cell):.6g}" if _LONG_NUMBER.fullmatch(cell) else cell


if __name__ == "__main__":
    publish(Path(sys.argv[1]), Path(sys.argv[2]))
