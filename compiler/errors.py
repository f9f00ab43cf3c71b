"""What can go wrong while compiling.

::

    NarrowcastError
    └── CompilerError
        ├── TeacherError        the network cannot be loaded, or is not one that narrowcast can take
        ├── WeightsError        weights that do not fit the network
        ├── TraceError          neither torch.fx nor torch.export can trace the network
        ├── CutError            no such cut, or none at all
        ├── DataError           no images, too few, or labels that are not there
        ├── BottleneckError     a preset cannot serve this cut or budget
        ├── TrainingError       training went wrong (not a number, a checkpoint of another recipe)
        ├── RetuneError         a tail cannot be tuned onto a bundle that is out
        ├── BoardError          a board that cannot be asked, or a calibration that is not for this plan
        ├── ExportError         a graph that does not export
        ├── ExitError           a network that a local exit cannot stand in for
        └── VerificationError (3)   the compiled parts do not do what the trained network does
"""

from __future__ import annotations

from narrowcast.transport.errors import NarrowcastError


class CompilerError(NarrowcastError):
    """Root of the compiler's errors."""


class TeacherError(CompilerError):
    """The network cannot be loaded, or is not one that narrowcast can take."""


class WeightsError(TeacherError):
    """Weights that do not fit the network."""


class TraceError(CompilerError):
    """Neither torch.fx nor torch.export can trace the network."""


class CutError(CompilerError):
    """No such cut, or none at all."""


class BoardError(CompilerError):
    """A board that cannot be asked, or a calibration that is not for this plan."""


class DataError(CompilerError):
    """No images, too few, or labels that are not there."""


class BottleneckError(CompilerError):
    """A preset cannot serve this cut or budget."""


class TrainingError(CompilerError):
    """Training went wrong."""


class RetuneError(CompilerError):
    """A tail cannot be tuned onto a bundle that is out."""


class ExportError(CompilerError):
    """A graph that does not export."""


class ExitError(CompilerError):
    """A network that a local exit cannot stand in for."""


class VerificationError(CompilerError):
    """The compiled parts do not do what the trained network does."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
