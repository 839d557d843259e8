"""Objectives of unlearning, a file each: a file that is put here is registered by itself."""

from importlib import import_module
from pkgutil import iter_modules

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
