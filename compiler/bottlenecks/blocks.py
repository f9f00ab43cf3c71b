"""The layers of the residual bottleneck: shallow, ReLU only, no normalisation, so that INT8 engines like them.

The encoder's block is the one of FrankenSplit (Furutanpey et al., IEEE TMC 2024): two 3x3 convolutions beside a 1x1 one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrowcast.compiler.bottlenecks.relevance import keep_inputs, keep_outputs, selecting
from narrowcast.compiler.layout import Layout


class ResidualBlock(nn.Module):
    """3x3 (stride) ReLU 3x3, beside a 1x1 (stride) skip; ``[N, cin, H, W]`` to ``[N, cout, H / stride, W / stride]``."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(cin, cout, 3, stride, 1)
        self.second = nn.Conv2d(cout, cout, 3, 1, 1)
        self.skip: nn.Conv2d | nn.Identity = (
            nn.Conv2d(cin, cout, 1, stride) if stride > 1 or cin != cout else nn.Identity()
        )
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.second.weight.mul_(0.1)  # close to the skip at first: deep stacks then train from the first step

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        changed: Tensor = F.relu(self.second(F.relu(self.first(x)))) + self.skip(x)
        return changed

    def keep_outputs(self, index: Tensor) -> None:
        """Gives the output channels ``index`` alone from now on."""
        if isinstance(self.skip, nn.Identity):
            self.skip = selecting(self.second.out_channels, torch.arange(self.second.out_channels))
        for layer in (self.second, self.skip):
            keep_outputs(layer, index)

    def keep_inputs(self, index: Tensor) -> None:
        """Takes the input channels ``index`` alone from now on; the others were 0."""
        if isinstance(self.skip, nn.Identity):
            self.skip = selecting(self.second.out_channels, index)
        else:
            keep_inputs(self.skip, index)
        keep_inputs(self.first, index)


def residual_stack(channels: Sequence[int], strides: Sequence[int]) -> nn.Sequential:
    """Blocks from ``channels[i]`` to ``channels[i + 1]`` at ``strides[i]``."""
    return nn.Sequential(
        *(ResidualBlock(cin, cout, s) for cin, cout, s in zip(channels[:-1], channels[1:], strides, strict=True))
    )


class Upsample(nn.Module):
    """3x3 convolution and pixel shuffle: ``[N, C, H, W]`` to ``[N, C, 2 H, 2 W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 4 * channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.pixel_shuffle(F.relu(self.expand(x)), 2)


class FeatureGrid(nn.Module):
    """The features at the cut as a square-pixel grid ``[N, C, H, W]`` and back.

    Maps are grids already. Tokens are laid out on theirs; tokens that have no place on it (class and register tokens)
    are left out on the way in, and predicted from the mean over the grid on the way back.
    """

    def __init__(self, layout: Layout, input_size: tuple[int, int]) -> None:
        super().__init__()
        self.layout = layout
        self.shape = layout.map_shape
        self.extra = 0
        if layout.kind == "tokens":
            tokens, dim = layout.shape
            rows, columns = _token_grid(tokens, input_size)
            self.extra = tokens - rows * columns
            self.shape = (dim, rows, columns)
            self.predict = nn.Linear(dim, self.extra * dim) if self.extra else nn.Identity()

    def to_grid(self, features: Tensor) -> Tensor:
        """``[N, *cut.shape]`` to ``[N, *self.shape]``."""
        if self.layout.kind == "tokens":
            return features[:, self.extra :].transpose(1, 2).reshape(-1, *self.shape)
        return self.layout.to_map(features)

    def from_grid(self, grid: Tensor) -> Tensor:
        """``[N, *self.shape]`` to ``[N, *cut.shape]``."""
        if self.layout.kind != "tokens":
            return self.layout.from_map(grid)
        tokens = grid.flatten(2).transpose(1, 2)
        if not self.extra:
            return tokens
        extra = self.predict(grid.mean((2, 3))).reshape(-1, self.extra, self.shape[0])
        return torch.cat([extra, tokens], 1)


def _token_grid(tokens: int, input_size: tuple[int, int]) -> tuple[int, int]:
    """The largest grid of the input's aspect that ``tokens`` tokens hold."""
    aspect = input_size[1] / input_size[0]
    for rows in range(int((tokens / aspect) ** 0.5) + 1, 0, -1):
        columns = round(rows * aspect)
        if columns and rows * columns <= tokens:
            return rows, columns
    return tokens, 1


class Neck(nn.Module):
    """From the grid at the cut to the latent grid: a linear patch transform, and residual blocks that add to it.

    The linear path can be set to the best linear code there is (see ``transform.py``), and the blocks start at zero: so
    training starts from transform coding of the features, not from noise.
    """

    def __init__(self, features: tuple[int, int, int], patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        halvings = patch.bit_length() - 1
        self.linear = nn.Conv2d(features[0], channels, patch, patch)
        self.blocks = residual_stack([features[0], *[width] * (halvings + 1)], [1] + [2] * halvings)
        self.last = _zero(nn.Conv2d(width, channels, 1))
        # Rows and columns that a patch lacks at the end of an odd grid.
        self.pad = (0, -features[2] % patch, 0, -features[1] % patch)

    def forward(self, features: Tensor) -> Tensor:
        """float32 ``[N, C, H, W]`` to ``[N, channels, ceil(H / patch), ceil(W / patch)]``."""
        padded = F.pad(features, self.pad, mode="replicate") if any(self.pad) else features
        latent: Tensor = self.linear(padded) + self.last(F.relu(self.blocks(padded)))
        return latent

    def keep_outputs(self, index: Tensor) -> None:
        """Gives the channels ``index`` alone from now on."""
        keep_outputs(self.linear, index)
        keep_outputs(self.last, index)


class Decoder(nn.Module):
    """From the latent grid to the grid at the cut: a linear path, and residual blocks that add to it.

    Each latent cell becomes a patch of ``up`` x ``up`` cells at the cut, or ``down`` x ``down`` latent cells become one.
    """

    def __init__(self, latent: tuple[int, int, int], target: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.up = power_of_two(target[1] / latent[1])
        self.down = power_of_two(latent[1] / target[1])
        # Where the grids fit without cutting or repeating, they do so for images of any size.
        fits = all(have * self.up == want * self.down for have, want in zip(latent[1:], target[1:], strict=True))
        self.size = None if fits else target[1:]
        self.linear = nn.Conv2d(latent[0], target[0] * self.up**2, self.down, self.down)
        layers: list[nn.Module] = [ResidualBlock(latent[0], width, 1), ResidualBlock(width, width, 1)]
        for _ in range(self.up.bit_length() - 1):
            layers += [Upsample(width), ResidualBlock(width, width, 1)]
        for _ in range(self.down.bit_length() - 1):
            layers.append(ResidualBlock(width, width, 2))
        self.blocks = nn.Sequential(*layers)
        self.last = _zero(nn.Conv2d(width, target[0], 3, 1, 1))

    def forward(self, latent: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """float32 ``[N, C, h, w]`` to ``[N, *target]``; of a part of an image, to the rows and columns in ``size``."""
        linear = self.linear(latent)
        grid: Tensor = (F.pixel_shuffle(linear, self.up) if self.up > 1 else linear) + self.last(self.blocks(latent))
        size = size or self.size
        return grid if size is None else fit_size(grid, size)

    def keep_inputs(self, index: Tensor) -> None:
        """Takes the latent's channels ``index`` alone from now on; the others were 0."""
        keep_inputs(self.linear, index)
        first = self.blocks[0]
        assert isinstance(first, ResidualBlock)
        first.keep_inputs(index)


class GridFit(nn.Module):
    """From the grid that a decoder of fixed layers ends on to the grid at the cut.

    Where the cut's grid is coarser by about a power of two, cells are averaged; where it is finer, each cell becomes a patch
    of ``up`` x ``up`` cells (pixel shuffle), for which the layer before gives :attr:`expand` times the channels. A row or
    column that is then left over is cut off; one that is missing is repeated.

    Attributes:
        expand: how many times the cut's channels come in.
    """

    def __init__(self, grid: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        self.size = target
        self.up = power_of_two(target[0] / grid[0])
        down = power_of_two(grid[0] / target[0])
        self.down = (min(down, grid[0]), min(down, grid[1]))
        self.expand = self.up**2

    def forward(self, x: Tensor) -> Tensor:
        """float32 ``[N, expand * C, *grid]`` to ``[N, C, *target]``."""
        if self.up > 1:
            x = F.pixel_shuffle(x, self.up)
        if self.down != (1, 1):
            x = F.avg_pool2d(x, self.down)
        return fit_size(x, self.size)


def fit_size(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """``[N, C, H, W]`` as ``[N, C, *size]``: cut off where it is larger on both axes, else the nearest cells."""
    if tuple(grid.shape[2:]) == size:
        return grid
    if grid.shape[2] >= size[0] and grid.shape[3] >= size[1]:
        return grid[:, :, : size[0], : size[1]]
    return F.interpolate(grid, size, mode="nearest")


def power_of_two(ratio: float) -> int:
    """The power of two nearest to a ratio; 1 for ratios below."""
    return 1 << max(0, round(log2(ratio)))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that gives nothing, until it is trained."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
