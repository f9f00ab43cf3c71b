"""Kinds of board, as data: one TOML file each, beside this one. Adding a board is adding a file; see docs/targets.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from narrowcast.devices.errors import TargetError
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import Settings, from_toml, nearest

Architecture = Literal["aarch64", "x86_64"]
Backend = Literal["onnxruntime", "tensorrt"]
Sensor = Literal["", "ina3221", "pi5-pmic", "ina2xx", "rapl"]
# What a user's own file is recognised by on the command line.
SUFFIX = ".toml"
# What units and command lines can hold as it is: no blanks, no dots alone, nothing that systemd or a shell puts words for.
PLAIN_PATH = re.compile(r"(/(?!\.{1,2}(?:/|$))[A-Za-z0-9._@+,=-]+)+")


class PowerSettings(Settings, frozen=True):
    """How the board's power can be measured.

    Attributes:
        sensor: the reader: ``ina3221``, ``pi5-pmic``, ``ina2xx`` (a meter that someone wired in front),
            ``rapl``; empty where there is none.
        also: further sensors, outside the total.
        rails: the sensor's labels that belong to the board; patterns where they are counted (``package-[0-9]``).
        total: the rails whose sum is the board's (or module's) power. Other rails lie inside these: never added.
        scope: what the total covers, in words.
        sample_hz: how often the sensor is worth reading.
        stall_s: for how long all rails may say the very same before the sensor counts as stalled.
        fix: what to do where the sensor is not there or cannot be read: wiring, module, permissions.
    """

    sensor: Sensor = ""
    also: list[Literal["nvml"]] = []
    rails: list[str] = []
    total: list[str] = []
    scope: str = ""
    sample_hz: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 10.0
    stall_s: float = 10.0
    fix: str = ""

    def __post_init__(self) -> None:
        if not set(self.total) <= set(self.rails):
            raise ValueError(f"total names {self.total}; it is a part of rails {self.rails}")
        if self.sensor and not (self.rails and self.total and self.scope):
            raise ValueError(f"sensor is {self.sensor!r}: rails, total and scope say what it measures")
        if self.rails and not self.sensor:
            raise ValueError(f"rails are {self.rails}; sensor says what reads them")


class ClockCommands(Settings, frozen=True):
    """Commands of the board's own, for people: narrowcast runs none of them.

    Attributes:
        show: tell clocks and power mode.
        list_modes: tell which power modes there are; empty where it has none.
        set_mode: choose one.
        fix: hold the clocks where a measurement wants them.
        release: undo ``fix``.
        throttled: tell whether the board was slowed down by heat or voltage.
    """

    show: list[str]
    fix: list[str]
    release: list[str]
    list_modes: list[str] = []
    set_mode: list[str] = []
    throttled: list[str] = []


class DeployPaths(Settings, frozen=True):
    """Where things lie on the board.

    Attributes:
        program: releases of flashed models, each with its virtual environment; on a machine set up by hand, the environment.
        bundles: bundles, on a machine set up by hand.
        state: what the daemon keeps: spools.
        cache: what is made there and may be made again: engines, measured precisions.
        config: the daemon's settings, its certificate, the keys it trusts.
        run: what it tells of itself while it runs.
    """

    program: str = "/opt/narrowcast"
    bundles: str = "/srv/narrowcast/models"
    state: str = "/var/lib/narrowcast"
    cache: str = "/var/cache/narrowcast"
    config: str = "/etc/narrowcast"
    run: str = "/run/narrowcast"

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not PLAIN_PATH.fullmatch(getattr(self, name)):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; a path from the root, of letters, digits and . _ @ + , = -"
                )


class Refused(Settings, frozen=True):
    """A backend that the board's system brings and narrowcast does not use there, and why."""

    backend: Backend
    why: str


class Target(Settings, frozen=True):
    """A kind of board.

    Attributes:
        name: what recipes and the command line call it.
        title: what people call it.
        architecture: of its CPU.
        recognise: parts of ``/proc/device-tree/model`` that tell it from others; none for a generic machine.
        compatible: words of ``/proc/device-tree/compatible`` that do so too, for carrier boards with a name of their own.
        os: operating systems that it is meant to run.
        python: Python versions that the head runs on there.
        python_from: ``system``: the operating system brings them; ``brought``: its own is too old, one is brought along.
        backends: what runs the head there, best first.
        refused: what does not, and why.
        precisions: of heads, that the backends gain from.
        power: how its power can be measured.
        clocks: commands for clocks and power modes.
        paths: where things lie on it.
        sources: where these facts are from.
        calibration: a file of ``narrowcast probe --calibrate``, beside a target file of one's own; empty without one.
        note: what an engineer should know.
    """

    name: str
    title: str
    architecture: Architecture
    os: list[str]
    python: list[str]
    backends: Annotated[list[Backend], msgspec.Meta(min_length=1)]
    precisions: list[Literal["fp32", "fp16", "int8"]]
    sources: list[str]
    clocks: ClockCommands
    recognise: list[str] = []
    compatible: list[str] = []
    python_from: Literal["system", "brought"] = "system"
    refused: list[Refused] = []
    power: PowerSettings = PowerSettings()
    paths: DeployPaths = DeployPaths()
    calibration: str = ""
    note: str = ""


def target_names() -> list[str]:
    """All targets' names."""
    return sorted(f.name.removesuffix(SUFFIX) for f in resources.files(__name__).iterdir() if f.name.endswith(SUFFIX))


def load_target(name: str | Path) -> Target:
    """The target called ``name``, or a user's own: a file ``*.toml``, whatever its name.

    Raises:
        TargetError: there is none, or its file is wrong.
    """
    if str(name).endswith(SUFFIX):
        return _own(Path(name))
    name, known = str(name), target_names()
    if name not in known:
        raise TargetError(f"no target {name!r}{nearest(name, known)}; a board of your own is a file: my-board.toml")
    target = _read(resources.files(__name__).joinpath(name + SUFFIX).read_text("utf-8"), name + SUFFIX)
    if target.name != name:
        raise TargetError(f"{name}.toml calls itself {target.name!r}")
    return target


def calibration_file(name: str | Path) -> Path | None:
    """The calibration that a target carries; None where it has none.

    Raises:
        TargetError: there is no such target.
    """
    target = load_target(name)
    folder = Path(name).parent if str(name).endswith(SUFFIX) else Path(str(resources.files(__name__)))
    return folder / target.calibration if target.calibration else None


def _own(path: Path) -> Target:
    try:
        return _read(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise TargetError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TargetError(f"{path} is no text in UTF-8") from error


def _read(text: str, name: str) -> Target:
    try:
        return from_toml(Target, text, name)
    except ConfigError as error:
        raise TargetError(str(error)) from error


def recognise(model: str, architecture: str, compatible: Sequence[str] = ()) -> Target | None:
    """The target that a board is.

    Args:
        model: what ``/proc/device-tree/model`` says; empty where there is none.
        architecture: ``platform.machine()``.
        compatible: words of ``/proc/device-tree/compatible``.

    Returns:
        the most specific target: by model, else by module, else the generic one of the architecture, else None.
    """
    targets = [target for target in map(load_target, target_names()) if target.architecture == architecture]
    for target in targets:
        if any(word in model for word in target.recognise):
            return target
    for target in targets:
        if set(target.compatible) & set(compatible):
            return target
    return next((target for target in targets if not target.recognise), None)
