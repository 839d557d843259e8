"""How a command ends: where its output cannot be written, and where a person stops it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from interp.cli import main, report_errors_and_exit
from tests.helpers import ROOT

STOPPED = "tool: stopped; the same command goes on where it was\n"

needs_full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def run(body: str, ending: str = "", **more: object) -> subprocess.CompletedProcess[str]:
    """Run a tool in a shell of its own; `ending` says where its output goes."""
    program = "import os, signal, sys\nfrom interp.cli import report_errors_and_exit\n"
    program += "with report_errors_and_exit('tool'):\n" + textwrap.indent(body, "    ")
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {ending}', sys.executable, program],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        **more,
    )


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def buffering(request, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


MANY_LINES = "for number in range(20_000): print('line', number)"


@pytest.mark.usefixtures("buffering")
@pytest.mark.parametrize(
    ("body", "reader", "seen"),
    [
        (MANY_LINES, "head -n 1", "line 0\n"),
        # Too little to fill a pipe or a buffer: it is written when all is done.
        ("import time; time.sleep(0.1); print('few')", "true", ""),
        ("import time; time.sleep(0.1); print('help'); sys.exit(0)", "true", ""),
    ],
    ids=["many", "few", "help"],
)
def test_a_reader_that_goes_away_ends_a_command_in_silence(body, reader, seen):
    done = run(body, f"| {reader}")
    assert (done.returncode, done.stdout, done.stderr) == (141, seen, "")


def test_progress_that_nobody_reads_any_more_ends_a_command_in_silence():
    body = "for number in range(20_000): print('done', number, file=sys.stderr)"
    done = run(body, "2> >(head -n 1 >&2); wait")
    assert done.stderr == "done 0\n"
    done = run(body, "2>&1 | head -n 1")
    assert (done.returncode, done.stdout, done.stderr) == (141, "done 0\n", "")


def test_another_connection_that_breaks_is_a_mistake_as_any_other(capsys):
    here, there = socket.socketpair()
    there.close()
    with here, pytest.raises(SystemExit) as caught, report_errors_and_exit("tool"):
        here.send(b"x")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "tool: [Errno 32] Broken pipe\n"


@needs_full_disk
@pytest.mark.usefixtures("buffering")
@pytest.mark.parametrize("body", ["print('few')", MANY_LINES])
def test_a_full_disk_is_a_sentence(body):
    done = run(body, "> /dev/full")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("tool: ")
    assert line.endswith("No space left on device")


@needs_full_disk
def test_output_that_waits_is_named_when_it_cannot_be_written(monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    expected = "tool: standard output cannot be written: No space left on device\n"
    for body in ("print('few')", "print('help'); sys.exit(0)"):
        assert run(body, "> /dev/full").stderr == expected


@needs_full_disk
@pytest.mark.parametrize("ending", ["> /dev/full", "| true", "2> /dev/full"])
def test_a_mistake_keeps_its_code_whatever_becomes_of_the_output(ending, monkeypatch):
    """A second complaint, by the interpreter at its end, would be exit code 120."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    done = run(
        "import time; print('few'); time.sleep(0.1); raise ValueError('no such\\n V')", ending
    )
    assert done.returncode == 2
    assert done.stderr == ("" if ending.startswith("2") else "tool: no such V\n")


def test_output_that_is_closed_is_a_sentence_before_any_work():
    done = run("sys.stderr.write('worked')", ">&-")
    assert done.returncode == 2
    assert done.stderr == ("tool: standard output is closed: send it to a file, or to /dev/null\n")


def test_notes_do_not_go_among_the_results_where_standard_error_is_closed():
    """`print(…, file=None)` would print them to standard output."""
    done = run("print('note', file=sys.stderr); print('result'); raise ValueError('no')", "2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "result\n", "")


# A person stops it


def test_an_interruption_is_a_line_and_130():
    done = run("os.kill(os.getpid(), signal.SIGINT)")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", STOPPED)


@pytest.mark.parametrize("package", ["tyro", "torch"])
@pytest.mark.parametrize("otherwise", ["os.abort()", "raise ImportError('x')"])
def test_an_interruption_within_an_import_is_one_too(package, otherwise, tmp_path):
    """Torch's C++ aborts on an exception in its import; others take it for a missing package."""
    (tmp_path / f"{package}.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(5)\n"
        "except KeyboardInterrupt:\n"
        f"    {otherwise}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from interp.cli import main; main(['sweep', '--help'])"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == STOPPED.replace("tool", "interp")


@pytest.mark.parametrize("way", ["run", "imported"])
def test_an_interruption_outside_of_imports_lets_a_command_clear_up(tmp_path, way):
    """Also where all of the program runs within an import."""
    (tmp_path / "program.py").write_text(
        "import os, signal\n"
        "from interp.cli import report_errors_and_exit\n"
        "with report_errors_and_exit('tool'):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally:\n"
        "        open('cleared', 'w').close()\n"
    )
    done = subprocess.run(
        [sys.executable, *(["program.py"] if way == "run" else ["-c", "import program"])],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (130, STOPPED)
    assert (tmp_path / "cleared").exists()


def test_a_second_interruption_at_the_end_says_nothing():
    # What was registered before the tool's own comes later, when the system's way is back.
    program = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
    program += "from interp.cli import report_errors_and_exit\n"
    program += "with report_errors_and_exit('tool'):\n    os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, STOPPED)


def test_the_way_that_interruptions_are_dealt_with_is_as_before_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with report_errors_and_exit("tool"):
        pass
    assert signal.getsignal(signal.SIGINT) is before


# Devices


@pytest.mark.parametrize(
    "device", ["meta", "xla:99", "cuda:97", "privateuseone", "hpu", "gpu", "cuda:-1", "vulkan"]
)
@pytest.mark.parametrize("command", ["evaluate", "sweep"])
def test_a_device_that_cannot_compute_is_a_sentence_before_a_model_is_read(
    device, command, capsys, tmp_path
):
    """No model has this name, so that a complaint about it would have come too late."""
    words = {"evaluate": ["--models", "./V"], "sweep": ["--vanilla", "./V", "--unlearned", "./U"]}
    args = [command, *words[command], "--queries", "capitals", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        main([*args, "--limit", "1", "--device", device])
    printed = capsys.readouterr()
    assert (caught.value.code, printed.out) == (2, "")
    (line,) = printed.err.splitlines()
    assert line.startswith("interp: ")
    assert device in line
    assert "./V" not in line
    assert not (tmp_path / "out").exists()
