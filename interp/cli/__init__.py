"""The command line, over the same functions as the library."""

from interp.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
