"""Tiny models with really packed weights: bitsandbytes' own kernels, which also run on CPUs."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

import interp
from interp import LanguageModel
from tests.helpers.tiny_models import save, tiny

HAS_BITSANDBYTES = find_spec("bitsandbytes") is not None

if HAS_BITSANDBYTES:
    with warnings.catch_warnings():
        # It compiles functions when it is imported, by what torch calls deprecated.
        warnings.simplefilter("ignore")
        import bitsandbytes as bitsandbytes

needs_bitsandbytes = pytest.mark.skipif(
    not HAS_BITSANDBYTES,
    reason="needs the package bitsandbytes: pip install 'interp[quantisation]'",
)

PACKINGS = ("4bit", "8bit")

# Blocks of 64 weights lie in one row each.
SIZES = {
    "gpt2": {"n_embd": 64},
    "llama": {"hidden_size": 64, "intermediate_size": 128},
    "llama_biases": {"hidden_size": 64, "intermediate_size": 128},
    "gemma3": {"hidden_size": 64, "intermediate_size": 128},
}
"""Architectures with shapes that can be packed."""


def save_plain(directory: Path, name: str = "llama", *, seed: int = 0) -> str:
    """Write a tiny model with weights as they are."""
    return save(tiny(name, seed=seed, **SIZES[name]), directory / f"{name}-{seed}")


def make_packed_pair(
    directory: Path, packing: str, name: str = "llama", dtype: str = "float32"
) -> tuple[LanguageModel, LanguageModel]:
    """Make V and U, both packed while they are loaded."""
    plain = [save_plain(directory, name, seed=seed) for seed in (0, 1)]
    vanilla = interp.load(plain[0], quantise=packing, dtype=dtype)
    return vanilla, interp.load(plain[1], like=vanilla)
