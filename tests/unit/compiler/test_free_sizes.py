"""Networks that take images of any size: traced, cut, and refused where they do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrowcast.compiler.cuts import find_cut, find_cuts
from narrowcast.compiler.cuts.split import prefix, suffix
from narrowcast.compiler.cuts.trace import grows, trace
from narrowcast.compiler.errors import TeacherError, TraceError
from narrowcast.compiler.free_sizes import free_outputs
from narrowcast.transport.contract import FreeSize


class Segmenter(nn.Module):
    """Maps of the input's own size, which is read off the input and off features on either side of the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.deep = nn.Conv2d(8, 12, 3, 4, 1)
        self.side = nn.Conv2d(8, 12, 1)
        self.last = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See the class."""
        fine = self.stem(x)
        deep = self.deep(fine)
        both = self.side(fine) + F.interpolate(deep, size=fine.shape[2:])
        batch, channels, rows, columns = both.shape
        centred = both - both.view(batch, channels, rows * columns).mean(2)[:, :, None, None]
        scores = self.last(centred)
        return {"out": F.interpolate(scores, size=(x.shape[2], x.shape[3]), mode="bilinear", align_corners=False)}


class Untraceable(nn.Module):
    """Its forward chooses by the size, which torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if x.shape[1] != 3:
            raise ValueError(x.shape)
        return self.last(F.relu(self.stem(x))).mean((2, 3))


@pytest.mark.parametrize(("network", "method"), [(Segmenter, "torch.fx"), (Untraceable, "torch.export")])
def test_both_halves_take_sizes_that_were_never_traced(network, method):
    torch.manual_seed(0)
    net = network().eval()
    traced = trace(net, (32, 48), 8)
    assert traced.method == method
    cut = find_cut(traced, "stem")
    before, after = prefix(traced, cut.node), suffix(traced, cut.node)
    for batch, rows, columns in ((1, 8, 8), (5, 64, 24), (2, 32, 48)):
        image = torch.randn(batch, 3, rows, columns)
        wanted, got = net(image), after(before(image))
        torch.testing.assert_close(got, wanted)


class Fixed(nn.Module):
    """A classifier whose last layer wants maps of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.last = nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.last(self.stem(x).flatten(1))


def test_a_network_for_one_size_is_refused_and_told_why():
    with pytest.raises(TraceError, match="images of any size; this one fails on 40 x 48 .*position embeddings"):
        trace(Fixed().eval(), (32, 32), 8)


class Padded(nn.Module):
    """Maps of the input's size, from layers that reflect more of its edge than the smallest images have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.last = nn.Conv2d(4, 5, 19, padding=9, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.last(self.stem(x))


def test_a_network_that_fails_on_the_smallest_image_is_refused_and_told_why():
    network = Padded().eval()
    free = FreeSize((64, 64), 16)
    assert free_outputs(network, trace(network, (32, 32), 16), free)[0].follows == ["nothing", "height", "width"]
    with pytest.raises(TeacherError, match=r"fails on 8 x 8 \(.*Padding size.*\): raise multiple_of"):
        free_outputs(network, trace(network, (32, 32), 8), FreeSize((64, 64), 8))


class Pooled(nn.Module):
    """Maps of one size, whatever the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(4))
        self.last = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.last(self.stem(x)).mean((2, 3))


def test_a_cut_whose_maps_do_not_grow_is_refused():
    traced = trace(Pooled().eval(), (32, 32), 8)
    with pytest.raises(TraceError, match=r"maps that grow as images do; at 'stem_1' .* have \[4, 4, 4\]"):
        suffix(traced, find_cut(traced, "stem").node)
    assert [cut.name for cut in find_cuts(traced) if grows(traced, cut.node)] == ["stem.0"]
