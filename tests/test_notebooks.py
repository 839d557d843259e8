"""The notebooks run top to bottom, and those that keep their outputs show them without a kernel."""

import ast
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
STORED = ("04_dissect.ipynb", "05_cross_lingual.ipynb")
"""Notebooks that read what stands in figures/."""

KEPT = (*STORED, "06_build_your_own.ipynb")
"""Notebooks with their outputs."""

PLOTLY, PICTURE = "application/vnd.plotly.v1+json", "image/png"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / name, as_version=4)


def shown(notebook: nbformat.NotebookNode) -> list[dict]:
    """What the cells' outputs hold, by kind of data."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [output["data"] for cell in cells for output in cell.outputs if "data" in output]


def changed(notebook: nbformat.NotebookNode, old: str, new: str) -> None:
    """Less of something, for a test."""
    (cell,) = (cell for cell in notebook.cells if old in cell.source)
    cell.source = cell.source.replace(old, new)


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.parametrize("name", KEPT)
def test_every_cell_was_run_in_order_without_an_error(name):
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds
    # No warnings or progress bars either, and no path of the machine that ran it.
    assert "stream" not in kinds
    text = "".join(str(data) for data in shown(read(name)))
    assert "/home/" not in text
    assert "/tmp/" not in text


@pytest.mark.parametrize("name", KEPT)
def test_figures_are_seen_without_a_kernel(name):
    """As a picture in an output, or as one of the study's that stands in figures/."""
    notebook = read(name)
    figures = [data for data in shown(notebook) if PLOTLY in data]
    assert all(data.get(PICTURE) for data in figures)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    linked = re.findall(r"!\[[^]]+\]\(([^)]+)\)", "\n".join(texts))
    assert all((ROOT / "notebooks" / target).is_file() for target in linked)
    assert linked or figures
    assert (name in STORED) == bool(linked)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_are_small(path):
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_no_cell_defines_over_ten_lines(path):
    for cell in read(path.name).cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.FunctionDef):
                    assert (node.end_lineno or 0) - node.lineno <= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", STORED)
def test_a_notebook_of_a_stored_study_shows_what_it_kept(name):
    """Without pictures: the tables are those that stand in it."""
    kept, notebook = read(name), read(name)
    if name == "04_dissect.ipynb":
        changed(notebook, '"png"', '"plotly_mimetype"')
    run(notebook, ROOT / "notebooks")

    def tables(of: nbformat.NotebookNode) -> list[str]:
        texts = [data["text/plain"] for data in shown(of) if "text/html" in data]
        return [text for text in texts if "Styler" not in text]

    assert tables(notebook) == tables(kept)
    assert len(tables(kept)) >= 4


@pytest.mark.slow
@pytest.mark.gemma
def test_build_your_own_runs(tmp_path, threads):
    """Without pictures; what it shows is of the right kind."""
    notebook = read("06_build_your_own.ipynb")
    changed(notebook, '"plotly_mimetype+png"', '"plotly_mimetype"')
    made = "scores = pd.DataFrame(rows)"
    changed(notebook, made, f"{made}\nscores.to_csv('scores.csv')")
    run(notebook, tmp_path)
    scores = (
        pd.read_csv(tmp_path / "scores.csv").groupby(["language", "site"])["KRS"].max().unstack()
    )
    assert list(scores.index) == ["English", "Turkish"]
    # On the questions that the choice was made on, it is better than chance, and a part of all.
    english = scores.loc["English"]
    assert english["64 at random"] < english["64 that moved most"]
    assert english["64 that moved most"] < english["all 2,048"] + 0.05
    assert len([data for data in shown(notebook) if PLOTLY in data]) == 3


@pytest.mark.slow
@pytest.mark.gemma
def test_the_engines_notebook_runs(tmp_path, threads):
    """All four engines agree, as the notebook says."""
    pytest.importorskip("transformer_lens")
    pytest.importorskip("nnsight")
    notebook = read("03_engines.ipynb")
    index = 'set_index(pd.Index(tables, name="engine"))'
    changed(notebook, index, f"{index}.to_csv('engines.csv')")
    run(notebook, tmp_path)
    table = pd.read_csv(tmp_path / "engines.csv")
    assert table["engine"].tolist() == ["full", "layered", "transformer_lens", "nnsight"]
    assert (table["difference"] < 1e-5).all()
