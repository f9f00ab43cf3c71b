"""Which models ``narrowcast serve`` has, and what runs them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from narrowcast.cli.options import at_least, seconds, trusted

if TYPE_CHECKING:
    from narrowcast.tail.store import ModelStore, StoreSettings

BACKENDS = ("onnxruntime", "torch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("models")
    group.add_argument(
        "--keep", type=at_least(1), metavar="N",
        help="serve at most N releases of a model, each with another codec (default: all that lie in the folder)",
    )  # fmt: skip
    group.add_argument(
        "--rescan", type=seconds, default=10.0, metavar="S",
        help="look into the folder every S seconds, even if nothing told of a change; 0 never (default: 10)",
    )  # fmt: skip
    group.add_argument("--no-images", action="store_true", help="do not load uncut networks, which answer whole images")
    group = parser.add_argument_group("what runs them")
    group.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="default: %(default)s")
    group.add_argument(
        "--providers", type=_names, default=("cpu",), metavar="P,P",
        help="ONNX Runtime's execution providers, best first: cuda,cpu or tensorrt,cuda,cpu (default: cpu)",
    )  # fmt: skip
    group.add_argument("--device", type=at_least(0), metavar="N", help="which GPU (default: 0)")
    group.add_argument(
        "--engine-cache",
        type=Path,
        metavar="DIR",
        help="where TensorRT's engines are kept (default: the user's caches)",
    )
    group.add_argument(
        "--torch-compile", action="store_true", help="with --backend torch: compile networks, which takes a minute each"
    )
    group.add_argument(
        "--threads", type=at_least(0), default=0, metavar="N", help="for each model (default: the library's choice)"
    )


def store_settings(args: argparse.Namespace) -> StoreSettings:
    """What the server takes.

    Raises:
        ConfigError: options that do not go together.
        KeyFileError: a trusted key cannot be read.
    """
    from narrowcast.tail.backends import BackendName, BackendSettings
    from narrowcast.tail.store import StoreSettings
    from narrowcast.transport.errors import ConfigError

    assert get_args(BackendName) == BACKENDS
    if args.backend == "torch" and args.providers != ("cpu",):
        raise ConfigError("--providers are ONNX Runtime's; torch takes the GPU where it has one")
    if args.torch_compile and args.backend != "torch":
        raise ConfigError("--torch-compile needs --backend torch")
    if args.device is not None and args.backend != "torch" and not {"cuda", "tensorrt"} & set(args.providers):
        raise ConfigError("--device names a GPU, and --providers has none: --providers cuda,cpu")
    if args.engine_cache is not None and "tensorrt" not in args.providers:
        raise ConfigError("--engine-cache keeps TensorRT's engines: it needs --providers tensorrt,cuda,cpu")
    backend = BackendSettings(
        backend=args.backend, threads=args.threads, providers=args.providers, device=args.device or 0,
        engine_cache=args.engine_cache or _engine_cache(), torch_compile=args.torch_compile,
    )  # fmt: skip
    return StoreSettings(
        args.bundles, trusted=trusted(args), allow_unsigned=args.allow_unsigned, keep=args.keep,
        images=not args.no_images, interval_seconds=args.rescan, backend=backend,
    )  # fmt: skip


def served(store: ModelStore) -> dict[str, int]:
    """The highest release of each model that answers frames now."""
    found: dict[str, int] = {}
    for row in store.status():
        if row.state == "ready" and row.name is not None and row.release is not None:
            found[row.name] = max(row.release, found.get(row.name, 0))
    return found


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    if not names or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: names with commas between them, each once: cuda,cpu")
    return names


def _engine_cache() -> Path | None:
    """``$NARROWCAST_CACHE/tail-engines``, else in the user's caches; None for ``off``, as on boards."""
    folder = os.environ.get("NARROWCAST_CACHE")
    if folder == "off":
        return None
    base = Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "narrowcast"
    return base / "tail-engines"
