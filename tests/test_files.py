"""Locks and digests of folders, where the file system does not do its part."""

import errno

import pytest
from filelock import FileLock

from interp import files
from interp.data import AnswerCache


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOLCK, "No locks available"),
        OSError(errno.EOPNOTSUPP, "Operation not supported"),
        PermissionError(errno.EACCES, "Permission denied"),
        NotImplementedError("FileSystem does not appear to support flock"),
    ],
)
def test_a_file_system_without_locks(tmp_path, monkeypatch, error):
    def refuse(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    message = "on a file system that has locks"
    with pytest.raises(ValueError, match=message), files.lock_folder(tmp_path):
        pass
    with pytest.raises(ValueError, match=r"cannot be written .*: give the path of a file"):
        AnswerCache(tmp_path / "answers.jsonl").put("key", "text")


def test_a_lock_that_another_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.1)
    message = "locked by another process"
    with (
        files.lock_folder(tmp_path),
        pytest.raises(ValueError, match=message),
        files.lock_folder(tmp_path),
    ):
        pass
    with files.lock_folder(tmp_path):
        pass


def test_digests_of_a_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        (tmp_path / name).write_bytes(name.encode())
    files.check_digests(tmp_path)
    files.write_digests(tmp_path)
    files.check_digests(tmp_path)
    (tmp_path / "sub/b").write_bytes(b"c")
    with pytest.raises(ValueError, match="b' is damaged, or was changed after it was written"):
        files.check_digests(tmp_path)
    (tmp_path / "sub/b").unlink()
    with pytest.raises(ValueError, match="b' is missing, which was there"):
        files.check_digests(tmp_path)
