"""Specifications of models, resolved to directories on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from interp.models import gguf


def find_checkpoint(spec: str, *, trust_remote_code: bool, allow_pickle: bool) -> Path:
    """Find the directory that a specification names; download or convert it if needed.

    Raises:
        ValueError: there is no such thing here, or the Hub could not be reached.
        ImportError: an extra is missing.
    """
    if spec in gguf.EMBEDDED_NAMES:
        return gguf.convert_embedded_model(spec)
    path = _find_path(spec)
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(
                f"{spec!r} is a file, and only a directory or a .gguf file can be read"
            )
        return gguf.convert_gguf(path)

    repository, _, revision = spec.partition("@")
    looks_like_path = (
        not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository)
        or spec.startswith((".", "~"))
        or path.suffix in (".gguf", ".safetensors", ".bin", ".pt")
        or ("/" in spec and path.parent.is_dir())
    )
    if looks_like_path:
        raise ValueError(f"{spec!r} does not exist: a path must be a directory or a .gguf file")
    # The glob's star also matches slashes: subdirectories hold other formats and checkpoints.
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    wanted += ["*.bin"] * allow_pickle + ["*.py"] * trust_remote_code
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=wanted,
                ignore_patterns=["*/*", "consolidated*"],
            )
        )
    except GatedRepoError as error:
        raise ValueError(
            f"{spec!r} is gated: accept its terms on its Hub page and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{repository!r} has no revision {revision!r} on the Hub") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{spec!r} is neither a directory here, nor an embedded model "
            f"({', '.join(gguf.EMBEDDED_NAMES)}), nor a model on the Hub"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"{spec!r} is neither a directory here nor an embedded model "
            f"({', '.join(gguf.EMBEDDED_NAMES)}), and the Hub could not be reached: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error


def _find_path(spec: str) -> Path:
    """Return a specification as a path, which need not exist; what does must be readable."""
    try:
        path = Path(spec).expanduser()
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"{spec!r} is a link that leads nowhere ({os.readlink(path)!r}): give the "
                "directory or .gguf file that is meant"
            )
        if path.is_dir():
            next(path.iterdir(), None)
            (path / "config.json").exists()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{spec!r} cannot be read as a path: {gguf.summarize_error(error)}"
        ) from error
    return path
