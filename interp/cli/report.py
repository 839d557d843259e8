"""`interp report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from interp.cli.options import check_output_file


def report(
    directory: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR [DIR ...]")],
    *,
    out: Annotated[Path | None, arg(metavar="FILE")] = None,
) -> None:
    """Make one HTML page of a study, or of a sweep: what was run and found, to click through.

    It shows settings, findings, tables, figures and answers, with selectors for language, site and
    method, and opens without a network.

    Args:
        directory: study directories, or run directories of `interp sweep`.
        out: the page; DIR/report.html by default where there is one directory.
    """
    from interp.report import write_report

    folders = list(directory)
    if not folders:
        raise ValueError("name at least one study or run directory")
    if out is None:
        if len(folders) > 1:
            raise ValueError("one page of several directories needs --out, its file")
        out = folders[0] / "report.html"
    else:
        check_output_file(out)
    print(write_report(folders, out=out))
