"""Options of a sweep are said once: `interp.sweep` and the command line are made of dataclasses."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields

import pytest

import interp
from interp import cli
from interp.launch.options import AnswerOptions, LaunchConfig
from interp.launch.signature import read_field_docs, select_options, takes_options
from interp.recovery import SweepConfig

CONFIGS = (SweepConfig, AnswerOptions, LaunchConfig)


@dataclass(frozen=True, kw_only=True)
class Oven:
    """Where bread is baked.

    Attributes:
        degrees: temperature,
            in °C.
        fan: blow.
    """

    degrees: int = 180
    fan: bool = False


@takes_options(Oven(degrees=200), without=("fan",))
def bake(flour: float, **options: object) -> dict[str, object]:
    """Bake.

    Args:
        flour: in grams.

    Raises:
        ValueError: never.
    """
    return {"flour": flour} | options


def test_fields_become_parameters():
    assert (
        str(inspect.signature(bake)) == "(flour: float, *, degrees: int = 200) -> dict[str, object]"
    )
    assert bake(3.0, degrees=7) == {"flour": 3.0, "degrees": 7}
    assert bake(3.0) == {"flour": 3.0}
    assert bake.__doc__ == (
        "Bake.\n\nArgs:\n    flour: in grams.\n    degrees: temperature, in °C.\n\n"
        "Raises:\n    ValueError: never."
    )
    assert select_options(Oven(), {"degrees": 7, "salt": 1}) == Oven(degrees=7)


def test_an_unknown_option_names_the_closest():
    with pytest.raises(TypeError, match=r"bake\(\) .* 'degree'; did you mean 'degrees'\?"):
        bake(3.0, degree=7)
    with pytest.raises(TypeError, match=r"sweep\(\) .* 'site'; did you mean 'sites'\?"):
        interp.sweep(None, None, [], site=["coef"])


@pytest.mark.parametrize("config", CONFIGS)
def test_sweep_and_its_command_have_every_field(config, capsys, monkeypatch):
    parameters = inspect.signature(interp.sweep).parameters
    explained = dict(re.findall(r"^    (\w+): (.+)$", inspect.getdoc(interp.sweep), re.MULTILINE))
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        cli.main(["sweep", "--help"])
    printed = capsys.readouterr().out
    docs = read_field_docs(config)
    for field in fields(config):
        assert parameters[field.name].default == field.default
        assert docs[field.name].startswith(explained[field.name])
        # A forward on NDIF is asked for in Python only.
        assert (f"--{field.name.replace('_', '-')} " in printed) == (field.name != "remote")
