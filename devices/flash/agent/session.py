"""The board's end of one connection: answers requests until the link ends, and holds the board's lock until a worker has it.

A link can end without a word (a laptop that changes its network, a tunnel that is gone): sshd then knows nothing of it for
up to two hours. So whoever holds the lock and says nothing for a minute has gone, and whoever comes back for the same run,
over another connection, ends the one before.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent import jobs, report, store
from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.facts import facts, reach
from narrowcast.devices.flash.agent.journal import END
from narrowcast.devices.flash.agent.layout import Layout
from narrowcast.devices.flash.agent.locks import FLASHED, Lock
from narrowcast.devices.flash.agent.services import services_for
from narrowcast.devices.flash.agent.trust import change_trust
from narrowcast.devices.flash.agent.wire import BEAT_SECONDS, Wire

FOLLOW_SECONDS = 0.2
LOST_SECONDS = 60  # the other end gives its link up after 15
LAYOUT = ("program", "config", "state", "cache", "run")


class Session:
    """One connection's.

    Args:
        wire: to the developer's machine.
        agent: this program's own zip file.
    """

    def __init__(self, wire: Wire, agent: Path) -> None:
        self._wire = wire
        self._agent = agent
        self._layout = Layout("", "", "", "", "")
        self._lock: Lock | None = None
        self._starting = False
        self._handlers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "hello": self._hello,
            "reach": lambda request: reach([str(address) for address in request["addresses"]]),
            "lock": self._take,
            "want": lambda request: store.want(self._layout, request["files"], locked=self._lock is not None),
            "put": self._put,
            "start": self._start,
            "follow": self._follow,
            "status": lambda request: report.status(self._layout, services_for(self._layout, request["services"])),
            "logs": self._logs,
            "trust": lambda request: change_trust(self._layout, request["add"], request["remove"]),
        }

    def run(self) -> None:
        """Until the other end hangs up."""
        try:
            while (request := self._wire.request()) is not None:
                self._answer(request)
        except (BrokenPipeError, EOFError, ConnectionResetError):
            pass
        finally:
            self._let_go()

    def hang_up(self, *_: object) -> None:
        """Of a signal: nothing was heard for too long, or the other end has come back over another connection.

        Raises:
            EOFError: as where the link ends; but not in the middle of starting a worker, behind which the lock is let go.
        """
        if not self._starting:
            raise EOFError("the other end has gone")

    def _let_go(self) -> None:
        self._wire.lost_seconds = 0
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _answer(self, request: dict[str, Any]) -> None:
        handler = self._handlers.get(str(request.get("op")))
        try:
            if handler is None:
                raise AgentError("BoardError", f"no request {request.get('op')!r}")
            self._wire.ok(handler(request))
        except (BrokenPipeError, EOFError, ConnectionResetError):
            raise
        except AgentError as error:
            self._wire.error(error.kind, error.message)
        except OSError as error:
            self._wire.error(*store.explain(error))
        except Exception as error:  # noqa: BLE001  (the last boundary on the board)
            self._wire.error("BoardError", f"the board failed: {type(error).__name__}: {error}")

    def _hello(self, request: dict[str, Any]) -> dict[str, Any]:
        self._layout = Layout(**{name: str(request["layout"][name]) for name in LAYOUT})
        return facts(self._layout)

    def _take(self, request: dict[str, Any]) -> bool:
        """Takes the board's lock; whether the job that it is taken for is under way already."""
        by, what, run, job = (str(request.get(name) or "") for name in ("by", "what", "run", "job"))
        lock = Lock(self._layout.flash / "session.lock", by, what or FLASHED, run)
        lock.take()
        self._lock = lock
        self._wire.lost_seconds = LOST_SECONDS
        jobs.check_current(self._layout)
        jobs.check_free(self._layout, job)
        store.install_agent(self._layout, self._agent)
        return job != "" and jobs.under_way(self._layout, job)

    def _put(self, request: dict[str, Any]) -> int:
        """Bytes of a file that is being uploaded; the whole of it is read even where it cannot be kept."""
        count = int(request["bytes"])
        data = self._wire.read(count)
        return store.append(self._layout, str(request["sha256"]), int(request["offset"]), data, int(request["total"]))

    def _start(self, request: dict[str, Any]) -> str:
        """From then on the worker's locks keep others away: this connection may end, or die, as it likes."""
        self._starting = True
        try:
            said = jobs.start(self._layout, request["job"])
        finally:
            self._starting = False
        self._let_go()
        return said

    def _follow(self, request: dict[str, Any]) -> dict[str, Any]:
        """Tells of a job's journal until it has ended; a beat now and then finds out whether anybody listens."""
        journal, told, seen = jobs.journal(self._layout, request["job"]), int(request.get("after") or 0), -1
        beat, dead = time.monotonic(), False
        while True:
            size, entries = journal.size(), []
            if size != seen:  # a small board has better things to do than to read the same again and again
                seen, entries = size, journal.entries()
                for entry in entries[told:]:
                    self._wire.event(entry)
                told = max(told, len(entries))
            if entries and entries[-1]["step"] == END:
                return entries[-1]
            if dead:
                raise AgentError(
                    "BoardError",
                    "the board's worker died before it was done; the same flash once more goes on where it stopped",
                )
            if time.monotonic() - beat > BEAT_SECONDS:
                dead = not jobs.alive(self._layout, request["job"])
                seen = -1 if dead else seen  # what it wrote before it died counts
                self._wire.event({"step": "beat", "state": ""})
                beat = time.monotonic()
            if not dead:
                time.sleep(FOLLOW_SECONDS)

    def _logs(self, request: dict[str, Any]) -> None:
        services = services_for(self._layout, request["services"])
        with closing(services.logs(int(request["lines"]), follow=bool(request["follow"]))) as lines:
            for line in lines:  # a beat now and then finds out whether anybody listens
                self._wire.event({"beat": True} if line is None else {"line": line})


def serve(agent: Path) -> None:
    """Answers on this process' own stdin and stdout; whatever else prints goes to stderr."""
    os.umask(0o022)  # the daemon's user reads what root writes, however strict root's own habits are
    incoming = sys.stdin.buffer  # the bootstrap has read from it, and it may have read ahead
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    session = Session(Wire(incoming, outgoing), agent)
    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, session.hang_up)
    session.run()
