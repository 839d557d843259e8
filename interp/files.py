"""Files and folders that are there whole or not at all, whenever a run is killed."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

DIGESTS = "interp_digests.json"
"""File with the SHA-256 of every other file of a folder that was finished here."""

LOCK = "run.lock"
"""File that is locked while a folder's other files are changed."""

ABANDONED = 24 * 3600.0
"""Seconds after which a scratch file that nobody has written to is a killed process's."""

LOCK_SECONDS = 60.0
"""Seconds to wait for a lock that is held for milliseconds."""

_LEFT_BY_SYSTEMS = ("thumbs.db", "desktop.ini")
"""Names, in small letters, of files that Windows leaves in folders that are looked at."""


def compute_digest(value: object) -> str:
    """Return the SHA-256 of a JSON value: what is read must have that of what was written."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the same folder, then move it into place.

    A link is replaced, and the file that it leads to stays.

    Raises:
        ValueError: something that is no file has the name, or no folder can be made for it.
    """
    check_file(path)
    make_folder(path.parent)
    scratch = _choose_scratch_path(path)
    try:
        write(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_folder_atomically(target: Path, write: Callable[[Path], object]) -> None:
    """Fill a folder under a temporary name beside it, then move it into place of what was there.

    A target that is a link stays one: the folder that it leads to is replaced.

    Raises:
        ValueError: something that is no folder has the name.
    """
    check_folder(target)
    target = Path(os.path.realpath(target))
    make_folder(target.parent)
    scratch = _choose_scratch_path(target)
    to_remove = [scratch]
    try:
        scratch.mkdir()
        write(scratch)
        while True:
            try:
                scratch.rename(target)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            # Out of the way at once: a folder that is half deleted must not bear the name.
            to_remove.append(_choose_scratch_path(target))
            # Another process may have done the same.
            with contextlib.suppress(FileNotFoundError):
                target.rename(to_remove[-1])
    finally:
        for folder in to_remove:
            shutil.rmtree(folder, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        ValueError: a file, or a link that leads nowhere, has the name of one of them.
    """
    check_folder(path)
    path.mkdir(parents=True, exist_ok=True)


def check_folder(path: Path) -> None:
    """Check that a path is a folder, or can be made one.

    Raises:
        ValueError: something that is no folder, such as a file or a link that leads nowhere, has
            its name or that of one above it.
    """
    for folder in (path, *path.parents):
        if folder.is_dir():
            return
        # Not `exists`: another process may have made the folder since.
        if folder.is_file():
            raise ValueError(f"{str(folder)!r} is a file, and a folder is needed")
        if folder.is_symlink():
            raise ValueError(
                f"{str(folder)!r} is a link to {os.readlink(folder)!r}, which does not exist: make "
                "that folder, or choose another output directory"
            )
        if _is_special(folder):
            raise ValueError(f"{str(folder)!r} is a pipe or a device, and a folder is needed")


def check_file(path: Path) -> None:
    """Check that a path is a file, or can be made one.

    Raises:
        ValueError: something that is no file has its name, or something that is no folder that of
            one above it.
    """
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder, and a file is needed")
    if _is_special(path):
        raise ValueError(f"{str(path)!r} is a pipe or a device, and a file is needed")
    check_folder(path.parent)


def _is_special(path: Path) -> bool:
    """Return whether a path is there and neither a file nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def list_files(folder: Path, pattern: str) -> list[Path]:
    """List a folder's files in order, without those that systems and editors leave."""
    return sorted(path for path in folder.glob(pattern) if not is_foreign(path.name))


def is_foreign(name: str) -> bool:
    """Return whether a file's name is one that systems and editors give, not this library."""
    return name.startswith((".", "~")) or name.lower() in _LEFT_BY_SYSTEMS


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, so that no other process changes what is read and written back.

    Raises:
        ValueError: another process holds it for a minute, or the file system has no locks.
    """
    lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{str(folder)!r} is locked by another process: wait until it has ended, or delete "
            f"{LOCK} in it if there is none"
        ) from error
    except (OSError, NotImplementedError) as error:
        raise ValueError(
            f"{str(folder)!r} cannot be locked ({getattr(error, 'strerror', None) or error}): "
            "choose a directory that can be written to, on a file system that has locks"
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_digests(folder: Path) -> None:
    """Write the digests of all files in a folder, as its last file."""
    digests = {
        path.relative_to(folder).as_posix(): _hash_file(path)
        for path in list_files(folder, "**/*")
        if path.is_file()
    }
    whole = {"files": digests, "digest": compute_digest(digests)}
    (folder / DIGESTS).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def check_digests(folder: Path) -> None:
    """Compare a folder's files with its digests; one without any was not made here.

    It reads every byte, about a second per GB.

    Raises:
        ValueError: a file is missing or has other contents.
    """
    if not (folder / DIGESTS).is_file():
        return
    advice = (
        f"delete the folder and make it again (a conversion in the cache makes itself), or delete "
        f"{DIGESTS} beside it if you changed it yourself and it is right"
    )
    try:
        whole = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        digests = dict(whole["files"])
        intact = whole["digest"] == compute_digest(digests)
    except (ValueError, LookupError, TypeError, RecursionError):
        intact, digests = False, {}
    if not intact:
        raise ValueError(f"{str(folder / DIGESTS)!r} is damaged: {advice}")
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(
                f"{str(path)!r} is missing, which was there when {DIGESTS} was written: {advice}"
            )
        if _hash_file(path) != digest:
            raise ValueError(
                f"{str(path)!r} is damaged, or was changed after it was written: {advice}"
            )


def _hash_file(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _choose_scratch_path(target: Path) -> Path:
    """Choose a name beside the target that no other process uses; remove what killed ones left.

    Processes in other containers and on other machines may write the same target, and threads of
    this one: only chance keeps names apart. Whether a process still runs can be known of those
    that this one sees; what others left is told by its age.
    """
    space = _hash_process_space()
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        with contextlib.suppress(OSError):
            owner = left.name.removeprefix(f".{target.name}.").split(".")
            known = bool(space) and owner[0] == space and owner[1].isdecimal()
            if (
                not _is_running(int(owner[1]))
                if known
                else time.time() - left.stat().st_mtime > ABANDONED
            ):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
    owner = f"{space or 'unknown'}.{os.getpid()}.{uuid.uuid4().hex}"
    return target.with_name(f".{target.name}.{owner}.partial")


def _hash_process_space() -> str:
    """Hash what makes process numbers unique: the machine's start and, in it, the container.

    Returns "" on systems that do not tell.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        container = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {container}".encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    """Return whether a process of this machine and container has the number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
