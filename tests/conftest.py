"""Every test runs with the shapes of public tensors checked at each call, by jaxtyping.

`states` and `layered` make hooks by the thousand, which checking would slow down several times:
test_engines.py checks them in a process of its own.
"""

import jaxtyping
import pytest
import torch

CHECKED = [
    "interp.models",
    "interp.data",
    *(
        f"interp.recovery.{name}"
        for name in ("batches", "engines.full", "krs", "pair", "scoring", "sites", "sweep")
    ),
]

# Before the first import of these rooms, so that their annotations are enforced.
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

# Tiny models are faster on one thread.
torch.set_num_threads(1)


@pytest.fixture
def unchecked(monkeypatch):
    """Let wrong values through the checks of types, to see what the library itself says."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
