"""A board for tests: arm64 Debian 12 as a Raspberry Pi has it, under emulation, with systemd as PID 1 and sshd.

What is real there: the instructions (qemu's user mode runs every arm64 binary), the files, users and sudo, systemd and its
units, sshd, and a network cable of its own to this machine. What is not: the kernel is this machine's, so nothing is
measured that means anything; ``MemoryMax``, ``CPUQuota``, ``PrivateIPC``, ``PrivateNetwork`` and system call filters do
nothing, and a power cut loses no unwritten data.
It has no internet and no name service. Its processes see a Raspberry Pi's ``/proc/cpuinfo``: ONNX Runtime ends on
import where it sees an x86-64 machine's.

``python -m hardware.emulated_board`` (with ``tests`` on the path) boots one to look around in.
"""

from hardware.emulated_board.boot import EmulatedBoard, why_not
from hardware.emulated_board.root import copy_root

__all__ = ["EmulatedBoard", "copy_root", "why_not"]
