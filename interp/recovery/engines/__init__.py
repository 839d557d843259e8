"""Engines, which carry restorations out: one interface, one reference, faster ways to its numbers.

An engine is a function `losses(pair, trajectories, restorations, *, distance, own_precision,
advance)` that returns the losses as [restoration, query], float64. `full` is the reference.
"""

from interp.recovery.engines import full, layered, nnsight, transformer_lens

ENGINES = {
    "layered": layered.losses,
    "full": full.losses,
    "transformer_lens": transformer_lens.losses,
    "nnsight": nnsight.losses,
}
"""Engines by name, the default first."""
