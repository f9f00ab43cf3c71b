"""A whole run record with every kind of way, several links and power: made up, by a model of a board and from one seed.

``python tests/fixtures/runs/regenerate.py`` writes a small one to ``tests/fixtures/runs/example.json``.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import msgspec
import numpy as np

from narrowcast.devices.profile.figures import (
    Accuracy,
    Agreement,
    Bytes,
    Distribution,
    Energy,
    Estimate,
    Histogram,
    LatencyModel,
    Stage,
    Throughput,
    Way,
    WindowConditions,
)
from narrowcast.devices.profile.schema import (
    Best,
    Block,
    Board,
    BreakEven,
    Link,
    LinkSettings,
    Model,
    Plan,
    Power,
    Run,
    Series,
    Server,
    Verdict,
    Window,
)
from support.runs import SECOND, make_run

FRAMES = 400
IDLE_W, BUSY_W = 2.7, 6.9
GRID = 10 ** (np.arange(-40, 121) / 20)  # the histograms' edges, in milliseconds


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A way as it is made up: milliseconds on the board and on the server, bytes up, and its answers."""

    base: str
    kind: str
    title: str
    board: dict[str, float]
    server: dict[str, float]
    up: float
    share: float
    fields: dict


class Net(NamedTuple):
    """A link: Mbit/s, round trip."""

    name: str
    kind: str
    up_mbit: float
    round_trip_ms: float


NETS = [Net("real", "real", 6.0, 18.0), Net("wifi", "emulated", 30.0, 6.0), Net("lte", "emulated", 8.0, 45.0),
        Net("3g", "emulated", 1.0, 110.0)]  # fmt: skip


def recipes() -> list[Recipe]:
    """Local, the local exit, images at several qualities, and three levels."""
    found = [
        Recipe("local", "local", "whole network on the board", {"capture": 0.4, "resize": 2.1, "whole": 138.0}, {}, 0, 1.0,
               {"precision": "int8", "backend": "onnxruntime"}),
        Recipe("exit", "exit", "local exit on the board", {"capture": 0.4, "resize": 2.1, "head": 13.5, "exit": 0.6}, {}, 0,
               0.61, {"precision": "int8", "backend": "onnxruntime"}),
    ]  # fmt: skip
    server = {"queue": 1.1, "decode": 1.6, "tail": 8.2}
    for codec, quality, size, share in (("jpeg", 30, 6200, 0.79), ("jpeg", 60, 10400, 0.88), ("jpeg", 85, 19800, 0.94),
                                        ("webp", 30, 4300, 0.80), ("webp", 75, 9800, 0.91)):  # fmt: skip
        encode = 3.1 if codec == "jpeg" else 14.8
        found.append(Recipe(f"{codec}-{quality}", "image", f"send {codec}, quality {quality}",
                            {"capture": 0.4, "resize": 2.1, "encode": encode, "send": 0.2}, server, size, share,
                            {"codec": codec, "quality": quality}))  # fmt: skip
    for level, size, share in ((0, 900, 0.84), (1, 1500, 0.91), (2, 2600, 0.955)):
        board = {"capture": 0.4, "resize": 2.1, "head": 13.5, "encode": 0.25, "send": 0.2}
        found.append(Recipe(f"split-{level}", "split", f"split at level {level}", board,
                            {"queue": 1.1, "decode": 0.2, "tail": 6.4}, size, share,
                            {"level": level, "precision": "int8", "backend": "onnxruntime"}))  # fmt: skip
    return found


def distribution(values: np.ndarray) -> Distribution:
    """Of these milliseconds."""
    counts, _ = np.histogram(values, GRID)
    used = np.flatnonzero(counts)
    first, last = int(used[0]), int(used[-1])
    p50, p90, p95, p99 = (round(float(v), 4) for v in np.percentile(values, [50, 90, 95, 99]))
    return Distribution(
        frames=len(values), mean_ms=round(float(values.mean()), 4), p50_ms=p50, p90_ms=p90, p95_ms=p95, p99_ms=p99,
        histogram=Histogram(edges_ms=[round(float(e), 6) for e in GRID[first : last + 2]],
                            counts=[int(c) for c in counts[first : last + 1]]),
    )  # fmt: skip


def make_way(recipe: Recipe, net: Net | None, random: np.random.Generator, scale: float) -> Way:
    """A way over a link, by drawn times."""

    def drawn(mean: float, shape: float = 60.0) -> np.ndarray:
        return random.gamma(shape, mean / shape, FRAMES)

    slow = {name: drawn(ms * scale) for name, ms in recipe.board.items()}
    times = dict(slow)
    if net is not None:
        up = (recipe.up + 60) * 8 / (net.up_mbit * 1000)
        times["network"] = drawn(net.round_trip_ms / 2 + up, 12)
        times |= {name: drawn(ms, 8) for name, ms in recipe.server.items()}
        times["return"] = drawn(net.round_trip_ms / 2 + 0.2, 12)
    times["other"] = drawn(0.9, 4)
    latency = np.sum(list(times.values()), axis=0)
    where = dict.fromkeys(recipe.board, "board") | dict.fromkeys(recipe.server, "server")
    stages = [Stage(name=n, where=where.get(n, "both"), times=distribution(v)) for n, v in times.items()
              if n not in ("network", "return")]  # fmt: skip
    if net is not None:
        wire = Stage(name="wire", where="network", times=distribution(times["network"] + times["return"]))
        halves = [Stage(name=n, where="network", within="wire", error_ms=0.4, times=distribution(times[n]))
                  for n in ("network", "return")]  # fmt: skip
        at = len(recipe.board)
        stages[at:at] = [wire, *halves]
    median, mean = float(np.median(latency)), float(latency.mean())
    busy = float(sum(v.mean() for v in slow.values()))
    net_joules = (BUSY_W - IDLE_W) * busy / 1000
    gross = net_joules + IDLE_W * mean / 1000
    found = {} if net is None else {
        "bytes": Bytes(packet_up=recipe.up + 24.0, packet_down=46.0, socket_up=recipe.up + 71.0, socket_down=139.0),
        "model": LatencyModel(fixed_ms=round(median - net.round_trip_ms - (recipe.up + 71) * 8 / (net.up_mbit * 1000), 3),
                              up_bytes=recipe.up + 71.0, down_bytes=139.0, fitted_on=[n.name for n in NETS],
                              errors_ms={n.name: round(float(random.normal(0, 1.5)), 2) for n in NETS}),
    }  # fmt: skip
    return Way(
        id=f"{recipe.base}@{net.name}" if net else recipe.base, kind=recipe.kind, title=recipe.title,
        link=net.name if net else None, frames=FRAMES, latency=distribution(latency), stages=stages,
        median_ms=Estimate(value=round(median, 4), low=round(median * 0.985, 4), high=round(median * 1.015, 4)),
        throughput=Throughput(single_fps=round(1000 / mean, 3), windowed_fps=round(1000 / busy * 0.9, 3), window=8),
        energy=Energy(
            gross_joules_per_frame=Estimate(value=round(gross, 6), low=round(gross * 0.96, 6), high=round(gross * 1.04, 6)),
            net_joules_per_frame=Estimate(value=round(net_joules, 6), low=round(net_joules * 0.92, 6),
                                          high=round(net_joules * 1.08, 6)),
            mean_watts=round(gross / mean * 1000, 4), seconds=30.0, samples=300,
        ),
        agreement=Agreement(metric="top-1", share=recipe.share, frames=FRAMES),
        accuracy=Accuracy(agreement=round(recipe.share - 0.004, 4), metric="top-1") if recipe.kind == "split"
        else Accuracy(why_not="the bundle has no such figure"),
        conditions=WindowConditions(hottest_c={"cpu-thermal": 63.4}, lowest_clocks_mhz={"cpu-0": 2400.0},
                                    highest_clocks_mhz={"cpu-0": 2400.0}, throttled=[], power_mode="performance"),
        loaded_s=30.0, **found, **recipe.fields,
    )  # fmt: skip


def example_run(seed: int = 1, *, scale: float = 1.0) -> Run:
    """The run. ``scale``: how many times as long the board takes as it usually does."""
    random = np.random.default_rng(seed)
    ways = [make_way(recipe, None, random, scale) for recipe in recipes() if recipe.up == 0]
    ways += [make_way(recipe, net, random, scale) for net in NETS for recipe in recipes() if recipe.up > 0]
    blocks, end = blocks_of(ways)
    spans = [
        ("idle-before", 0.0, 10.0),
        ("warm-up", 10.0, 15.0),
        ("loaded", 15.0, end),
        ("idle-after", end + 2, end + 12),
    ]
    state = WindowConditions(hottest_c={"cpu-thermal": 63.4}, lowest_clocks_mhz={"cpu-0": 1500.0},
                             highest_clocks_mhz={"cpu-0": 2400.0}, throttled=[], power_mode="performance")  # fmt: skip
    links = [
        Link(name=n.name, kind=n.kind, address="192.0.2.7:7433", round_trip_ms=n.round_trip_ms, clock_offset_ms=-12.41,
             clock_error_ms=0.4, connections=len(recipes()), measured_up_kbit=n.up_mbit * 960, measured_from=8,
             settings=None if n.kind == "real" else LinkSettings(
                 preset=n.name, up_kbit=n.up_mbit * 1000, down_kbit=n.up_mbit * 3000, delay_ms=n.round_trip_ms / 2,
                 jitter_ms=n.round_trip_ms / 20, loss_percent=0.0, how="a relay between two sockets"))
        for n in NETS
    ]  # fmt: skip
    return msgspec.structs.replace(
        make_run(ways, links), id="00000000000e8a3f", started="2026-05-04T09:30:00Z", tool="narrowcast (made up)",
        seconds=end + 12, command=["narrowcast", "profile", "birds.ncb", "photos of birds/", "--to", "192.0.2.7:7433"],
        board=Board(target="rpi5", title="Raspberry Pi 5", model="Raspberry Pi 5 Model B Rev 1.0", virtual=False,
                    cpu="Cortex-A76", cpus=4, architecture="aarch64", memory_bytes=8_323_072_000,
                    os="Debian GNU/Linux 12 (bookworm)", kernel="6.6.51+rpt-rpi-2712", jetpack=None, python="3.11.2",
                    libraries={"onnxruntime": "1.23.2", "tensorrt": None}, coder="c"),
        model=Model(file="birds.ncb", name="birds", release=12, fingerprint="5f" * 16, created="2026-05-01T00:00:00Z",
                    input="224 x 224, center-crop", levels=3, bytes=31_400_000, signed_by="8d1c02aa"),
        server=Server(address="192.0.2.7:7433", release=12, images=True, tls=True),
        plan=Plan(ways=["local", "exit", "image", "split"], links=[n.name for n in NETS], levels=[0, 1, 2],
                  codecs=["jpeg", "webp"], qualities=[30, 60, 85], loaded_s=30.0, windowed_s=5.0, idle_s=10.0, warm_up_s=5.0,
                  settle_s=2.0, rounds=2, lead_s=0.5, window=8, seed=0, deadline_ms=30_000.0, frames=200,
                  frames_from="photos of birds/"),
        windows=[Window(kind=kind, start_ns=round(a * SECOND), end_ns=round(b * SECOND), conditions=state,
                        mean_watts=IDLE_W if kind.startswith("idle") else 5.1) for kind, a, b in spans],
        blocks=blocks, power=power_of(ways, blocks, end, random), verdict=verdict_of(ways), conditions=state,
        warnings=["none of these values was measured: this is an example"],
    )  # fmt: skip


def small_run() -> Run:
    """The run with two links, three images or splits on each, and without the stages' histograms."""
    run = example_run()
    kept = [way for way in run.ways if way.link in (None, "real", "lte") and way.id.partition("@")[0] in
            ("local", "jpeg-60", "jpeg-85", "split-0", "split-2")]  # fmt: skip
    ways = [msgspec.structs.replace(way, stages=[bare(stage) for stage in way.stages]) for way in kept]
    names = {way.id for way in ways}
    power, verdict = run.power, verdict_of(ways)
    power = msgspec.structs.replace(
        power,
        watts=thinned(power.watts),
        temperatures_c=thinned(power.temperatures_c),
        clocks_mhz=thinned(power.clocks_mhz),
    )
    verdict = msgspec.structs.replace(
        verdict,
        break_evens=verdict.break_evens[:2],
        best=[best for best in verdict.best if best.link in ("real", "lte")],
    )
    return msgspec.structs.replace(
        run, ways=ways, links=[link for link in run.links if link.name in ("real", "lte")], power=power, verdict=verdict,
        blocks=[block for block in run.blocks if block.way in names],
    )  # fmt: skip


def bare(stage: Stage) -> Stage:
    """Without its histogram."""
    return msgspec.structs.replace(stage, times=msgspec.structs.replace(stage.times, histogram=None))


def thinned(series: Series) -> Series:
    """Every fourth value."""
    return Series(at_s=series.at_s[::4], values={name: values[::4] for name, values in series.values.items()})


def blocks_of(ways: list[Way]) -> tuple[list[Block], float]:
    """Two rounds of a second and a half each, one after the other; and when the last one ends."""
    blocks, at = [], 15.0
    for _ in range(2):
        for way in ways:
            start, end = round((at + 0.2) * SECOND), round((at + 1.5) * SECOND)
            blocks.append(
                Block(way=way.id, mode="single", lead_ns=round(at * SECOND), start_ns=start, end_ns=end, frames=200)
            )
            at += 1.5
    return blocks, at


def power_of(ways: list[Way], blocks: list[Block], end: float, random: np.random.Generator) -> Power:
    """Idle, warm-up, and each block at the mean power of its way."""
    at = np.round(np.arange(0, end + 12, 0.2), 3)
    watts = np.full(len(at), IDLE_W) + np.where((at > 10) & (at < 15), 3.6, 0)
    mean = {way.id: way.energy.mean_watts or IDLE_W for way in ways}
    for block in blocks:
        inside = (at >= block.lead_ns / SECOND) & (at < block.end_ns / SECOND)
        watts[inside] = mean[block.way]
    watts += random.normal(0, 0.08, len(at))
    core = np.clip(watts - 2.2, 0.1, None)
    warm = 48 + 15 * (1 - np.exp(-np.clip(at - 10, 0, None) / 25)) + random.normal(0, 0.2, len(at))
    slow = slice(None, None, 5)
    clocks = np.where((at[slow] > 10) & (at[slow] < end), 2400.0, 1500.0)

    def series(times: np.ndarray, **values: np.ndarray) -> Series:
        return Series(
            at_s=times.tolist(), values={k.replace("_", "-"): np.round(v, 3).tolist() for k, v in values.items()}
        )

    return Power(
        sensor="pi5-pmic", scope="the sum of the PMIC's rails; USB devices and the PMIC's own losses are outside",
        total=["VDD_CORE", "3V3_SYS", "1V8_SYS"], sample_hz=10.0, samples=len(at) * 2, sampler_cpu_percent=1.31,
        watts=series(at, total=watts, VDD_CORE=core), temperatures_c=series(at[slow], cpu_thermal=warm[slow]),
        clocks_mhz=series(at[slow], cpu_0=clocks),
    )  # fmt: skip


def verdict_of(ways: list[Way]) -> Verdict:
    """As the profiler would word it."""
    best = []
    figures = {
        "latency": ("ms", lambda w: w.latency.p50_ms),
        "energy": ("J", lambda w: w.energy.gross_joules_per_frame.value),
        "bytes": ("B", lambda w: w.bytes.socket_up if w.bytes else None),
        "accuracy": ("share", lambda w: -w.agreement.share if w.kind != "local" else None),
    }
    for net in (net for net in NETS if any(way.link == net.name for way in ways)):
        for goal, (unit, of) in figures.items():
            there = [w for w in ways if w.link in (None, net.name) and (w.kind != "exit") and of(w) is not None]
            first, second = sorted(there, key=of)[:2]
            best.append(Best(goal=goal, link=net.name, way=first.id, unit=unit, value=abs(of(first)), runner_up=second.id,
                             runner_up_value=abs(of(second)), clear=abs(of(second)) > 1.05 * abs(of(first))))  # fmt: skip
    at = {way.id: way for way in ways}
    split, local, image = at["split-2@real"], at["local"], at["jpeg-85@real"]
    even = BreakEven(
        way="split-2",
        against="jpeg-85",
        outcome="below",
        uplink_mbit=14.2,
        round_trip_ms=18.0,
        measured_low_mbit=8.0,
        measured_high_mbit=30.0,
        contradicted_by=[],
        text="split at level 2 is faster than JPEG of quality 85 below 14.2 Mbit/s, round trip 18 ms; "
        "by measured links: between 8 and 30 Mbit/s",
    )
    against = BreakEven(way="split-2", against="local", outcome="above", uplink_mbit=0.21, round_trip_ms=18.0,
                        text="split at level 2 is faster than local above 0.21 Mbit/s, round trip 18 ms")  # fmt: skip
    always = BreakEven(way="split-2", against="webp-75", outcome="always", round_trip_ms=18.0,
                       text="split at level 2 is faster than WebP of quality 75 on every uplink")  # fmt: skip
    return Verdict(
        pays=True,
        text=[
            f"Splitting pays on the real link: at level 2 an answer takes {split.latency.p50_ms:.0f} ms, on the board "
            f"alone {local.latency.p50_ms:.0f} ms, and as JPEG of quality 85 {image.latency.p50_ms:.0f} ms.",
            f"It agrees with all of the network on {100 * split.agreement.share:.1f} % of frames, JPEG of quality 85 on "
            f"{100 * image.agreement.share:.1f} %, at {image.bytes.packet_up / split.bytes.packet_up:.1f} times the bytes.",
        ],
        best=best, break_evens=[even, against, always],
    )  # fmt: skip
