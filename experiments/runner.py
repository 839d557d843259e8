"""Running a study of a paper: a preset, a command line, a run directory, a findings table.

    python -m experiments.dissect.run quick --out runs/dissect-quick

Every `experiments/<paper>/run.py` has a `run(config, out)` that makes and measures the models and
returns a `Study`; this module chooses the configuration, writes the study into the run directory
and prints its findings. What the directory holds already is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import tyro

from experiments.study import Study
from interp.cli import replace_settings, report_errors_and_exit

Config = TypeVar("Config")


def start_command(name: str, main: Callable[..., None]) -> None:
    """Read the command line by `main`'s arguments; a mistake in it is one sentence, exit code 2.

    Args:
        name: of the experiment, which the sentence begins with.
        main: what is called, see `run_preset`.
    """
    with report_errors_and_exit(name):
        tyro.cli(main)


def run_preset(
    name: str,
    run: Callable[[Config, Path], Study],
    presets: Mapping[str, Config],
    preset: str,
    out: Path | None,
    **changes: object,
) -> None:
    """Run a study at a preset, write it into its directory and print its findings.

    Args:
        name: the experiment's, such as `dissect`.
        run: makes the study; what the directory holds is not made again.
        presets: configurations by name.
        preset: which of them.
        out: the run directory; `runs/NAME-PRESET` if None.
        changes: fields of the configuration that replace the preset's where they are not None.

    Raises:
        ValueError: unknown preset or field, or settings that do not fit.
    """
    config = select_preset(presets, preset, **changes)
    folder = out or Path(f"runs/{name}-{preset}")
    command = format_command(name, preset, **changes)
    study = replace(run(config, folder), command=command)
    paths = study.write(folder)
    print(study.summary(), *paths, sep="\n")


def select_preset(presets: Mapping[str, Config], name: str, **changes: object) -> Config:
    """Return a preset by its name, with those changes that are not None.

    Raises:
        ValueError: unknown preset, or a change of a field that its configuration lacks.
    """
    if name not in presets:
        raise ValueError(f"no preset {name!r}; valid: {', '.join(presets)}")
    return replace_settings(presets[name], changes)


def format_command(name: str, preset: str, **options: object) -> str:
    """Return the command that runs a study again, in its default directory."""
    given = [f"--{key} {value}" for key, value in options.items() if value is not None]
    return " ".join(["python -m", f"experiments.{name}.run", preset, *given])
