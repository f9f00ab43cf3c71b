"""A stand-in for ``systemctl``: keeps what it was called with, and which units are enabled."""

from __future__ import annotations

from pathlib import Path

_PROGRAM = """#!/bin/sh
echo "$@" >>{folder}/calls
case "$1" in
  enable) for word; do case "$word" in *.service) touch "{folder}/enabled-$word" ;; esac; done ;;
  disable) for word; do rm -f "{folder}/enabled-$word"; done ;;
  show) cat {folder}/state ;;
  daemon-reload) [ ! -e {folder}/broken ] || {{ echo "no way" >&2; exit 1; }} ;;
esac
"""


class Systemctl:
    """One that is called where ``PATH`` says so.

    Attributes:
        units: a folder in place of ``/etc/systemd/system``.
    """

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        self.units = folder / "units"
        self.units.mkdir(parents=True)
        program = folder / "systemctl"
        program.write_text(_PROGRAM.format(folder=folder))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")

    @property
    def calls(self) -> list[str]:
        """What it was told, in order."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def enabled(self, unit: str) -> bool:
        """Whether a unit starts with the machine."""
        return (self.folder / f"enabled-{unit}.service").exists()

    def shows(self, state: str) -> None:
        """What ``show`` prints from now on."""
        (self.folder / "state").write_text(state + "\n")

    def breaks(self) -> None:
        """``daemon-reload`` fails from now on."""
        (self.folder / "broken").touch()
