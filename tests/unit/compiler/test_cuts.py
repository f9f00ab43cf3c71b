"""Where networks can be cut, and that both halves together are the whole."""

from __future__ import annotations

import pytest
import torch
from support import networks
from torch import nn
from torch.nn import functional as F

from narrowcast.compiler.cuts import CutTable, cuts, find_cut, find_cuts
from narrowcast.compiler.cuts.split import prefix, suffix
from narrowcast.compiler.cuts.trace import outputs_equal, trace
from narrowcast.compiler.errors import CutError, TraceError

SIZE = (64, 64)


def assert_halves_are_the_whole(network: nn.Module, size: tuple[int, int], names: list[str]) -> None:
    """torch.equal, at every cut, with a batch that was never traced."""
    network = network.eval().requires_grad_(False)
    traced = trace(network, size)
    found = find_cuts(traced)
    assert set(names) <= {name for cut in found for name in (cut.name, *cut.aliases)}
    image = torch.randn(5 if size[0] < 200 else 2, 3, *size)
    with torch.no_grad():
        expected = network(image)
        for cut in found[:: 1 + len(found) // 12]:
            features = prefix(traced, cut.node)(image)
            assert features.shape[1:] == cut.shape
            kept = features.clone()
            outputs = suffix(traced, cut.node)(features)
            assert outputs_equal(outputs, expected), cut.name
            assert torch.equal(features, kept), f"the tail behind {cut.name} changed its input"
            if isinstance(expected, torch.Tensor):
                assert torch.equal(outputs, expected)


@pytest.mark.parametrize(
    ("name", "size", "names"),
    [
        ("resnet18", SIZE, ["conv1", "layer1.0", "layer1", "layer2", "layer4", "global_pool"]),
        ("mobilenetv2_100", SIZE, ["blocks.0", "blocks.3", "blocks.6", "conv_head"]),
        ("vit_tiny_patch16_224", SIZE, ["patch_embed", "blocks.0", "blocks.3", "blocks.11", "norm"]),
        ("swin_tiny_patch4_window7_224", SIZE, ["patch_embed", "layers.1.blocks.0", "layers.2"]),
        ("convnext_atto", SIZE, ["stem", "stages.1"]),
    ],
)
def test_timm_networks(timm, name, size, names):
    torch.manual_seed(0)
    options = {"img_size": size} if name.endswith("_224") else {}
    assert_halves_are_the_whole(timm.create_model(name, **options), size, names)


def test_tokens_are_a_shape_of_two(timm):
    traced = trace(timm.create_model("vit_tiny_patch16_224", img_size=SIZE).eval(), SIZE)
    assert find_cut(traced, "blocks.3").shape == (17, 192)


def test_a_small_network_with_in_place_layers():
    assert_halves_are_the_whole(networks.tiny(), (32, 32), ["stem", "body", "body.0"])


def test_outputs_in_a_dictionary():
    network = networks.two_outputs().eval()
    traced = trace(network, (32, 32))
    assert [cut.name for cut in find_cuts(traced)] == ["stem", "relu"]
    image = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        outputs = suffix(traced, find_cut(traced, "relu").node)(prefix(traced, find_cut(traced, "relu").node)(image))
        assert outputs_equal(outputs, network(image))
    assert set(outputs) == {"mask", "scores"}


class Branches(nn.Module):
    """Control flow on a shape: torch.fx gives up, torch.export does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        x = self.first(x)
        if x.shape[2] > 4:
            x = F.relu(x)
        x = self.second(x)
        return x.flatten(1).sum(1, keepdim=True)


def test_torch_export_takes_over():
    network = Branches().eval()
    traced = trace(network, (16, 16))
    assert traced.method == "torch.export"
    assert {"first", "second"} <= {cut.name for cut in find_cuts(traced)}
    assert_halves_are_the_whole(network, (16, 16), ["first", "second"])


class ShapesFromTheInput(nn.Module):
    """The batch is read off the input and used at the very end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        batch, _, height, width = x.shape
        y = self.stem(x).flatten(2).transpose(1, 2)
        y = self.last(y)
        return y.reshape(batch, height // 4, width // 4, 4).repeat(1, 1, 1, 2).view(batch * 2, -1)


def test_numbers_that_follow_the_batch_are_no_data_flow():
    assert_halves_are_the_whole(ShapesFromTheInput(), (16, 24), ["stem", "last"])


class Twice(nn.Module):
    """One module, run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x):
        return self.layer(self.layer(x)).mean((2, 3))


def test_a_module_that_runs_twice_gives_two_cuts_with_names_of_their_own():
    traced = trace(Twice().eval(), (8, 8))
    names = [cut.name for cut in find_cuts(traced)]
    assert len(names) == len(set(names)) == 2
    assert all(name.startswith("layer@") for name in names)
    assert_halves_are_the_whole(Twice(), (8, 8), [])


def test_costs_add_up(timm):
    """ResNet-18 at 224: 1.81 G multiply-accumulates and 11.69 M parameters (He et al. 2016, table 1, and timm)."""
    network = timm.create_model("resnet18").eval()
    traced = trace(network, (224, 224))
    found = find_cuts(traced)
    total = sum(value.macs for value in traced.values.values())
    assert total == pytest.approx(1.81e9, rel=0.01)
    stem = next(cut for cut in found if cut.name == "conv1")
    assert stem.macs_before == 64 * 112 * 112 * 3 * 7 * 7
    assert stem.params_before == 64 * 3 * 7 * 7
    for cut in found:
        assert cut.macs_before + cut.macs_after == total
        assert cut.params_before + cut.params_after == sum(p.numel() for p in network.parameters())
    assert [cut.macs_before for cut in found] == sorted(cut.macs_before for cut in found)


def test_the_table_leaves_out_what_the_next_cut_betters(timm):
    table = cuts("timm:resnet18", size=(64, 64))
    names = [cut.name for cut in table.useful]
    assert "layer2" in names
    assert "bn1" not in names
    assert len(names) < len(table.cuts)


def test_many_blocks_of_one_shape_are_thinned_for_the_reader():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, 2, 1), *(nn.Conv2d(4, 4, 3, 1, 1) for _ in range(60)), nn.Conv2d(4, 4, 3, 2, 1)]
    traced = trace(nn.Sequential(*layers, nn.Flatten()).eval(), (16, 16))
    table = CutTable("m", (16, 16), "torch.fx", sum(v.macs for v in traced.values.values()), 0, find_cuts(traced))
    names = [cut.name for cut in table.listed]
    assert len(table.useful) > 60
    assert len(names) <= 31
    assert {"0", "60", "61"} <= set(names)
    assert table.remark is None


class WorkOnOneSide(nn.Module):
    """A skip connection around nearly everything."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 2, 1), nn.Conv2d(4, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(2, 64, 3, 1, 1), nn.Conv2d(64, 2, 3, 1, 1))

    def forward(self, x):
        x = self.stem(x)
        return self.last(torch.cat([x, self.body(x)], 1))


def test_cuts_that_divide_nothing_are_remarked_upon():
    traced = trace(WorkOnOneSide().eval(), (16, 16))
    total = sum(value.macs for value in traced.values.values())
    table = CutTable("m", (16, 16), "torch.fx", total, 0, find_cuts(traced))
    assert [cut.name for cut in table.useful] == ["stem", "cat"]
    assert "No useful cut: every one has less than 1 %" in (table.remark or "")


def test_no_cut_says_why():
    with pytest.raises(CutError, match=r"the input \(until"):
        find_cuts(trace(networks.uncuttable(), (8, 8)))


@pytest.mark.parametrize(
    ("name", "said"),
    [("stm", "did you mean 'stem'"), ("body.1", None), ("classifier", "'classifier' is no cut"), ("zzz", "known: ")],
)
def test_names_that_are_no_cut(name, said):
    traced = trace(networks.tiny().eval(), (32, 32))
    if said is None:
        assert find_cut(traced, name).name == name
        return
    with pytest.raises(CutError, match=said):
        find_cut(traced, name)


def test_a_network_that_does_not_run_on_the_input_says_so():
    with pytest.raises(TraceError, match=r"does not run on float32 \[2, 3, 1, 1\]"):
        trace(nn.Sequential(nn.Conv2d(3, 3, 5)).eval(), (1, 1))


class Untraceable(nn.Module):
    """Depends on values."""

    def forward(self, x):
        return x * 2 if x.sum().item() > 0 else x


def test_a_network_that_nobody_can_trace_tells_both_reasons():
    with pytest.raises(TraceError, match=r"torch\.fx: .*torch\.export: "):
        trace(Untraceable(), (8, 8))


def test_taps_show_what_happens_behind_the_cut():
    network = networks.tiny().eval()
    traced = trace(network, (32, 32))
    cut, tap = find_cut(traced, "stem"), find_cut(traced, "body")
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        values, outputs = suffix(traced, cut.node, [tap.node])(network.stem(image))
        assert torch.equal(values[0], network.body(network.stem(image)))
        assert torch.equal(outputs, network(image))
