"""When the machine starts: a release that nobody confirmed before the power went gives way to the one before it."""

from __future__ import annotations

from pathlib import Path

from narrowcast.devices.flash.agent import jobs
from narrowcast.devices.flash.agent.files import read_json
from narrowcast.devices.flash.agent.layout import Layout
from narrowcast.devices.flash.agent.services import services_for
from narrowcast.devices.flash.agent.state import State, boot_id

REASON = "the machine was started again before the release was confirmed"


def boot(agent: Path, start: str = "") -> None:
    """Decides; with ``start`` (``supervised``) also starts the daemon, which systemd does by itself.

    Where there was no release before, the new one stays: a board that runs something beats one that runs nothing.
    """
    layout = Layout(**read_json(agent.with_name("layout.json")))
    services, state = services_for(layout, start or "systemd"), State(layout)
    if state.pending is not None and (start or state.pending.get("boot") != boot_id()):
        before = state.pending.get("previous")
        job = jobs.journal(layout, str(state.pending.get("job")))
        if before is not None and layout.release(str(before)).is_dir():
            print(f"narrowcast: {state.pending['release']} was not confirmed; back to {before}", flush=True)
            state.go_back(REASON, services.adopt)
            jobs.end(job, "rolled-back", REASON, layout.running())
        else:
            print(
                f"narrowcast: {state.pending['release']} was not confirmed, and nothing ran before: it stays",
                flush=True,
            )
            state.stay(read_json(layout.release(str(state.pending["release"])) / "release.json") or {}, REASON)
            jobs.end(job, "committed", REASON, layout.running())
    for place in layout.jobs.iterdir() if layout.jobs.is_dir() else []:
        job = jobs.journal(layout, place.name)
        if job.has("rollback", "begin"):  # the power went on the way back, behind the decision
            jobs.end(job, "rolled-back", REASON, layout.running())
    if start and layout.running() is not None:
        services.restart()
