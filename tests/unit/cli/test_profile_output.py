"""Where ``narrowcast profile`` may write its record, and what becomes of one that it cannot write."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from support import bundles
from support.example_run import example_run

from narrowcast.cli import main, profile
from narrowcast.devices.errors import UnwrittenRunError
from narrowcast.devices.profile import entry
from narrowcast.transport.errors import ConfigError


def test_a_device_needs_no_folder_that_can_be_written_to(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may always
    profile._check_output(Path("/dev/null"))
    (tmp_path / "link.json").symlink_to("/proc/RUN.json")
    with pytest.raises(ConfigError, match="written to /proc"):
        profile._check_output(tmp_path / "link.json")
    with pytest.raises(ConfigError, match="is a folder"):
        profile._check_output(tmp_path)


@pytest.mark.parametrize("ended", [None, KeyboardInterrupt()])
def test_a_full_disk_does_not_take_the_run_along(monkeypatch, tmp_path, capsys, ended):
    def full(run, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    measured = example_run()
    monkeypatch.setattr(entry._Profiling, "run", lambda self: (measured, ended))
    monkeypatch.setattr(entry, "write_run", full)
    monkeypatch.chdir(tmp_path)
    bundles.make().write(tmp_path / "tiny.ncb")
    bundles.trusted_key().write(tmp_path / "test.pub")
    words = ["profile", "tiny.ncb", "--ways", "local", "--trust", "test.pub", "--quiet"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert measured.verdict.text[0] in out
    assert "has all of it" not in out
    assert err == "narrowcast: the disk is full (RUN.json): free some space, or write to another one\n"
    assert main([*words, "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["ways"]) == len(measured.ways)
    with pytest.raises(UnwrittenRunError, match="in no file: .*RUN.json") as caught:
        entry.profile(bundles.open_made(tmp_path / "tiny.ncb"), output="RUN.json")
    assert caught.value.run is measured
