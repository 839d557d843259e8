"""Tables as plotly figures, and figures as files."""

from interp.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
