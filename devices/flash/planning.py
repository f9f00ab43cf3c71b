"""Makes the plan: every step with the commands behind it, as far as they are commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from narrowcast.devices.flash.agent.layout import BOOT_UNIT, UNIT
from narrowcast.devices.flash.agent.services import SYSTEMD_UNITS
from narrowcast.devices.flash.answers import Facts
from narrowcast.devices.flash.board import Rights
from narrowcast.devices.flash.plan import STEPS, Command, Plan, PlannedStep
from narrowcast.devices.flash.release import Sent
from narrowcast.devices.flash.ssh import Ssh
from narrowcast.devices.targets import Target

if TYPE_CHECKING:
    from narrowcast.devices.flash.flashing import Flashing


def make_plan(
    flashing: Flashing, ssh: Ssh, rights: Rights, facts: Facts, *, name: str, target: Target, manager: str,
    user: str, sent: Sequence[Sent], have: Sequence[int], enrols: bool, replaces: str | None, system_site: bool,
) -> Plan:  # fmt: skip
    """What is about to be done."""
    manifest = flashing.bundle.manifest
    missing = [
        (file.name, len(file.data) - there) for file, there in zip(sent, have, strict=True) if there < len(file.data)
    ]
    signer = flashing.bundle.signed_by
    commands = _commands(flashing, ssh, rights, name, manager, user, system_site)
    steps = [PlannedStep(name=step, what=what, commands=commands.get(step, [])) for step, what in STEPS.items()]
    return Plan(
        destination=flashing.destination, board=facts["model"] or facts["hostname"], target=target.name,
        release=name, model=manifest.name, number=manifest.release, steps=steps, replaces=replaces,
        signed_by=f"{signer.name} ({signer.id})".strip() if signer else "nobody", enrols=enrols,
        upload_bytes=sum(size for _, size in missing), upload_files=missing,
        root=any(command.root for step in steps for command in step.commands), warnings=list(flashing.notes),
    )  # fmt: skip


def _commands(
    flashing: Flashing, ssh: Ssh, rights: Rights, name: str, manager: str, user: str, system_site: bool
) -> dict[str, list[Command]]:
    layout, options = flashing.layout, flashing.options
    release, root = layout.release(name), rights.root
    python = f"{release}/venv/bin/python"
    site = " --system-site-packages" if system_site else ""
    agent = f"{layout.flash}/agent.pyz"
    checks = f"{python} -m narrowcast.devices.flash.checks"

    def on_board(*texts: str) -> list[Command]:
        return [Command(text=text, root=root) for text in texts]

    systemd = manager == "systemd"
    build = [f"{rights.python} -m venv --without-pip{site} {layout.envs}/ID", "pip install --no-index --no-deps *.whl"]
    return {
        "connect": [
            Command(text=ssh.shown("(id, python3, sudo -n true)"), where="here"),
            Command(text=ssh.shown(f"{'sudo -n ' if root else ''}{rights.python} -I -c AGENT"), where="here"),
        ],
        "upload": on_board(f"{agent} writes {layout.files}/SHA256"),
        "environment": [] if options.environment else on_board(*build),
        "verify": on_board(f"{checks} verify {release}/model.ncb {layout.trusted}"),
        "choose": on_board(f"{checks} choose {release}/model.ncb"),
        "install": on_board(
            *([f"useradd --system {user}"] if user not in ("", "root") else []),
            f"ln -s {layout.current}/edge.toml {layout.edge}",
            *([f"systemctl enable {BOOT_UNIT}"] if systemd else []),
            f"{python} -m narrowcast stream --config {release}/edge.toml --check",
        ),
        "switch": on_board(
            *([f"cp {release}/{UNIT}.service {SYSTEMD_UNITS}/; systemctl enable {UNIT}"] if systemd else []),
            f"mv -T .current {layout.current}    (-> {layout.point_to(name)})",
        ),
        "restart": on_board(f"systemctl stop {UNIT}; systemctl start {UNIT}" if systemd else f"{agent} supervise"),
    }  # fmt: skip
