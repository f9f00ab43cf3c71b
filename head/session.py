"""The device's half of a frame's path: frame, resize, head, range coder, payload."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import floor
from time import perf_counter_ns
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from narrowcast.head.ahead import Ready, made_ready
from narrowcast.head.backends import Array, Exit, HeadBackend, load_exit
from narrowcast.head.choice import Wanted, load_head
from narrowcast.head.errors import BackendError
from narrowcast.head.selfcheck import SelfCheckReport, run_self_check
from narrowcast.head.timing import FrameTimes
from narrowcast.head.whole import WholeSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.contract import Image, Placement
from narrowcast.transport.errors import ConfigError, MissingPartError, SymbolsError
from narrowcast.transport.images import encode_image
from narrowcast.transport.packet import CodecId, Kind
from narrowcast.transport.video import VideoCodec


class Encoded(NamedTuple):
    """A frame, ready to send.

    Attributes:
        payload: the coded symbols.
        level: the rate point.
        placement: where the frame lies in the network's input: leads boxes and masks back.
        times: resize, head and encode.
        symbols: what is in the payload, uint8 ``[C, h, w]``: for the local exit; None with an image.
        codec: of the payload.
        image: with an image, the network's input; None with symbols.
        source: what would have been sent as an image, for audit; None where it was not asked for, or an image is sent.
        dropped: why it is not to be sent; None where it is. With a payload it is to be spooled.
        outputs: the answer itself, where the board has given it; nothing is sent then.
    """

    payload: bytes
    level: int
    placement: Placement
    times: FrameTimes
    symbols: npt.NDArray[np.uint8] | None
    codec: CodecId
    image: Image | None = None
    source: Image | None = None
    dropped: str | None = None
    outputs: dict[str, Array] | None = None

    @property
    def kind(self) -> Kind:
        """What packet the payload is for."""
        return Kind.SYMBOLS if self.image is None else Kind.IMAGE


class HeadSession:
    """A bundle's head, loaded. Safe to use from several threads where its backend is (ONNX Runtime is).

    Args:
        bundle: opened for the role ``device`` (or ``any``).
        backend: ``onnxruntime`` or ``tensorrt``; or several, best first: the first that loads a head runs it.
        precision: of the head. ``auto`` takes the fastest of those in the bundle whose symbols are within the bundle's
            bounds on this board: measured once, for a second or two, and remembered (:mod:`narrowcast.head.choice`).
        threads: for the backend; 0 for its own choice.

    Attributes:
        choice: the precision and the backend that run, and why.

    Raises:
        BundleError: a part is missing or damaged.
        BackendError: the backend does not take the head.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str | Sequence[str] = "onnxruntime",
        precision: Wanted = "auto",
        threads: int = 0,
    ) -> None:
        self.bundle = bundle
        self.contract = bundle.manifest.input
        self.codec = bundle.codec()
        self.levels = bundle.manifest.codec.levels
        backends = [backend] if isinstance(backend, str) else backend
        self.backend, self.choice = load_head(bundle, backends, precision, threads, self._fault)
        self._threads = threads

    def symbols(self, image: Image, level: int) -> npt.NDArray[np.uint8]:
        """The symbols uint8 ``[C, H, W]`` of an image that is already as the contract wants it.

        Raises:
            SymbolsError: no such level, or the head gives other symbols than the bundle says.
            BackendError: the backend failed.
        """
        if not 0 <= level < self.levels:
            raise SymbolsError(f"level {level}; {self.bundle.manifest.name} has levels 0..{self.levels - 1}")
        return self._symbols(self.backend, image, level)

    def self_check(self) -> SelfCheckReport:
        """Runs the head on the bundle's reference frames and compares its symbols with the bundle's, at every level.

        Raises:
            MissingPartError: the bundle is of a release that made none.
            ManifestError: its ``selfcheck`` part is damaged.
            BackendError: the head failed.
        """
        return self._check(self.choice.precision, self.backend)

    def _check(self, precision: Precision, backend: HeadBackend) -> SelfCheckReport:
        def symbols(image: Image, level: int) -> npt.NDArray[np.uint8]:
            return self._symbols(backend, image, level)

        return run_self_check(self.bundle, self.codec, precision, backend.name, symbols)

    def _fault(self, precision: Precision, backend: HeadBackend) -> str | None:
        """What speaks against a head on this board.

        Raises:
            BackendError: it does not run.
        """
        try:
            report = self._check(precision, backend)
        except MissingPartError as error:
            return str(error)
        return None if report.passed else str(report)

    def _symbols(self, backend: HeadBackend, image: Image, level: int) -> npt.NDArray[np.uint8]:
        symbols = backend.run(image, level)
        wanted = self.bundle.manifest.symbols_shape((image.shape[0], image.shape[1]))
        if symbols.dtype != np.uint8 or symbols.shape != wanted:
            raise BackendError(
                f"the head gives {symbols.dtype} {list(symbols.shape)}; the bundle says uint8 {list(wanted)}"
            )
        return symbols

    def video_codec(self, way: str = "symbols") -> VideoCodec:
        """What codes frames by earlier ones.

        Raises:
            ConfigError: images are sent, which refer to nothing.
            MissingPartError: the bundle has no video tables.
        """
        if way == "image":
            raise ConfigError("images have no symbols to predict: video is for way='symbols'")
        if self._video is None:
            raise MissingPartError(
                f"{self.bundle.path.name} has no video tables: compile with video = true under [coding] in the recipe"
            )
        return self._video

    @cached_property
    def _video(self) -> VideoCodec | None:
        """Read once: later, another bundle may lie where this one did."""
        return self.bundle.video()

    @property
    def has_exit(self) -> bool:
        """Whether the bundle has a local exit."""
        return self.bundle.has("exit")

    @cached_property
    def exit(self) -> Exit:
        """The bundle's local exit, loaded when it is first asked for.

        It is small: ONNX Runtime on the CPU is as good as any, and what runs the head serves where that is not installed.

        Raises:
            MissingPartError: the bundle has none.
            BackendError: no backend takes it.
        """
        if not self.has_exit:
            raise MissingPartError(
                f"{self.bundle.path.name} has no local exit: compile with [exit] in the recipe, or take the uncut network "
                "([export] whole = true), which a board can run alone"
            )
        model = self.bundle.read("exit")
        try:
            return load_exit("onnxruntime", model, threads=self._threads)
        except BackendError:
            other = self.choice.backend.split()[0]
            if other == "onnxruntime":
                raise
            return load_exit(other, model, threads=self._threads)

    @property
    def whole(self) -> WholeSession:
        """The bundle's uncut network, loaded when it is first asked for.

        By what runs the head; where that does not take all of the network's operators, by ONNX Runtime.

        Raises:
            MissingPartError: the bundle has none.
            BackendError: no backend takes it.
        """
        if isinstance(self._whole, BackendError):
            raise BackendError(str(self._whole)) from self._whole
        return self._whole

    @cached_property
    def _whole(self) -> WholeSession | BackendError:
        """Tried once: a refusal takes its time, too, and later another bundle may lie where this one did."""
        backends = dict.fromkeys([self.choice.backend.split()[0], "onnxruntime"])
        try:
            return WholeSession(self.bundle, backend=list(backends), threads=self._threads)
        except BackendError as error:
            return error

    def answer(self, symbols: npt.NDArray[np.uint8], level: int) -> dict[str, Array]:
        """The task's outputs by name, without the batch, by the local exit: on the device alone.

        Args:
            symbols: uint8 ``[C, h, w]``, of :meth:`symbols` or :meth:`encode`.
            level: that they were made at.

        Raises:
            MissingPartError: the bundle has no local exit.
            BackendError: it does not load or run.
        """
        return self.exit.run(symbols, level)

    def encode(self, frame: Image | Ready, level: int, *, keep_source: bool = False) -> Encoded:
        """A frame uint8 ``[H, W, 3]`` RGB, any size, as a payload.

        Args:
            frame: as above, or resized already.
            level: its rate point.
            keep_source: also give the scaled frame, which then is not the caller's memory.

        Raises:
            FrameError: not such a frame.
            SymbolsError, BackendError: see :meth:`symbols`.
        """
        ready = made_ready(frame, self.contract)
        prepared = ready.prepared
        resized = perf_counter_ns()
        symbols = self.symbols(prepared.image, level)
        inferred = perf_counter_ns()
        payload = self.codec.encode(symbols, level)
        done = perf_counter_ns()
        times = FrameTimes(ready.resize_ms, (inferred - resized) / 1e6, (done - inferred) / 1e6)
        source = self._scaled(ready.frame, prepared.image) if keep_source else None
        if source is not None and np.may_share_memory(source, ready.frame):
            source = source.copy()
        return Encoded(payload, level, prepared.placement, times, symbols, self.codec.codec_id, source=source)

    def encode_image(self, frame: Image | Ready, codec: CodecId = CodecId.JPEG, quality: int = 75) -> Encoded:
        """A frame uint8 ``[H, W, 3]`` RGB, any size, as an image file for the uncut network on the server.

        It is scaled to the network's input first; where the input contract cuts the border off, the border goes along, since
        the server goes by the same contract.

        Args:
            frame: as above, or resized already.
            codec: JPEG or WEBP.
            quality: 1..100, as Pillow understands it.

        Raises:
            FrameError: not such a frame, or no such codec or quality.
            MissingDependencyError: Pillow is not installed.
        """
        ready = made_ready(frame, self.contract)
        prepared, start = ready.prepared, perf_counter_ns()
        sent = self._scaled(ready.frame, prepared.image)
        resized = perf_counter_ns()
        payload = encode_image(sent, codec, quality)
        done = perf_counter_ns()
        times = FrameTimes(resize_ms=ready.resize_ms + (resized - start) / 1e6, encode_ms=(done - resized) / 1e6)
        return Encoded(payload, 0, prepared.placement, times, None, codec, prepared.image)

    def _scaled(self, frame: Image, prepared: Image) -> Image:
        """A frame as images of it are sent: of the network's size, with the border that the contract cuts off."""
        if self.contract.fit != "center-crop" or self.contract.crop >= 1:
            return prepared
        height, width = (floor(side / self.contract.crop) for side in self.contract.size)
        return msgspec.structs.replace(self.contract, size=(height, width), crop=1.0).prepare(frame).image
