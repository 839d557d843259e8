"""The demo, the notebook and the experiments, on the embedded model."""

import runpy
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.gemma


@pytest.fixture(scope="module")
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo(tmp_path_factory, threads):
    """A small run of the demo, by the command line."""
    from interp.cli import main

    out = tmp_path_factory.mktemp("demo")
    command = ["demo", "--out", str(out), "--languages", "en", "--num-tokens", "8"]
    main([*command, "--formats", "html"])
    return out


def best(out: Path, language: str) -> pd.Series:
    from interp import Recovery

    scores = Recovery.read(out).krs()
    return scores[scores["language"] == language].groupby("site")["krs"].max()


def test_the_demo_forgets_in_english_and_keeps_the_rest(demo):
    table = pd.read_csv(demo / "accuracy.csv").set_index(["countries", "model", "language"])
    vanilla, unlearned = "gemma-3-270m", str(demo / "unlearned")
    accuracy = table["accuracy"]
    assert accuracy["forgotten", vanilla, "en"] == 1.0
    assert accuracy["forgotten", unlearned, "en"] <= 0.2
    assert accuracy["kept", unlearned, "en"] >= 0.7


def test_the_demo_shows_the_order_of_the_sites(demo):
    from interp import Recovery

    scores = best(demo, "en")
    assert scores["coef"] < scores["coef+attn"]
    assert scores["attn"] < scores["coef+attn"]
    assert scores["coef+attn"] > 0.5
    # Below the trained quarter of the layers there is nothing to put back.
    everything = Recovery.read(demo).krs()
    assert everything.loc[everything["layer"] < 12, "krs"].abs().max() < 1e-3


def test_a_second_demo_does_nothing_again(demo, monkeypatch):
    from interp import demo as module

    before = {path: path.stat().st_mtime_ns for path in (demo / "losses").iterdir()}
    monkeypatch.setattr("interp.unlearning.training.TrainableModel", None)
    monkeypatch.setattr("interp.launch.worker.measure", None)
    module.run_demo(out=demo, languages=["en"], num_tokens=8)
    assert {path: path.stat().st_mtime_ns for path in (demo / "losses").iterdir()} == before


def test_the_layer_sweep_to_copy(demo, tmp_path):
    script = ROOT / "experiments" / "layer_sweep.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) < 60
    module = runpy.run_path(str(script))
    config = module["Config"](
        unlearned={"gd-en": str(demo / "unlearned")},
        languages=("en",),
        num_queries=2,
        sites=("coef",),
        num_tokens=3,
        out=tmp_path,
        formats=("html",),
    )
    module["main"](config)
    table = pd.read_csv(tmp_path / "gd-en" / "krs.csv")
    assert table["layer"].tolist() == list(range(18))
    assert table["num_queries"].eq(2).all()
    assert (tmp_path / "gd-en" / "heatmap.html").exists()


def executed(name: str, folder: Path, *changes: tuple[str, str]) -> nbformat.NotebookNode:
    """A notebook, run top to bottom, with its code changed where a test needs less of it."""
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    for old, new in changes:
        (cell,) = (cell for cell in notebook.cells if old in cell.source)
        cell.source = cell.source.replace(old, new)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


@pytest.mark.slow
def test_the_quickstart_notebook_runs(tmp_path, threads):
    shown = 'restored[["site", "first_layer", "last_layer", "vanilla", "unlearned", "restored"]]'
    executed("01_quickstart.ipynb", tmp_path, (shown, f"restored.to_csv('restored.csv')\n{shown}"))
    answers = pd.read_csv(tmp_path / "restored.csv").set_index("site")
    assert answers["vanilla"].str.contains("Paris").all()
    assert not answers["unlearned"].str.contains("Paris").any()
    assert "Paris" in answers["restored"]["coef+attn"]


@pytest.mark.slow
def test_the_languages_notebook_runs(tmp_path, threads):
    """With fewer facts: English capitals are known, nothing else is claimed of so few."""
    keep = "known.to_csv('known.csv')\nknown"
    notebook = executed(
        "02_languages.ipynb",
        tmp_path,
        ("num_facts = 12", "num_facts = 4"),
        ("wide.round(2)", f"{keep}\nwide.round(2)"),
    )
    figures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    assert len(figures) == 1
    known = pd.read_csv(tmp_path / "known.csv").set_index(["language", "concept"])
    assert len(known) == 12 * 4
    assert known.loc[("en", "capitals"), "accuracy"] == 1.0
    assert known["num_queries"].eq(4).all()
    assert known["chance"].between(0.25, 0.5).all()
