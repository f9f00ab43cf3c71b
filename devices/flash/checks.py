"""What a board checks with the new release's own environment: ``python -m narrowcast.devices.flash.checks WORD ...``.

JSON on stdout; what is wrong as ``KIND: message`` in the last line of stderr, KIND being a class of
:mod:`narrowcast.devices.flash.errors`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from narrowcast.head.choice import Wanted
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.bundle.signing import read_keys
from narrowcast.transport.errors import MissingPartError, NarrowcastError
from narrowcast.transport.selfcheck import read_self_check, reference_frames


def open_bundle(path: str, keys: str) -> Bundle:
    """The bundle, verified for a device against the keys in a file; an unsigned one where that file is ``unsigned``."""
    trusted = [] if keys == "unsigned" else read_keys(Path(keys))
    return Bundle.open(path, "device", trusted=trusted, allow_unsigned=keys == "unsigned")


def verify(path: str, keys: str) -> dict[str, Any]:
    """Signature, key and hashes."""
    bundle = open_bundle(path, keys)
    signer = f"{bundle.signed_by.id} {bundle.signed_by.name}".strip() if bundle.signed_by else ""
    return {"name": bundle.manifest.name, "release": bundle.manifest.release, "signed_by": signer}


def choose(path: str, keys: str, backends: Sequence[str], precision: str) -> dict[str, Any]:
    """Which head runs on this board: its engine built, its precisions measured, the answer kept for the daemon; tested."""
    session = HeadSession(open_bundle(path, keys), backend=backends, precision=cast("Wanted", precision))
    choice = session.choice
    head = {
        "precision": choice.precision, "backend": choice.backend, "head_ms": choice.head_ms,
        "rejected": choice.rejected, "passed_over": choice.passed_over, "words": str(choice), **_power(),
    }  # fmt: skip
    try:
        return {"head": head, "selftest": {"passed": True, "words": self_test(session)}}
    except NarrowcastError as error:
        return {"head": head, "selftest": {"passed": False, "words": str(error)}}


def self_test(session: HeadSession) -> str:
    """Known frames in, symbols within the bundle's bound; golden symbols in, golden bytes out; returns what was seen.

    A bundle without a ``selfcheck`` part has no golden ones: its own symbols then come back through the coder.

    Raises:
        SelfTestError: something else came out.
        BackendError: the head failed.
    """
    try:
        golden = read_self_check(session.bundle).payloads
    except MissingPartError:
        return f"{_round_trip(session)}; the bundle brings no reference to compare with"
    for level, payloads in enumerate(golden):
        symbols, errors = session.codec.decode_batch(payloads, [level] * len(payloads))
        for payload, wanted, error in zip(payloads, symbols, errors, strict=True):
            if error is not None or session.codec.encode(wanted, level) != payload:
                raise SelfTestError(f"the coder does not give the golden bytes of level {level}: {error or 'others'}")
    report = session.self_check()
    if not report.passed:
        raise SelfTestError(f"the head's symbols are not the bundle's: {report}")
    return f"{report}; golden bytes equal at {len(golden)} levels"


class SelfTestError(NarrowcastError):
    """A self-test that failed."""


def _round_trip(session: HeadSession) -> str:
    frame = reference_frames(session.bundle.manifest.input.size, 1)[0]
    for level in range(session.levels):
        symbols = session.symbols(frame, level)
        decoded, (error,) = session.codec.decode_batch([session.codec.encode(symbols, level)], [level])
        if error is not None or (decoded[0] != symbols).any():
            raise SelfTestError(
                f"the coder does not give back the head's symbols at level {level}: {error or 'others came back'}"
            )
    return f"symbols come back through the coder at {session.levels} levels"


def _power() -> dict[str, Any]:
    """What measures power here, or why nothing does: worth knowing, no condition."""
    from narrowcast.devices.probe import probe

    power = next((one for one in probe().measures if one.what == "power"), None)
    if power is None or power.now is None:
        return {"power": None, "why_no_power": None if power is None else power.why_not}
    return {"power": f"{power.by}: {', '.join(power.now)}", "why_no_power": power.why_not}


def main(words: Sequence[str]) -> int:
    """Runs one check; returns the exit code."""
    word, path, keys, *rest = words
    try:
        found = verify(path, keys) if word == "verify" else choose(path, keys, json.loads(rest[0]), rest[1])
    except NarrowcastError as error:
        print(f"BoardVerifyError: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps(found))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
