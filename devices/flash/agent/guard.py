"""The process above a worker: starts it again when it is killed, so that every flash ends in a decision."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.files import read_json
from narrowcast.devices.flash.agent.journal import Journal
from narrowcast.devices.flash.agent.layout import Layout
from narrowcast.devices.flash.agent.locks import Lock

ATTEMPTS = 4
ENDS_SECONDS = 20.0  # for the guardian of a job that has just ended


def guard(agent: Path, place: Path, layout_json: str) -> None:
    """Runs a job's worker until the job has ended; the last attempt only goes back."""
    layout = Layout(**json.loads(layout_json))
    job: Any = read_json(place / "job.json")
    locks = [Lock(place / "guardian.lock", job["by"]), Lock(layout.flash / "work.lock", job["by"])]
    for lock, wait_seconds in zip(locks, (0.0, ENDS_SECONDS), strict=True):
        lock.take(wait_seconds)
    try:
        journal = Journal(place / "journal.jsonl")
        if journal.ended() is not None:  # the guardian before was killed behind the decision
            return
        for attempt in range(ATTEMPTS):
            word = "work" if attempt < ATTEMPTS - 1 else "give-up"
            command = [sys.executable, "-IS", str(agent), word, str(place), layout_json]
            # The worker holds the locks too: a guardian that is killed leaves nobody room for another flash.
            held = [lock.handle for lock in locks]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, pass_fds=held)
            if journal.ended() is not None:
                return
            print(f"guardian: the worker ended with {done.returncode} and without a decision", flush=True)
    finally:
        for lock in locks:
            lock.release()
