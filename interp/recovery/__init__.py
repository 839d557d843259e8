"""Heart of the library: the unlearned model, put back together part by part."""

from interp.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
