"""The inventory: one TOML file that lists the boards, how to get to each, and what each is told (``docs/fleet.md``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from narrowcast.devices.errors import TargetError
from narrowcast.devices.fleet.errors import InventoryError, SelectionError
from narrowcast.devices.targets import SUFFIX, load_target
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.files import at_home
from narrowcast.transport.structs import Settings, from_toml, nearest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Of a board's settings: names of files and folders of this machine, relative to the inventory's folder.
_PATHS = ("config", "tls", "wheels", "ssh_config")


class BoardSettings(Settings, frozen=True):
    """What a board, a group or all boards are told. None, or an empty list or table, leaves it to the next wider one.

    Texts may hold ``{name}``, the board's. File names are relative to the inventory.

    Attributes:
        target: kind of board (``narrowcast probe --targets`` lists them), or a target file of one's own.
        to: the tail server or servers that it sends to, ``HOST:PORT[,...]``.
        source: of its frames.
        config: its daemon's configuration (``edge.toml``), in place of ``to`` and ``source``.
        settings: further keys of that configuration; tables of several levels are merged key by key.
        tls: its folder of ``narrowcast keys issue``.
        wheels: a folder with all wheels that it wants.
        environment: a virtual environment that is on it already, instead of wheels.
        extras: of narrowcast, that its environment has.
        precision: of the head; ``auto`` is measured there.
        whole: bring the uncut network too.
        user: whom the daemon runs as, with systemd.
        prefix: a folder of the board's that everything goes below.
        services: who runs the daemon.
        python: the board's interpreter.
        sudo: whether root is taken by sudo.
        gate: what counts as healthy.
        gate_frames, gate_seconds: so many answers, within so long.
        ssh_config: another file than ``~/.ssh/config``.
        ssh_options: as ssh's ``-o`` takes them.
        accept_host_key: the fingerprint (``SHA256:...``) of the board's host key, where ssh does not know it yet.
    """

    target: str | None = None
    to: str | None = None
    source: str | None = None
    config: str | None = None
    settings: dict[str, Any] = {}
    tls: str | None = None
    wheels: str | None = None
    environment: str | None = None
    extras: list[str] | None = None
    precision: Literal["auto", "fp32", "fp16", "int8"] | None = None
    whole: bool | None = None
    user: str | None = None
    prefix: str | None = None
    services: Literal["auto", "systemd", "supervised"] | None = None
    python: str | None = None
    sudo: bool | None = None
    gate: Literal["frames", "ready"] | None = None
    gate_frames: Annotated[int, msgspec.Meta(ge=1)] | None = None
    gate_seconds: Annotated[float, msgspec.Meta(gt=0)] | None = None
    ssh_config: str | None = None
    ssh_options: list[str] = []
    accept_host_key: str | None = None


class BoardEntry(BoardSettings, frozen=True, kw_only=True):
    """One of ``[[boards]]``.

    Attributes:
        name: what people call it; of its certificate as well, where ``tls`` says ``{name}``.
        ssh: its destination, as ssh takes it (``pi@dock-1.local``, or a host of ``~/.ssh/config``).
        groups: what it belongs to.
    """

    name: str
    ssh: str
    groups: list[str] = []

    def __post_init__(self) -> None:
        for what, word in [("name", self.name), *(("group", group) for group in self.groups)]:
            if not _NAME.fullmatch(word):
                raise ValueError(f"{what} is {word!r}; letters, digits, '.', '_' and '-', 63 at most")
        if not self.ssh or self.ssh.startswith("-") or any(mark.isspace() for mark in self.ssh):
            raise ValueError(f"ssh of {self.name} is {self.ssh!r}; a destination as ssh takes it: user@host")


class Inventory(Settings, frozen=True):
    """An inventory file.

    Attributes:
        boards: all of them; the order is that of a rollout.
        defaults: for every board.
        groups: for the boards of a group, by its name; goes before the defaults, and behind the board's own. Of a board's
            groups the first one that says something counts.
    """

    boards: Annotated[list[BoardEntry], msgspec.Meta(min_length=1)]
    defaults: BoardSettings = BoardSettings()
    groups: dict[str, BoardSettings] = {}

    def __post_init__(self) -> None:
        names = [board.name for board in self.boards]
        places = [(board.ssh, board.prefix) for board in self.boards]
        for k, board in enumerate(self.boards):
            if board.name in names[:k]:
                raise ValueError(f"two boards have the name {board.name!r}")
            if places[k] in places[:k] and "{name}" not in (self.defaults.prefix or ""):
                raise ValueError(f"two boards have the ssh {board.ssh!r}; each is flashed once")
        used = {group for board in self.boards for group in board.groups}
        if idle := sorted(set(self.groups) - used):
            raise ValueError(
                f"[groups.{idle[0]}] is of no board; the boards' groups are {', '.join(sorted(used)) or 'none'}"
            )


@dataclass(frozen=True)
class Board:
    """One board, with all that it is told.

    Attributes:
        name: in tables and messages.
        destination: for ssh.
        groups: of it.
        settings: merged; paths are absolute, and ``{name}`` is filled in.
    """

    name: str
    destination: str
    groups: tuple[str, ...]
    settings: BoardSettings

    @property
    def target(self) -> str:
        """Kind of board."""
        return self.settings.target or ""


def load_inventory(path: Path, target: str | None = None) -> list[Board]:
    """All boards of an inventory file, in its order.

    Args:
        path: of the file.
        target: kind of every board, before what the file says; a file of one's own is relative to the working folder.

    Raises:
        InventoryError: no such file, not TOML, an unknown key, a value of the wrong type, a board without a target, or with
            one that is none.
    """
    try:
        inventory = from_toml(Inventory, path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError as error:
        raise InventoryError(f"no inventory {path}; docs/fleet.md shows one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InventoryError(f"{path} cannot be read: {error}") from error
    except ConfigError as error:
        raise InventoryError(str(error)) from error
    folder = path.parent.absolute()
    if target and target.endswith(SUFFIX):
        target = str(Path(target).absolute())
    return [_resolve(inventory, entry, folder, path.name, target) for entry in inventory.boards]


def one_board(entry: BoardEntry, folder: Path, source: str) -> Board:
    """A board without an inventory around it; see :func:`load_inventory`."""
    return _resolve(Inventory(boards=[entry]), entry, folder.absolute(), source)


def select(boards: Sequence[Board], groups: Sequence[str] = (), names: Sequence[str] = ()) -> list[Board]:
    """The boards that are in one of the groups or named; all of them where neither is given. The order stays.

    Raises:
        SelectionError: no such group, or no such board.
    """
    known_groups = sorted({group for board in boards for group in board.groups})
    for group in groups:
        if group not in known_groups:
            raise SelectionError(
                f"no board is in a group {group!r}{nearest(group, known_groups) if known_groups else ''}"
            )
    known_names = [board.name for board in boards]
    for name in names:
        if name not in known_names:
            raise SelectionError(f"no board {name!r} in the inventory{nearest(name, known_names)}")
    if not groups and not names:
        return list(boards)
    return [board for board in boards if board.name in names or set(board.groups) & set(groups)]


def _resolve(
    inventory: Inventory, entry: BoardEntry, folder: Path, source: str, given_target: str | None = None
) -> Board:
    levels = [
        entry,
        *(inventory.groups[group] for group in entry.groups if group in inventory.groups),
        inventory.defaults,
    ]
    merged: dict[str, Any] = {}
    for field in msgspec.structs.fields(BoardSettings):
        said = [value for level in levels if (value := getattr(level, field.name)) not in (None, [], {})]
        if field.name == "settings":
            for table in reversed(said):
                merged["settings"] = _merged(merged.get("settings", {}), table)
        elif said:
            merged[field.name] = said[0]
    filled = _filled(merged, entry.name)
    for name in _PATHS:
        if name in filled:
            filled[name] = str(folder / at_home(filled[name]))
    where = f"{source}: board {entry.name}"
    if given_target:
        filled["target"] = given_target
    target = filled.get("target")
    if target is None:
        raise InventoryError(f"{where} has no target; name one there, in its group or in [defaults]")
    if target.endswith(SUFFIX):
        target = filled["target"] = str(folder / target)
    if "config" in filled and ("to" in filled or "source" in filled):
        raise InventoryError(f"{where} has a config, which says where to send what: drop to and source, or the config")
    try:
        load_target(target)
    except TargetError as error:
        raise InventoryError(f"{where}: {error}") from error
    return Board(entry.name, entry.ssh, tuple(entry.groups), msgspec.convert(filled, BoardSettings))


def _merged(wide: Mapping[str, Any], narrow: Mapping[str, Any]) -> dict[str, Any]:
    """Tables, key by key; the narrow one's values count."""
    both = {**wide}
    for key, value in narrow.items():
        both[key] = _merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


def _filled(value: Any, name: str) -> Any:
    """``{name}`` in every text, however deep."""
    if isinstance(value, str):
        return value.replace("{name}", name)
    if isinstance(value, dict):
        return {key: _filled(inner, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, name) for inner in value]
    return value
