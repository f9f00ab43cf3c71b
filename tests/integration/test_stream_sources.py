"""``narrowcast stream`` with sources other than files, and without a server."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from support import bundles
from support.server import serving

from narrowcast.cli import main

FRAMES = bundles.random_frames(6)


@pytest.fixture(scope="module")
def server(tiny_folder):
    with serving(tiny_folder, tiny_folder / "test.pub") as running:
        yield running


@pytest.fixture
def trusted(keys_folder):
    bundles.trusted_key().write(keys_folder / "trusted" / "test.pub")


def stream(*words, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "narrowcast", "stream", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def lines(out: bytes) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def expected(number: int) -> list[float]:
    return bundles.expected_output(FRAMES[number], 1).tolist()


def values(line: dict) -> list[float]:
    return line["outputs"]["output"]["values"]


def test_spooled_by_one_run_and_sent_by_the_next(server, tiny_folder, trusted, tmp_path):
    """Raw frames from stdin; the board loses its power in between."""
    side = FRAMES[0].shape
    raw = f"{side[1]}x{side[0]}"
    words = [
        tiny_folder / "tiny.ncb",
        "-",
        "--raw",
        raw,
        "--on-outage",
        "spool",
        "--spool",
        tmp_path / "spool",
        "--full",
    ]
    first = stream(*words, "--to", "127.0.0.1:9", "--exit-after", "0.1", stdin=subprocess.PIPE)
    for frame in FRAMES[:4]:
        first.stdin.write(frame.tobytes())
        first.stdin.flush()
    told = [json.loads(first.stdout.readline()) for _ in range(4)]
    assert [line["fate"] for line in told] == ["spooled"] * 4
    first.kill()
    first.communicate()
    second = stream(*words, "--to", server.address, "--drain", "30", stdin=subprocess.PIPE)
    out, errors = second.communicate(b"".join(frame.tobytes() for frame in FRAMES[4:]), timeout=60)
    assert second.returncode == 0, errors
    found = lines(out)
    replayed = [line for line in found if line["from"] == "spool"]
    live = [line for line in found if line["from"] == "server"]
    assert [line["frame"] for line in replayed] == [0, 1, 2, 3]
    assert [line["fate"] for line in live] == ["answered"] * 2
    for line, number in zip([*replayed, *live], range(6), strict=True):
        assert np.allclose(values(line), expected(number), atol=1e-3)
    assert live[0]["source"] == "stdin#0"
    assert b"of spooled frames 4 answered" in errors


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-"], 2, "--raw 640x480:rgb"),
        (["x", "--raw", "8"], 2, "WIDTHxHEIGHT"),
        (["-", "--raw", "8x8", "--spool", "there"], 2, "--spool DIR --on-outage spool"),
        (["-", "--raw", "8x8", "--on-outage", "spool"], 2, "--on-outage spool wants --spool DIR"),
        (["x.mp4", "--fps", "0"], 2, "not above 0"),
        (["gopher://x"], 2, "no source gopher://"),
    ],
)
def test_settings_that_do_not_go_together(tiny_folder, trusted, capsys, words, code, said):
    try:
        done = main(["stream", str(tiny_folder / "tiny.ncb"), *words, "--to", "127.0.0.1:9"])
    except SystemExit as ended:
        done = ended.code
    assert done == code
    assert said in capsys.readouterr().err


def test_a_watched_folder(server, tiny_folder, trusted, tmp_path):
    from PIL import Image

    running = stream(tiny_folder / "tiny.ncb", tmp_path, "--watch", "--to", server.address, "--full")
    try:
        for k, frame in enumerate(FRAMES[:3]):
            Image.fromarray(frame).save(tmp_path / f".{k}.png")
            (tmp_path / f".{k}.png").rename(tmp_path / f"{k}.png")
            line = json.loads(running.stdout.readline())
            assert line["source"] == str(tmp_path / f"{k}.png")
            assert np.allclose(values(line), expected(k), atol=1e-3)
    finally:
        running.terminate()
        running.communicate(timeout=30)
