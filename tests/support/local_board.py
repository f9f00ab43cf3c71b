"""This machine as a board: the agent's own processes, below a folder, without ssh and without root."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent import jobs, store
from narrowcast.devices.flash.agent.journal import Journal
from narrowcast.devices.flash.agent.layout import Layout
from narrowcast.devices.flash.agent.locks import holder
from narrowcast.devices.flash.agent.services import Supervised
from narrowcast.devices.flash.board import layout_of
from narrowcast.devices.flash.packing import agent_zip
from narrowcast.devices.targets import DeployPaths
from support import bundles, standin
from support.waiting import until


class LocalBoard:
    """A board with a stand-in environment (:mod:`support.standin`); jobs go to its agent as a flash sends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layout: Layout = layout_of(str(folder / "board"), DeployPaths())
        self.environment = standin.make(folder / "standin")
        agent = folder / "agent.pyz"
        agent.write_bytes(agent_zip())
        store.install_agent(self.layout, agent)
        self.agent = self.layout.flash / "agent.pyz"
        self.services = Supervised(self.layout)
        self.number = 0

    def job(
        self, *, to: str = "127.0.0.1:1", number: int | None = None, extra: str = "", **changes: Any
    ) -> dict[str, Any]:
        """A flash of the next release, its files put where an upload puts them."""
        self.number = number if number is not None else self.number + 1
        made = bundles.make(release=self.number).write(self.folder / f"{self.number}.ncb")
        text = f'to = "{to}"\nbundle = "{self.layout.current}/model.ncb"\n{extra}'
        name = f"tiny-{self.number}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        files = [self._file("model.ncb", made.read_bytes()), self._file("edge.toml", text.encode(), secret=True)]
        return {
            "id": name, "kind": "flash", "by": "test@here", "services": "supervised", "user": "", "keep": 3,
            "release": {"id": name, "model": "tiny", "number": self.number, "env": str(self.environment)},
            "env": str(self.environment), "environment": str(self.environment), "python": sys.executable,
            "system_site": False, "backends": ["onnxruntime"], "precision": "auto", "enrol": bundles.trusted_key().line,
            "unsigned": False, "allow_downgrade": False, "drill": "", "wheels": [], "files": files,
            "gate": {"kind": "frames", "frames": 3, "seconds": 20.0}, "keep_from": self.layout.running(), "units": {},
            **changes,
        }  # fmt: skip

    def _file(self, path: str, data: bytes, *, secret: bool = False) -> dict[str, Any]:
        sha256 = hashlib.sha256(data).hexdigest()
        store.append(self.layout, sha256, 0, data, len(data))
        return {"path": path, "sha256": sha256, "secret": secret}

    def start(self, job: dict[str, Any]) -> str:
        """Begins a job, or goes on with it."""
        return jobs.start(self.layout, job)

    def carry_out(self, job: dict[str, Any]) -> dict[str, Any]:
        """The line that ends a job."""
        self.start(job)
        self.wait_idle(job)
        ended = self.journal(job).ended()
        assert ended is not None, self.worker_log(job)
        return ended

    def wait_idle(self, job: dict[str, Any]) -> None:
        """Until nobody carries the job out any more."""
        until(lambda: not jobs.alive(self.layout, job["id"]), f"{job['id']} is not carried out any more", 60)

    def journal(self, job: dict[str, Any]) -> Journal:
        """Its journal."""
        return jobs.journal(self.layout, job["id"])

    def worker_log(self, job: dict[str, Any]) -> str:
        """What its processes wrote."""
        return (self.layout.jobs / job["id"] / "worker.log").read_text()

    def answering(self) -> int | None:
        """The release number of the daemon that runs; None where none does."""
        with contextlib.suppress(OSError, ValueError):
            status = json.loads(self.layout.daemon_status.read_bytes())
            if status["pid"] == self.services.state().pid:
                return status["model"]["release"]
        return None

    def runs_what_it_shows(self) -> bool:
        """Whether the daemon that runs is that of the release which ``current`` shows."""
        running = self.layout.running()
        return running is not None and f"tiny-{self.answering()}-" in running

    def power_cut(self) -> None:
        """Everything ends at once, and the machine starts again."""
        self.kill_daemon()
        subprocess.run([sys.executable, "-IS", self.agent, "boot", "supervised"], check=True)

    def kill_daemon(self) -> None:
        """Supervisor and daemon, without a farewell."""
        pid = self.services._supervisor()
        child = self.services.state().pid
        for one in (pid, child):
            if one is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
        until(lambda: self.services._supervisor() is None, "the supervisor is gone")

    def close(self) -> None:
        """Ends what was started."""
        for path in self.layout.jobs.glob("*/guardian.lock"):
            if holder(path):
                with contextlib.suppress(ProcessLookupError, ValueError, OSError):
                    os.killpg(json.loads(path.read_bytes())["pid"], signal.SIGKILL)
        self.services.stop()
