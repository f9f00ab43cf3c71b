"""Writes the golden files anew (`make golden`). Only ever with a new version of a format: old bytes must keep decoding."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cases import files  # noqa: E402

for name, data in files().items():
    (HERE / "files" / name).parent.mkdir(exist_ok=True)
    (HERE / "files" / name).write_bytes(data)
