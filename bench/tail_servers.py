"""The servers that ``bench/tail.py`` measures, each in a process of its own. Prints one JSON line once it listens.

raw     grpc.aio alone: a stream of bytes in, as many bytes out as narrowcast's result has
null    narrowcast's own server with a tail that does nothing and symbols that nobody decodes
decode  the same, with range decoding
bundle  narrowcast's own server on a folder of bundles

The server answers frames that take less than 100 us on its event loop, without handing them to the model's thread. A null
tail does, hardly any real one. ``--no-shortcut`` hands every frame over, as a tail that takes longer would have it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tail_sampling import Sampler

from narrowcast.tail import batcher
from narrowcast.tail.server import TailServer
from narrowcast.tail.store import load_models
from narrowcast.transport.codec import Codec, CodecSpec
from narrowcast.transport.rpc.channels import SERVER_OPTIONS, Address

RAW_METHOD = "/narrowcast.bench.Raw/Stream"


class NullTail:
    """A tail that gives zeros of the manifest's shape at once."""

    name = "null"

    def __init__(self, outputs: dict[str, tuple[int, ...]]) -> None:
        self._outputs = outputs

    def run(self, symbols: np.ndarray, levels: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.zeros((len(levels), *shape), np.float32) for name, shape in self._outputs.items()}


class NullCodec:
    """A codec that says what the real one would, and decodes nothing."""

    def __init__(self, codec: Codec) -> None:
        self.spec: CodecSpec = codec.spec
        self.codec_id = codec.codec_id
        self.fingerprint = codec.fingerprint
        self._blank = np.zeros((64, *codec.spec.shape), np.uint8)

    def decode_batch(self, payloads: Any, levels: Any, *_: Any) -> tuple[np.ndarray, list[None]]:
        return self._blank[: len(payloads)], [None] * len(payloads)

    def shape_of(self, _: bytes) -> tuple[int, int, int]:
        return self.spec.shape


async def raw(args: argparse.Namespace) -> tuple[int, Any]:
    """grpc.aio alone."""
    answer = bytes(args.answer_bytes)

    async def stream(_: Any, context: Any) -> None:
        while (await context.read()) is not grpc.aio.EOF:
            await context.write(answer)

    service, method = RAW_METHOD[1:].split("/")
    server = grpc.aio.server(options=SERVER_OPTIONS)
    handler = grpc.stream_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return port, server


class Shortcut:
    """Counts the frames that are answered on the event loop."""

    def __init__(self) -> None:
        self.frames = 0
        compute_here = batcher.Batcher._compute_here  # noqa: SLF001

        def counted(one: batcher.Batcher, frames: Any) -> None:
            self.frames += len(frames)
            compute_here(one, frames)

        batcher.Batcher._compute_here = counted  # noqa: SLF001


async def ours(args: argparse.Namespace) -> tuple[int, TailServer]:
    """The real server; its tail, and for ``null`` its codec, exchanged for ones that do nothing."""
    if args.no_shortcut:
        batcher.LIGHT_SECONDS = 0.0
    models = load_models(args.bundles, allow_unsigned=True, threads=args.threads)
    if args.kind != "bundle":
        for name, model in models.items():
            outputs = {output.name: tuple(output.shape) for output in model.manifest.outputs}
            codec = NullCodec(model.codec) if args.kind == "null" else model.codec
            models[name] = replace(model, backend=NullTail(outputs), codec=codec)  # type: ignore[arg-type]
    server = TailServer(models, Address("127.0.0.1", 0), max_batch=args.max_batch)
    return (await server.start()).port, server


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["raw", "null", "decode", "bundle"])
    parser.add_argument("--bundles", type=Path)
    parser.add_argument("--answer-bytes", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--no-shortcut", action="store_true")
    parser.add_argument(
        "--sample", action="store_true", help="on SIGUSR1, note what the threads are at; print it at the end"
    )
    args = parser.parse_args()
    port, _server = await (raw(args) if args.kind == "raw" else ours(args))
    print(json.dumps({"port": port, "cpu_s": time.process_time()}), flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if not args.sample:
        await stop.wait()
        return
    sampler, shortcut = Sampler(), Shortcut()

    def start() -> None:
        shortcut.frames = 0
        sampler.start()

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, start)
    await stop.wait()
    print(json.dumps({"sampled": sampler.stop(), "on_loop": shortcut.frames}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
