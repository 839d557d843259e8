"""Doors of packages: a name is imported when it is first asked for, so that imports are instant.

A package's `__init__.pyi` says what others may use of it, once, for people, type checkers and this:

    __getattr__, __dir__, __all__ = attach(__name__, __file__)
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path


def attach(
    package: str, file: str
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Build `__getattr__`, `__dir__` and `__all__` of a package from its stub.

    Args:
        package: its `__name__`.
        file: its `__file__`; the stub lies beside it, lines of `from MODULE import NAME as NAME`.
            A MODULE that is the package itself exports one of its modules.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    homes = {
        alias.name: node.module or ""
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = sorted(homes)

    def __getattr__(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if homes[name] == package:
            return import_module(f"{package}.{name}")
        return getattr(import_module(homes[name]), name)

    def __dir__() -> list[str]:
        return names

    return __getattr__, __dir__, names
