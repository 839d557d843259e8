"""Put parts of the original model back into an unlearned one, and measure what returns.

import interp

vanilla = interp.load("gemma-3-270m")
unlearned = interp.load("runs/demo/unlearned", like=vanilla)
queries = interp.queries("capitals", languages=["en", "de"])
answers = interp.trajectories(vanilla, queries)
recovery = interp.sweep(vanilla, unlearned, answers)
recovery.heatmap()
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.data.queries import queries
    from interp.data.query import Query
    from interp.data.trajectories import Trajectory, trajectories
    from interp.evaluation import evaluate
    from interp.launch import Recovery, sweep
    from interp.models.bridges import from_model, to_nnsight, to_transformer_lens
    from interp.models.language_model import LanguageModel
    from interp.models.loading import load
    from interp.recovery.answers import restored_answers
    from interp.recovery.attribution import coefficients
    from interp.recovery.places import heads
    from interp.recovery.sites import Restoration
    from interp.runs import contaminate, unlearn

_HOME = {
    "LanguageModel": "interp.models.language_model",
    "Query": "interp.data.query",
    "Recovery": "interp.launch",
    "Restoration": "interp.recovery.sites",
    "Trajectory": "interp.data.trajectories",
    "coefficients": "interp.recovery.attribution",
    "contaminate": "interp.runs",
    "evaluate": "interp.evaluation",
    "from_model": "interp.models.bridges",
    "heads": "interp.recovery.places",
    "load": "interp.models.loading",
    "queries": "interp.data.queries",
    "restored_answers": "interp.recovery.answers",
    "sweep": "interp.launch",
    "to_nnsight": "interp.models.bridges",
    "to_transformer_lens": "interp.models.bridges",
    "trajectories": "interp.data.trajectories",
    "unlearn": "interp.runs",
}

__all__ = [
    "LanguageModel",
    "Query",
    "Recovery",
    "Restoration",
    "Trajectory",
    "coefficients",
    "contaminate",
    "evaluate",
    "from_model",
    "heads",
    "load",
    "queries",
    "restored_answers",
    "sweep",
    "to_nnsight",
    "to_transformer_lens",
    "trajectories",
    "unlearn",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, so that `import interp` is instant."""
    if name not in _HOME:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
