"""A daemon in the test's own process, its settings, and what it tells."""

from __future__ import annotations

import asyncio
import json

from PIL import Image

from narrowcast.head.daemon.config import DaemonConfig, load_config
from narrowcast.head.daemon.daemon import Daemon
from narrowcast.head.daemon.notify import Notifier
from support import bundles
from support.waiting import eventually

FRAMES = bundles.random_frames(4)
SOCKET = '[[sources]]\nname = "in"\nuri = "unix:in.sock"\nraw = "8x8"\n'


def settings(folder, to: str, more: str, bundle: bundles.Made | None = None) -> DaemonConfig:
    (bundle or bundles.make()).write(folder / "tiny.ncb")
    bundles.trusted_key().write(folder / "test.pub")
    file = folder / "edge.toml"
    file.write_text(
        f'bundle = "tiny.ncb"\nto = "{to}"\ntrust = ["test.pub"]\nstate = "state"\ndrain_seconds = 1\n{more}\n'
        '[[outputs]]\nkind = "lines"\npath = "out"\n'
    )
    return load_config(file)


def photos(folder, count: int) -> str:
    (folder / "in").mkdir(exist_ok=True)
    for number in range(count):
        Image.fromarray(FRAMES[number % 4]).save(folder / "in" / f"{number:03d}.png")
    return f'[[sources]]\nname = "in"\nuri = "in"\nwatch = {"true" if count < 10 else "false"}\n'


def told(folder) -> list[dict]:
    out = folder / "out"
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def told_count(folder) -> int:
    out = folder / "out"
    return out.read_bytes().count(b"\n") if out.exists() else 0


class Run:
    """A daemon for the length of the block."""

    def __init__(self, config: DaemonConfig, folder) -> None:
        self.stop = asyncio.Event()
        self.daemon = Daemon(config, lambda: load_config(folder / "edge.toml"), lambda: ["onnxruntime"], Notifier({}))

    async def __aenter__(self) -> Run:
        self.task = asyncio.create_task(self.daemon.run(self.stop))
        await eventually(lambda: self.task.done() or self.daemon.lanes, "it runs")
        return self

    async def __aexit__(self, *_) -> None:
        self.stop.set()
        await asyncio.wait([self.task])


async def reloaded(run: Run, folder, old: str, new: str) -> None:
    """With other settings, to the end of it: what they were is found and replaced."""
    file = folder / "edge.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    ready = []
    run.daemon._notifier.ready = ready.append
    run.daemon.reload()
    await eventually(lambda: run.task.done() or ready, "it is reloaded")
    assert not run.task.done()
