"""Put parts of the original model back into an unlearned one, and measure what returns.

import interp

vanilla = interp.load("gemma-3-270m")
unlearned = interp.load("runs/demo/unlearned", like=vanilla)
queries = interp.queries("capitals", languages=["en", "de"])
answers = interp.trajectories(vanilla, queries)
recovery = interp.sweep(vanilla, unlearned, answers)
recovery.heatmap()
"""

from interp.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
