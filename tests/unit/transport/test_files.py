"""Files that are replaced whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from narrowcast.transport import files
from narrowcast.transport.files import forget_partials, replacing


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


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    (tmp_path / "to link").symlink_to("link")
    link.symlink_to("elsewhere/file")
    for content in (b"where nothing was", b"again"):
        with replacing(tmp_path / "to link") as out:
            out.write(content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert [found.name for found in target.parent.iterdir()] == ["file"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("link")
    with pytest.raises(OSError, match="link") as caught, replacing(link):
        pass
    assert caught.value.filename == str(link)
    assert link.is_symlink()


def test_a_device_stays_one(tmp_path):
    ours, theirs = os.openpty()  # an expendable one
    (tmp_path / "link").symlink_to(os.ttyname(theirs))
    try:
        with replacing(tmp_path / "link") as out:
            out.write(b"to a terminal")
        assert os.read(ours, 100) == b"to a terminal"
        assert Path(os.ttyname(theirs)).is_char_device()
    finally:
        os.close(ours)
        os.close(theirs)
    assert list(tmp_path.iterdir()) == [tmp_path / "link"]
    assert (tmp_path / "link").is_symlink()


def test_a_pipe_is_written_to(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen(["/bin/cat", path], stdout=subprocess.PIPE) as reader:
        with replacing(path) as out:
            out.write(b"to whoever reads")
        assert reader.stdout.read() == b"to whoever reads"
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("before", "mode", "after"),
    [(0o640, 0o600, 0o640), (0o644, 0o600, 0o640), (0o664, 0o666, 0o664), (0o600, 0o666, 0o600)],
)
def test_whoever_could_read_the_old_file_can_read_the_new_one(tmp_path, before, mode, after):
    """A server's token file: an administrator who revokes one must not lock the server out."""
    path = tmp_path / "tokens.txt"
    path.write_bytes(b"old")
    path.chmod(before)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    with replacing(path, mode=mode) as out:
        out.write(b"new")
    found = path.stat()
    assert (path.read_bytes(), stat.S_IMODE(found.st_mode)) == (b"new", after)
    if os.geteuid() == 0:
        assert (found.st_uid, found.st_gid) == (12345, 23456)


def test_a_secret_that_cannot_be_given_to_its_group_is_not_given_to_another(tmp_path, monkeypatch):
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o640)
    honest = os.fstat

    def another(file):
        found = list(honest(file))
        found[4] += 1  # as if we were somebody else
        return os.stat_result(found)

    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fstat", another)
    monkeypatch.setattr(os, "fchown", refused)
    with replacing(path, mode=0o600) as out:
        out.write(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_that_write_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first:
        first.write(b"first")
        with replacing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b", whole")
    assert path.read_bytes() == b"first, whole"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_the_folder_is_put_on_disk_behind_the_rename(tmp_path, monkeypatch):
    happened, honest = [], os.fsync
    monkeypatch.setattr(files.Path, "replace", lambda self, to: happened.append("renamed") or self.rename(to))
    monkeypatch.setattr(os, "fsync", lambda file: happened.append(os.fstat(file).st_ino) or honest(file))
    with replacing(tmp_path / "file") as out:
        out.write(b"new")
    assert happened == [(tmp_path / "file").stat().st_ino, "renamed", tmp_path.stat().st_ino]
    happened.clear()
    with replacing(tmp_path / "file", sync=False) as out:
        out.write(b"newer")
    assert happened == ["renamed"]


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


def test_what_a_killed_process_was_writing_is_found_by_its_lock(tmp_path):
    code = (
        "import sys; from pathlib import Path; from narrowcast.transport.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as out:\n    print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        (left,) = tmp_path.iterdir()
        os.utime(left, (0, 0))
        assert forget_partials(tmp_path) == [], "it is being written"
        # As seen from another container: its number is nobody's here.
        elsewhere = left.rename(left.with_name(f".file.{2**22 + 1}.partial"))
        assert forget_partials(tmp_path) == []
        elsewhere.rename(left)
        writer.kill()
    (tmp_path / ".file.partial").write_bytes(b"not ours")
    (tmp_path / f".file.{os.getpid()}.partial").write_bytes(b"a number that is in use again, and not for a day")
    assert forget_partials(tmp_path) == [left]
    assert len(list(tmp_path.iterdir())) == 2
    assert forget_partials(tmp_path / "nowhere") == []


def test_a_file_that_is_taken_for_abandoned_before_it_is_locked_is_begun_anew(tmp_path, monkeypatch):
    locked, path = files._locked, tmp_path / "file"

    def late(file, *, wait):
        monkeypatch.setattr(files, "_locked", locked)
        (partial,) = tmp_path.glob(".*.partial")
        partial.unlink()
        return locked(file, wait=wait)

    monkeypatch.setattr(files, "_locked", late)
    with replacing(path) as out:
        out.write(b"whole")
    assert path.read_bytes() == b"whole"
