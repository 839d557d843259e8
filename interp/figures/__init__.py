"""Tables as plotly figures, and figures as files."""

from interp.figures.arrays import array, curves
from interp.figures.depth import drift, lens
from interp.figures.evaluation import measures, spread, target_unrelated
from interp.figures.explorer import Explorer, explore
from interp.figures.export import FORMATS, export
from interp.figures.heads import heads
from interp.figures.probing import accuracy
from interp.figures.recovery import heatmap, lines
from interp.figures.training import training
from interp.figures.transfer import transfer

__all__ = [
    "FORMATS",
    "Explorer",
    "accuracy",
    "array",
    "curves",
    "drift",
    "explore",
    "export",
    "heads",
    "heatmap",
    "lens",
    "lines",
    "measures",
    "spread",
    "target_unrelated",
    "training",
    "transfer",
]
