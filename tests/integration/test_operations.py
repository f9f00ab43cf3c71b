"""A server as operators see it: a real process, real frames, a real browser, a real trace collector."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.parser import text_string_to_metric_families
from support import bundles
from support.browser import brightness, browser
from support.command import narrowcast
from support.server import serving
from support.waiting import until

from narrowcast.head.client import Client
from narrowcast.transport.packet import VERSION, CodecId, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub

FRAMES = bundles.random_frames(8)


def get(http: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{http}{path}", timeout=20) as answer:
        return answer.read()


def metric(http: str, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(get(http, "/metrics").decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return 0.0


@pytest.fixture(scope="module")
def server(tiny_folder):
    with serving(tiny_folder, tiny_folder / "test.pub", "--http", "127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="module")
def http(server):
    return server.started["http"]


def opening(context: StreamContext, window: int = 32) -> pb.StreamRequest:
    return pb.StreamRequest(
        open=pb.Open(
            model="tiny", codec_fingerprint=context.fingerprint, packet_version=VERSION, stream_id=context.stream_id,
            epoch_us=context.epoch_us, window=window,
        )
    )  # fmt: skip


def packets(tiny, context: StreamContext, count: int) -> list[pb.StreamRequest]:
    symbols = np.zeros((1, *bundles.SHAPE), np.uint8)
    payload = tiny.codec().encode(symbols[0], 0)
    made = [Packet(CodecId.RANS, 0, k, 2_000, payload, context.stream_id, context.fingerprint) for k in range(count)]
    return [pb.StreamRequest(packet=packet.to_stream_bytes(context)) for packet in made]


def a_context(tiny) -> StreamContext:
    return StreamContext(os.urandom(16), tiny.codec().fingerprint, 1_000)


def test_metrics_say_what_a_client_did(server, http, tiny):
    before = metric(http, "narrowcast_frames_total", model="tiny", result="OK")
    with Client(tiny, server.address) as client:
        results = [client.infer(frame, level) for frame in FRAMES for level in (0, 1)]
        assert metric(http, "narrowcast_streams", model="tiny") == 1
        assert metric(http, "narrowcast_clients") == 1
    assert metric(http, "narrowcast_frames_total", model="tiny", result="OK") - before == 16
    assert metric(http, "narrowcast_stage_duration_seconds_count", stage="infer", model="tiny") >= 16
    received = metric(http, "narrowcast_received_bytes_total", model="tiny")
    assert received >= sum(result.packet_bytes for result in results)
    assert metric(http, "narrowcast_raw_bytes_total", model="tiny") >= 16 * 8 * 8 * 3
    until(lambda: metric(http, "narrowcast_streams", model="tiny") == 0, "the stream is closed")
    until(lambda: json.loads(get(http, "/api/status"))["frames_per_second"] is not None, "there is a rate")


def test_reflection_tells_the_protocol(server):
    with grpc.insecure_channel(str(server.address)) as channel:
        known = ProtoReflectionDescriptorDatabase(channel)
        assert {"narrowcast.tail.v1.TailService", "grpc.health.v1.Health"} <= set(known.get_services())
        file = known.FindFileContainingSymbol("narrowcast.tail.v1.TailService")
        assert {method.name for method in file.service[0].method} >= {"Stream", "Infer", "ListModels"}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--http", "0.0.0.0:0"), 1, "serve with --http-tls DIR"),
        (("--http-tls", "."), 2, "goes with --http"),
        (("--otlp", "localhost:4317"), 2, "http://127.0.0.1:4317"),
    ],
)
def test_options_that_cannot_be_are_refused_before_it_serves(tiny_folder, options, code, said):
    words = ["serve", "--bundles", tiny_folder, "--listen", "127.0.0.1:0", "--trust", tiny_folder / "test.pub"]
    done = narrowcast(*words, *options)
    assert done.returncode == code
    assert said in done.stderr
    assert "listening" not in done.stderr


class TestEnding:
    async def test_sigterm_answers_what_is_in_flight(self, tiny_folder, tiny):
        with serving(tiny_folder, tiny_folder / "test.pub", "--log", "json", "--max-batch", "2") as server:
            context = a_context(tiny)
            async with grpc.aio.insecure_channel(str(server.address)) as channel:
                call = TailServiceStub(channel).Stream()
                await call.write(opening(context))
                assert (await call.read()).HasField("opened")
                for request in packets(tiny, context, 32):
                    await call.write(request)
                answered: list[tuple[int, int]] = []
                while (response := await asyncio.wait_for(call.read(), 20)) is not grpc.aio.EOF:
                    if response.HasField("result"):
                        if not answered:
                            server.kill(signal.SIGTERM)  # while the others are under way
                        answered.append((response.result.frame_id, response.result.code))
                    elif response.HasField("drain"):
                        await call.done_writing()
                assert await call.code() is grpc.StatusCode.OK
            _, errors = server.process.communicate(timeout=30)
            assert server.process.returncode == 0
        assert answered == [(k, 0) for k in range(32)]
        events = [json.loads(line) for line in errors.splitlines()]
        names = [event["event"] for event in events]
        assert names == ["model_serving", "listening", "stream_opened", "draining", "stream_closed", "ended"]
        assert (events[0]["model"], events[0]["file"], events[0]["replaces"]) == ("tiny", "tiny.ncb", None)
        assert events[4]["frames"] == 32

    AT_ONCE = """
import os, signal, sys
from narrowcast.cli import main
from narrowcast.tail.operations import logs

def tell(event, *given, **fields):  # what starts it has read that it listens, and ends it
    if event == "listening":
        os.kill(os.getpid(), signal.SIGTERM)
    told(event, *given, **fields)

told, logs.tell = logs.tell, tell
sys.exit(main(sys.argv[1:]))
"""

    def test_sigterm_as_soon_as_it_listens(self, tiny_folder):
        command = [
            sys.executable,
            "-c",
            self.AT_ONCE,
            "serve",
            "--bundles",
            str(tiny_folder),
            "--listen",
            "127.0.0.1:0",
        ]
        command += ["--trust", str(tiny_folder / "test.pub")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0
        assert [line.split()[1] for line in done.stderr.splitlines()[-3:]] == ["listening", "draining", "ended"]

    HANGS = """
import asyncio, sys, threading
from narrowcast.cli.serving.signals import end_in_any_case, stop_on_signals

threading.Thread(target=threading.Event().wait).start()  # a tail that hangs, on a thread that Python waits for

async def serve():
    stop = stop_on_signals(lambda number, again: print(number.name, again, flush=True))
    print("ready", flush=True)
    await stop.wait()
    end_in_any_case(float(sys.argv[1]), lambda: print("late", flush=True))
    await asyncio.Event().wait()

asyncio.run(serve())
"""

    def hanging(self, seconds: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", self.HANGS, seconds], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "SIGTERM False\n"
        return process

    def test_a_tail_that_hangs_does_not_keep_it(self):
        process = self.hanging("0.2")
        assert process.communicate(timeout=30)[0] == "late\n"
        assert process.returncode == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_signal_ends_at_once(self, number):
        process = self.hanging("1000")
        process.send_signal(number)
        assert process.communicate(timeout=30)[0] == f"{number.name} True\n"
        assert process.returncode == 128 + number


class TestPage:
    async def test_a_browser_shows_frames_as_they_flow_and_a_restart(self, tiny_folder, tiny, tmp_path):
        with serving(tiny_folder, tiny_folder / "test.pub", "--http", "127.0.0.1:0") as first:
            http, listen = first.started["http"], str(first.address)
            async with browser(tmp_path / "profile") as page:
                await page.look(390, 1400)
                await page.call("Page.navigate", url=f"http://{http}/")
                await page.until("document.getElementById('state')?.textContent === 'serving'", "the page is filled")
                assert await page.js("document.documentElement.scrollWidth <= innerWidth")  # on a phone
                answered = "parseInt(document.getElementById('frames').textContent)"
                for count in (8, 24):
                    await asyncio.to_thread(stream, tiny, first.address, count)
                    await page.until(f"{answered} >= {count}", f"{count} frames are on the page")
                await page.until("parseFloat(document.getElementById('rate').textContent) > 0", "there is a rate")
                await page.until(
                    "!!document.querySelector('#rate-chart .line').getAttribute('d')", "the chart is drawn"
                )
                text = await page.js("document.body.innerText")
                for expected in ("tiny", "release 1", "queue", "p95", "saved against raw"):
                    assert expected in text
                pictures = {}
                for scheme in ("light", "dark"):
                    await page.look(1100, 900, scheme)
                    pictures[scheme] = brightness(await page.picture(tmp_path / f"{scheme}.png"))
                assert pictures["light"] > 200 > 80 > pictures["dark"]
                assert page.trouble == []
                assert first.end()[0] == 0
                await page.until("document.getElementById('state')?.textContent === 'no answer'", "it says so")
                with serving(tiny_folder, tiny_folder / "test.pub", "--http", http, listen=listen):
                    await page.until("document.getElementById('state')?.textContent === 'serving'", "it is back")
                    assert await page.js("document.getElementById('trouble').hidden")

    async def test_names_are_text(self, tmp_path):
        """A model may be called anything that a manifest allows; a client too. None of it becomes markup."""
        page_js = (Path(__file__).parents[2] / "tail/operations/web/page.js").read_text()
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
            assert sink not in page_js
        async with browser(tmp_path / "profile") as page:
            await page.js("fetch = () => new Promise(() => {})")  # nothing is asked for; `show` is called by hand
            await page.js("document.body.innerHTML = " + json.dumps(body_of_the_page()))
            await page.js(page_js + "; 0")
            evil = "<img src=x onerror=\"document.title='run'\">"
            await page.js(f"show({json.dumps(a_status(evil))})")
            assert await page.js("document.querySelectorAll('img').length") == 0
            assert evil in await page.js("document.body.innerText")
            for part, names in (("bundles", 3), ("drift", 4)):
                shown = await page.js(f"document.getElementById('{part}').innerText")
                assert shown.count(evil) == names
                assert not await page.js(f"document.getElementById('{part}-part').hidden")
            nothing = a_status("x") | {"bundles": [], "drift": None}
            await page.js(f"show({json.dumps(nothing)})")
            assert await page.js("document.getElementById('bundles-part').hidden")
            assert await page.js("document.getElementById('drift-part').hidden")


def stream(tiny, address, count: int) -> None:
    with Client(tiny, address) as client:
        for frame in bundles.random_frames(count):
            assert client.infer(frame).error is None


def body_of_the_page() -> str:
    page = (Path(__file__).parents[2] / "tail/operations/web/page.html").read_text()
    return page.split("<body>")[1].split("</body>")[0]


def a_status(name: str) -> dict:
    """A status in which everything that somebody may choose is ``name``."""
    none = {"p50_ms": None, "p95_ms": None}
    stages = dict.fromkeys(("queue", "decode", "infer", "encode", "total"), none)
    size = {"received": 0, "sent": 0, "compared": 0, "raw": 0, "saved": 0}
    release = {
        "release": 1,
        "codec": name,
        "codec_fingerprint": name,
        "levels": 1,
        "input_size": [1, 1],
        "free_size": False,
        "tails": [name] * 2,
    }
    return {
        "schema": 1, "version": name, "state": name, "address": name, "uptime_seconds": 1, "frames": {name: 1},
        "frames_per_second": None, "received_bytes_per_second": None, "streams": 1, "refusals": {name: 1}, "bytes": size,
        "models": [{
            "name": name, "state": name, "releases": [release], "frames": {name: 1}, "frames_per_second": None, "streams": 1,
            "queue_depth": 0, "mean_batch": None, "levels": {name: 1}, "latency": stages, "bytes": size,
        }],
        "bundles": [{"file": name, "state": "failed", "reason": name, "name": name, "release": 1, "codec_fingerprint": ""}],
        "now_unix": 9.0, "drift": {"watched": 1, "in_alarm": 1, "alarms": 1, "cameras_in_alarm": [{
            "client": name, "model": name, "stream_id": name, "since_unix": 3.0, "statistic": name, "shift": -1.0,
        }]},
        "clients": [{"name": name, "streams": {name: 1}, "frames": 1, "received_bytes": 1, "since_seconds": 1}],
        "clients_total": 1, "series": {"step_seconds": 1, "frames_per_second": [], "p95_ms": []},
        "process": {"resident_bytes": None, "cpu_seconds": 1.0, "open_fds": None},
    }  # fmt: skip


class TestTraces:
    """Spans at a collector: the OTLP service of OpenTelemetry's own schema, on a socket."""

    @pytest.fixture
    def collector(self):
        pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra `otel` is not installed")
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

        class Collector(services.TraceServiceServicer):
            def __init__(self) -> None:
                self.spans: list = []
                self.resources: list = []

            def Export(self, request, context):
                for one in request.resource_spans:
                    self.resources.append({a.key: a.value.string_value for a in one.resource.attributes})
                    for scope in one.scope_spans:
                        self.spans.extend(scope.spans)
                return messages.ExportTraceServiceResponse()

        collector, receiver = Collector(), grpc.server(futures.ThreadPoolExecutor(1))
        services.add_TraceServiceServicer_to_server(collector, receiver)
        collector.url = f"http://127.0.0.1:{receiver.add_insecure_port('127.0.0.1:0')}"
        receiver.start()
        yield collector
        receiver.stop(0)

    def test_streams_calls_and_their_stages(self, tiny_folder, tiny, collector):
        options = ("--otlp", collector.url, "--trace-every", "4")
        with serving(tiny_folder, tiny_folder / "test.pub", *options) as server:
            stream(tiny, server.address, 8)
            calls = {
                "sampled": f"00-{'a' * 32}-{'b' * 16}-01",
                "not": f"00-{'c' * 32}-{'d' * 16}-00",
                "bad": "nonsense",
            }
            context = a_context(tiny)
            with grpc.insecure_channel(str(server.address)) as channel:
                payload = tiny.codec().encode(np.zeros(bundles.SHAPE, np.uint8), 0)
                packet = Packet(CodecId.RANS, 0, 0, 2_000, payload, *context[:2])
                for traceparent in calls.values():
                    request = pb.InferRequest(model="tiny", packet=packet.to_bytes())
                    TailServiceStub(channel).Infer(request, metadata=[("traceparent", traceparent)])
            assert server.end()[0] == 0  # what is left is handed over
        spans = {span.span_id: span for span in collector.spans}
        by_name: dict[str, list] = {}
        for span in collector.spans:
            by_name.setdefault(span.name, []).append(span)
        assert {one["service.name"] for one in collector.resources} == {"narrowcast-tail"}
        (opened,) = by_name["narrowcast.stream"]
        of_stream = [span for span in by_name["narrowcast.frame"] if span.parent_span_id == opened.span_id]
        assert len(of_stream) == 2  # one in 4 of 8
        called = [span for span in by_name["narrowcast.frame"] if span.trace_id == bytes.fromhex("a" * 32)]
        assert [span.parent_span_id for span in called] == [bytes.fromhex("b" * 16)]
        assert not [span for span in collector.spans if span.trace_id == bytes.fromhex("c" * 32)]
        for stage in ("queue", "decode", "infer", "encode"):
            assert len(by_name[f"narrowcast.{stage}"]) == 3
            for part in by_name[f"narrowcast.{stage}"]:
                frame = spans[part.parent_span_id]
                assert frame.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano
                assert part.end_time_unix_nano <= frame.end_time_unix_nano

    def test_a_collector_that_is_not_there_disturbs_nobody(self, tiny_folder, tiny, tmp_path):
        state = tmp_path / "drift"
        options = ("--otlp", "http://127.0.0.1:9", "--trace-every", "1", "--drain-timeout", "2", "--drift-state", state)
        with serving(tiny_folder, tiny_folder / "test.pub", *options) as server:
            stream(tiny, server.address, 250)
            assert server.end()[0] == 0
        assert state.exists()
