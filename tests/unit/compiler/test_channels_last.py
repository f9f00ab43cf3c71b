"""Features lie pixel by pixel in memory where that is quicker, and nothing else comes of it."""

from __future__ import annotations

import msgspec
import pytest
import torch
from support import networks
from support.problems import CONTRACT, batches, problem
from torch import fx, nn
from torch.nn import functional as F

from narrowcast.compiler.bottlenecks.base import Batch
from narrowcast.compiler.bottlenecks.channels_last import pixel_by_pixel, runs_channels_last
from narrowcast.compiler.bottlenecks.objective import Coded, Objective


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 8, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.weight)


class Viewing(nn.Module):
    """Views a map that was changed in place; ``written`` has the view changed, too."""

    def __init__(self, *, written: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(inplace=True))
        self.classifier = nn.Sequential(nn.ReLU(inplace=written), nn.Linear(512, 4))

    def forward(self, x):
        maps = self.body(self.stem(x))
        return self.classifier(maps.view(maps.shape[0], -1))


class Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return torch.as_strided(self.conv(x), (1, 8), (8, 1))


@pytest.mark.parametrize(
    ("layers", "device", "runs"),
    [
        (nn.Conv2d(8, 8, 1, stride=2), "cpu", True),
        (nn.Conv2d(4, 8, 3, stride=2), "cpu", True),
        (nn.Conv2d(4, 8, 1), "cpu", True),
        (nn.Conv2d(8, 8, 1), "cuda", False),
        (nn.Conv2d(4, 8, 1, stride=2), "cpu", False),
        (nn.Conv2d(16, 16, 1, stride=2, groups=4), "cpu", False),
        (nn.Linear(8, 8), "cpu", False),
        (Functional(), "cpu", False),
        (Strided(), "cpu", False),
    ],
    ids=[
        "strided", "3x3", "no stride", "GPU", "few channels, strided", "in groups", "no convolution", "not a module",
        "as_strided",
    ],
)  # fmt: skip
def test_only_where_nothing_can_trip_over_it(layers, device, runs):
    assert runs_channels_last(fx.symbolic_trace(nn.Sequential(layers)), torch.device(device)) is runs


@pytest.mark.parametrize("written", [False, True])
def test_a_view_behind_a_layer_that_works_in_place(written):
    """It becomes a reshape where nothing is written through it; else features stay as they are in memory."""
    of = problem(Viewing(written=written))
    batch = next(batches(of, 4))
    there = batch.features + 0.1
    coded = Coded(there, torch.zeros(4), torch.zeros(4, dtype=torch.long))
    objective = Objective(lambda _: coded, of, [1.0])
    assert objective._channels_last is not written
    assert objective.match_outputs(batch).total.isfinite()


def test_tokens_stay_as_they_are():
    tokens = torch.zeros(2, 17, 48)
    assert pixel_by_pixel(tokens) is tokens


def test_the_objective_and_its_gradients_are_the_same():
    of = problem(networks.tiny())
    images = torch.randint(
        0, 256, (4, *of.contract.size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        features = of.before(of.normalize(images)).contiguous()  # as they come from the cache
    found = []
    for channels_last in (True, False):
        noisy = (features + 0.1).requires_grad_()
        objective = Objective(
            lambda batch, there=noisy: Coded(there, torch.zeros(4), torch.zeros(4, dtype=torch.long)), of, [1.0]
        )
        assert objective._channels_last
        objective._channels_last = channels_last
        seen: list[bool] = []
        hook = objective._layers.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
        loss = objective.match_outputs(Batch(images, features, torch.Generator(), None)).total
        loss.backward()
        hook.remove()
        assert seen == [channels_last] * 2  # the restored ones and the teacher's
        found.append((loss.detach(), noisy.grad))
    (one, gradient), (other, wanted) = found
    assert torch.allclose(one, other, rtol=1e-4)
    assert torch.allclose(gradient, wanted, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_images_come_pixel_by_pixel_but_to_networks_that_view_their_maps(color):
    contract = msgspec.structs.replace(CONTRACT, color=color)
    for network, wanted in ((networks.tiny(), True), (Viewing(written=False), False)):
        of = problem(network, contract=contract)
        images = torch.zeros(2, *of.contract.size, 3, dtype=torch.uint8)
        found = of.normalize(images)
        assert found.is_contiguous() is not wanted
        assert found.is_contiguous(memory_format=torch.channels_last) is wanted
        of.after(of.before(found))
