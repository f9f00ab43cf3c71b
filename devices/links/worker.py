"""The process that stands between client and server: ``python -m narrowcast.devices.links.worker JOB``.

It tells its address in a line of JSON, then obeys lines of JSON on its standard input (:mod:`.emulate` writes them), each
answered with a line. It ends when its standard input closes or its parent goes, however that went: what it has made
(connections, devices, a namespace without a name) belongs to the process, and the kernel takes it away with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import msgspec

from narrowcast.devices.errors import LinkUnavailableError
from narrowcast.devices.links.orders import Job, Started, tell

# A link goes on beside busy programs; only root may ask for it.
NICE = -10


def main() -> int:
    """Runs the job that the command line gives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this when it is done
    with contextlib.suppress(OSError):
        os.nice(NICE)
    job = msgspec.json.decode(sys.argv[1].encode(), type=Job)
    try:
        if job.how == "relay":
            from narrowcast.devices.links.relay import run
        else:
            from narrowcast.devices.links.packets import run
        run(job)
    except LinkUnavailableError as error:
        tell(Started(error=str(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
