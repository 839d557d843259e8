"""Engine `layered`: every restoration in one upward pass, states of one layer in memory at a time.

`engine` has the algorithm, `upward_pass` one batch's way up the layers, `layerwise_run` a model's
own run beside it, `row_budget` what fits in memory and `disk_offload` the rows that do not.
"""

from interp.recovery.engines.layered.engine import measure as measure
