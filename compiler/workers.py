"""Training in several processes, one per device: they share each step's images and add their gradients up.

The processes are started by Lightning Fabric (``torch.multiprocessing``, over NCCL on GPUs, gloo on CPUs). Each loads the
recipe for itself; images and teacher features are in the cache by then. Process 0 writes checkpoints and tells how far it
is. Whatever ends one of them ends all, and so does the end of the process that started them, however it comes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from narrowcast.compiler.errors import CompilerError, TrainingError
from narrowcast.compiler.fabric import fabric_precision, resolve_precision
from narrowcast.compiler.progress import SILENT, Progress, Task
from narrowcast.compiler.recipe import Recipe
from narrowcast.transport.errors import NarrowcastError

INTERRUPTED = 130
SECONDS_TO_END = 5.0
# What torchrun and schedulers set around a process of theirs, and Fabric reads.
SCHEDULERS = (
    "LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "STANDALONE_PORT",
)  # fmt: skip
Pipes = list[Any]  # multiprocessing.connection.Connection, which takes types on some versions of typeshed only


def train_in_workers(
    recipe: Recipe, work: Path, device: torch.device, progress: Progress, start: Path | None = None
) -> None:
    """Trains a recipe on ``[train] devices`` devices of ``device``'s kind, up to its finished checkpoint.

    ``start`` is :class:`~narrowcast.compiler.job.Job`'s.

    Raises:
        CompilerError: there are not so many devices.
        NarrowcastError: what a process raised.
        TrainingError: a process was killed, or failed in a way that nobody has foreseen.
    """
    spawn = multiprocessing.get_context("spawn")
    pairs = [spawn.Pipe(duplex=False) for _ in range(recipe.train.devices)]
    writers = [writer for _, writer in pairs]
    relay = _Relay(progress)
    before = set(multiprocessing.active_children())
    try:
        with _own_environment(), relay.running([reader for reader, _ in pairs], writers):
            try:
                fabric = _fabric(recipe, device)
                fabric.launch(partial(_work, recipe=recipe, work=work, start=start, pipes=writers))
            finally:
                _end(set(multiprocessing.active_children()) - before)
    except (ProcessExitedException, ProcessRaisedException) as error:
        raise relay.cause(error) from error


def _fabric(recipe: Recipe, device: torch.device) -> Fabric:
    wanted = recipe.train.devices
    if device.type == "cuda":
        there = torch.cuda.device_count()
        if device.index is not None and wanted > 1:
            raise CompilerError(
                f"[train] device is {str(device)!r}, one GPU; devices is {wanted}: name the kind, 'cuda'"
            )
        if wanted > there:
            raise CompilerError(f"[train] devices is {wanted}; this machine has {there} GPUs")
    if recipe.train.batch < wanted:
        raise CompilerError(f"[train] batch is {recipe.train.batch}; {wanted} devices take an image each at least")
    strategy = DDPStrategy(start_method="spawn", cluster_environment=LightningEnvironment())
    precision = fabric_precision(resolve_precision(recipe.train.precision, device))
    return Fabric(accelerator=device.type, devices=wanted, strategy=strategy, precision=precision)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Hides a scheduler's variables, which are not meant for these processes: Fabric would wait for others, or elsewhere.

    Leaves the environment as it was, where Fabric puts its port, and keeps torch from announcing whom it ends.
    """
    before, log = dict(os.environ), logging.getLogger("torch.multiprocessing.spawn")
    level = log.level
    log.setLevel(logging.ERROR)
    for name in SCHEDULERS:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        log.setLevel(level)
        os.environ.clear()
        os.environ.update(before)


def _end(processes: set[Any]) -> None:
    """Ends what is left when this process was interrupted; none of them may outlive it."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(SECONDS_TO_END)
        if process.is_alive():  # deep in a library that does not look at signals
            process.kill()
            process.join()


def _work(fabric: Fabric, recipe: Recipe, work: Path, start: Path | None, pipes: Pipes) -> None:
    """One process, from its first line to its last."""
    from narrowcast.compiler.job import Job

    _end_with_parent()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    rank = fabric.global_rank
    for other, pipe in enumerate(pipes):
        if other != rank:
            pipe.close()
    try:
        progress: Progress = _Sender(pipes[rank]) if rank == 0 else SILENT
        Job(recipe, work, SILENT, device=fabric.device, start=start).train_here(fabric, progress)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None  # torch would take it for a success
    except NarrowcastError as error:
        pipes[rank].send(("failed", type(error), str(error)))
        raise
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _end_with_parent() -> None:
    """Ends this process when the one that started it has ended, also by SIGKILL, also where that was before this call.

    The system closes the pipe to it, which a thread waits for. torch asks the kernel for a SIGINT, which a process that
    waits for another one deep in a library does not look at. What is written half is never taken for whole.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(INTERRUPTED)

    threading.Thread(target=watch, name="parent's end", daemon=True).start()


class _Sender:
    """Progress that is told in another process."""

    def __init__(self, pipe: connection.Connection) -> None:
        self._pipe = pipe

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
        """See :class:`Progress`."""
        self._pipe.send(("task", title, total, unit))
        yield self
        self._pipe.send(("end",))

    def advance(self, done: int, figures: dict[str, float] | None = None) -> None:
        """See :class:`Task`."""
        self._pipe.send(("advance", done, figures))

    def note(self, line: str) -> None:
        """See :class:`Progress`."""
        self._pipe.send(("note", line))


class _Relay:
    """Tells here, in a thread, what the processes say until the last of them has ended."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: Task | None = None
        self._failures: list[NarrowcastError] = []

    @contextmanager
    def running(self, readers: Pipes, writers: Pipes) -> Iterator[None]:
        """Listens; ``writers`` are this process's copies, closed at the end: a pipe that nobody can write to has ended."""
        thread = threading.Thread(target=self._listen, args=(list(readers),), name="progress of workers")
        thread.start()
        try:
            yield
        finally:
            for writer in writers:
                writer.close()
            thread.join()

    def _listen(self, readers: Pipes) -> None:
        with ExitStack() as tasks:
            while readers:
                for reader in connection.wait(readers):
                    assert isinstance(reader, connection.Connection)
                    try:
                        message = reader.recv()
                    except (EOFError, OSError):  # ended, perhaps in the middle of a word
                        readers.remove(reader)
                    else:
                        self._hear(message, tasks)

    def _hear(self, message: tuple[Any, ...], tasks: ExitStack) -> None:
        kind, *rest = message
        if kind == "task":
            self._task = tasks.enter_context(self._progress.task(*rest))
        elif kind == "advance" and self._task is not None:
            self._task.advance(*rest)
        elif kind == "end":
            tasks.close()
        elif kind == "note":
            self._progress.note(*rest)
        elif kind == "failed":
            error, text = rest
            self._failures.append(error.__new__(error, text))

    def cause(self, error: ProcessExitedException | ProcessRaisedException) -> NarrowcastError:
        """What ended the processes, as well as it is known; called when they have."""
        if self._failures:
            return self._failures[0]
        if isinstance(error, ProcessRaisedException):
            how = f"failed: {str(error).strip().splitlines()[-1]}"
            if "closed by peer" in how or "reset by peer" in how:
                how += " (so another one was killed; was there memory enough?)"
        else:
            how = f"was ended by {error.signal_name}" if error.signal_name else f"ended with code {error.exit_code}"
        return TrainingError(f"training process {error.error_index} {how}; run it again to go on where it was")
