"""Tables as plotly figures, and figures as files."""

from interp.figures.evaluation import spread, target_unrelated
from interp.figures.export import FORMATS, export
from interp.figures.probing import accuracy
from interp.figures.recovery import heatmap, lines
from interp.figures.training import training

__all__ = [
    "FORMATS",
    "accuracy",
    "export",
    "heatmap",
    "lines",
    "spread",
    "target_unrelated",
    "training",
]
