"""The command line, over the same functions as the library."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence

import tyro
from tyro.conf import OmitSubcommandPrefixes

from interp.cli.evaluation import evaluate
from interp.cli.options import mistakes_told
from interp.cli.questions import queries
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


def main(args: Sequence[str] | None = None) -> None:
    """Run a command. A person's mistake is one sentence on standard error and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        with mistakes_told("interp"):
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="interp",
                description="How much forgotten knowledge returns when parts of the original "
                "model are put back, per layer and language.",
                args=args,
                config=(OmitSubcommandPrefixes,),
            )


def _show_warning(message: Warning | str, *_rest: object, **_more: object) -> None:
    print(f"interp: note: {' '.join(str(message).split())}", file=sys.stderr)
