"""What head, decoder, tail and the whole network take on this machine, by ONNX Runtime, one frame at a time.

The costs of a network do not depend on its weights: an untrained bottleneck takes as long as a trained one. So the preset's
encoder is built for the cut, exported as it is for a bundle, and timed; the same encoder at another cut is timed once. The
teacher is exported once, with its features at every cut among the outputs; a tail is the part of that graph behind its cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from onnx.utils import Extractor
from torch import Tensor, fx, nn

from narrowcast.compiler.bottlenecks import Bottleneck, Problem
from narrowcast.compiler.cost import count_macs
from narrowcast.compiler.cuts import Cut
from narrowcast.compiler.cuts.trace import Traced
from narrowcast.compiler.errors import CompilerError, ExportError
from narrowcast.compiler.export import export_head, export_network, export_tail, export_whole
from narrowcast.compiler.modules import Head, Tail, Whole, flat
from narrowcast.compiler.normalize import Normalize
from narrowcast.compiler.planner.boards import BoardTime, OtherBoard
from narrowcast.compiler.verify import OnnxNetwork
from narrowcast.head.backends import load_backend
from narrowcast.transport.selfcheck import reference_frames

T = TypeVar("T")
WARM_RUNS = 2
LEAST_RUNS, MOST_RUNS = 7, 51
MEASURING_MS = 600.0


def median_ms(run: Callable[[], Any]) -> float:
    """The median time of ``run``: at least 7 times, at most 51, as many as fit into 0.6 seconds."""
    for _ in range(WARM_RUNS):
        run()
    samples: list[float] = []
    started = time.perf_counter_ns()
    while len(samples) < LEAST_RUNS or (
        len(samples) < MOST_RUNS and (time.perf_counter_ns() - started) / 1e6 < MEASURING_MS
    ):
        before = time.perf_counter_ns()
        run()
        samples.append((time.perf_counter_ns() - before) / 1e6)
    return round(float(np.median(samples)), 3)


class Timing:
    """Times parts of one network, each kind once.

    Args:
        size: height and width of the input.
        threads: that ONNX Runtime computes with.
        board: one that is not this machine.
    """

    def __init__(self, size: tuple[int, int], threads: int, board: OtherBoard | None = None) -> None:
        self.size = size
        self.threads = threads
        self._board = board
        self._known: dict[Hashable, Any] = {}

    def head_ms(self, problem: Problem, bottleneck: Bottleneck) -> float:
        """Image to symbols: the exported head of a bottleneck.

        Raises:
            ExportError: it does not export.
        """
        return self._head_times(problem, bottleneck)[0]

    def board_head(self, problem: Problem, bottleneck: Bottleneck) -> BoardTime | None:
        """The same on the board; None without one that is not this machine.

        Raises:
            ExportError, BoardError, BackendError: it does not export, or the board's time cannot be told.
        """
        return self._head_times(problem, bottleneck)[1]

    def _head_times(self, problem: Problem, bottleneck: Bottleneck) -> tuple[float, BoardTime | None]:
        head = Head(problem.normalize, bottleneck).eval().cpu()

        def measure() -> tuple[float, BoardTime | None]:
            model, frame = export_head(head, self.size, bottleneck.levels), reference_frames(self.size, 1)[0]
            backend = load_backend("onnxruntime", model, threads=self.threads)
            here, feed = median_ms(lambda: backend.run(frame, bottleneck.levels - 1)), {"image": frame[None]}
            if bottleneck.levels > 1:
                feed["level"] = np.array([bottleneck.levels - 1])
            return here, None if self._board is None else self._board.time(model, feed)

        frames, level = torch.zeros(1, *self.size, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
        numbers = sum(value.numel() for value in bottleneck.encoder_state().values())
        # Encoders of their own are the same network at every cut; layers of the teacher are another one each time.
        own = tuple(bottleneck.shape), count_macs(head, frames, level), numbers, bottleneck.levels
        key = ("head", problem.cut.name, *own) if bottleneck.teacher_parts() else ("head", *own)
        return self._once(key, measure)

    def decoder_ms(self, problem: Problem, bottleneck: Bottleneck) -> float:
        """Symbols to features.

        Raises:
            ExportError: it does not export.
        """

        def measure() -> float:
            network = OnnxNetwork(
                export_tail(Tail(bottleneck, nn.Identity()).eval(), bottleneck.shape, ["features"]), self.threads
            )
            symbols = np.zeros((1, *bottleneck.shape), np.uint8)
            return median_ms(lambda: network(symbols=symbols, level=np.zeros(1, np.int64)))

        return self._once(("decoder", tuple(bottleneck.shape), problem.cut.shape, bottleneck.levels), measure)

    def whole_ms(
        self, normalize: Normalize, network: nn.Module, outputs: Sequence[str]
    ) -> tuple[float, BoardTime | None]:
        """Image to outputs: the uncut network here, and on the board where that is another machine.

        Raises:
            ExportError, BoardError, BackendError: it does not export, or the board's time cannot be told.
        """

        def measure() -> tuple[float, BoardTime | None]:
            model, frame = export_whole(Whole(normalize, network), self.size, outputs), reference_frames(self.size, 1)
            exported = OnnxNetwork(model, self.threads)
            here = median_ms(lambda: exported(image=frame))
            return here, None if self._board is None else self._board.time(model, {"image": frame})

        return self._once("whole", measure)

    def _once(self, key: Hashable, measure: Callable[[], T]) -> T:
        if key not in self._known:
            self._known[key] = measure()
        known: T = self._known[key]
        return known


class Tails:
    """The teacher's graph as ONNX, from which the part behind any of its cuts can be taken.

    Args:
        traced: the network.
        cuts: where it can be cut.
        threads: that ONNX Runtime computes with.

    Raises:
        ExportError: the network does not export.
    """

    def __init__(self, traced: Traced, cuts: Sequence[Cut], threads: int) -> None:
        self._threads = threads
        module = _Tapped(traced, cuts).eval()
        images = torch.zeros(1, 3, *traced.input_size)
        with torch.no_grad():
            count = len(module(images)) - len(cuts)
        self._names = {cut.name: f"cut_{number}" for number, cut in enumerate(cuts)}
        self._outputs = [f"output_{number}" for number in range(count)]
        data = export_network(module, images, [*self._names.values(), *self._outputs])
        self._model = onnx.load_from_string(data)
        self._made_by = {name: node for node in self._model.graph.node for name in node.output}

    def network(self, cut: Cut) -> OnnxNetwork:
        """The part behind a cut: its one input takes the features, float32 ``[1, *cut.shape]``.

        Raises:
            ExportError: it cannot be taken out, or does not load.
        """
        try:
            part = Extractor(self._model).extract_model([self._value(cut)], self._outputs)
            return OnnxNetwork(part.SerializeToString(), self._threads)
        except (ValueError, CompilerError) as error:
            raise ExportError(f"the layers behind {cut.name!r} cannot be timed: {error}") from error

    def _value(self, cut: Cut) -> str:
        """The name of the features at a cut: the exporter gives a copy of them as the output."""
        name = self._names[cut.name]
        while (node := self._made_by.get(name)) is not None and node.op_type == "Identity":
            name = node.input[0]
        return name

    def tail_ms(self, cut: Cut) -> float:
        """How long the layers behind a cut take.

        Raises:
            ExportError: see :meth:`network`.
        """
        network = self.network(cut)
        features = np.random.default_rng(0).standard_normal((1, *cut.shape)).astype(np.float32)
        return median_ms(lambda: network(**{network.inputs[0]: features}))


class _Tapped(nn.Module):
    """The network with its features at some cuts, and its outputs behind them, as one flat tuple."""

    def __init__(self, traced: Traced, cuts: Sequence[Cut]) -> None:
        super().__init__()
        graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
        wanted = {cut.node for cut in cuts}
        taps: dict[fx.Node, fx.Node] = {}
        for node in traced.module.graph.nodes:
            if node.op == "output":
                graph.output(([taps[cut.node] for cut in cuts], fx.node.map_arg(node.args[0], copied.__getitem__)))
                break
            copied[node] = graph.node_copy(node, copied.__getitem__)
            if node in wanted:  # a later layer must not change in place what was tapped
                taps[node] = graph.call_function(torch.clone, (copied[node],))
        self.module = fx.GraphModule(traced.module, graph)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        taps, outputs = self.module(images)
        return (*taps, *flat(outputs))
