"""Log lines, and whether the documentation has all that is told."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.tallied import STREAM, record

from narrowcast.tail.operations import logs
from narrowcast.tail.operations.process import ProcessUse
from narrowcast.tail.operations.prometheus import exposition
from narrowcast.tail.operations.status import (
    BundleStatus,
    Bytes,
    ClientStatus,
    Drift,
    DriftingCamera,
    Latency,
    ModelStatus,
    Release,
    Series,
    Status,
)

ROOT = Path(__file__).parents[3]


class TestLogs:
    @pytest.fixture
    def lines(self):
        """A function: log lines since it was made, in a form."""
        root, before = logging.getLogger(), (logging.getLogger().handlers[:], logging.getLogger().level)
        text = io.StringIO()
        handler = logging.StreamHandler(text)
        root.addHandler(handler)
        root.setLevel(logging.INFO)

        def told(form: logging.Formatter, *act) -> list[str]:
            handler.setFormatter(form)
            for one in act:
                one()
            return text.getvalue().splitlines()

        yield told
        root.removeHandler(handler)
        root.setLevel(before[1])

    def test_a_stream_in_json(self, lines):
        watcher = logs.EventLog()
        found = lines(
            logs.JsonLines(),
            lambda: watcher.stream_opened(STREAM),
            *[lambda: watcher.frame_done(record())] * 3,
            lambda: watcher.stream_closed(STREAM, "UNAVAILABLE"),
        )
        opened, closed = map(json.loads, found)
        assert (opened["event"], opened["client"], opened["stream"]) == ("stream_opened", "192.0.2.7", "73" * 16)
        assert (closed["event"], closed["frames"], closed["reason"]) == ("stream_closed", 3, "UNAVAILABLE")
        assert opened["time"].endswith("Z")
        assert not watcher._open
        assert not watcher._frames

    @pytest.mark.parametrize("form", [logs.TextLines(), logs.JsonLines()])
    def test_what_a_client_says_cannot_make_lines_or_move_the_cursor(self, lines, form):
        evil = "x\nINFO forged event=1\r\x1b[2J\u202e" + "y" * 10_000
        found = lines(form, lambda: logs.EventLog().refused(evil, evil, "FAILED_PRECONDITION"))
        (line,) = found
        assert len(line) < 1000
        assert line.isascii()
        assert line.isprintable()

    def test_other_loggers_are_lines_too(self, lines):
        found = lines(logs.TextLines(), lambda: logging.getLogger("elsewhere").error("a\nb\x1b"))
        assert found == [r"ERROR elsewhere: a\nb\x1b"]

    def test_an_exception_keeps_its_traceback(self, lines):
        def fail() -> None:
            try:
                raise ValueError("no")
            except ValueError:
                logging.getLogger("elsewhere").exception("failed")

        (line,) = lines(logs.JsonLines(), fail)
        told = json.loads(line)
        assert told["event"] == "log"
        assert "ValueError: no" in told["traceback"]

    def test_a_flood_is_counted_instead_of_written(self, lines, monkeypatch):
        now = [1000.0]
        monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
        watcher = logs.EventLog()

        def flood() -> None:
            for _ in range(5000):
                watcher.refused("192.0.2.7", "none", "FAILED_PRECONDITION")
            now[0] += 1
            watcher.refused("192.0.2.7", "none", "FAILED_PRECONDITION")

        found = [json.loads(line) for line in lines(logs.JsonLines(), flood)]
        assert len(found) == logs.LINES_PER_SECOND + 1
        assert found[-1]["left_out"] == 5000 - logs.LINES_PER_SECOND

    def test_a_camera_that_reconnects_before_its_old_stream_ends(self, lines):
        watcher = logs.EventLog()
        found = lines(
            logs.JsonLines(),
            lambda: watcher.stream_opened(STREAM),
            lambda: watcher.stream_opened(STREAM),
            lambda: watcher.stream_closed(STREAM, "CANCELLED"),
            lambda: watcher.frame_done(record()),
            lambda: watcher.stream_closed(STREAM, "OK"),
        )
        assert [json.loads(line)["event"] for line in found].count("stream_closed") == 2
        assert json.loads(found[-1])["frames"] == 1


class TestDocumented:
    PAGE = (ROOT / "docs" / "operations.md").read_text()

    async def test_every_metric_with_its_labels(self, tally):
        tally.stream_opened(STREAM)
        tally.stream_closed(STREAM, "OK")
        tally.refused("x", "tiny", "UNAVAILABLE")
        tally.frame_done(record())
        rows = re.findall(r"^\| `(narrowcast_\w+)` \| (\w+)[^|]*\| ([\w, ]*) ?\|", self.PAGE, re.MULTILINE)
        said = {name: (kind, tuple(sorted(filter(None, labels.strip().split(", "))))) for name, kind, labels in rows}
        body, _ = exposition(tally.figures())
        found = {}
        for family in text_string_to_metric_families(body.decode()):
            if family.name.startswith("narrowcast_"):
                labels = {key for sample in family.samples for key in sample.labels} - {"le"}
                name = f"{family.name}_total" if family.type == "counter" else family.name
                found[name] = family.type, tuple(sorted(labels))
        assert found == said

    def test_every_event(self):
        sources = [
            *ROOT.glob("tail/**/*.py"),
            *ROOT.glob("narrowcast/cli/serving/*.py"),
            ROOT / "narrowcast/cli/serve.py",
        ]
        calls = r'(?:tell|event_fields)\(\s*"(\w+)"'
        told = {event for source in sources for event in re.findall(calls, source.read_text())}
        assert {
            "model_refused",
            "drift_accepted",
            "insecure",
            "listening",
            "stream_opened",
            "draining",
            "ended",
        } <= told
        for event in told:
            assert f"| `{event}` |" in self.PAGE

    def test_the_alerts_use_metrics_that_there_are(self):
        rules = self.PAGE.split("```yaml")[1].split("```")[0]
        names = {re.sub(r"_bucket$", "", name) for name in re.findall(r"narrowcast_\w+", rules)}
        assert names
        for name in names:
            assert f"| `{name}` |" in self.PAGE

    def test_every_field_of_the_status(self):
        for struct in (
            Status,
            Bytes,
            Release,
            Latency,
            ModelStatus,
            BundleStatus,
            Drift,
            DriftingCamera,
            ClientStatus,
            Series,
            ProcessUse,
        ):
            for field in msgspec.structs.fields(struct):
                assert re.search(rf"`{field.name}(\[\])?`", self.PAGE), field.name


def test_traces_are_not_loaded_where_nobody_wants_them():
    code = (
        "import sys; import narrowcast.cli.serve, narrowcast.cli.serving.operations, narrowcast.tail.server; "
        "import narrowcast.tail.operations.http; print([m for m in sys.modules if 'opentelemetry.sdk' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_a_log_that_nobody_reads_holds_up_nothing():
    reading, writing = os.pipe()
    handler = logs.UnwaitingHandler(writing)
    handler.setFormatter(logs.JsonLines())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    for number in range(3000):  # far more than a pipe holds
        logger.info("line %d %s", number, "x" * 100)
    read = os.read(reading, 1 << 20)
    logger.info("again %s", "y" * 10_000)
    os.close(writing)
    with os.fdopen(reading) as rest:
        lines = [json.loads(line) for line in (read.decode() + rest.read()).splitlines()]
    found = len(lines) - 2
    assert [line["message"].split()[1] for line in lines[:-2]] == [str(number) for number in range(found)]
    assert (lines[-2]["event"], lines[-2]["lines"]) == ("lines_lost", 3000 - found)
    assert lines[-1]["message"].startswith("again")
