"""What board this is, by what its kernel, firmware and vendor say of it. Every read takes a root: captures replay."""

from __future__ import annotations

import re
from dataclasses import dataclass

from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine import Machine

# CPU parts as the kernel shows them (implementer, part): Linux, arch/arm64/include/asm/cputype.h.
_CORES = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x4E, 0x004): "NVIDIA Carmel",
}
# The first number of a Jetson Linux release -> the JetPack that it belongs to (NVIDIA, Jetson Linux archive).
_JETPACKS = {32: "JetPack 4", 34: "JetPack 5", 35: "JetPack 5", 36: "JetPack 6", 38: "JetPack 7", 39: "JetPack 7"}
_L4T = re.compile(r"# R(?P<release>\d+) \(release\), REVISION: (?P<revision>[\d.]+)")


@dataclass(frozen=True)
class Identity:
    """What the machine says of itself; None is "does not say".

    Attributes:
        model: of the device tree (boards), else vendor and product by DMI (PCs, servers, virtual machines).
        compatible: the device tree's words, most specific first.
        cpu: the cores' name.
        cpus: how many.
        virtual: whether it is a virtual machine, as far as the processor tells.
        memory_bytes: in all.
        os: by ``/etc/os-release``.
        kernel: its release.
        jetpack: for instance ``JetPack 6 (Jetson Linux 36.4.3)``.
        pythons: Python versions that the system brings.
    """

    model: str | None
    compatible: tuple[str, ...]
    cpu: str | None
    cpus: int
    virtual: bool
    memory_bytes: int | None
    os: str | None
    kernel: str | None
    jetpack: str | None
    pythons: tuple[str, ...]


def identify(machine: Machine) -> Identity:
    """Looks at a running or a recorded machine."""
    cpuinfo = _text(machine, "proc/cpuinfo") or ""
    return Identity(
        model=first_line(machine, "proc/device-tree/model") or _dmi(machine),
        compatible=tuple(word for word in (_text(machine, "proc/device-tree/compatible") or "").split("\0") if word),
        cpu=_cpu(cpuinfo),
        cpus=sum(line.startswith("processor") for line in cpuinfo.splitlines()),
        virtual=any("hypervisor" in line.split() for line in cpuinfo.splitlines() if line.startswith("flags")),
        memory_bytes=_memory(machine),
        os=_os_name(machine),
        kernel=first_line(machine, "proc/sys/kernel/osrelease"),
        jetpack=_jetpack(machine),
        pythons=_pythons(machine),
    )


def first_line(machine: Machine, key: str) -> str | None:
    """The first line of a file, up to a NUL; None where there is no such file, it is empty, or it cannot be read."""
    lines = (_text(machine, key) or "").split("\0", 1)[0].strip().splitlines()
    return lines[0] if lines else None


def _text(machine: Machine, key: str) -> str | None:
    try:
        return machine.read(key)
    except (OSError, SensorError):
        return None


def _dmi(machine: Machine) -> str | None:
    """``vendor product``: what PCs have in place of a device tree (Linux, drivers/firmware/dmi-id.c)."""
    names = (first_line(machine, f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name"))
    return " ".join(name for name in names if name) or None


def _cpu(cpuinfo: str) -> str | None:
    fields = dict[str, list[str]]()
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), []).append(value.strip())
    if "model name" in fields:
        return fields["model name"][0]
    found = list[str]()
    for implementer, part in zip(fields.get("CPU implementer", []), fields.get("CPU part", []), strict=False):
        try:
            name = _CORES.get((int(implementer, 16), int(part, 16)), f"Arm part {implementer} {part}")
        except ValueError:
            continue
        if name not in found:
            found.append(name)
    return " + ".join(found) or None


def _memory(machine: Machine) -> int | None:
    for line in (_text(machine, "proc/meminfo") or "").splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and len(words) > 1 and words[1].isdecimal():
            return int(words[1]) * 1024
    return None


def _os_name(machine: Machine) -> str | None:
    lines = (_text(machine, "etc/os-release") or "").splitlines()
    return next((line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")), None)


def _jetpack(machine: Machine) -> str | None:
    """By ``/etc/nv_tegra_release``: ``# R36 (release), REVISION: 4.3, ...``."""
    found = _L4T.match(first_line(machine, "etc/nv_tegra_release") or "")
    if found is None:
        return None
    release = int(found["release"])
    linux = f"Jetson Linux {release}.{found['revision']}"
    return f"{_JETPACKS[release]} ({linux})" if release in _JETPACKS else linux


def _pythons(machine: Machine) -> tuple[str, ...]:
    try:
        paths = machine.glob("usr/bin/python3.*")
    except SensorError:
        return ()
    found = {m[1] for path in paths if (m := re.fullmatch(r"usr/bin/python(3\.\d+)", path))}
    return tuple(sorted(found, key=lambda version: int(version.split(".")[1])))
