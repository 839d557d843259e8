"""Commands of the papers as somebody who mistypes meets them."""

from __future__ import annotations

import runpy
import sys

import pytest

STUDIES = ("dissect", "cross_lingual", "lingtea", "transfer")
OF_EVERY_METHOD = ("unlearning", "forgetting")
MODULES = {name: f"experiments.{name}.run" for name in STUDIES}
MODULES |= {name: f"experiments.{name}" for name in OF_EVERY_METHOD}


def stopped(name: str, *arguments: str) -> int:
    """Return the exit code of a command that ends by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        # A module that is imported already would be run beside itself, with a warning.
        patch.delitem(sys.modules, MODULES[name], raising=False)
        with pytest.raises(SystemExit) as end:
            runpy.run_module(MODULES[name], run_name="__main__")
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


@pytest.mark.parametrize("name", OF_EVERY_METHOD)
def test_a_missing_model_of_every_method_is_one_sentence(name, tmp_path, capsys):
    missing = str(tmp_path / "no")
    assert stopped(name, "--model", missing, "--out", str(tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: ")
    assert missing in line


@pytest.mark.parametrize("name", OF_EVERY_METHOD)
def test_an_unknown_method_is_one_sentence(name, tmp_path, capsys):
    """It is named before a model is loaded."""
    asked = ("--methods", "gd", "simnpoo", "--model", str(tmp_path / "no"))
    assert stopped(name, *asked, "--out", str(tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: unknown method 'simnpoo'; valid: ")


@pytest.mark.parametrize("name", [*STUDIES, *OF_EVERY_METHOD])
def test_help_tells_every_option(name, capsys):
    assert stopped(name, "--help") == 0
    printed = capsys.readouterr().out
    for option in ("--model", "--out"):
        assert option in printed
