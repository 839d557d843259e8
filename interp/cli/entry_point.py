"""Entry point of the command line, which imports the commands where errors are reported."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from interp.cli.errors import report_errors_and_exit


def main(args: Sequence[str] | None = None) -> None:
    """Run a command. A person's mistake is one sentence on standard error and exit code 2."""
    with report_errors_and_exit("interp"):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            from interp.cli.command_list import run_command

            run_command(sys.argv[1:] if args is None else list(args))


def _show_warning(message: Warning | str, *_rest: object, **_more: object) -> None:
    print(f"interp: note: {' '.join(str(message).split())}", file=sys.stderr)
