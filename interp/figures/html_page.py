"""Pages of one file: style, programs, plotly.js and data stand in it, and it needs no network.

All pages share a shell (`page.html`), a style (`page.css`) and the beginning of their program
(`page.js`). What they show is JSON that the program makes elements of, so that no name and no
answer is ever read as HTML.
"""

import html
import json
import math
import re
from importlib.resources import files

from plotly.offline import get_plotlyjs


def build_page(*, title: str, body: str, data: object, style: str = "", script: str = "") -> str:
    """Build one page as HTML.

    Args:
        title: of the browser's window.
        body: HTML before the programs, trusted.
        data: JSON values that the program finds as `data`.
        style: CSS after the shared one.
        script: the program, after the shared one.

    Raises:
        ValueError: there is a NaN in the data.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {
        "title": html.escape(title),
        "style": read_text("interp.figures", "page.css") + style,
        "body": body,
        "plotly": get_plotlyjs(),
        # Within a script element only "<" could end it, or begin a comment.
        "data": text.replace("<", "\\u003c"),
        "script": read_text("interp.figures", "page.js") + script,
    }
    shell = read_text("interp.figures", "page.html")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], shell)


def read_text(package: str, name: str) -> str:
    """Read a text file that lies in a package of this library."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def round_value(value: float) -> float | int | None:
    """Round a number to six digits; None where it is not finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() else short
