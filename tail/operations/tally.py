"""Counts what happens on the server. Its figures are sums since the start; names come from the server's models alone."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, get_args

import grpc

from narrowcast.tail.models import ModelTable
from narrowcast.tail.observe import FrameRecord, StreamInfo
from narrowcast.tail.operations.histogram import Histogram
from narrowcast.tail.store import ModelStatus, State
from narrowcast.transport.codec import SIZE_BYTES
from narrowcast.transport.packet import Kind, Packet

if TYPE_CHECKING:
    from narrowcast.tail.drift import DriftWatch

STAGES = ("queue", "decode", "infer", "encode")
RESULTS: Mapping[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
OTHER = "(other)"  # every model that a client asks for and the server does not have
IMAGE = -1
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128)


class _Sizes(NamedTuple):
    """Bytes of a uint8 RGB input [H, W, 3]; with free sizes, of one unit of theirs."""

    free: bool
    image_bytes: int


class ModelTally:
    """One model's sums.

    Attributes:
        results: frames by google.rpc.Code.
        levels: answered frames by rate point; whole images by :data:`IMAGE`.
        stages: durations of answered frames, as in :data:`STAGES`.
        total: from a frame's arrival to handing its result to the network.
        received_bytes, sent_bytes: packets and results of all frames, gRPC's framing left out.
        compared_bytes, raw_bytes: packets of answered frames, and these frames as uint8 RGB of the network's input.
        batches: how many, by the bounds of :data:`BATCH_BOUNDS` (the last has none).
        batch_frames: frames in them.
        streams: open ones.
        opened: streams since the start.
        closed: ended streams, by reason.
        refused: streams and calls that were turned away, by status.
    """

    def __init__(self) -> None:
        self.results: Counter[int] = Counter({0: 0})
        self.levels: Counter[int] = Counter()
        self.stages = tuple(Histogram() for _ in STAGES)
        self.total = Histogram()
        self.received_bytes = self.sent_bytes = 0
        self.compared_bytes = self.raw_bytes = 0
        self.batches = [0] * (len(BATCH_BOUNDS) + 1)
        self.batch_frames = 0
        self.streams = self.opened = 0
        self.closed: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.sizes: dict[int, _Sizes] = {}  # by release

    def copy(self) -> ModelTally:
        """One that no longer changes."""
        made = copy.copy(self)
        made.results, made.levels = self.results.copy(), self.levels.copy()
        made.closed, made.refused = self.closed.copy(), self.refused.copy()
        made.stages, made.total = tuple(stage.copy() for stage in self.stages), self.total.copy()
        made.batches = self.batches.copy()
        return made

    @property
    def frames(self) -> int:
        """All, whatever became of them."""
        return sum(self.results.values())


def level_name(level: int) -> str:
    """As metrics and the status tell it."""
    return "image" if level == IMAGE else str(level)


class ClientTally:
    """One client that has streams open.

    Attributes:
        streams: open ones, by model.
        frames: since the first of them was opened.
        received_bytes: of those frames.
        since: when that was, by ``time.monotonic``.
    """

    __slots__ = ("frames", "received_bytes", "since", "streams")

    def __init__(self) -> None:
        self.streams: Counter[str] = Counter()
        self.frames = 0
        self.received_bytes = 0
        self.since = time.monotonic()


class Gauge(NamedTuple):
    """A figure of another part; ``values`` is asked on the event loop.

    Attributes:
        name: of the metric; a counter's is told with ``_total`` behind it.
        text: what it means.
        values: by what ``label`` names; labels other than ``model`` must be few, whatever clients do.
        label: its label.
        counter: whether it only ever grows.
    """

    name: str
    text: str
    values: Callable[[], Mapping[str, float]]
    label: str = "model"
    counter: bool = False


class Further(NamedTuple):
    """A :class:`Gauge` at one moment."""

    gauge: Gauge
    values: Mapping[str, float]


class Figures(NamedTuple):
    """A tally at one moment, for another thread to read.

    Attributes:
        models: sums by name.
        queued: frames that wait now, by name.
        clients: how many have streams open.
        states: bundles by state.
        further: figures of other parts.
    """

    models: Mapping[str, ModelTally]
    queued: Mapping[str, int]
    clients: int
    states: Mapping[str, int]
    further: Sequence[Further] = ()


class Tally:
    """An :class:`~narrowcast.tail.observe.Observer` that counts.

    Args:
        table: the server's models.
        bundles: how the bundles of the server's folder fare; None where it has none.

    Attributes:
        drift: which cameras are away from their baseline; None where nobody watches them.
    """

    wants_profiles = False

    def __init__(self, table: ModelTable, bundles: Callable[[], Sequence[ModelStatus]] | None = None) -> None:
        self.table = table
        self.bundles = bundles
        self.drift: DriftWatch | None = None
        self.models: dict[str, ModelTally] = {}
        self.clients: dict[str, ClientTally] = {}
        self._gauges: list[Gauge] = []
        table.on_change.append(self._forget_sizes)

    def add_gauge(self, gauge: Gauge) -> None:
        """Tells a figure of another part among the metrics."""
        self._gauges.append(gauge)

    def stream_opened(self, stream: StreamInfo) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        model = self._model(stream.model)
        model.streams += 1
        model.opened += 1
        client = self.clients.get(stream.client)
        if client is None:
            client = self.clients[stream.client] = ClientTally()
        client.streams[stream.model] += 1

    def stream_closed(self, stream: StreamInfo, reason: str) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        model = self._model(stream.model)
        model.streams -= 1
        model.closed[reason] += 1
        client = self.clients.get(stream.client)
        if client is not None:
            client.streams[stream.model] -= 1
            client.streams += Counter()  # drops what is zero
            if not client.streams:
                del self.clients[stream.client]

    def refused(self, client: str, model: str, code: str) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        self._model(model).refused[code] += 1

    def frame_done(self, record: FrameRecord) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        stream, result, packet_bytes = record.stream, record.result, record.packet_bytes
        model = self.models.get(stream.model) or self._model(stream.model)
        code = result.code
        model.results[code] += 1
        model.received_bytes += packet_bytes
        model.sent_bytes += record.result_bytes
        client = self.clients.get(stream.client)
        if client is not None:
            client.frames += 1
            client.received_bytes += packet_bytes
        if code:
            return
        model.levels[record.packet.level if record.packet.kind is not Kind.IMAGE else IMAGE] += 1
        sizes = model.sizes.get(record.release) or self._sizes(stream.model, record.release)
        image_bytes = _image_bytes(sizes, record.packet) if sizes.free else sizes.image_bytes
        if image_bytes:  # else its model is gone, and nothing is compared
            model.raw_bytes += image_bytes
            model.compared_bytes += packet_bytes
        times = result.times
        queue, decode, infer, encode = model.stages
        queue.add(times.queue_us / 1e6)
        decode.add(times.decode_us / 1e6)
        infer.add(times.tail_us / 1e6)
        encode.add(record.encode_ms / 1e3)
        model.total.add(times.total_us / 1e6)

    def batch_done(self, model: str, size: int, queued: int) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        tally = self._model(model)
        tally.batches[next((k for k, bound in enumerate(BATCH_BOUNDS) if size <= bound), len(BATCH_BOUNDS))] += 1
        tally.batch_frames += size

    def all_models(self) -> dict[str, ModelTally]:
        """Every model that is or was served, also those without frames; :data:`OTHER` once it was asked for."""
        for name in self.table.names():
            self._model(name)
        return dict(self.models)

    def figures(self) -> Figures:
        """As they are now."""
        models = {name: model.copy() for name, model in self.all_models().items()}
        queued = {name: self.queued(name) for name in models}
        further = [
            Further(gauge, self._known(gauge.values()) if gauge.label == "model" else dict(gauge.values()))
            for gauge in self._gauges
        ]
        return Figures(models, queued, len(self.clients), self.states(), further)

    def states(self) -> dict[str, int]:
        """Bundles by state; where models were given without a folder, each is one that is ready."""
        states = dict.fromkeys(get_args(State), 0)
        if self.bundles is None:
            states["ready"] = len(self.table)
        else:
            for row in self.bundles():
                states[row.state] += 1
        return states

    def _known(self, values: Mapping[str, float]) -> dict[str, float]:
        """Values of models that the server has or had; those of others are added up under :data:`OTHER`."""
        known: dict[str, float] = {}
        for name, value in values.items():
            label = name if name in self.models else OTHER
            known[label] = known.get(label, 0) + value
        return known

    def queued(self, name: str) -> int:
        """How many frames of a model wait now."""
        return sum(slot.batcher.queued for slot in self.table if slot.name == name)

    def _model(self, name: str) -> ModelTally:
        """The sums of a model; those of :data:`OTHER` where the server never had it."""
        found = self.models.get(name)
        if found is None:
            name = name if name in self.table.names() else OTHER
            found = self.models.setdefault(name, ModelTally())
        return found

    def _forget_sizes(self) -> None:
        """Another bundle may have come under the same release; of one that is gone, frames may still be on their way."""
        for slot in self.table:
            if (model := self.models.get(slot.name)) is not None:
                model.sizes.pop(slot.batcher.model.manifest.release, None)

    def _sizes(self, name: str, release: int) -> _Sizes:
        """Of a release's inputs; nothing where it is gone."""
        for slot in self.table:
            manifest = slot.batcher.model.manifest
            if slot.name == name and manifest.release == release:
                (height, width), free = manifest.input.size, manifest.input.free
                unit = 0 if free is None else free.multiple**2 * 3
                sizes = _Sizes(free is not None, unit or height * width * 3)
                self.models[name].sizes[release] = sizes
                return sizes
        return _Sizes(False, 0)


def _image_bytes(sizes: _Sizes, packet: Packet) -> int:
    """Of a frame of free size, whose symbols begin with its sides in units; 0 for a file of an image."""
    if packet.kind is Kind.IMAGE or len(packet.payload) < SIZE_BYTES:
        return 0
    rows, columns = packet.payload[:SIZE_BYTES]
    return rows * columns * sizes.image_bytes
