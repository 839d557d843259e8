"""Models: a specification becomes a loaded model whose parts are known by role."""

from interp.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
