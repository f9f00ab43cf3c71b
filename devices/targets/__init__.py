"""Kinds of board, as data: one TOML file each, beside this one. Adding a board is adding a file."""

from __future__ import annotations

from importlib import resources
from typing import Literal

from narrowcast.devices.errors import TargetError
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import Settings, from_toml, nearest

Architecture = Literal["aarch64", "x86_64"]


class PowerSettings(Settings, frozen=True):
    """How the board's power can be measured.

    Attributes:
        sensor: the reader (``ina2xx``: a meter that somebody wired to the board's supply); empty where there is none.
        also: further sensors, outside the total.
        rails: the sensor's labels that belong to the board; patterns where they are counted (``package-[0-9]``).
        total: the rails whose sum is the board's (or module's) power. Other rails lie inside these: never added.
        scope: what the total covers, in words.
        sample_hz: how often the sensor is worth reading.
        stall_s: for how long all rails may say the very same before the sensor counts as stalled.
    """

    sensor: Literal["", "ina3221", "pi5-pmic", "ina2xx", "rapl"] = ""
    also: list[Literal["nvml"]] = []
    rails: list[str] = []
    total: list[str] = []
    scope: str = ""
    sample_hz: float = 10.0
    stall_s: float = 10.0

    def __post_init__(self) -> None:
        if not set(self.total) <= set(self.rails):
            raise ValueError(f"total names {self.total}; it is a part of rails {self.rails}")


class Target(Settings, frozen=True):
    """A kind of board.

    Attributes:
        name: what recipes and the command line call it.
        title: what people call it.
        architecture: of its CPU.
        recognise: parts of ``/proc/device-tree/model`` that tell it from others; none for a generic machine.
        os: operating systems that it is meant to run.
        python: Python versions that those bring along.
        backends: what runs the head there, best first.
        precisions: of heads, that the backends gain from.
        power: how its power can be measured.
        power_mode_command: shows or sets the board's power mode.
        clocks_command: keeps the clocks where they are, for measurements that can be repeated.
        note: what an engineer should know.
    """

    name: str
    title: str
    architecture: Architecture
    os: list[str]
    python: list[str]
    backends: list[Literal["onnxruntime", "tensorrt"]]
    precisions: list[Literal["fp32", "fp16", "int8"]]
    recognise: list[str] = []
    power: PowerSettings = PowerSettings()
    power_mode_command: str = ""
    clocks_command: str = ""
    note: str = ""


def target_names() -> list[str]:
    """All targets' names."""
    return sorted(f.name.removesuffix(".toml") for f in resources.files(__name__).iterdir() if f.name.endswith(".toml"))


def load_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        TargetError: there is none, or its file is wrong.
    """
    known = target_names()
    if name not in known:
        raise TargetError(f"no target {name!r}{nearest(name, known)}")
    try:
        target = from_toml(
            Target, resources.files(__name__).joinpath(f"{name}.toml").read_text("utf-8"), f"{name}.toml"
        )
    except ConfigError as error:
        raise TargetError(str(error)) from error
    if target.name != name:
        raise TargetError(f"{name}.toml calls itself {target.name!r}")
    return target


def recognise(model: str, architecture: str) -> Target | None:
    """The target that a board is.

    Args:
        model: what ``/proc/device-tree/model`` says; empty where there is none.
        architecture: ``platform.machine()``.

    Returns:
        the most specific target: by model, else the generic one of the architecture, else None.
    """
    targets = [load_target(name) for name in target_names()]
    for target in targets:
        if target.architecture == architecture and any(word in model for word in target.recognise):
            return target
    return next((t for t in targets if t.architecture == architecture and not t.recognise), None)
