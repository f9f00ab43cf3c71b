"""Images of any size: whether a network and its bottleneck take them, and what grows in step with them.

Training sees crops of one size. What comes out must work for others: that is tried on a second size, and on the smallest,
before anything is trained.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from narrowcast.compiler.bottlenecks import Bottleneck, Problem
from narrowcast.compiler.cuts.trace import Traced
from narrowcast.compiler.errors import BottleneckError, TeacherError, first_line
from narrowcast.compiler.tasks import output_specs
from narrowcast.transport.bundle import OutputSpec
from narrowcast.transport.contract import FreeSize, InputContract

Follows = Literal["nothing", "height", "width"]


def codec_grid(
    shape: tuple[int, int, int], contract: InputContract
) -> tuple[tuple[int, int, int], tuple[int, int] | msgspec.UnsetType]:
    """The shape of the largest frame's symbols, and the codec's step, from the ``shape`` that training's frames have.

    Raises:
        BottleneckError: rows and columns do not grow in step with the image.
    """
    free = contract.free
    if free is None:
        return shape, msgspec.UNSET
    cells = [divmod(grid * free.multiple, side) for grid, side in zip(shape[1:], contract.size, strict=True)]
    if any(rest or not whole for whole, rest in cells):
        raise BottleneckError(
            f'fit = "free": {contract.size[0]} x {contract.size[1]} pixels give {shape[1]} x {shape[2]} symbols a channel, '
            f"which do not grow in steps of multiple_of = {free.multiple}: raise it, or lower [bottleneck] stride"
        )
    (rows, _), (columns, _) = cells
    most = rows * (free.most[0] // free.multiple), columns * (free.most[1] // free.multiple)
    return (shape[0], *most), (rows, columns)


@torch.no_grad()
def check_bottleneck(bottleneck: Bottleneck, problem: Problem) -> None:
    """Tries an untrained bottleneck on two other sizes.

    Raises:
        BottleneckError: it is for images of one size.
    """
    free, larger = problem.contract.free, problem.traced.larger_size
    assert free is not None
    assert larger is not None
    _, step = codec_grid(bottleneck.shape, problem.contract)
    assert not isinstance(step, msgspec.UnsetType)
    training = bottleneck.training
    bottleneck.to(problem.device).eval()
    for size in (larger, (free.multiple, free.multiple)):
        image = torch.zeros(1, 3, *size, device=problem.device)
        level = torch.zeros(1, dtype=torch.int64, device=problem.device)
        try:
            symbols = bottleneck.encode(image, level)
            seen = tuple(symbols.shape[1:]), tuple(bottleneck.decode(symbols, level).shape)
        except RuntimeError as error:
            raise _for_one_size(problem, size, first_line(error)) from error
        grid = [side // free.multiple * cells for side, cells in zip(size, step, strict=True)]
        wanted = (bottleneck.shape[0], *grid), tuple(problem.before(image).shape)
        if seen != wanted:
            raise _for_one_size(problem, size, f"symbols and features {seen}, not {wanted}")
    bottleneck.train(training)


def _for_one_size(problem: Problem, size: tuple[int, int], what: str) -> BottleneckError:
    return BottleneckError(
        f'fit = "free": at the cut {problem.cut.name!r} this bottleneck is for images of '
        f"{problem.contract.size[0]} x {problem.contract.size[1]} alone (at {size[0]} x {size[1]}: {what}); take the preset "
        "shallow-residual, or an earlier cut"
    )


def free_outputs(network: nn.Module, traced: Traced, free: FreeSize) -> list[OutputSpec]:
    """What a network gives for one image of the traced size, and which sides of it grow with the image.

    Raises:
        TeacherError: it does not take the smallest image, or a side grows otherwise than in step.
    """
    assert traced.larger_size is not None
    sizes = [traced.input_size, traced.larger_size, (free.multiple, free.multiple)]
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    seen = [output_specs(_answer(network, torch.zeros(1, 3, *size, device=device))) for size in sizes]
    found = []
    for outputs in zip(*seen, strict=True):
        first = outputs[0]
        sides = [_follows(first.name, lengths, sizes) for lengths in zip(*(o.shape for o in outputs), strict=True)]
        found.append(msgspec.structs.replace(first, follows=sides))
    return found


@torch.no_grad()
def _answer(network: nn.Module, image: Tensor) -> Any:
    try:
        return network(image)
    except Exception as error:  # what torch or the user's code makes of a map that is too small
        why = first_line(error)
        rows, columns = image.shape[2:]
        raise TeacherError(
            f'fit = "free" wants a network that takes the smallest image, multiple_of on both sides; this one fails on '
            f"{rows} x {columns} ({why}): raise multiple_of"
        ) from error


def _follows(name: str, lengths: tuple[int, ...], sizes: list[tuple[int, int]]) -> Follows:
    if len(set(lengths)) == 1:
        return "nothing"
    ways: tuple[tuple[Follows, int], ...] = (("height", 0), ("width", 1))
    for follows, axis in ways:
        if all(length * sizes[0][axis] == lengths[0] * size[axis] for length, size in zip(lengths, sizes, strict=True)):
            return follows
    raise TeacherError(
        f'fit = "free": a side of the output {name!r} is {", ".join(map(str, lengths))} for images of '
        f"{', '.join(f'{rows} x {columns}' for rows, columns in sizes)}, which is not in step with them: raise multiple_of"
    )


def extreme_frames(frame: npt.NDArray[np.uint8], free: FreeSize) -> list[npt.NDArray[np.uint8]]:
    """Frames uint8 ``[1, H, W, 3]`` to verify on, of one's pixels: the smallest, the tallest and the widest."""
    least, (height, width) = free.multiple, free.most
    return [_tiled(frame, size)[None] for size in dict.fromkeys([(least, least), (height, least), (least, width)])]


def _tiled(frame: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[Any]:
    again = [-(-want // have) for want, have in zip(size, frame.shape[:2], strict=True)]
    return np.ascontiguousarray(np.tile(frame, (*again, 1))[: size[0], : size[1]])
