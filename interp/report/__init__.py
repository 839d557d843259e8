"""HTML reports of studies and run directories, which open without a network."""

from interp.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
