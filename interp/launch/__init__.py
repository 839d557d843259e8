"""Where the work runs: here, in this process, or on a Ray cluster."""

from interp.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
