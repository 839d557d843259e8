"""Engines, which carry restorations out: one interface, one reference, faster ways to its numbers.

An engine is a function `measure(pair, trajectories, restorations, *, distance, own_precision,
answers, advance)` that returns `recovery.measured.Measured`. `full` is the reference.
"""

from interp.recovery.engines import full, layered, nnsight, transformer_lens

ENGINES = {
    "layered": layered.measure,
    "full": full.measure,
    "transformer_lens": transformer_lens.measure,
    "nnsight": nnsight.measure,
}
"""Engines by name, the default first."""
