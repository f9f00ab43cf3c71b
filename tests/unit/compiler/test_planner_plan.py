"""Which cuts are planned, which trunk is taken, and what a plan of a small network says."""

from __future__ import annotations

import json
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from support import networks

from narrowcast.compiler.bottlenecks import PRESETS, Problem
from narrowcast.compiler.bottlenecks.codebook import CodebookSettings
from narrowcast.compiler.bottlenecks.plain import PlainSettings
from narrowcast.compiler.bottlenecks.shallow_residual import ShallowResidualSettings
from narrowcast.compiler.cuts import CutTable, find_cut, find_cuts
from narrowcast.compiler.cuts.trace import trace
from narrowcast.compiler.errors import CutError
from narrowcast.compiler.nesting import flat, output_names
from narrowcast.compiler.planner import choice, entry, trunk
from narrowcast.compiler.planner import estimate as estimates
from narrowcast.compiler.planner.answers import Answers
from narrowcast.compiler.planner.capture import sent_bytes
from narrowcast.compiler.planner.choice import choose_cut
from narrowcast.compiler.planner.entry import preset_settings, traced_table
from narrowcast.compiler.planner.link import Link, PlanSettings
from narrowcast.compiler.planner.plan import MOST_CUTS, Plan, Planner, planned_cuts
from narrowcast.compiler.planner.quantize import Code
from narrowcast.compiler.planner.timing import Tails
from narrowcast.compiler.planner.trunk import choose_trunk, resolve_trunk, trunks_of
from narrowcast.compiler.progress import SILENT
from narrowcast.compiler.tasks import named_task
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.tasks import DetectTask, SegmentTask

CONTRACT = InputContract(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
SETTINGS = ShallowResidualSettings(trunk="teacher", encoder_macs="1M", channels=6, stride=4, levels=2, decoder_width=16)


class Notes:
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def note(self, line):
        self.lines.append(line)

    task = staticmethod(SILENT.task)


class Deep(torch.nn.Module):
    """Thirty blocks of one shape."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, 2, 1)
        self.blocks = torch.nn.Sequential(*(torch.nn.Conv2d(4, 4, 3, 1, 1) for _ in range(30)))
        self.classifier = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


def answering(seed=3):
    """The tiny network with weights that tell the test's frames apart."""
    network = networks.tiny().eval().requires_grad_(False)
    torch.manual_seed(seed)
    with torch.no_grad():
        mean = network.body(network.stem(frames_as_input())).mean((2, 3))
        network.classifier.weight.copy_(torch.randn(4, 16) / mean.std(0).clamp_min(1e-6))
        network.classifier.bias.copy_(-network.classifier.weight @ mean.mean(0))
    return network


def frames(count=24):
    random = torch.Generator().manual_seed(0)
    rough = torch.rand(count, 3, 6, 6, generator=random)
    smooth = torch.nn.functional.interpolate(rough, (32, 32), mode="bicubic").clamp(0, 1)
    return (smooth * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def frames_as_input():
    return (torch.from_numpy(frames()).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25


def planner(settings, bottleneck=SETTINGS, network=None, progress=SILENT) -> Planner:
    network = network or answering()
    table, traced = traced_table("tiny", network, CONTRACT)
    return Planner(table, traced, network, CONTRACT, bottleneck, settings, progress)


@pytest.fixture(scope="module")
def planned() -> Planner:
    """One planner for most tests: exporting is what takes long, and it exports everything once."""
    return planner(PlanSettings(images=20, keep=0.9))


@pytest.fixture(scope="module")
def plan(planned) -> Plan:
    return planned.plan(frames(), Link(1e6, 1e6, 5))


def test_each_cut_is_timed_and_estimated(plan):
    assert [row.cut.name for row in plan.cuts] == ["stem", "body.1"]
    for row in plan.cuts:
        assert row.why_not is None
        assert min(row.head_ms, row.decoder_ms, row.tail_ms, row.head_macs) > 0
        assert row.trunk == "teacher"
        found = row.estimate
        assert found.kept >= 0.9
        assert 0 < found.low < found.packet_bytes < found.high
        assert 0 < found.feature_bytes < row.cut.float_bytes
        assert found.information_bytes > 0
    assert plan.images == 20
    assert plan.kept_means == "images with the teacher's top class"


def test_the_ways_are_compared_and_the_best_is_marked(plan):
    ways = plan.decision.ways
    assert {way.name for way in ways} == {"local", "image", "split"}
    assert [way.total_ms for way in ways] == sorted(way.total_ms for way in ways)
    assert plan.decision.best is ways[0]
    # A network of 0.3 M multiply-accumulates is done before a packet is back.
    assert plan.decision.best.name == "local"
    assert plan.decision.why.startswith("Do not split")
    split = next(way for way in ways if way.name == "split")
    row = next(row for row in plan.cuts if row.cut.name == split.detail)
    assert split.board_ms == row.head_ms
    assert split.server_ms == pytest.approx(row.tail_ms + row.decoder_ms)
    assert split.up_bytes == row.estimate.packet_bytes
    assert plan.best_cut is row


def test_a_plan_as_json(plan):
    found = json.loads(json.dumps(plan.as_dict()))
    assert found["split"] is False
    assert found["best"]["way"] == "local"
    assert found["cuts"][0]["estimate"]["packet_bytes"] > 0
    assert found["settings"]["keep"] == 0.9


def test_a_slow_board_is_this_machine_times_a_factor(planned, monkeypatch):
    monkeypatch.setattr(planned, "settings", PlanSettings(slowdown=1e6))
    found = planned.plan(None, Link(1e9, 1e9, 0))
    local = next(way for way in found.decision.ways if way.name == "local")
    assert local.board_ms == pytest.approx(1e6 * found.whole_ms)
    # The pixels themselves are all that can be sent without having seen an image.
    assert found.decision.best.detail == "raw"
    assert found.decision.best.up_bytes == 3 * 32 * 32
    assert found.decision.why.startswith("Do not split: sending the image (raw) takes ")
    assert "bytes want images" in found.decision.why


def test_without_images_or_link_there_are_times_only(planned):
    found = planned.plan(None, None)
    assert [row.head_ms > 0 for row in found.cuts] == [True, True]
    assert {row.estimate for row in found.cuts} == {row.way for row in found.cuts} == {None}
    assert found.decision is None
    assert found.best_cut is None
    assert found.as_dict()["answer"] is None


def test_a_preset_that_learns_nothing_is_not_estimated_but_made():
    found = planner(PlanSettings(images=16, cuts=["body"]), PlainSettings()).plan(frames(16), None)
    (row,) = found.cuts
    assert row.estimate.low == row.estimate.packet_bytes == row.estimate.high
    assert row.estimate.information_bytes is None
    assert row.estimate.kept > 0.8
    assert 40 < row.estimate.packet_bytes < 16 * 8 * 8 + 64  # 8 bits a number, packed


def test_one_answer_to_everything_is_said(planned, monkeypatch):
    notes, bias = Notes(), planned.network.classifier.bias
    monkeypatch.setattr(planned, "progress", notes)
    monkeypatch.setattr(bias, "data", bias + torch.tensor([0, 0, 1e6, 0]))
    found = planned.plan(frames(8), None)
    assert any("one answer to all 8 images" in line for line in notes.lines)
    assert found.cuts[0].estimate.feature_bytes == 0


def test_a_cut_that_the_preset_cannot_serve_says_why():
    settings = msgspec.structs.replace(SETTINGS, encoder_macs="100k")
    found = planner(PlanSettings(images=8), settings).plan(frames(8), Link(1e6, 1e6, 5))
    row = found.cuts[-1]
    assert "encoder_macs is 0 M" in row.why_not
    assert row.way is None
    assert row.head_ms is None


def test_when_the_time_is_up_no_further_cut_is_begun(planned, monkeypatch):
    monkeypatch.setattr(planned, "settings", PlanSettings(seconds=1e-9))
    found = planned.plan(None, None)
    assert {row.why_not for row in found.cuts} == {"the time for planning was up (1e-09 s)"}
    assert found.whole_ms > 0


def test_up_to_twelve_cuts_are_planned_outer_modules_first():
    table, _ = traced_table("deep", Deep().eval(), CONTRACT)
    chosen = planned_cuts(table)
    assert len(chosen) == MOST_CUTS
    assert chosen[0].name == "stem"
    assert not {"blocks", "classifier"} & {cut.name for cut in chosen}  # nothing is left to do behind them
    assert [cut.macs_before for cut in chosen] == sorted(cut.macs_before for cut in chosen)


def test_cuts_can_be_named():
    table, _ = traced_table("deep", Deep().eval(), CONTRACT)
    assert [cut.name for cut in planned_cuts(table, ["blocks.9", "stem"])] == ["stem", "blocks.9"]
    assert planned_cuts(table, ["blocks.29"])[0].name == "blocks"  # an inner name of the same place
    with pytest.raises(CutError, match=r"no cut 'block'; did you mean 'blocks'"):
        planned_cuts(table, ["block"])


def test_of_images_of_any_size_only_cuts_that_grow_with_them_are_planned():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Conv2d(4, 4, 3, 1, 1), torch.nn.AdaptiveAvgPool2d(4),
        torch.nn.Conv2d(4, 8, 3, 1, 1), torch.nn.Flatten(), torch.nn.Linear(128, 3),
    )  # fmt: skip
    free = InputContract(size=(32, 32), fit="free", max_size=(64, 64), multiple_of=8)
    names = [{cut.name for cut in traced_table("x", network, contract)[0].cuts} for contract in (CONTRACT, free)]
    assert {"0", "3"} <= names[0]
    assert "0" in names[1]
    assert "3" not in names[1]


def test_what_comes_back_is_what_a_server_sends():
    """A segmenter's map, a detector's boxes: not the maps that they are decoded from."""
    segmenter, detector = networks.maps().eval(), networks.dense().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        scores, boxes = segmenter(images), detector(images)
    task = named_task(segmenter, SegmentTask(classes=["a", "b"]), (32, 32), "[task]")
    assert sent_bytes(None, scores, (32, 32)) == 2 * 16 * 16 * 4
    assert sent_bytes(None, tuple(one.bfloat16() for one in scores), (32, 32)) == 2 * 16 * 16 * 2
    assert 0 < sent_bytes(task, scores, (32, 32)) <= 16 * 16
    assert Answers(flat(scores), task, output_names(scores)).kind == "cells"
    found = named_task(detector, DetectTask(classes=["a", "b", "c"], strides=[4, 8]), (32, 32), "[task]")
    assert sent_bytes(found, boxes, (32, 32)) < sent_bytes(None, boxes, (32, 32))
    assert Answers(flat(boxes)).kind == "cells"
    assert Answers(flat(boxes), found, output_names(boxes)).kind == "outputs"


def test_tails_are_the_layers_behind_the_cut():
    network = answering()
    traced = trace(network, (32, 32))
    cuts = find_cuts(traced)
    tails = Tails(traced, cuts, 1)
    stem = find_cut(traced, "stem")
    part = tails.network(stem)
    images = frames_as_input()[:1]
    (got,) = part(**{part.inputs[0]: network.stem(images).numpy()}).values()
    assert np.allclose(got, network(images).numpy(), atol=1e-5)
    assert tails.tail_ms(stem) > 0


@pytest.mark.parametrize(
    ("macs", "times", "trunk", "said"),
    [
        (10, {"teacher": 2.0, "new": 1.5}, "teacher", "a head with them takes 2.00 ms, one without 1.50 ms"),
        (10, {"teacher": 4.0, "new": 1.5}, "new", "but a head with them takes 4.00 ms"),
        (85, {"teacher": 1.0, "new": 1.5}, "teacher", "85 M of 100 M"),
        (95, {"teacher": 1.0, "new": 1.5}, "new", "too little is left"),
        (200, {"new": 1.5}, "new", "no other can be built"),
        (10, {"teacher": 1.5}, "teacher", "no other can be built"),
    ],
)
def test_the_rule_for_trunks(macs, times, trunk, said):
    choice = choose_trunk(macs * 10**6, 100 * 10**6, times)
    assert choice.trunk == trunk
    assert said in choice.why


def problem(cut="stem"):
    traced = trace(answering(), (32, 32))
    return Problem(traced, find_cut(traced, cut), CONTRACT, torch.device("cpu"))


def test_packets_of_one_size_are_known(monkeypatch):
    """24 bytes, and 5 bits for each of 6 codebooks in 8 x 8 cells."""
    settings = CodebookSettings(
        trunk="teacher",
        encoder_macs="1M",
        codebooks=6,
        codewords=20,
        dimensions=2,
        stride=4,
        levels=2,
        decoder_width=16,
    )
    of, code = problem(), Code(0.1, 0.97, 500.0, 700.0, 0.1)
    monkeypatch.setattr(estimates, "code_at", lambda *_: code)

    def found(preset, net, settings, *tables):
        return estimates.estimate(of, net, preset, settings, None, frames(1), 0.9, *tables)

    preset = PRESETS["codebook"]
    net = preset.build(of, settings)
    known = found(preset, net, settings)
    assert known.low == known.packet_bytes == known.high == 24 + 6 * 64 * 5 / 8
    assert known.feature_bytes == code.entropy_bytes
    assert found(preset, net, settings, "channel") == estimates.from_code(code)
    preset = PRESETS["shallow-residual"]
    net = preset.build(of, SETTINGS)
    assert found(preset, net, SETTINGS, "none").packet_bytes == 24 + 6 * 64
    assert found(preset, net, msgspec.structs.replace(SETTINGS, prune=True), "none") == estimates.from_code(code)


def test_a_recipes_tables_reach_the_planner(recipe_for, tmp_path, monkeypatch):
    def planner(*_, tables, task):
        return SimpleNamespace(plan=lambda *_: tables)

    monkeypatch.setattr(choice, "_summary", lambda tables: {"cut": tables, "link": "", "answer": ""})
    for module in (choice, entry):
        monkeypatch.setattr(module, "Planner", planner)
    bottleneck = {"preset": "codebook", "codewords": 16}
    for tables in ("channel", "none"):  # each is chosen for itself
        recipe = recipe_for(cut={"at": "auto"}, bottleneck=bottleneck, coding={"tables": tables})
        assert choose_cut(recipe, None, trace(answering(), (32, 32)), None, "", tmp_path, SILENT)["cut"] == tables
    assert entry.plan(recipe, cache=tmp_path) == "none"
    assert entry.plan(recipe, bottleneck=SETTINGS, cache=tmp_path) is None


def test_a_trunk_that_the_recipe_names_stays(tmp_path):
    for settings in (msgspec.structs.replace(SETTINGS, trunk="new"), PlainSettings()):
        assert resolve_trunk(problem(), settings, 1, tmp_path, SILENT) == (settings, None)
    assert list(trunks_of(PlainSettings())) == [""]


def test_a_cheap_trunk_is_kept_without_measuring(tmp_path):
    settings = msgspec.structs.replace(SETTINGS, trunk="auto")
    settings, choice = resolve_trunk(problem(), settings, 1, tmp_path, SILENT)
    assert (settings.trunk, choice.trunk, choice.head_ms) == ("teacher", "teacher", {})
    assert not list(tmp_path.iterdir())


def test_what_a_trunk_was_measured_by_is_kept(tmp_path):
    """And what is built after it starts from the same random numbers, whether it was measured or not."""
    settings = msgspec.structs.replace(SETTINGS, trunk="auto", encoder_macs="450k")
    torch.manual_seed(7)
    _, choice = resolve_trunk(problem("body.1"), settings, 1, tmp_path, SILENT)
    first = torch.rand(1)
    assert set(choice.head_ms) == {"teacher", "new"}
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps({"teacher": 9.0, "new": 1.0}))
    torch.manual_seed(7)
    decided, choice = resolve_trunk(problem("body.1"), settings, 1, tmp_path, SILENT)
    assert decided.trunk == choice.trunk == "new"
    assert torch.equal(torch.rand(1), first)


def test_networks_of_other_widths_are_measured_for_themselves(tmp_path, monkeypatch):
    """Their code is the same."""
    times = iter([{"teacher": 1.0, "new": 1.0}, {"teacher": 9.0, "new": 1.0}])
    monkeypatch.setattr(trunk, "_measured", lambda *_: next(times))
    settings = msgspec.structs.replace(SETTINGS, trunk="auto", encoder_macs="50k")
    chosen, code = [], set()
    for width in (2, 3, 3):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3, 2, 1), torch.nn.Conv2d(width, 4, 1)).eval()
        traced = trace(net, (32, 32))
        code.add(traced.module.code)
        of = Problem(traced, find_cut(traced, "0"), CONTRACT, torch.device("cpu"))
        chosen.append(resolve_trunk(of, settings, 1, tmp_path, SILENT)[1].head_ms["teacher"])
    assert len(code) == 1
    assert chosen == [1, 9, 9]


def test_the_planner_chooses_a_recipes_cut_once(recipe_for, tmp_path):
    network, notes = answering(), Notes()
    recipe = recipe_for(
        cut={"at": "auto"},
        bottleneck={"trunk": "teacher"},
        plan={"uplink": "100kbit", "rtt": "5ms", "images": 12, "cuts": ["stem"]},
    )
    traced = trace(network, (32, 32))
    chosen = choose_cut(recipe, network, traced, frames(12), "digest", tmp_path, notes)
    assert chosen["cut"] == "stem"
    assert chosen["pays"] is False
    assert chosen["link"] == "100 kbit/s up, round trip 5 ms"
    assert {way["way"] for way in chosen["ways"]} == {"local", "image", "split"}
    assert notes.lines[-1].startswith(f"cut: {chosen['cut']}, chosen for 100 kbit/s up")
    assert "Do not split" in notes.lines[-1]
    assert choose_cut(recipe, network, traced, frames(12), "digest", tmp_path, SILENT) == chosen
    assert len(list(tmp_path.iterdir())) == 1


def test_a_plan_without_any_cut_says_why(recipe_for, tmp_path):
    network = answering()
    recipe = recipe_for(cut={"at": "auto"}, bottleneck={"encoder_macs": "1k"}, plan={"images": 8})
    with pytest.raises(CutError, match=r'at = "auto": no cut could be measured; stem: a new trunk takes at least'):
        choose_cut(recipe, network, trace(network, (32, 32)), frames(8), "digest", tmp_path, SILENT)


def test_settings_of_presets():
    assert preset_settings("plain", bits=4) == PlainSettings(bits=4)
    with pytest.raises(ConfigError, match="did you mean 'plain'"):
        preset_settings("plan")
    with pytest.raises(ConfigError, match="unknown key 'encoder_macs'"):
        preset_settings("plain", encoder_macs="1M")


def test_a_table_of_cuts_is_planned_where_no_cut_divides_the_work():
    network = networks.tiny().eval()
    traced = trace(network, (32, 32))
    cuts = find_cuts(traced)
    assert planned_cuts(CutTable("x", (32, 32), "torch.fx", 10**12, 0, cuts))
