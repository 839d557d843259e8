"""The wheel: all of the package in it, and its command line runs where there is no checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT

SUFFIXES = {".json", ".toml", ".css", ".js", ".html", ".md", ".pyi", ".typed"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-isolation", "--skip-dependency-check", "--wheel", "--outdir", str(folder)]
    run([sys.executable, "-m", "build", *options, str(ROOT)], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def interp(wheel, tmp_path_factory) -> Path:
    """The command `interp` of an environment that has the wheel, and this one's dependencies."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    paths = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    # A path of another environment comes after this one's own, and its .pth files are not read:
    # what is editable there is not seen.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--quiet"]
    python = home / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", str(python), "install", *options, wheel], home)
    where = [str(python), "-c", "import interp; print(interp.__file__)"]
    assert Path(run(where, home).strip()).is_relative_to(packages)
    return home / "bin" / "interp"


def run(command: list, folder: Path) -> str:
    """Run a program in a folder; what it prints."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_everything_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    paths = [path.relative_to(ROOT) for path in (ROOT / "interp").rglob("*")]
    # Caches of linters and tests are no part of the package.
    hidden = [path for path in paths if any(part.startswith(".") for part in path.parts)]
    files = [path for path in paths if (ROOT / path).is_file() and path not in hidden]
    expected = {
        path.as_posix()
        for path in files
        if path.suffix in SUFFIXES | {".py"} or path.name == "py.typed"
    }
    assert "interp/py.typed" in expected
    assert {path.suffix for path in files} - {".pyc", ""} <= SUFFIXES | {".py"}
    assert expected <= names
    foreign = {name.split("/")[0] for name in names} - {"interp"}
    assert len(foreign) == 1
    assert foreign.pop().endswith(".dist-info")


def test_the_command_line_runs_without_a_checkout(interp, tmp_path):
    assert "unlearn" in run([interp, "--help"], tmp_path)
    asked = ["queries", "capitals", "--languages", "en", "--limit", "1", "--out", "asked.jsonl"]
    run([interp, *asked], tmp_path)
    (line,) = (tmp_path / "asked.jsonl").read_text(encoding="utf-8").splitlines()
    assert '"answer": "Paris"' in line


@pytest.mark.slow
@pytest.mark.gemma
def test_the_demo_runs_without_a_checkout(interp, tmp_path):
    smallest = ["--languages", "en", "--num-tokens", "2", "--formats", "html"]
    run([interp, "demo", "--out", "demo", *smallest], tmp_path)
    assert (tmp_path / "demo" / "figures" / "heatmap.html").stat().st_size > 100_000
