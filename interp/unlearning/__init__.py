"""V becomes U: fine-tuning a model so that it forgets."""

from interp.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
