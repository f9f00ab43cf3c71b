"""Trains a recipe as a process of its own, with a checkpoint at every step: ``driver.py RECIPE.json WORK [RANK:STEP]``.

Process RANK kills itself at STEP. Workers import this file again, so what it changes is changed in them as well.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec

from narrowcast.compiler import training
from narrowcast.compiler.job import Job
from narrowcast.compiler.progress import SILENT
from narrowcast.compiler.recipe import Recipe
from narrowcast.transport.errors import NarrowcastError

training.CHECKPOINT_SECONDS = 0.0
_step = training._Run._step


def _mortal(run, stage, optimizer, batch, where, rate):
    if sys.argv[3:] == [f"{run.fabric.global_rank}:{where.step}"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return _step(run, stage, optimizer, batch, where, rate)


training._Run._step = _mortal

if __name__ == "__main__":
    recipe = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Recipe)
    try:
        Job(recipe, Path(sys.argv[2]), SILENT).train()
    except NarrowcastError as error:
        sys.exit(f"{type(error).__name__}: {error}")
