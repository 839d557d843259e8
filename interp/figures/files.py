"""Figures as files: HTML that opens without a network, PNG, SVG and PDF."""

import os
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from interp.files import check_file, make_folder

FORMATS = ("html", "png", "svg", "pdf")


def export(figures: Mapping[Any, go.Figure], *, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write each figure as `<stem>.<format>` for every format, and say which files were written.

    HTML is always written, holds plotly.js and opens without a network. The images need the extra
    `export` and a Chrome, which is started once for all figures; without them there is a warning
    and the HTML. A file appears under its name only when it is complete.

    Args:
        figures: stems, such as `figures/capitals` (missing folders are made), with their figures.
        formats: any of `html`, `png`, `svg`, `pdf`.

    Raises:
        ValueError: a format is unknown, or something that is no folder, or no file, has a name.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"unknown format {unknown[0]!r}; valid: {', '.join(FORMATS)}")
    written, images, partial = [], [], {}
    try:
        for stem, figure in figures.items():
            for name in (each for each in FORMATS if each in {"html", *formats}):
                path = Path(f"{stem}.{name}")
                check_file(path)
                make_folder(path.parent)
                partial[path] = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
                if name == "html":
                    page = figure.to_html(include_mathjax=False, config={"displaylogo": False})
                    partial[path].write_text(page, encoding="utf-8")
                    written.append(path)
                else:
                    options = {"format": name, "scale": 2 if name == "png" else 1}
                    images.append({"fig": figure, "path": partial[path], "opts": options})
        lacking = _render(images) if images else None
        if lacking:
            warnings.warn(f"Only HTML was written, no images: {lacking}.", stacklevel=2)
        else:
            written = list(partial)
        for path in written:
            os.replace(partial[path], path)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return written


def _render(images: list[dict[str, Any]]) -> str | None:
    """Write the images with one Chrome, or say what is lacking."""
    try:
        import kaleido
        from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError
    except ImportError:
        return "kaleido is not installed (pip install 'interp[export]')"
    try:
        # MathJax would come from the network, and nothing here uses it.
        kaleido.write_fig_from_object_sync(images, kopts={"mathjax": False}, cancel_on_error=True)
    except ChromeNotFoundError:
        return "there is no Chrome (apt install chromium, or run plotly_get_chrome)"
    except (BrowserClosedError, BrowserFailedError, TimeoutError) as error:
        return f"Chrome does not run here ({type(error).__name__}; try apt install chromium)"
    return None
