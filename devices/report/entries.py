"""A run as the report sees it: its name, its links in order, and how its ways are called and drawn everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from narrowcast.devices.errors import RunError
from narrowcast.devices.profile.figures import Way
from narrowcast.devices.profile.schema import Link, Run, parse_run
from narrowcast.devices.report.plots.drawing import Style

MAX_RUNS = 8  # side by side; more is a matter for the JSON
MAX_BYTES = 64 << 20
_COLOURS = {"local": "local", "exit": "other", "image": "image", "split": "split"}
_CODECS = {"jpeg": "JPEG", "webp": "WebP"}


@dataclass(frozen=True)
class Entry:
    """A run with its name in this report.

    Attributes:
        name: of its file, without the suffix; told apart where several are called the same.
        run: what was measured.
        several: whether there are others beside it.
    """

    name: str
    run: Run
    several: bool = False

    @property
    def suffix(self) -> str:
        """Tells what belongs to this run from what belongs to others; nothing where it is the only one."""
        return f", {self.name}" if self.several else ""

    @cached_property
    def links(self) -> list[Link]:
        """The real ones first, then the emulated ones, the fastest first."""
        return sorted(self.run.links, key=lambda link: (link.kind != "real", -(uplink_mbit(link) or 0.0)))

    def over(self, link: Link | None) -> list[Way]:
        """The ways of a link, and those that need none."""
        name = link.name if link else None
        return [way for way in self.run.ways if way.link is None or way.link == name]

    @cached_property
    def styles(self) -> dict[str, Style]:
        """By way, without its link: a colour for each kind, and marks and dashes for each of that kind."""
        found: dict[str, Style] = {}
        for way in self.run.ways:
            if (base := base_id(way)) not in found:
                colour = _COLOURS[way.kind]
                found[base] = Style(colour, sum(style.colour == colour for style in found.values()))
        return found

    def style(self, way: Way) -> Style:
        """Of a way."""
        return self.styles[base_id(way)]

    @property
    def board(self) -> str:
        """What it ran on, in words."""
        board = self.run.board
        return board.model or board.cpu or board.title or board.architecture


def base_id(way: Way) -> str:
    """A way's id without its link."""
    return way.id.removesuffix(f"@{way.link}") if way.link else way.id


def short_title(way: Way) -> str:
    """A way's name where its link is said elsewhere."""
    if way.kind == "split":
        return "split" if way.level is None else f"split, level {way.level}"
    if way.kind == "image":
        return f"{_CODECS.get(way.codec or '', 'image')} {'' if way.quality is None else way.quality}".strip()
    return {"local": "local", "exit": "local exit"}[way.kind]


def full_title(way: Way) -> str:
    """A way's name with its link."""
    return f"{short_title(way)} over {link_words(way.link)}" if way.link else short_title(way)


def link_words(name: str | None) -> str:
    """A link in a sentence."""
    return "the real link" if name == "real" else name or "no link"


def uplink_mbit(link: Link) -> float | None:
    """What an emulated link was set to; what was measured of a real one."""
    kbit = link.settings.up_kbit if link.settings else link.measured_up_kbit
    return None if kbit is None or kbit <= 0 else kbit / 1000


def read_entries(paths: Sequence[Path]) -> list[Entry]:
    """Run records, each with a name of its own.

    Raises:
        RunError: one of them cannot be read, is none, or there are too many of them.
    """
    if len(paths) > MAX_RUNS:
        raise RunError(f"{len(paths)} runs are too many for one page; at most {MAX_RUNS} stand side by side")
    runs = [_read(path) for path in paths]
    names = [path.name.removesuffix(".json") for path in paths]
    if len(set(names)) < len(names):
        names = [str(path).removesuffix(".json") for path in paths]
    return [
        Entry(name if names.count(name) == 1 else f"{name} ({k + 1})", run, several=len(runs) > 1)
        for k, (name, run) in enumerate(zip(names, runs, strict=True))
    ]


def _read(path: Path) -> Run:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise RunError(f"{path} is larger than a run record may be ({MAX_BYTES >> 20} MiB)")
    return parse_run(data, str(path))
