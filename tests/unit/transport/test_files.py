"""Files that are replaced whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from narrowcast.transport.files import replacing


def test_the_new_file_takes_the_old_ones_place(tmp_path):
    path = tmp_path / "new folder" / "file"
    for content in (b"first", b"second"):
        with replacing(path) as out:
            out.write(content)
        assert path.read_bytes() == content
    assert [found.name for found in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), replacing(path) as out:
        out.write(b"half of the new")
        raise error
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_names_the_file(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(OSError, match="No space") as caught, replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)


def test_a_file_that_may_not_be_written_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught, replacing(tmp_path / "folder"):
        pass
    assert caught.value.filename == str(tmp_path / "folder")


def test_what_killed_processes_left_is_cleared_away_once_it_is_old(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    old, fresh, running = (
        tmp_path / f".{name}.{process}.partial"
        for name, process in (("file", ended.pid), ("other", ended.pid), ("file", os.getppid()))
    )
    for left in (old, fresh, running):
        left.write_bytes(b"half")
        os.utime(left, (0, 0))
    os.utime(fresh)
    for name in ("file", "other"):
        with replacing(tmp_path / name) as out:
            out.write(b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([running, fresh, tmp_path / "file", tmp_path / "other"])
