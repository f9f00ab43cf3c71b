"""What makes networks hard to trace and to put together again; every one is compared with itself, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from narrowcast.compiler.cuts import find_cuts
from narrowcast.compiler.cuts.observe import outputs_equal
from narrowcast.compiler.cuts.split import prefix, suffix
from narrowcast.compiler.cuts.trace import trace
from narrowcast.compiler.errors import CutError, TraceError

SIZE = (8, 8)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, 1, 1)
        self.b = nn.Conv2d(4, 4, 3, 1, 1)
        self.c = nn.Linear(4, 3)

    def end(self, y):
        return self.c(self.b(y).mean((2, 3)))


class WritesThroughAView(Layers):
    def forward(self, x):
        y = self.a(x)
        y.view(y.shape[0], -1).relu_()
        return self.end(y)


class WritesSlices(Layers):
    def forward(self, x):
        y = F.relu(self.a(x))
        out = torch.zeros(x.shape[0], 4, *x.shape[2:])
        out[:, :, 1:] = y[:, :, :-1]
        return self.end(out)


class ChangesItsInput(Layers):
    def forward(self, x):
        x.sub_(0.5)
        return self.end(F.relu(self.a(x)))


class Checkpointed(Layers):
    def forward(self, x):
        y = F.relu(checkpoint(self.a, x, use_reentrant=False))
        return self.c(checkpoint(self.b, y, use_reentrant=False).mean((2, 3)))


class OptionalMask(Layers):
    def forward(self, x, mask=None, both=False):
        y = self.a(x)
        if mask is not None:
            y = y * mask
        out = self.end(F.relu(y))
        return (out, y) if both else out


class TableFromTheShape(Layers):
    """A position table, made at the start, used to the end."""

    def forward(self, x):
        rows = torch.arange(x.shape[2], dtype=torch.float32).view(1, 1, -1, 1).expand(x.shape[0], 1, -1, 1).sin()
        return self.end(F.relu(self.a(x) + rows) * rows)


class MaskWrittenInPlace(Layers):
    def forward(self, x):
        mask = torch.zeros(1, 1, x.shape[2], x.shape[3])
        mask[:, :, 2:] = 1.0
        return self.c((self.b(F.relu(self.a(x))) * mask).mean((2, 3)))


class CachesATable(Layers):
    def __init__(self):
        super().__init__()
        self.table = None

    def forward(self, x):
        if self.table is None or self.table.shape[-1] != x.shape[-1]:
            self.table = torch.linspace(0, 1, x.shape[-1])
        return self.end(F.relu(self.a(x) + self.table))


class CountsItsCalls(Layers):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.end(F.relu(self.a(x)))


class Tuples(Layers):
    def __init__(self):
        super().__init__()
        self.rows = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        first, second = F.relu(self.a(x)).chunk(2, 1)
        y = self.b(torch.cat([second, first], 1))
        z, _ = self.rows(y.flatten(2).transpose(1, 2))
        return self.c(z.max(1)[0])


class ReadsTheInputsSizeLast(Layers):
    """As segmenters do, which scale their masks up to the image."""

    def forward(self, x):
        y = self.b(F.relu(F.max_pool2d(self.a(x), 2)))
        return {"out": F.interpolate(y, size=x.shape[-2:], mode="bilinear")}


class Autocast(Layers):
    """torch.fx loses the context: its graph gives other outputs and must not be taken."""

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.b(F.relu(self.a(x)))
        return self.c(y.float().mean((2, 3)))


HARD = [
    (WritesThroughAView, "torch.fx", {"a", "b"}),
    (WritesSlices, "torch.export", {"a", "relu", "b"}),
    (ChangesItsInput, "torch.fx", {"a", "relu", "b"}),
    (Checkpointed, "torch.fx", {"a", "relu", "b"}),
    (OptionalMask, "torch.fx", {"a", "relu", "b"}),
    (TableFromTheShape, "torch.fx", {"a", "relu", "b"}),
    (MaskWrittenInPlace, "torch.export", {"a", "relu", "b"}),
    (CachesATable, "torch.export", {"a", "relu", "b"}),
    (CountsItsCalls, "torch.fx", {"a", "relu", "b"}),
    (Tuples, "torch.fx", {"a", "relu", "b", "transpose"}),
    (ReadsTheInputsSizeLast, "torch.fx", {"a", "b"}),
    (Autocast, "torch.export", {"b"}),
]


@pytest.mark.parametrize(("kind", "method", "names"), HARD, ids=[kind.__name__ for kind, _, _ in HARD])
def test_halves_are_the_whole(kind, method, names):
    torch.manual_seed(0)
    network = kind().eval().requires_grad_(False)
    traced = trace(network, SIZE)
    found = find_cuts(traced)
    assert traced.method == method
    assert names <= {name for cut in found for name in (cut.name, *cut.aliases)}
    for cut in found:
        head, tail = prefix(traced, cut.node), suffix(traced, cut.node)
        for batch in (1, 4):
            image = torch.randn(batch, 3, *SIZE)
            kept = image.clone()
            features = head(image)
            assert torch.equal(image, kept)
            assert outputs_equal(tail(features), network(image)), (cut.name, batch)


class ViewBehindAPermutation(Layers):
    def forward(self, x):
        y = F.gelu(self.a(x).permute(0, 2, 3, 1))
        return self.c(y.permute(0, 3, 1, 2).view(x.shape[0], 4, -1).mean(2))


def test_the_tail_takes_features_of_any_strides():
    """A decoder gives dense features where the network's own may be permuted."""
    network = ViewBehindAPermutation().eval().requires_grad_(False)
    traced = trace(network, SIZE)
    cut = next(cut for cut in find_cuts(traced) if cut.name == "gelu")
    image = torch.randn(2, 3, *SIZE)
    features = prefix(traced, cut.node)(image)
    assert not features.is_contiguous()
    assert torch.allclose(suffix(traced, cut.node)(features.contiguous()), network(image), atol=1e-6)


class Encoder(Layers):
    def __init__(self):
        super().__init__()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)
        self.token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x):
        tokens = self.a(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)
        return self.c(self.layers(tokens)[:, 0])


def test_torchs_own_transformer_is_cut_between_its_layers():
    network = Encoder().eval().requires_grad_(False)
    traced = trace(network, SIZE)
    cut = next(cut for cut in find_cuts(traced) if cut.name == "layers.layers.0")
    assert cut.shape == (65, 4)
    image = torch.randn(3, 3, *SIZE)
    got = suffix(traced, cut.node)(prefix(traced, cut.node)(image))
    assert torch.allclose(got, network(image), atol=1e-5)  # outside, torch runs its fused layers


class Pyramid(Layers):
    def forward(self, x):
        deep = F.interpolate(self.b(F.max_pool2d(self.a(x), 2)), scale_factor=2)
        return torch.cat([deep, x], 1)


class Single(Layers):
    def forward(self, x):
        return self.a(x)


class TokensFirst(Layers):
    def forward(self, x):
        return F.gelu(self.a(x).flatten(2).permute(2, 0, 1)).sum(0)


class Sides(Layers):
    def forward(self, x):
        return torch.cat([self.a(x).mean((2, 3)), F.relu(self.b(self.a(x * 2))).mean((2, 3))], 1)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Pyramid, r"there are 2: the input \(until 'cat'\), 'a' \(until 'max_pool2d'\)"),
        (Single, r"it is one operation \('a'\)"),
        (Sides, r"even at the narrowest, behind .* there are 2"),
    ],
)
def test_no_cut_names_what_stands_in_the_way(kind, said):
    with pytest.raises(CutError, match=said):
        find_cuts(trace(kind().eval(), SIZE))


def test_features_with_the_images_along_another_axis_are_no_cut():
    assert [cut.name for cut in find_cuts(trace(TokensFirst().eval(), SIZE))] == ["a", "flatten"]


class ChoosesBoxes(Layers):
    def forward(self, x):
        scores = self.a(x).flatten(1)
        return scores[scores > scores.mean()]


class ReadsAValue(Layers):
    def forward(self, x):
        y = self.a(x)
        return self.end(y[:, :, : int(y.argmax().item() % 3) + 1])


class FixedBatch(Layers):
    def forward(self, x):
        return self.end(self.a(x).reshape(2 if x.shape[0] == 2 else x.shape[0], 4, 8, 8))


class Noise(Layers):
    def forward(self, x):
        return self.end(self.a(x) + torch.randn(1))


class Numpy(Layers):
    def forward(self, x):
        y = self.a(x)
        return self.end(y * float(y.detach().numpy().mean()))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (ReadsAValue, r"depends on the pixels' values; name a function .* at test_tracing\.py:\d+"),
        (FixedBatch, "works for one batch size only"),
        (Noise, "outputs change from run to run"),
        (Numpy, "leaves torch in between"),
    ],
)
def test_a_network_that_cannot_be_traced_is_told_the_cause_in_one_line(kind, said, capfd):
    with pytest.raises(TraceError, match=said) as caught:
        trace(kind().eval(), SIZE)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # torch prints its graph when it gives up


def test_outputs_whose_shape_follows_the_pixels_cut_before_the_choice():
    found = find_cuts(trace(ChoosesBoxes().eval(), SIZE))
    assert "a" in {cut.name for cut in found}


class Plain(Layers):
    def forward(self, x):
        return self.end(self.a(x))


def test_an_exported_program_keeps_its_modules_names(tmp_path):
    from narrowcast.compiler.cuts import cuts
    from narrowcast.compiler.teacher import load_teacher

    network = WritesSlices().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(2, 3, *SIZE),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    table = cuts("net.pt2", size=SIZE, folder=tmp_path)
    assert table.method == "torch.export"
    assert {"a", "b"} <= {cut.name for cut in table.cuts}
    traced = trace(load_teacher("net.pt2", folder=tmp_path), SIZE)
    image = torch.randn(1, 3, *SIZE)
    for cut in find_cuts(traced):
        assert torch.equal(suffix(traced, cut.node)(prefix(traced, cut.node)(image)), network(image))
    with pytest.raises(TraceError, match=r"exported for \[N, 3, 8, 8\]"):
        cuts("net.pt2", size=(16, 16), folder=tmp_path)


def test_a_program_exported_for_one_batch_size_says_how_to_export_it(tmp_path):
    from narrowcast.compiler.cuts import cuts

    torch.export.save(torch.export.export(Plain().eval(), (torch.randn(1, 3, *SIZE),)), tmp_path / "one.pt2")
    with pytest.raises(TraceError, match=r"exported for batches of 1 .*dynamic_shapes"):
        cuts("one.pt2", size=SIZE, folder=tmp_path)
