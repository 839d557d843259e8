"""Where commands write: what cannot be written there is a sentence before any work."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from interp import cli
from interp.cli.options import check_output_file
from interp.cli.unlearning import _check_model_folder
from interp.files import check_digests, list_files, write_atomically, write_digests
from interp.files import write_folder_atomically as write_folder

# No model and no run has these names: a complaint about them would come too late.
FOLDERS = {
    "demo": ["demo", "--out"],
    "sweep": ["sweep", "--vanilla", "./V", "--unlearned", "./U", "--queries", "./q", "--out"],
    "evaluate": ["evaluate", "--models", "./V", "--queries", "./q", "--out"],
    "unlearn": ["unlearn", "--vanilla", "./V", "--forget", "./f", "--out"],
    "contaminate": ["contaminate", "--vanilla", "./V", "--out"],
    "figures": ["figures", "./run", "--out"],
}
FILES = {
    "krs": ["krs", "./run", "--csv"],
    "queries": ["queries", "capitals", "--out"],
    "report": ["report", "./run", "--out"],
}


@pytest.fixture
def outputs(tmp_path, monkeypatch) -> Path:
    """What may stand where something is to be written."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "o"
    (home / "folder").mkdir(parents=True)
    (home / "folder" / "mine").write_text("mine")
    (home / "file").write_text("mine")
    (home / "link-to-file").symlink_to("file")
    (home / "link-to-folder").symlink_to("folder")
    (home / "dangling").symlink_to("gone/deep")
    (home / "itself").symlink_to("itself")
    (home / "circle").symlink_to("round")
    (home / "round").symlink_to("circle")
    os.mkfifo(home / "pipe")
    return home


def picture(home: Path) -> dict[str, str]:
    """Everything below a folder: what links say, and what files hold."""
    return {
        str(path.relative_to(home)): os.readlink(path)
        if path.is_symlink()
        else path.read_text()
        if path.is_file()
        else "a folder or a pipe"
        for path in sorted(home.rglob("*"))
    }


def refused(args: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert (caught.value.code, printed.out) == (2, "")
    return line.removeprefix("interp: ")


@pytest.mark.parametrize("command", FOLDERS)
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", "is a file, and a folder is needed"),
        ("link-to-file", "is a file, and a folder is needed"),
        ("link-to-file/below", "is a file, and a folder is needed"),
        ("pipe", "is a pipe or a device, and a folder is needed"),
        ("dangling", "is a link to 'gone/deep', which does not exist"),
        ("itself", "is a link to 'itself', which does not exist"),
        ("itself/below", "is a link to 'itself', which does not exist"),
        ("circle", "is a link to 'round', which does not exist"),
    ],
)
def test_what_cannot_be_a_folder(outputs, capsys, command, place, reason):
    before = picture(outputs)
    line = refused([*FOLDERS[command], f"o/{place}"], capsys)
    assert f"'o/{place.removesuffix('/below')}' {reason}" in line
    assert picture(outputs) == before


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("folder", "is a folder, and a file is needed"),
        ("pipe", "is a pipe or a device, and a file is needed"),
        ("file/below", "is a file, and a folder is needed"),
        ("link-to-file", "is a link to 'file': name the file itself, or another"),
        ("link-to-folder", "is a link to 'folder': name the file itself, or another"),
        ("dangling", "is a link to 'gone/deep': name the file itself, or another"),
        ("itself", "is a link to 'itself': name the file itself, or another"),
    ],
)
def test_what_cannot_be_a_file(outputs, capsys, command, place, reason):
    """A link would be replaced, and the file that it leads to would keep what is out of date."""
    before = picture(outputs)
    line = refused([*FILES[command], f"o/{place}"], capsys)
    assert line == f"'o/{place.removesuffix('/below')}' {reason}"
    assert picture(outputs) == before


def test_devices_are_never_replaced():
    for device in ("/dev/null", "/dev/full"):
        with pytest.raises(ValueError, match="is a pipe or a device, and a file is needed"):
            write_atomically(Path(device), lambda scratch: pytest.fail(f"writes {scratch}"))


def test_a_file_there_or_not_is_fine(outputs):
    for name in ("file", "new", "link-to-folder/new"):
        check_output_file(outputs / name)


@pytest.mark.parametrize("command", ["unlearn", "contaminate"])
@pytest.mark.parametrize("place", ["folder", "link-to-folder"])
def test_a_model_does_not_take_the_place_of_other_files(outputs, capsys, command, place):
    """Such as the vanilla model's own."""
    before = picture(outputs)
    line = refused([*FOLDERS[command], f"o/{place}"], capsys)
    assert line == (
        f"'o/{place}' holds other files, such as 'mine', which the model would replace: "
        "choose another output directory"
    )
    assert picture(outputs) == before


def test_a_model_may_be_put_where_one_was_made_or_nothing_is(outputs):
    (outputs / "empty").mkdir()
    for name in (".DS_Store", "._weights", "Thumbs.db", "desktop.ini", "Desktop.ini"):
        (outputs / "empty" / name).write_bytes(b"\0")
    for name in ("new", "empty", "new/below"):
        _check_model_folder(outputs / name)
    (outputs / "folder" / "unlearning.json").write_text("{}")
    for name in ("folder", "link-to-folder"):
        _check_model_folder(outputs / name)


@pytest.mark.parametrize("place", ["file", "dangling", "itself", "pipe"])
def test_a_folder_is_not_begun_where_none_can_be(outputs, place):
    before = picture(outputs)
    with pytest.raises(ValueError, match=r"a folder is needed|does not exist"):
        write_folder(outputs / place, lambda scratch: pytest.fail(f"writes {scratch}"))
    assert picture(outputs) == before


# What systems leave


def test_files_that_systems_leave_are_not_listed_and_not_sealed(tmp_path):
    """A Finder or an Explorer may write them at any time, and take them away."""
    left = (".DS_Store", "._a.parquet", "~a.parquet", "Thumbs.db", "desktop.ini")
    for name in (*left, "a.parquet"):
        (tmp_path / name).write_text(name)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ".DS_Store").write_text("x")
    (tmp_path / "below" / "b").write_text("b")
    assert [path.name for path in list_files(tmp_path, "*.parquet")] == ["a.parquet"]
    assert [path.name for path in list_files(tmp_path, "*")] == ["a.parquet", "below"]
    write_digests(tmp_path)
    sealed = json.loads((tmp_path / "interp_digests.json").read_text())["files"]
    assert list(sealed) == ["a.parquet", "below/b"]
    for name in left:
        (tmp_path / name).unlink()
    check_digests(tmp_path)
    (tmp_path / "below" / "b").write_text("c")
    with pytest.raises(ValueError, match="is damaged"):
        check_digests(tmp_path)
