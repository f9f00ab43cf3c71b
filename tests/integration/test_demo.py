"""The demo: every step for real, on fewer frames."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from narrowcast.compiler.progress import SILENT
from narrowcast.demo import run
from narrowcast.demo.page import headline, table_rows, timing_rows, write_page
from narrowcast.demo.render import Sources
from narrowcast.head.timing import STAGES
from narrowcast.transport.bundle import Bundle, PublicKey


class Counting:
    def __init__(self) -> None:
        self.frames = 0

    def frame(self, result, right) -> None:
        assert result.error is None
        self.frames += 1


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A short demo: (its result, who looked on per level)."""
    watchers: dict[int, Counting] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "TRAIN_FRAMES", 320)
        patch.setattr(run, "TEST_FRAMES", 48)
        patch.setattr(run, "TEACHER_EPOCHS", (1, 1))
        patch.setattr(run, "STREAM_SECONDS", 0.4)
        patch.setattr(run, "RECIPE", run.RECIPE.replace("images = 10000", "images = 320"))
        folder = tmp_path_factory.mktemp("demo") / "out"
        result = run.run_demo(folder, SILENT, lambda level: watchers.setdefault(level, Counting()))
    write_page(result)
    return result, watchers


def test_it_leaves_a_signed_bundle_a_json_and_a_page(demo):
    result, _ = demo
    bundle = Bundle.open(result.bundle, trusted=[PublicKey.read(result.folder / "demo.pub")])
    assert bundle.manifest.name == "demo"
    report = json.loads((result.folder / "report.json").read_text())
    assert len(report["streamed"]) == bundle.manifest.codec.levels
    assert (result.folder / "report.html").stat().st_size > 20_000


def test_every_level_was_streamed_and_measured(demo):
    result, watchers = demo
    for one in result.streamed:
        assert one.frames == watchers[one.level].frames >= 50
        assert {stage["stage"] for stage in one.stages} == set(STAGES)
        assert one.socket_up_bytes > one.mean_packet_bytes
    assert result.evaluation.images == 48
    streamed = {one.level: one.mean_packet_bytes for one in result.streamed}
    for score in result.evaluation.of("split"):
        # The same frames, though not each as often: packets are about as large as evaluation says.
        assert streamed[score.setting] == pytest.approx(score.mean_bytes, rel=0.1)


def test_the_tables_have_a_cell_for_each_column(demo):
    result, _ = demo
    assert {len(row) for row in table_rows(result)} == {7}
    assert {len(row) for row in timing_rows(result)} == {3 + len(STAGES)}
    assert "where WebP" in headline(result) or "WebP does not reach" in headline(result)


def test_training_and_test_frames_share_no_digit_and_no_pixel():
    from sklearn.datasets import load_sample_images

    train, test = Sources(test=False), Sources(test=True)
    assert not {digit.tobytes() for digit in train.digits} & {digit.tobytes() for digit in test.digits}
    for ours, theirs, photo in zip(train._photos, test._photos, load_sample_images().images, strict=True):
        assert np.array_equal(np.concatenate([ours, theirs], axis=1), photo)  # side by side, no column in both


class _Page(HTMLParser):
    """Tags that are not closed, and addresses outside the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "img", "br", "link"}:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"src", "href"} and value and not value.startswith(("data:", "#")):
                self.outside.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing_outside(demo):
    page = _Page()
    page.feed((demo[0].folder / "report.html").read_text())
    assert page.open == []
    assert page.outside == []


def test_a_browser_shows_the_page(demo, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    quiet += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    picture = tmp_path / "page.png"
    page = (demo[0].folder / "report.html").as_uri()
    command = [chromium, *quiet, f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", "--v=0"]
    shown = subprocess.run([*command, "--dump-dom", page], capture_output=True, text=True, timeout=120, check=True)
    dom = shown.stdout
    assert dom.count("<svg") == 2
    assert len(re.findall(r"<figure>", dom)) == 12
    assert "CONSOLE" not in shown.stderr
    subprocess.run(
        [*command, f"--screenshot={picture}", "--window-size=900,2400", page],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    from PIL import Image

    with Image.open(picture) as image:
        colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 500  # plots and photographs, not a blank page


def test_the_python_of_the_readme_runs_as_it_stands(demo, tmp_path):
    """On the demo's output, against a server that serves it, from another process; only the port differs."""
    result, _ = demo
    (tmp_path / "demo-output").symlink_to(result.folder)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    with run.tail_server(result.folder / "models", result.folder / "demo.pub") as address:
        assert "127.0.0.1:7433" in code
        done = subprocess.run(
            [sys.executable, "-c", code.replace("127.0.0.1:7433", address)],
            capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"frame {k}" for k in range(20)], lines
    assert done.stderr == ""
