"""A server's tensors as outputs and answers, by what the bundle says about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from narrowcast.transport.bundle import Manifest
from narrowcast.transport.contract import Placement
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tensors import from_tensors
from narrowcast.transport.structs import nearest
from narrowcast.transport.tasks import MAIN, Answer, answer_of, sent_outputs
from narrowcast.transport.tasks.answers import SentOutput


class AnswerReader:
    """Reads the results for one client.

    Args:
        manifest: the bundle's.
        tails: those that the client asks for; None for all that the bundle has.

    Attributes:
        tails: what the server is to run: it may have more of them by now than the bundle.

    Raises:
        ConfigError: the bundle has no such tail.
    """

    def __init__(self, manifest: Manifest, tails: Sequence[str] | None = None) -> None:
        there = manifest.all_tails()
        names = [tail.name for tail in there]
        for name in tails or ():
            if name not in names:
                raise ConfigError(f"{manifest.name} has no tail {name!r}{nearest(name, names)}")
        self._reference = manifest.input.size
        self.tails = [tail for tail in there if not tails or tail.name in tails]
        self._expected = self._expected_at(self._reference)

    def _expected_at(self, size: tuple[int, int]) -> list[SentOutput]:
        """What comes back for an input of ``size``."""
        return [
            output._replace(name=_prefix(tail.name) + output.name)
            for tail in self.tails
            for output in sent_outputs(tail.task, [one.at(size, self._reference) for one in tail.outputs])
        ]

    def read(
        self, tensors: Sequence[pb.Tensor], placement: Placement
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Answer]]:
        """One frame's outputs by name, and its answers by tail.

        Args:
            tensors: the result's.
            placement: where the frame lies in the network's input.

        Raises:
            TransportError: they are not what the bundle says.
        """
        size = placement.input
        outputs = from_tensors(tensors, self._expected if size == self._reference else self._expected_at(size))
        return outputs, self.answers(outputs, placement)

    def answers(self, outputs: Mapping[str, npt.NDArray[Any]], placement: Placement) -> dict[str, Answer]:
        """A frame's answers by tail, of its outputs; tails that have none among them are passed over."""
        size, answers = placement.input, dict[str, Answer]()
        for tail in self.tails:
            prefix = _prefix(tail.name)
            names = [output.name for output in sent_outputs(tail.task, tail.outputs)]
            if not all(prefix + name in outputs for name in names):
                continue
            found = answer_of(tail.task, {name: outputs[prefix + name] for name in names}, placement, size)
            if found is not None:
                answers[tail.name] = found
        return answers


def _prefix(tail: str) -> str:
    return "" if tail == MAIN else f"{tail}/"
