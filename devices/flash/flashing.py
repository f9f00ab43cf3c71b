"""One flash, from this machine's side: connect, look, plan, send, start, listen; the board does the rest by itself."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from narrowcast.devices.flash import edge
from narrowcast.devices.flash.agent.layout import BOOT_UNIT, UNIT_FILE
from narrowcast.devices.flash.answers import Entry, Facts, There, checked
from narrowcast.devices.flash.board import Rights, connected, hello, layout_of, services_of
from narrowcast.devices.flash.errors import DeclinedError
from narrowcast.devices.flash.following import follow, outcome
from narrowcast.devices.flash.observer import Observer
from narrowcast.devices.flash.options import FlashOptions
from narrowcast.devices.flash.plan import Plan
from narrowcast.devices.flash.planning import make_plan
from narrowcast.devices.flash.preflight import (
    check_board,
    check_disk,
    check_release,
    check_servers,
    choose_target,
    user_of,
)
from narrowcast.devices.flash.reconnecting import Reconnecting
from narrowcast.devices.flash.release import (
    Sent,
    describe,
    environment_id,
    flashed_by,
    head_part,
    release_id,
    tls_files,
    wheel_files,
)
from narrowcast.devices.flash.report import FlashReport, StepRecord
from narrowcast.devices.flash.session import Session
from narrowcast.devices.flash.ssh import Ssh
from narrowcast.devices.flash.unit_texts import boot_unit, edge_unit
from narrowcast.devices.flash.wheelhouse import BoardPython, Wheel, bring_together, extras_for, from_folder
from narrowcast.devices.targets import DeployPaths, Target
from narrowcast.transport.bundle import Bundle


class Flashing:
    """One flash; see :func:`narrowcast.devices.flash.flash`."""

    def __init__(
        self, bundle: Bundle, destination: str, target: Target | None, options: FlashOptions, observer: Observer
    ) -> None:
        self.bundle = bundle
        self.destination = destination
        self.target = target
        self.options = options
        self.observer = observer
        self.layout = layout_of(options.prefix, target.paths if target else DeployPaths())
        self.steps: list[StepRecord] = []
        self.notes: list[str] = []  # of the board, as the last look found it
        self.uploaded_bytes = 0
        self._happened: list[str] = []
        self._heard: list[Entry] = []
        self._job: dict[str, Any] = {}
        self._agreed: Plan | None = None
        self._started = False
        self._run = secrets.token_hex(8)  # by which the board knows our connections for those of one flash

    def run(self) -> FlashReport:
        """To the end. A link that breaks is made anew: an upload goes on where it stopped, the board goes on anyway."""
        going_on = Reconnecting(
            there=lambda: bool(self.steps), heard=lambda: (self.uploaded_bytes, len(self._heard)),
            started=lambda: self._started, note=self._note,
        )  # fmt: skip
        return going_on.run(self._over_a_connection)

    def _over_a_connection(self) -> FlashReport:
        with connected(self.destination, self.options.connection, self.layout, self.observer) as board:
            return self._over(*board)

    def _over(self, ssh: Ssh, rights: Rights, session: Session) -> FlashReport:
        facts = hello(session, self.layout)
        if not self._started:
            self._step(
                "connect", "done", f"Python {rights.version} at {rights.python}{', by sudo' if rights.root else ''}"
            )
            report = self._prepare(ssh, rights, session, facts)
            if report is not None:
                return report
        ended, steps = follow(session, str(self._job["id"]), self.observer, self._heard)
        return outcome(ended, self._report("committed", ended, steps))

    def _prepare(self, ssh: Ssh, rights: Rights, session: Session, facts: Facts) -> FlashReport | None:
        """Up to the moment from which the board needs us no more; a report where there is nothing to do."""
        options, manifest = self.options, self.bundle.manifest
        target = self.target = choose_target(self.target, facts, options)
        manager = services_of(options.services, facts, options.prefix)
        self._step("preflight", "begin", f"{facts['model'] or facts['hostname']}, {facts['os']}")
        self.notes = check_board(facts, target, rights, options)
        there = checked(session.call("status", services=manager), There, self.destination)
        user = user_of(options, there, manager)
        files, edge_text = self._files(there, target, manager, user)
        self.notes += check_release(manifest, there, target, options)
        servers = edge.servers_of(edge_text)
        self.notes += check_servers(session.call("reach", addresses=servers), options, len(servers))
        wheels = self._wheels(facts, rights, target, edge_text)
        system_site = "tensorrt" in target.backends and bool(facts["modules"].get("tensorrt"))
        env = options.environment or environment_id(wheels, rights.version, system_site=system_site)
        name = release_id(self.bundle, files, env, {} if options.tls is not None else there["tls"])
        self._step("preflight", "done", f"{len(self.notes)} notes" if self.notes else "nothing to note")
        current = there["current"] or {}
        if current.get("id") == name and there["pending"] is None and there["service"]["active"]:
            return self._report("unchanged", {"previous": there["previous"]}, self.steps, name)
        sent = [*files, *(wheel_files(wheels) if env not in there["environments"] else [])]
        have = session.call("want", files=[{"sha256": file.sha256, "bytes": len(file.data)} for file in sent])
        missing = sum(len(file.data) for file in sent) - sum(have)
        check_disk(facts, [] if env in there["environments"] else wheels, missing)
        enrol = self._enrolment(there)
        plan = make_plan(
            self, ssh, rights, facts, name=name, target=target, manager=manager, user=user, sent=sent, have=have,
            enrols=bool(enrol), replaces=current.get("id"), system_site=system_site,
        )  # fmt: skip
        if options.dry_run:
            return self._report("planned", {}, self.steps, name, plan)
        if (self._agreed is None or self._agreed.release != plan.release) and not self.observer.confirm(plan):
            raise DeclinedError(f"{self.destination} was left as it is")
        self._agreed = plan  # a connection that broke later is no reason to ask again
        runtime = edge.runtime_of(edge_text)
        self._job = self._make_job(
            name, env, target, manager, user, files, wheels, rights, there, enrol, system_site, runtime
        )
        self._upload_and_start(session, sent)
        return None

    def _upload_and_start(self, session: Session, sent: Sequence[Sent]) -> None:
        if session.call("lock", by=flashed_by(), job=self._job["id"], run=self._run):
            self._step("upload", "skipped", "the board is at it already")
            self._started = True
            return
        have = session.call("want", files=[{"sha256": file.sha256, "bytes": len(file.data)} for file in sent])
        total = sum(len(file.data) for file in sent) - sum(have)
        self._step(
            "upload",
            "begin",
            f"{len([1 for f, h in zip(sent, have, strict=True) if h < len(f.data)])} files, {total} bytes",
        )
        for file, there in zip(sent, have, strict=True):
            if there < len(file.data) or not file.data:
                self._send(session, file, there)
        self._step("upload", "done", f"{self.uploaded_bytes} bytes")
        session.call("start", job=self._job)
        self._started = True

    def _send(self, session: Session, file: Sent, there: int) -> None:
        begun, start = self.uploaded_bytes, there

        def tell(now: int) -> None:
            self.uploaded_bytes = begun + now - start
            self.observer.progress(file.name, now, len(file.data))

        session.put(file.data, file.sha256, there, tell)

    def _files(self, there: There, target: Target, manager: str, user: str) -> tuple[list[Sent], str]:
        """What the release's folder gets, and the daemon's configuration."""
        options = self.options
        tls = tls_files(options.tls) if options.tls is not None else []
        with_tls, signed = bool(tls) or bool(there["tls"]), self.bundle.signed_by is not None
        text = edge.edge_config(options, self.layout, there["edge"], tls=with_tls, signed=signed)
        edge.check_gate(text, options)
        model = Sent("model.ncb", head_part(self.bundle, whole=options.whole), "model.ncb")
        files = [model, Sent("edge.toml", text.encode(), "edge.toml", True), *tls]
        if manager == "systemd":  # in the release, since whoever goes back to it wants the daemon as it was
            files.append(Sent(UNIT_FILE, edge_unit(self.layout, user, target.backends).encode(), UNIT_FILE))
        return files, text

    def _wheels(self, facts: Facts, rights: Rights, target: Target, edge_text: str) -> list[Wheel]:
        options = self.options
        needed = extras_for(edge.sources_of(edge_text), edge.outputs_of(edge_text))
        extras = list(dict.fromkeys([*needed, *(options.extras or ())]))
        if options.environment:
            return []
        if options.wheels is not None:
            return from_folder(options.wheels)
        board = BoardPython(rights.version, facts["architecture"], facts["glibc"])
        return bring_together(board, extras, self.observer)

    def _enrolment(self, there: There) -> str:
        """The line of the key that the board is to trust; empty where it trusts somebody already."""
        key = self.bundle.signed_by
        return key.line if key is not None and self.options.enrol and not there["trusted"] else ""

    def _make_job(
        self, name: str, env: str, target: Target, manager: str, user: str, files: Sequence[Sent], wheels: Sequence[Wheel],
        rights: Rights, there: There, enrol: str, system_site: bool, runtime: dict[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        options, gate = self.options, self.options.for_gate()
        backend = runtime.get("backend", "auto")  # what is measured and tested is what the daemon will run
        return {
            "id": name, "kind": "flash", "by": flashed_by(), "services": manager, "user": user, "keep": options.keep,
            "release": {**describe(self.bundle, name, env, target.name, user), "gate": gate},
            "env": env, "environment": options.environment, "python": rights.python, "system_site": system_site,
            "backends": list(target.backends) if backend == "auto" else [backend],
            "precision": runtime.get("precision", "auto"), "enrol": enrol, "unsigned": self.bundle.signed_by is None,
            "allow_downgrade": options.allow_downgrade, "drill": options.drill,
            "gate": gate,
            "wheels": [{"name": wheel.path.name, "sha256": wheel.sha256, "bytes": wheel.size} for wheel in wheels],
            "files": [{"path": file.path, "sha256": file.sha256, "secret": file.secret} for file in files],
            "keep_from": (there["current"] or {}).get("id"),
            "units": {f"{BOOT_UNIT}.service": boot_unit(self.layout, rights.python)} if manager == "systemd" else {},
        }  # fmt: skip

    def _step(self, name: str, state: str, detail: str) -> None:
        self.observer.step(name, state, detail)
        if state != "begin":  # over a second connection, in place of the first one's
            self.steps = [step for step in self.steps if step.name != name]
            self.steps.append(StepRecord(name=name, state=state, detail=detail))

    def _note(self, line: str) -> None:
        self._happened.append(line)
        self.observer.note(line)

    def _report(
        self, word: Any, ended: Entry, steps: list[StepRecord], name: str = "", plan: Plan | None = None
    ) -> FlashReport:
        head: dict[str, Any] = ended.get("head") or {}
        manifest = self.bundle.manifest
        return FlashReport(
            destination=self.destination, outcome=word, release=name or str(self._job["id"]), previous=ended.get("previous"),
            model=manifest.name, number=manifest.release, target=self.target.name if self.target else None,
            uploaded_bytes=self.uploaded_bytes, precision=head.get("precision"), backend=head.get("backend"),
            head_ms=head.get("head_ms") or {}, power=head.get("power"),
            steps=steps if steps is self.steps else [*self.steps, *steps], notes=[*self.notes, *self._happened],
            plan=plan.as_dict() if plan else None,
        )  # fmt: skip
