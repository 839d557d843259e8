"""A worker in a process of its own, on any machine of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from interp.launch.worker import Worker
from interp.models.loading import load
from interp.recovery.sweep_config import SweepConfig


class RayWorker:
    """A `Worker` in a process of its own."""

    def start(
        self,
        vanilla: str,
        config: SweepConfig,
        *,
        content_hash: str,
        dtype: torch.dtype,
        packing: str | None,
        device: str,
        num_threads: int,
        directory: Path,
    ) -> tuple[None, list[str]]:
        """Load V.

        Args:
            vanilla: its name, which is what it is loaded from.
            config: what to measure.
            content_hash: of the driver's V.
            dtype: of the driver's V.
            packing: of the driver's V, see `LanguageModel`.
            device: where to put V.
            num_threads: torch's in the driver; another number adds in another order.
            directory: the driver's working directory, which paths start from.

        Returns:
            No result, and warnings.

        Raises:
            ValueError: V cannot be loaded, or is another model than the driver's.
        """
        torch.set_num_threads(num_threads)
        # Where there is no such directory, models are found by absolute paths and Hub ids alone.
        with contextlib.suppress(FileNotFoundError):
            os.chdir(directory)
        with warnings.catch_warnings(record=True) as caught:
            is_plain = packing == "none"
            loaded = load(
                vanilla,
                device=device,
                dtype=dtype,
                quantise=None if is_plain else packing,
                dequantise=is_plain,
            )
        check_same_model(loaded.name, loaded.content_hash(), content_hash)
        self._worker = Worker(loaded, config)
        return None, [str(warning.message) for warning in caught]

    def do(self, method: str, arguments: tuple[Any, ...]) -> tuple[Any, list[str]]:
        """Return a method's result, and warnings."""
        with warnings.catch_warnings(record=True) as caught:
            result = getattr(self._worker, method)(*arguments)
        return result, [str(warning.message) for warning in caught]


def check_same_model(name: str, content_hash: str, wanted: str) -> None:
    """Raise ValueError unless the content hash of a worker's model is that of the driver's."""
    if content_hash != wanted:
        raise ValueError(
            f"a Ray worker found another model under the name {name!r} than the one given: save "
            "the one given with save_pretrained and load it from there"
        )
