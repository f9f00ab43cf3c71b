"""Whether the server's operator may have images of a client's frames."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from narrowcast.cli.options import at_least

if TYPE_CHECKING:
    from narrowcast.head.audit import AuditConsent


def add_audit(parser: argparse.ArgumentParser) -> None:
    """``--audit`` and how."""
    group = parser.add_argument_group("images for the server's operator (docs/drift.md)")
    group.add_argument(
        "--audit", dest="audit_consent", action="store_true",
        help="CONSENT to send images: the server, which sees symbols otherwise, may then ask for some of the frames as the "
        "network sees them, to audit its answers (default: never; the server cannot turn it on)",
    )  # fmt: skip
    group.add_argument("--audit-codec", choices=["jpeg", "webp"], default="jpeg", help="with --audit (default: jpeg)")
    group.add_argument(
        "--audit-quality", type=at_least(1), default=90, metavar="Q", help="with --audit: 1..100 (default: 90)"
    )
    group.add_argument(
        "--audit-rate", type=float, default=1.0, metavar="N",
        help="with --audit: at most N images a second, after everything else (default: 1)",
    )  # fmt: skip


def audit_consent(args: argparse.Namespace) -> AuditConsent | bool:
    """What the client takes.

    Raises:
        ConfigError: a value that cannot be.
    """
    if not args.audit_consent:
        return False
    from narrowcast.head.audit import AuditConsent

    return AuditConsent(args.audit_codec, args.audit_quality, args.audit_rate)
