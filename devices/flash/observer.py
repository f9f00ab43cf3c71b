"""Whom a flash tells what it does, and asks what only a person may decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from narrowcast.devices.flash.plan import Plan


class Observer:
    """Says nothing, and agrees to every plan, but to no unknown host key. Override what you want."""

    def step(self, name: str, state: str, detail: str) -> None:
        """A step of :data:`narrowcast.devices.flash.plan.STEPS` began, is done, failed or was skipped.

        Args:
            name: of the step.
            state: ``begin``, ``done``, ``skipped`` or ``failed``.
            detail: one line.
        """

    def progress(self, name: str, done_bytes: int, total_bytes: int) -> None:
        """So much of a file is on the board, or of all wheels on this machine."""

    def note(self, line: str) -> None:
        """Something worth knowing."""

    def confirm(self, plan: Plan) -> bool:
        """Whether the plan is to be carried out."""
        return True

    def accept_host(self, host: str, kind: str, fingerprint: str) -> bool:
        """Whether an unknown board's key is right; compare it with what the board itself says (``ssh-keygen -lf``).

        Args:
            host: as the user named it.
            kind: of the key, ``ED25519`` for instance.
            fingerprint: ``SHA256:...``.
        """
        return False
