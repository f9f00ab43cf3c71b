"""Where ``narrowcast profile`` may write its record."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from narrowcast.cli import profile
from narrowcast.transport.errors import ConfigError


def test_a_device_needs_no_folder_that_can_be_written_to(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may always
    profile._check_output(Path("/dev/null"))
    (tmp_path / "link.json").symlink_to("/proc/RUN.json")
    with pytest.raises(ConfigError, match="written to /proc"):
        profile._check_output(tmp_path / "link.json")
    with pytest.raises(ConfigError, match="is a folder"):
        profile._check_output(tmp_path)
