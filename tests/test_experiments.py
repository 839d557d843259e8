"""The scripts of the papers as somebody who mistypes meets them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
STUDIES = ("dissect", "cross_lingual", "lingtea", "transfer")


def stopped(name: str, *arguments: str) -> int:
    """Exit code of a script that ends by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(EXPERIMENTS / f"{name}.py"), run_name="__main__")
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize("name", STUDIES)
def test_an_unknown_preset_is_one_sentence(name, capsys):
    assert stopped(name, "huge") == 2
    assert capsys.readouterr().err == f"{name}: no preset 'huge'; valid: quick, full, paper\n"


@pytest.mark.parametrize("name", STUDIES)
def test_a_missing_model_is_one_sentence(name, tmp_path, capsys):
    missing = str(tmp_path / "no")
    assert stopped(name, "quick", "--model", missing, "--out", str(tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: ")
    assert missing in line


def test_a_missing_model_of_every_method_is_one_sentence(tmp_path, capsys):
    missing = str(tmp_path / "no")
    assert stopped("unlearning", "--model", missing, "--out", str(tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unlearning: ")
    assert missing in line


@pytest.mark.parametrize("name", [*STUDIES, "unlearning"])
def test_help_tells_every_option(name, capsys):
    assert stopped(name, "--help") == 0
    said = capsys.readouterr().out
    for option in ("--model", "--out"):
        assert option in said
