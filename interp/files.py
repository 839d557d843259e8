"""Files and folders that are there whole or not at all, whenever a run is killed."""

import glob
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path


def compute_digest(value: object) -> str:
    """Return the SHA-256 of a JSON value: what is read must have that of what was written."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the same folder, then move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _choose_scratch_path(path)
    try:
        write(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_folder_atomically(target: Path, write: Callable[[Path], object]) -> None:
    """Fill a folder under a temporary name beside it, then move it into place of what was there."""
    scratch = _choose_scratch_path(target)
    replaced = scratch.with_name(f"{scratch.name}.partial")
    try:
        scratch.mkdir(parents=True)
        write(scratch)
        if target.exists():
            # Out of the way at once: a folder that is half deleted must not bear the name.
            target.rename(replaced)
        scratch.rename(target)
    finally:
        for left in (scratch, replaced):
            shutil.rmtree(left, ignore_errors=True)


def _choose_scratch_path(target: Path) -> Path:
    """Choose a name beside the target that no other process uses; remove what killed ones left.

    Processes on other machines may write the same target, so the name has the machine's in it.
    """
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    start = f".{target.name}.{machine}."
    for left in target.parent.glob(f"{glob.escape(start)}*.partial"):
        process = left.name.removeprefix(start).partition(".")[0]
        if process.isdecimal() and not _is_running(int(process)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return target.with_name(f"{start}{os.getpid()}.partial")


def _is_running(process: int) -> bool:
    """Return whether another process of this machine has the number; True where it is unknown."""
    if process == os.getpid():
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
