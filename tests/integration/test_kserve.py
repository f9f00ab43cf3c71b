"""A real server beside Triton's own client, and beside a client of the usual kind: the same answers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import bundles
from support.server import serving

import narrowcast
from narrowcast.head.session import HeadSession

CLIENT = Path(__file__).resolve().parents[1] / "support" / "triton_client.py"


def test_tritons_client_gets_the_answers_that_a_board_gets(tiny_folder, tiny, tmp_path):
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip("tritonclient is not installed (pip install 'narrowcast[dev]')")
    frames, levels = bundles.random_frames(6), np.array([0, 1, 1, 0, 1, 0])
    session = HeadSession(tiny)
    payloads = [session.encode(frame, int(level)).payload for frame, level in zip(frames, levels, strict=True)]
    symbols, errors = tiny.codec().decode_batch(payloads, levels.tolist())
    assert errors == [None] * 6
    np.savez(tmp_path / "frames.npz", symbols=symbols, levels=levels)
    with serving(tiny_folder, tiny_folder / "test.pub") as server:
        done = subprocess.run(
            [sys.executable, CLIENT, str(server.address), tmp_path / "frames.npz"], capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with narrowcast.Client(tiny, str(server.address)) as client:
            mine = [
                client.infer(frame, level=int(level)).outputs["output"]
                for frame, level in zip(frames, levels, strict=True)
            ]
        code, _ = server.end()
    seen = json.loads(done.stdout)
    assert code == 0
    assert {name: seen[name] for name in ("live", "ready", "model", "version", "other", "server", "id")} == {
        "live": True, "ready": True, "model": True, "version": False, "other": False, "server": "narrowcast", "id": "7",
    }  # fmt: skip
    assert seen["inputs"] == [
        {"name": "symbols", "datatype": "UINT8", "shape": ["-1", "3", "8", "8"]},
        {"name": "level", "datatype": "INT64", "shape": ["-1"]},
    ]
    assert seen["outputs"] == [{"name": "output", "datatype": "FP32", "shape": ["-1", "3"]}]
    assert np.array_equal(np.array(seen["answer"], np.float32), np.array(mine))
    assert seen["several"] == [[str(k), seen["answer"]] for k in range(4)]
    assert seen["unknown"] == ["StatusCode.NOT_FOUND", "no model 'other' here; there is tiny"]
    assert seen["alphabet"][0] == "StatusCode.INVALID_ARGUMENT"
    assert seen["late"][0] == "StatusCode.DEADLINE_EXCEEDED"
