"""Errors of commands: one sentence on standard error and an exit code, and no traceback.

Nothing slow is imported here, so that an interruption while a command is still being imported is
reported as one. Within an import the process ends at once: an exception there may be taken for a
missing package, or meet C++ that aborts.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

MISTAKE = 2
INTERRUPTED = 130
LOST_READER = 141
"""Exit codes: shells use 128 + 2 for SIGINT and 128 + 13 for SIGPIPE."""


@contextmanager
def report_errors_and_exit(tool: str) -> Iterator[None]:
    """Report a person's mistake inside the block in one sentence, and exit with code 2.

    So is standard output that is closed, or cannot be written, as on a full disk. Where its reader
    went away, as `head` does, nothing is said and the exit code is 141. An interruption is 130.
    """
    if sys.stderr is None:
        # What is printed there would go to standard output, among a command's results.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    stopped = f"{tool}: stopped; the same command goes on where it was"
    try:
        if sys.stdout is None:
            raise OSError("standard output is closed: send it to a file, or to /dev/null")
        try:
            with _end_within_imports(stopped):
                yield
        except SystemExit as end:
            if not end.code:
                _flush_output()
            raise
        except OSError as error:
            if error.errno is not None and error.filename is None:
                # That of standard output comes again, by its name.
                _flush_output()
            raise
        _flush_output()
    except (ValueError, LookupError, ImportError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _has_lost_reader():
            _exit(LOST_READER)
        message = " ".join((str(error) or type(error).__name__).split())
        _exit(MISTAKE, f"{tool}: {message}")
    except KeyboardInterrupt:
        _exit(INTERRUPTED, stopped)


@contextmanager
def _end_within_imports(message: str) -> Iterator[None]:
    """End the process with a message where an interruption comes within an import of the block."""
    before = _count_imports(sys._getframe())

    def handle(number: int, frame: FrameType | None) -> None:
        if _count_imports(frame) <= before:
            signal.default_int_handler(number, frame)
        with suppress(OSError):
            os.write(2, f"{message}\n".encode())
        os._exit(INTERRUPTED)

    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield
        return
    # A second one, while the interpreter ends, has nothing to say.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _count_imports(frame: FrameType | None) -> int:
    """Count the calls of the import system that are under way."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename == "<frozen importlib._bootstrap>"
        frame = frame.f_back
    return count


def _flush_output() -> None:
    """Write what waits in standard output, which at the interpreter's end is too late to report.

    Raises:
        BrokenPipeError: its reader went away.
        OSError: it cannot be written; the message says why.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"standard output cannot be written: {error.strerror}") from error


def _has_lost_reader() -> bool:
    """Return whether it is standard output or error that broke, and not some other connection."""
    return any(map(_is_broken, (sys.stdout, sys.stderr)))


def _is_broken(stream: TextIO) -> bool:
    try:
        stream.flush()
    except BrokenPipeError:
        return True
    except (OSError, ValueError):
        return False
    # An unbuffered stream has nothing left to write, so that the system is asked.
    with suppress(AttributeError, OSError, ValueError):
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _exit(code: int, message: str = "") -> None:
    """Exit, with a message if standard error takes one; leave nothing that cannot be written."""
    if message:
        with suppress(OSError):
            print(message, file=sys.stderr)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            # The interpreter would try again at its end, and complain.
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
    sys.exit(code)
