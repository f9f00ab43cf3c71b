"""Boots a board to look around in, until Ctrl-C: ``PYTHONPATH=tests python -m hardware.emulated_board [FOLDER]``."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from hardware.emulated_board import EmulatedBoard, copy_root, why_not


def main() -> None:
    """Prints how to log in; a FOLDER that exists keeps the board's disk from the last time."""
    if reason := why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="narrowcast-board-") as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        if not (folder / "root").exists():
            folder.mkdir(parents=True, exist_ok=True)
            copy_root(folder / "root")
        board = EmulatedBoard(folder / "root", folder)
        board.boot()
        print(f"ssh -F {board.ssh_config} emulated-board    (this machine is {board.host} there; Ctrl-C ends it)")
        try:
            signal.pause()
        except KeyboardInterrupt:
            board.close()


if __name__ == "__main__":
    main()
