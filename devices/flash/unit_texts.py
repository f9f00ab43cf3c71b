"""The units of a board: the daemon's, which is part of a release, and the check at boot, whatever release runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources

from narrowcast.devices.flash.agent.layout import BOOT_UNIT, UNIT_FILE, Layout
from narrowcast.devices.targets import DeployPaths

# Folders that systemd makes for a daemon and gives to its user, by their names in a layout: the unit's key, the folder below
# which it makes them, and the variable by which the daemon finds them (the cache's is in the unit anyway).
_MADE = {
    "state": ("StateDirectory", "/var/lib/", "STATE_DIRECTORY"),
    "run": ("RuntimeDirectory", "/run/", "RUNTIME_DIRECTORY"),
    "cache": ("CacheDirectory", "/var/cache/", ""),
}


def edge_unit(layout: Layout, user: str, backends: Sequence[str]) -> str:
    """The daemon's.

    Args:
        layout: of the board.
        user: whom it runs as; empty is root.
        backends: of its kind of board: where networks may run on its GPU, that device is the daemon's too.
    """
    # The group is the user's own, whatever it is called.
    text = _text(UNIT_FILE, layout).replace("User=narrowcast\nGroup=narrowcast\n", f"User={user or 'root'}\n")
    text = text.replace("#DeviceAllow=", "DeviceAllow=") if "tensorrt" in backends else text
    return _with_folders(text, layout)


def _with_folders(text: str, layout: Layout) -> str:
    """The daemon's own folders: systemd's affair where they lie below its own, else opened to the daemon where they are."""
    elsewhere = []
    for name, (key, below, variable) in _MADE.items():
        path = layout.as_dict()[name]
        line = f"{key}={path.removeprefix(below)}\n"
        if not path.startswith(below):
            elsewhere.append(path)
            line = f"Environment={variable}={path}\n" if variable else ""
        text = text.replace(f"{key}=narrowcast\n", line)
    if elsewhere:
        text = text.replace("[Unit]\n", f"[Unit]\nRequiresMountsFor={' '.join(elsewhere)}\n")
        # With a dash: of a folder that is gone the daemon says so itself.
        opened = f"ReadWritePaths={' '.join(f'-{path}' for path in elsewhere)}\n"
        text = text.replace("ReadOnlyPaths=", f"{opened}ReadOnlyPaths=")
    return text


def boot_unit(layout: Layout, python: str) -> str:
    """The check at boot, by the board's interpreter."""
    return _text(f"{BOOT_UNIT}.service", layout).replace("ExecStart=PYTHON", f"ExecStart={python}")


def _text(name: str, layout: Layout) -> str:
    """A unit with this board's paths: all at once, since one board's folder may be called as another's usual one."""
    text = (resources.files("narrowcast.devices.flash.units") / name).read_text(encoding="utf-8")
    usual, here = DeployPaths(), layout.as_dict()
    paths = {str(getattr(usual, name)): path for name, path in here.items()}
    pattern = "|".join(re.escape(path) for path in paths)
    return re.sub(rf"(?:{pattern})(?![\w.@+,=-])", lambda found: paths[found[0]], text)
