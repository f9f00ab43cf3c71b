"""Split computing that people really deploy.

Run the first, cheap layers of a network on the device, send a few hundred bytes instead of an image, finish on a
server. The verbs of the command line are here as functions and classes::

    import narrowcast as nc

    key = nc.SecretKey.new("release")
    nc.compile("recipe.toml", "model.ncb", key=key)   # on the developer's machine: train, export, verify, sign
    bundle = nc.Bundle.open("model.ncb", "device", trusted=[key.public])  # on the board: signature and hashes checked
    with nc.Client(bundle, "server:7433") as client:
        print(client.infer(frame).outputs["output"])  # frame: uint8 [H, W, 3], RGB

Each name is loaded when it is first used, so that a board never imports what it does not have.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime (from 1.31 on, on Linux, too) tells its makers over the network what it runs, unless this is set before it is
# loaded. What a board or a server computes is nobody's business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from narrowcast.compiler.compile import compile as compile  # noqa: A004  (the verb)
    from narrowcast.compiler.cuts import cuts as cuts
    from narrowcast.compiler.evaluate import evaluate as evaluate
    from narrowcast.compiler.planner.entry import plan as plan
    from narrowcast.devices.flash import FlashOptions as FlashOptions
    from narrowcast.devices.flash import flash as flash
    from narrowcast.devices.probe import probe as probe
    from narrowcast.devices.profile.entry import profile as profile
    from narrowcast.devices.profile.schema import read_run as read_run
    from narrowcast.devices.profile.settings import ProfileSettings as ProfileSettings
    from narrowcast.devices.report.entry import report as report
    from narrowcast.head.client import AsyncClient as AsyncClient
    from narrowcast.head.client import Client as Client
    from narrowcast.head.session import HeadSession as HeadSession
    from narrowcast.tail.server import TailServer as TailServer
    from narrowcast.transport.bundle import Bundle as Bundle
    from narrowcast.transport.bundle import PublicKey as PublicKey
    from narrowcast.transport.bundle import SecretKey as SecretKey
    from narrowcast.transport.bundle import read_keys as read_keys
    from narrowcast.transport.contract import InputContract as InputContract
    from narrowcast.transport.errors import NarrowcastError as NarrowcastError
    from narrowcast.transport.frames import read_image as read_image
    from narrowcast.transport.rpc.credentials import ClientTls as ClientTls

# public name -> the module that defines it
_HOME = {
    "AsyncClient": "narrowcast.head.client",
    "Bundle": "narrowcast.transport.bundle",
    "Client": "narrowcast.head.client",
    "ClientTls": "narrowcast.transport.rpc.credentials",
    "FlashOptions": "narrowcast.devices.flash",
    "HeadSession": "narrowcast.head.session",
    "InputContract": "narrowcast.transport.contract",
    "NarrowcastError": "narrowcast.transport.errors",
    "ProfileSettings": "narrowcast.devices.profile.settings",
    "PublicKey": "narrowcast.transport.bundle",
    "SecretKey": "narrowcast.transport.bundle",
    "TailServer": "narrowcast.tail.server",
    "compile": "narrowcast.compiler.compile",
    "cuts": "narrowcast.compiler.cuts",
    "evaluate": "narrowcast.compiler.evaluate",
    "flash": "narrowcast.devices.flash",
    "plan": "narrowcast.compiler.planner.entry",
    "probe": "narrowcast.devices.probe",
    "profile": "narrowcast.devices.profile.entry",
    "read_image": "narrowcast.transport.frames",
    "read_keys": "narrowcast.transport.bundle",
    "read_run": "narrowcast.devices.profile.schema",
    "report": "narrowcast.devices.report.entry",
}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604  (the names are the keys above)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("narrowcast")
    if name not in _HOME:
        raise AttributeError(f"module 'narrowcast' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
