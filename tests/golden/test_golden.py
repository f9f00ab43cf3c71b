"""Bytes that must never change: the same symbols give the same bytes, on every machine and in every release."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from narrowcast.head.spool import Spool
from narrowcast.transport.codec import open_codec
from narrowcast.transport.coder import Coder
from narrowcast.transport.coder.native import load
from narrowcast.transport.contexts import ContextTables
from narrowcast.transport.packed import PackedTables
from narrowcast.transport.packet import CodecId, Kind, Packet
from narrowcast.transport.tables import Tables
from narrowcast.transport.video import VideoTables

HERE = Path(__file__).parent
FILES = {path.name: path.read_bytes() for path in sorted((HERE / "files").iterdir())}

_spec = importlib.util.spec_from_file_location("golden_cases", HERE / "cases.py")
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

KERNELS = ["python", pytest.param("c", marks=pytest.mark.skipif(load() is None, reason="the C kernel was not built"))]


def test_everything_is_as_it_was():
    made = cases.files()
    assert made.keys() == FILES.keys()
    assert [name for name, data in made.items() if data != FILES[name]] == []


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_payloads(kernel, lanes, level):
    coder = Coder(Tables.from_bytes(FILES[f"tables-{lanes}.bin"]), kernel)
    symbols = np.frombuffer(FILES["symbols.bin"], np.uint8).reshape(3, *cases.SHAPE)[level]
    payload = FILES[f"payload-{lanes}-{level}.bin"]
    assert coder.encode(symbols, level) == payload
    assert np.array_equal(coder.decode(payload, level, cases.SHAPE), symbols)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_context_payloads(kernel, lanes, level):
    coder = Coder(ContextTables.from_bytes(FILES[f"contexts-{lanes}.bin"]), kernel)
    symbols = np.frombuffer(FILES["symbols.bin"], np.uint8).reshape(3, *cases.SHAPE)[level]
    payload = FILES[f"context-payload-{lanes}-{level}.bin"]
    assert coder.encode(symbols, level) == payload
    assert np.array_equal(coder.decode(payload, level, cases.SHAPE), symbols)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_predicted_payloads(kernel, lanes, level):
    tables = VideoTables.from_bytes(FILES[f"video-{lanes}.bin"])
    coder = Coder(tables.contexts, kernel, memory_weights=tables.memory_weights)
    symbols = np.frombuffer(FILES["predicted-symbols.bin"], np.uint8).reshape(3, 1, *cases.SHAPE)[level]
    memory = np.frombuffer(FILES["memory.bin"], "<i2").astype(np.int16).reshape(3, 1, *cases.SHAPE)[level]
    payload = FILES[f"predicted-payload-{lanes}-{level}.bin"]
    assert coder.encode_batch(symbols, [level], memory) == [payload]
    decoded, errors = coder.decode_batch([payload], [level], cases.SHAPE, memory)
    assert errors == [None]
    assert np.array_equal(decoded, symbols)


def test_video_tables_keep_their_name():
    tables = VideoTables.from_bytes(FILES["video-4.bin"])
    assert tables.fingerprint().hex() == FILES["video-fingerprint.txt"].decode().strip()
    assert tables.unchanged.tolist() == [0, 40, 70_000]


def test_packets_by_reference():
    predicted = Packet.from_bytes(FILES["packet-predicted-alone.bin"])
    assert predicted == Packet.from_stream_bytes(FILES["packet-predicted-stream.bin"], cases.CONTEXT)
    assert (predicted.kind, predicted.frame_id, predicted.reference) == (Kind.PREDICTED, 123_458, 123_456)
    skip = Packet.from_bytes(FILES["packet-skip-alone.bin"])
    assert skip == Packet.from_stream_bytes(FILES["packet-skip-stream.bin"], cases.CONTEXT)
    assert (skip.kind, skip.reference, skip.payload) == (Kind.SKIP, 123_456, b"")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_packed_payloads(level):
    tables = PackedTables.from_bytes(FILES["packed.bin"])
    payload = FILES[f"packed-payload-{level}.bin"]
    assert tables.pack(cases.packed_symbols(level), level) == payload
    assert np.array_equal(tables.unpack(payload, level, cases.SHAPE), cases.packed_symbols(level))


def test_payloads_of_frames_that_differ_in_size():
    codec = open_codec(cases.free_spec(), FILES["tables-4.bin"])
    payload = FILES["free-payload.bin"]
    assert codec.fingerprint.hex() == FILES["free-fingerprint.txt"].decode().strip()
    assert codec.encode(cases.free_symbols(), 1) == payload
    assert codec.shape_of(payload) == (6, 33, 7)
    assert np.array_equal(codec.decode_batch([payload], [1])[0][0], cases.free_symbols())


def test_packets():
    alone = Packet.from_bytes(FILES["packet-alone.bin"])
    streamed = Packet.from_stream_bytes(FILES["packet-stream.bin"], cases.CONTEXT)
    assert alone == streamed
    assert alone.payload == FILES["payload-4-1.bin"]
    assert (alone.level, alone.frame_id) == (1, 123_456)
    image = Packet.from_bytes(FILES["packet-image-alone.bin"])
    assert image == Packet.from_stream_bytes(FILES["packet-image-stream.bin"], cases.CONTEXT)
    assert (image.kind, image.codec, image.frame_id) == (Kind.IMAGE, CodecId.WEBP, 123_457)


def test_spool(tmp_path):
    (tmp_path / f"{41:016x}.spool").write_bytes(FILES["spool-segment.bin"])
    (tmp_path / "acknowledged").write_bytes(FILES["spool-acknowledged.bin"])
    with Spool(tmp_path) as spool:
        assert spool.waiting == 1
        record = spool.next()
        assert (record.number, record.note, record.data) == (42, b"", FILES["packet-image-alone.bin"])
    (tmp_path / "acknowledged").unlink()
    with Spool(tmp_path) as spool:
        record = spool.next()
        assert (record.number, record.note, record.data) == (41, bytes(range(9)), FILES["packet-alone.bin"])
