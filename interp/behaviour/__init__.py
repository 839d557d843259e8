"""Behaviour of models: what they say and know, one file per metric."""

from interp.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
