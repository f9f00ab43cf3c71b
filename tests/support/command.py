"""The command line, in a process of its own or in the test's.

A process costs a quarter of a second for Python alone, and several seconds where a verb needs torch; what a verb prints
and returns is the same in either.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from unittest import mock

from narrowcast.cli import main


def narrowcast(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a verb to its end, in this process."""
    command = [str(word) for word in words]
    output, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            code = main(command)
        except SystemExit as done:  # argparse's way
            code = int(done.code or 0)
    return subprocess.CompletedProcess(command, code, output.getvalue(), errors.getvalue())


def narrowcast_process(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a verb to its end, in a process of its own."""
    command = [sys.executable, "-m", "narrowcast", *map(str, words)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
