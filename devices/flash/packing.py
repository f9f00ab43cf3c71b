"""The agent as one zip file, and the line of Python that runs it from stdin: nothing has to be on the board but Python."""

from __future__ import annotations

import io
import shlex
import zipfile
from functools import cache
from importlib import resources

PACKAGE = "narrowcast.devices.flash.agent"
OLDEST = (3, 10)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same sources give the same bytes

# Reads the zip file from stdin into a folder that only this user can write to, and takes stdin and stdout over to it.
_BOOTSTRAP = """
import os, shutil, sys, tempfile
n = int(sys.stdin.buffer.readline())
d = tempfile.mkdtemp(prefix="narrowcast-")
try:
    p = os.path.join(d, "agent.pyz")
    f = open(p, "wb"); f.write(sys.stdin.buffer.read(n)); f.close()
    sys.path.insert(0, p)
    from pathlib import Path
    from narrowcast.devices.flash.agent.session import serve
    serve(Path(p))
finally:
    shutil.rmtree(d, ignore_errors=True)
"""


@cache
def agent_zip() -> bytes:
    """``agent.pyz``: the package above under its own name, and empty packages around it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        parts = PACKAGE.split(".")
        for depth in range(1, len(parts)):
            archive.writestr(_entry("/".join(parts[:depth]) + "/__init__.py"), "")
        folder = resources.files(PACKAGE)
        for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if file.name.endswith(".py"):
                archive.writestr(_entry(f"{'/'.join(parts)}/{file.name}"), file.read_bytes())
        archive.writestr(_entry("__main__.py"), _MAIN)
    return buffer.getvalue()


_MAIN = f"""import sys
from pathlib import Path
from {PACKAGE}.main import main
sys.exit(main(sys.argv[1:], Path(sys.argv[0]).resolve()))
"""


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def session_command(python: str, *, root: bool) -> str:
    """What ssh runs on the board for a session."""
    words = ["sudo", "-n", "--"] if root else []
    return shlex.join([*words, python, "-I", "-c", _BOOTSTRAP])
