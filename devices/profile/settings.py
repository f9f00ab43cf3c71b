"""What a profile is asked for, with its defaults; and the command line that asks for the same."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from narrowcast.devices.profile.energy import BLOCK_SAMPLES, LEAD_SAMPLES
from narrowcast.devices.profile.engine import Timing
from narrowcast.devices.profile.figures import Kind
from narrowcast.devices.profile.statistics import MIN_BLOCKS
from narrowcast.head.choice import Wanted
from narrowcast.transport.structs import Settings

ImageCodec = Literal["jpeg", "webp"]
IDLE_S = 10.0


class ProfileSettings(Settings, frozen=True):
    """What is to be measured, and for how long.

    Attributes:
        data: an image or a folder of images; drawn frames if None.
        limit: at most so many different frames.
        read_each: files are read and decoded for every frame, as a part of its way.
        ways: which kinds; all that this bundle and this server have if None.
        levels: of splits; all if None.
        codecs: of images.
        qualities: of images.
        links: emulated ones beside the real one, by preset or by their figures.
        real: whether the network as it is counts.
        window: frames in flight, with several.
        deadline_ms: a frame without an answer for so long has failed.
        loaded_s: counted seconds of each way, one frame in flight.
        windowed_s: the same with several in flight; a fifth of ``loaded_s`` if None, 0 for none.
        idle_s: before and after; 10 where power is measured and none elsewhere if None.
        warm_up_s: of all ways in turn.
        settle_s: between the work and idle after it.
        rounds: turns of each way; 12, or fewer for slow sensors (6 at least), if None.
        seed: of the order of turns, and of what emulated links lose.
        target: the kind of board; recognised if None.
        meter: measures power instead of the board's own sensors.
        hz: samples of power a second; the sensor's own rate if None.
        root: a recorded board, whose power and conditions are taken; its time goes on with the work.
        architecture: of a recorded folder.
        backend: runs networks; the target's best that loads them if None.
        precision: of the head.
        whole_precision: of the uncut network on the board.
        threads: of the backend; 0 for its own choice.
    """

    data: str | None = None
    limit: int = 200
    read_each: bool = False
    ways: list[Kind] | None = None
    levels: list[int] | None = None
    codecs: list[ImageCodec] = msgspec.field(default_factory=lambda: ["jpeg", "webp"])
    qualities: list[int] = msgspec.field(default_factory=lambda: [50, 75, 90])
    links: list[str] = []
    real: bool = True
    window: int = 8
    deadline_ms: float = 30_000.0
    loaded_s: float = 30.0
    windowed_s: float | None = None
    idle_s: float | None = None
    warm_up_s: float = 5.0
    settle_s: float = 2.0
    rounds: int | None = None
    lead_s: float = 0.5
    seed: int = 0
    target: str | None = None
    meter: str | None = None
    hz: float | None = None
    root: str = "/"
    architecture: str | None = None
    backend: str | None = None
    precision: Wanted = "auto"
    whole_precision: Wanted = "auto"
    threads: int = 0

    def timing(self, sample_hz: float | None) -> Timing:
        """In full.

        Args:
            sample_hz: of the power sensor; None where there is none.
        """
        rounds, lead_s = self.rounds or 12, self.lead_s
        if sample_hz is not None:
            lead_s = max(lead_s, LEAD_SAMPLES / sample_hz)
            if self.rounds is None:  # latencies want their intervals, however slow the sensor is: verdicts rest on them
                rounds = max(MIN_BLOCKS, min(rounds, int(self.loaded_s * sample_hz / BLOCK_SAMPLES)))
        return Timing(
            loaded_s=self.loaded_s, windowed_s=self.loaded_s / 5 if self.windowed_s is None else self.windowed_s,
            rounds=rounds, lead_s=lead_s, warm_up_s=self.warm_up_s, settle_s=self.settle_s if sample_hz else 0.0,
            idle_s=(IDLE_S if sample_hz else 0.0) if self.idle_s is None else self.idle_s, seed=self.seed,
        )  # fmt: skip


def command_of(bundle: Path, to: str | None, settings: ProfileSettings) -> list[str]:
    """The command line that asks for the same; what is as it is anyhow is left out, but the seed is in it."""
    words = ["narrowcast", "profile", str(bundle)] + (["--to", to] if to is not None else [])
    default = ProfileSettings()
    for field in msgspec.structs.fields(ProfileSettings):
        value = getattr(settings, field.name)
        if value == getattr(default, field.name) and field.name != "seed":
            continue
        option = "--" + field.name.replace("_", "-")
        if field.name == "links":
            words += [word for link in value for word in ("--link", link)]
        elif field.name == "real":
            words.append("--no-real")
        elif isinstance(value, bool):
            words.append(option)
        elif isinstance(value, list):
            words += [option, ",".join(map(str, value))]
        else:
            words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    return words
