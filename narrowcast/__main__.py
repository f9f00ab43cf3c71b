"""``python -m narrowcast``, and what the ``narrowcast`` script calls."""

import os
import sys

from narrowcast.cli import INTERRUPTED, main


def program() -> None:
    """Runs the command line and ends the process."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == INTERRUPTED:
        os._exit(
            code
        )  # files are whole by now; libraries with threads in the middle of a call may keep Python from ending
    sys.exit(code)


if __name__ == "__main__":
    program()
