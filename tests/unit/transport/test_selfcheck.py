"""The reference frames and the part that says what they give."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from support import bundles

from narrowcast.transport.bundle import describe_part
from narrowcast.transport.errors import ManifestError, MissingPartError
from narrowcast.transport.selfcheck import SelfCheck, SymbolBound, read_self_check, reference_frames
from narrowcast.transport.structs import to_json


def with_check(tmp_path, data: bytes):
    part = describe_part("selfcheck.json", data, "selfcheck", ["device"])
    return bundles.open_made(bundles.make().with_part(part, data).write(tmp_path / "m.ncb"))


def test_reference_frames_are_the_same_bytes_for_ever():
    frames = reference_frames((37, 50), 2)
    assert (frames.dtype, frames.shape) == (np.uint8, (2, 37, 50, 3))
    assert hashlib.sha256(frames.tobytes()).hexdigest()[:16] == "07878f8b828e080d"


def test_reference_frames_are_smooth_and_rough_and_differ():
    first, second = reference_frames((128, 128), 2).astype(int)
    assert np.abs(first - second).mean() > 20
    assert 30 < first.std() < 80
    neighbours = np.abs(np.diff(first, axis=1)).mean()
    assert 3 < neighbours < first.std() / 2


def test_a_part_is_read_as_it_was_written(tmp_path):
    bound = SymbolBound(moved=0.25, step=2)
    check = SelfCheck(payloads=[[b"\0\xff"], [b""]], bounds={"fp32": [bound, bound]})
    assert read_self_check(with_check(tmp_path, to_json(check))) == check


def test_a_bundle_without_the_part(tmp_path):
    made = bundles.make().without("selfcheck.json").write(tmp_path / "m.ncb")
    with pytest.raises(MissingPartError, match="no selfcheck part"):
        read_self_check(bundles.open_made(made))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "is not JSON"),
        (b'{"payloads": []}', "missing required field `bounds`"),
        (b'{"payloads": [["AA=="]], "bounds": {}}', "not one of 2 levels"),
        (b'{"payloads": [[], []], "bounds": {}}', "not one of 2 levels"),
        (b'{"payloads": [["AA=="], []], "bounds": {}}', "not one of 2 levels"),
        (b'{"payloads": [["AA=="], ["AA=="]], "bounds": {"int8": []}}', "not one of 2 levels"),
        (b'{"payloads": [["AA=="], ["AA=="]], "bounds": {"int4": []}}', "int4"),
        (b'{"payloads": [["AA=="], ["AA=="]], "bounds": {"fp32": [{"moved": 2, "step": 1}]}}', "moved"),
    ],
    ids=str,
)
def test_a_part_that_is_none(tmp_path, data, said):
    with pytest.raises(ManifestError, match=said):
        read_self_check(with_check(tmp_path, data))
