"""All commands, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tyro
from tyro.conf import OmitSubcommandPrefixes

from interp.cli.commands import make_command
from interp.cli.evaluation import evaluate
from interp.cli.queries import queries
from interp.cli.recovery import demo, figures, krs, sweep
from interp.cli.report import report
from interp.cli.unlearning import contaminate, unlearn

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "contaminate": contaminate,
    "unlearn": unlearn,
    "evaluate": evaluate,
    "sweep": sweep,
    "krs": krs,
    "figures": figures,
    "report": report,
    "queries": queries,
}


def build_command(name: str, args: Sequence[str] = ()) -> Callable[..., None]:
    """Return a command with all its options, given the words of the command line."""
    return make_command(COMMANDS[name], args)


def run_command(words: Sequence[str]) -> None:
    """Run the command that the words of a command line say."""
    tyro.extras.subcommand_cli_from_dict(
        {
            name: build_command(name, words) if [name] == words[:1] else _summarise(function)
            for name, function in COMMANDS.items()
        },
        prog="interp",
        description="How much forgotten knowledge returns when parts of the original "
        "model are put back, per layer and language.",
        args=words,
        config=(OmitSubcommandPrefixes,),
    )


def _summarise(function: Callable[..., None]) -> Callable[..., None]:
    """Return what the list of commands needs, which imports nothing."""

    def command() -> None:
        pass

    command.__doc__ = (function.__doc__ or "").partition("\n")[0]
    return command
