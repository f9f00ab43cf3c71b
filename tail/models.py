"""The models that are served now. A slot stays while a model behind it is exchanged, so streams never look back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from narrowcast.tail.batcher import Batcher
from narrowcast.tail.errors import ModelUnavailableError
from narrowcast.transport.bundle import Manifest


class Slot:
    """One codec of one model: what a stream holds on to.

    Attributes:
        name: of the model.
        fingerprint: of the codec, 16 bytes.
        batcher: answers frames. Ask anew for each frame: another release with the same codec may have taken its place.
        retired: set once no frame is taken any more; open streams are to drain.
    """

    def __init__(self, batcher: Batcher) -> None:
        self.name = batcher.model.name
        self.fingerprint = batcher.model.codec.fingerprint
        self.batcher = batcher
        self.retired = asyncio.Event()


class ModelTable:
    """Slots by model and codec. Must be used on one event loop.

    Attributes:
        on_change: called after each change.
    """

    def __init__(self) -> None:
        self._slots: dict[tuple[str, bytes], Slot] = {}
        self.on_change: list[Callable[[], None]] = []

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._slots.values()))

    def __len__(self) -> int:
        return len(self._slots)

    def names(self) -> list[str]:
        """Of the models, each once."""
        return sorted({slot.name for slot in self._slots.values()})

    def publish(self, batcher: Batcher) -> Batcher | None:
        """Frames of this batcher's model and codec go to it from now on.

        Returns:
            the one that they went to before; whoever publishes closes it once it is idle.
        """
        key = batcher.model.name, batcher.model.codec.fingerprint
        slot = self._slots.get(key)
        if slot is None:
            self._slots[key] = Slot(batcher)
            before = None
        else:
            before, slot.batcher = slot.batcher, batcher
        self._changed()
        return before

    def retire(self, name: str, fingerprint: bytes) -> Batcher | None:
        """Takes a slot away; its streams drain.

        Returns:
            its batcher, to be closed once it is idle.
        """
        slot = self._slots.pop((name, fingerprint), None)
        if slot is None:
            return None
        slot.retired.set()
        self._changed()
        return slot.batcher

    def manifest(self, name: str, release: int) -> Manifest | None:
        """Of a release that is served now."""
        manifests = (slot.batcher.model.manifest for slot in self if slot.name == name)
        return next((one for one in manifests if one.release == release), None)

    def find(self, name: str, fingerprint: bytes) -> Slot:
        """The slot for a client's model.

        Raises:
            ModelUnavailableError: no such model, or not with this codec; says what there is.
        """
        slot = self._slots.get((name, fingerprint))
        if slot is not None:
            return slot
        others = [other for other in self._slots.values() if other.name == name]
        if not others:
            there = ", ".join(self.names()) or "none at all"
            raise ModelUnavailableError(f"no model {name[:80]!r} here; there is {there}")
        has = ", ".join(
            f"release {other.batcher.model.manifest.release} has {other.fingerprint.hex()}" for other in others
        )
        raise ModelUnavailableError(
            f"the client's bundle of {name!r} has the codec {fingerprint[:16].hex()}, the server's {has}; both must come "
            "from one compilation"
        )

    def _changed(self) -> None:
        for tell in self.on_change:
            tell()
