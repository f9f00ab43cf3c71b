"""Run records of the profiler, made up: for what reads them."""

from __future__ import annotations

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
    Block,
    Board,
    Link,
    Model,
    Plan,
    Power,
    Run,
    Server,
    Verdict,
    Window,
)

SECOND = 1_000_000_000


def times(median: float, frames: int = 400) -> Distribution:
    """Narrowly around the median."""
    histogram = Histogram(edges_ms=[0.9 * median, 1.1 * median], counts=[frames])
    return Distribution(
        frames=frames, mean_ms=median, p50_ms=median, p90_ms=1.05 * median, p95_ms=1.08 * median, p99_ms=1.1 * median,
        histogram=histogram,
    )  # fmt: skip


def make_way(way_id: str, median: float, up: float | None = None, *, link: str | None = "real", **fields) -> Way:
    """A way with these milliseconds and bytes."""
    head = Stage(name="head", where="board", times=times(0.4 * median))
    other = Stage(name="other", where="both", times=times(0.6 * median))
    return Way(
        id=way_id, title=way_id, link=link, frames=400, latency=times(median), stages=[head, other],
        median_ms=Estimate(value=median, low=0.98 * median, high=1.02 * median),
        throughput=Throughput(single_fps=1000 / median, why_not="several in flight were not run"),
        energy=Energy(why_not="no power sensor"), agreement=Agreement(metric="top-1", share=0.9, frames=400),
        accuracy=Accuracy(why_not="the bundle has no such figure"), conditions=WindowConditions(), loaded_s=30.0,
        bytes=None if up is None else Bytes(packet_up=up, packet_down=60.0, socket_up=up + 40, socket_down=130.0,
                                            packet_up_by_frame=[up] * 4),
        model=None if up is None else LatencyModel(fixed_ms=0.9 * median, up_bytes=up + 40, down_bytes=130.0),
        **fields,
    )  # fmt: skip


def make_run(ways: list[Way] | None = None, links: list[Link] | None = None) -> Run:
    """A run of ten seconds."""
    board = Board(
        target="x86-64", title="x86-64 computer", model=None, virtual=True, cpu="a processor", cpus=2,
        architecture="x86_64", memory_bytes=1 << 33, os="Debian", kernel="6.1", jetpack=None, python="3.11.2",
        libraries={"onnxruntime": "1.23.2"}, coder="c",
    )  # fmt: skip
    plan = Plan(
        ways=["local", "split"], links=["real"], levels=[1], codecs=[], qualities=[], loaded_s=30.0, windowed_s=0.0,
        idle_s=1.0, warm_up_s=1.0, settle_s=0.0, rounds=2, lead_s=0.1, window=8, seed=0, deadline_ms=30_000.0, frames=4,
        frames_from="photos",
    )  # fmt: skip
    model = Model(
        file="tiny.ncb", name="tiny", release=1, fingerprint="0" * 32, created="2026-01-01T00:00:00Z", input="8 x 8",
        levels=2, bytes=1000,
    )  # fmt: skip
    found = ways or [
        make_way("local", 20.0, link=None, kind="local", precision="fp32"),
        make_way("split-1@real", 10.0, 200.0, kind="split", level=1, precision="fp32"),
    ]
    spans = [("idle-before", 0, 1), ("warm-up", 1, 2), ("loaded", 2, 9), ("idle-after", 9, 10)]
    return Run(
        format="narrowcast-run", schema=1, id="0" * 16, started="2026-01-01T00:00:00Z", tool="test",
        command=["narrowcast", "profile", "tiny.ncb"], complete=True, seconds=10.0, board=board, model=model,
        server=Server(address="127.0.0.1:7433", release=1), plan=plan,
        links=links or [Link(name="real", kind="real", address="127.0.0.1:7433", round_trip_ms=0.5)], ways=found,
        windows=[
            Window(kind=kind, start_ns=start * SECOND, end_ns=end * SECOND, conditions=WindowConditions())
            for kind, start, end in spans
        ],
        blocks=[
            Block(way=way.id, mode="single", lead_ns=k * SECOND, start_ns=k * SECOND, end_ns=(k + 1) * SECOND, frames=50)
            for k, way in enumerate(found, 2)
        ],
        power=Power(why_not="no power sensor"), verdict=Verdict(pays=True, text=["Splitting pays."]),
    )  # fmt: skip
