"""Facts, texts, corpora and questions in many languages, and readers of the field's data sets."""

from interp.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
