"""``agent.pyz WORD ...``: the board's side of a flash."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from narrowcast.devices.flash.agent.errors import AgentError


def main(words: list[str], agent: Path) -> int:
    """Runs one of the agent's programs; returns the exit code."""
    word, *rest = words or [""]
    os.umask(0o022)  # the daemon's user reads what root writes, however strict root's own habits are
    try:
        if word == "session":
            from narrowcast.devices.flash.agent.session import serve

            serve(agent)
        elif word == "guard":
            from narrowcast.devices.flash.agent.guard import guard

            guard(agent, Path(rest[0]), rest[1])
        elif word in ("work", "give-up"):
            from narrowcast.devices.flash.agent.worker import give_up, work

            (work if word == "work" else give_up)(Path(rest[0]), rest[1])
        elif word == "supervise":
            from narrowcast.devices.flash.agent.supervise import supervise

            supervise(rest[0])
        elif word == "boot":
            from narrowcast.devices.flash.agent.boot import boot

            boot(agent, *rest)
        else:
            print("agent.pyz session | guard | work | give-up | supervise | boot", file=sys.stderr)
            return 2
    except AgentError as error:
        print(f"{error.kind}: {error.message}", file=sys.stderr)
        return 1
    return 0
