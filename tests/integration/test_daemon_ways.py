"""How a daemon's frames are answered: by reference to earlier ones, as images, by the board alone. Real processes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support import bundles
from support.daemon import RAW, daemon, lines
from support.server import serving
from support.waiting import until

PHOTOS = bundles.random_frames(2)
OWN = 'bundle = "{folder}/tiny.ncb"\nto = "{to}"\ntrust = ["{folder}/test.pub"]\n'
FIGURES = {
    "levels": [
        {"level": 0, "agreement": 0.6, "mean_packet_bytes": 150.0},
        {"level": 1, "agreement": 0.8, "mean_packet_bytes": 200.0},
    ],
    "sent_images": [{"codec": "jpeg", "quality": 75, "agreement": 0.95, "mean_packet_bytes": 700.0}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ways")
    bundles.with_video(bundles.with_whole(bundles.make(figures=FIGURES))).write(folder / "tiny.ncb")
    bundles.trusted_key().write(folder / "test.pub")
    (folder / "photos").mkdir()
    for number, photo in enumerate(PHOTOS):
        Image.fromarray(photo).save(folder / "photos" / f"{number}.png")
    return folder


def rendered(count: int) -> np.ndarray:
    """A still scene, a dot that goes through it and stands still every third frame, and a camera's noise."""
    random = np.random.default_rng(0)
    scene = random.integers(0, 16, (8, 8, 3)) * 16
    frames = []
    for k in range(count):
        frame, dot = scene.copy(), k - (k % 3 == 2)
        frame[dot % 8, dot // 8 % 8] = 255 - frame[dot % 8, dot // 8 % 8]
        frames.append(frame + random.integers(0, 16, frame.shape))
    return np.clip(frames, 0, 255).astype(np.uint8)


def tops(found: list[dict]) -> list[int]:
    return [line["answers"]["main"]["classes"][0]["class"] for line in found]


def expected(frames, numbers) -> list[int]:
    return [int(np.argmax(bundles.expected_output(frames[number], 1))) for number in numbers]


def test_each_source_its_own_way(folder, tmp_path):
    film, out = rendered(30), tmp_path / "out.jsonl"
    tables = f"""
[[sources]]
name = "film"
uri = "-"
raw = "{RAW}"
window = 2
exit_after_seconds = 60
[[sources]]
name = "here"
uri = "{folder}/photos"
offload = "local"
[[sources]]
name = "image"
uri = "{folder}/photos"
offload = "image"
exit_after_seconds = 60
[[sources]]
name = "best"
uri = "{folder}/photos"
offload = "auto"
deadline_ms = 2000
way_joules = {{ local = 1.0, split = 3.0, image = 4.0 }}
[[outputs]]
kind = "lines"
path = "{out}"
"""

    def of(source: str) -> list[dict]:
        return [line for line in lines(out) if line["source"] == source]

    with (
        serving(folder, folder / "test.pub") as server,
        daemon(tmp_path / "edge", OWN.format(folder=folder, to=server.address) + tables) as edge,
    ):
        assert edge.process.stdin is not None
        for number, frame in enumerate(film[:20]):
            edge.process.stdin.write(frame.tobytes())
            edge.process.stdin.flush()
            until(lambda number=number: len(of("film")) > number, "the frame is answered")
        edge.config.write_text(edge.config.read_text().replace("window = 2", 'window = 2\nvideo = "off"'))
        edge.reload()
        edge.process.stdin.write(film[20:].tobytes())
        edge.process.stdin.close()
        edge.process.stdin = None
        assert edge.wait() == 0, edge.log.read_text()
    found = of("film")
    kinds = [line["kind"] for line in found]
    assert kinds[0] == "symbols"
    assert {"predicted", "skip"} <= set(kinds[1:20])
    assert kinds.count("symbols") == 11, kinds  # the first, and all without video
    assert set(kinds[20:]) == {"symbols"}
    assert all(("reference" in line) == (line["kind"] in ("predicted", "skip")) for line in found)
    shown = [line["reference"] if line["kind"] == "skip" else number for number, line in enumerate(found)]
    assert tops(found) == expected(film, shown)
    assert [(line["from"], line.get("kind")) for line in of("here")] == [("whole", None)] * 2
    assert tops(of("here")) == expected(PHOTOS, range(2))
    assert [(line["from"], line["kind"]) for line in of("image")] == [("server", "image")] * 2
    assert "whole" in {line["from"] for line in of("best")}  # the cheapest; another may be tried once


def check(file, tables: str, folder) -> subprocess.CompletedProcess:
    file.write_text(OWN.format(folder=folder, to="one:1") + f'state = "{file.parent}/state"\n' + tables)
    command = [sys.executable, "-m", "narrowcast", "stream", "--config", str(file), "--check"]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_check_says_the_ways_and_which_the_bundle_has_not(folder, tmp_path):
    pipe = f'uri = "{tmp_path}/pipe"\nraw = "{RAW}"\n'
    (tmp_path / "pipe").touch()
    tables = f'[[sources]]\nname = "film"\n{pipe}[[sources]]\nname = "here"\n{pipe}offload = "local"\n'
    found = check(tmp_path / "edge.toml", tables, folder)
    assert found.returncode == 0, found.stderr
    assert "; frames by reference to earlier ones; while no server answers: drop" in found.stdout
    assert "; offload local; while no server answers: drop" in found.stdout
    bare = tmp_path / "bare"
    bare.mkdir()
    bundles.make().write(bare / "tiny.ncb")
    bundles.trusted_key().write(bare / "test.pub")
    tables += f'[[sources]]\nname = "seen"\n{pipe}video = "on"\n[[sources]]\nname = "best"\n{pipe}offload = "auto"\n'
    found = check(tmp_path / "edge.toml", tables, bare)
    assert found.returncode == 2
    assert "source 'here': source 'here'" not in found.stderr
    for words in (
        "source 'seen': tiny.ncb has no video tables", "source 'here': tiny.ncb has no uncut network",
        "source 'best': tiny",
    ):  # fmt: skip
        assert words in found.stderr
    assert "source 'film'" not in found.stderr
