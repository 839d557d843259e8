"""A real headless Chromium without a network, for pages that a person clicks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium() -> Iterator[Any]:
    """A playwright browser: the Chrome that kaleido finds. Skips where one of them is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browsers = pytest.importorskip(
        "choreographer.browsers.chromium", reason="kaleido (extra `export`) is not installed"
    )
    path = browsers.Chromium.find_browser(skip_local=False)
    if not path:
        pytest.skip("no Chrome on this machine")
    with api.sync_playwright() as playwright:
        # Containers have no user namespaces for its sandbox.
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=False)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, file: Path, *, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A file as a playwright page, `width` × `height` pixels.

    At the end it must have asked for nothing else, and nothing may have gone wrong on it: no error
    of a script, no complaint on the console.
    """
    complaints: list[str] = []
    asked: list[str] = []
    page = browser.new_page(offline=True, viewport={"width": width, "height": height})
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: said.type in ("error", "warning") and complaints.append(said.text),
    )
    page.goto(file.as_uri())
    yield page
    page.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [file.as_uri()]
