"""Where things lie on a board.

::

    PROGRAM/current -> releases/ID          what runs; renamed into place
    PROGRAM/releases/ID/                    model.ncb, edge.toml, tls/, release.json, venv -> ../../envs/ENV; with systemd
                                            the daemon's unit, which is installed with the switch and on the way back
    PROGRAM/envs/ENV/                       virtual environments, shared by releases; whole once .complete is there
    PROGRAM/flash/files/SHA256              what was uploaded (0600); .part while it arrives
    PROGRAM/flash/jobs/JOB/                 job.json, journal.jsonl
    PROGRAM/flash/state.json                pending release, highest releases, how the last flashes ended
    PROGRAM/flash/session.lock, work.lock   held by who uploads, and by who switches
    PROGRAM/flash/agent.pyz                 this program, for the check at boot
    CONFIG/edge.toml -> PROGRAM/current/edge.toml, CONFIG/tls -> PROGRAM/current/tls, CONFIG/trusted.pub
    STATE/, CACHE/                          the daemon's: spool; measured precisions, TensorRT engines
    RUN/status.json                         the daemon's
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

UNIT = "narrowcast-edge"
UNIT_FILE = f"{UNIT}.service"
BOOT_UNIT = "narrowcast-flash-boot"


@dataclass(frozen=True)
class Layout:
    """The folders, as text so that they travel as JSON."""

    program: str
    config: str
    state: str
    cache: str
    run: str

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)

    @property
    def current(self) -> Path:
        """The link to what runs."""
        return Path(self.program, "current")

    @property
    def releases(self) -> Path:
        """All releases."""
        return Path(self.program, "releases")

    @property
    def envs(self) -> Path:
        """All environments."""
        return Path(self.program, "envs")

    @property
    def flash(self) -> Path:
        """What flashing keeps for itself."""
        return Path(self.program, "flash")

    @property
    def files(self) -> Path:
        """What was uploaded."""
        return self.flash / "files"

    @property
    def jobs(self) -> Path:
        """Jobs and their journals."""
        return self.flash / "jobs"

    @property
    def trusted(self) -> Path:
        """The keys whose bundles run here."""
        return Path(self.config, "trusted.pub")

    @property
    def edge(self) -> Path:
        """The daemon's configuration."""
        return Path(self.config, "edge.toml")

    @property
    def daemon_status(self) -> Path:
        """Written by the daemon."""
        return Path(self.run, "status.json")

    def release(self, name: str) -> Path:
        """One release's folder."""
        return self.releases / name

    def running(self) -> str | None:
        """The id that ``current`` shows; None where there is none."""
        try:
            return self.current.readlink().name
        except OSError:
            return None

    def point_to(self, release: str) -> str:
        """What ``current`` holds for a release."""
        return f"releases/{release}"


def by_hand(path: Path) -> Path:
    """Where a file or folder of the configuration is kept that somebody had made before the first flash."""
    return path.with_name(f"{path.name}.before-flash")
