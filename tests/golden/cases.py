"""What the golden files hold: made from plain arithmetic, so that they need no library to be the same everywhere."""

from __future__ import annotations

import numpy as np

from narrowcast.transport.codec import CodecSpec
from narrowcast.transport.contexts import ContextTables
from narrowcast.transport.packed import PackedTables
from narrowcast.transport.packet import CodecId, Kind, Packet, StreamContext
from narrowcast.transport.tables import Tables
from narrowcast.transport.video import Memory, VideoTables, memory_of_key, remembered

SHAPE = (6, 11, 7)
CONTEXT = StreamContext(bytes(range(100, 116)), bytes(range(200, 216)), 1_750_000_000_000_000)


def numbers(count: int, seed: int) -> np.ndarray:
    """uint32 from a linear congruential generator (Numerical Recipes' constants)."""
    state, out = seed, np.empty(count, np.uint32)
    for k in range(count):
        state = (1664525 * state + 1013904223) & 0xFFFFFFFF
        out[k] = state
    return out


def tables(lanes: int) -> Tables:
    """Three levels: flat, peaked with escapes, and almost certain."""
    alphabet, precision = 40, 12
    total = 1 << precision
    frequencies = np.zeros((3, SHAPE[0], alphabet), np.uint16)
    escapes = np.zeros((3, SHAPE[0]), np.uint16)
    for channel in range(SHAPE[0]):
        flat = np.full(alphabet, total // alphabet)
        flat[channel] += total - flat.sum()
        frequencies[0, channel] = flat
        peaked = np.zeros(alphabet, int)
        peaked[10 + channel : 15 + channel] = [300, 900, 1500, 900, 300]
        escapes[1, channel] = 20 + channel
        peaked[12 + channel] += total - peaked.sum() - escapes[1, channel]
        frequencies[1, channel] = peaked
        frequencies[2, channel, 20] = total - 1
        escapes[2, channel] = 1
    return Tables(precision, lanes, frequencies, escapes)


def context_tables(lanes: int) -> ContextTables:
    """Three classes; weights like those of real latents, and at level 2 large ones."""
    places, bank = (3, SHAPE[0]), tables(lanes)
    size = np.array([300, 1500, 20_000])[:, None, None]
    drawn = numbers(3 * SHAPE[0] * 11, seed=9).astype(np.int64).reshape(*places, 11) >> 16
    weights = (drawn - (1 << 15)) * size >> 15
    spread = numbers(3 * SHAPE[0] * 2, seed=10).astype(np.int64).reshape(*places, 2) >> 14
    return ContextTables(
        zero=17,
        mean_weights=weights[..., :4].astype(np.int16),
        mean_bias=(spread[..., 0] - (1 << 17)).astype(np.int32),
        scale_weights=weights[..., 4:].astype(np.int16),
        scale_bias=spread[..., 1].astype(np.int32),
        thresholds=np.array([200, 900], np.uint16),
        bank=Tables(
            bank.precision,
            lanes,
            bank.frequencies[:, :4].reshape(1, 12, -1),
            bank.escapes[:, :4].reshape(1, 12),
        ),
    )


def video_tables(lanes: int) -> VideoTables:
    """Context tables with weights for a reference: mostly the same place, at level 2 anything."""
    contexts = context_tables(lanes)
    drawn = numbers(3 * SHAPE[0] * 5, seed=11).astype(np.int64).reshape(3, SHAPE[0], 5) >> 16
    weights = (drawn - (1 << 15)) * np.array([200, 900, 32_767])[:, None, None] >> 15
    weights[:2, :, 0] += 3500
    return VideoTables(np.array([0, 40, 70_000], np.uint32), weights.astype(np.int16), contexts)


def memory(level: int) -> Memory:
    """Of a key frame and two that were predicted behind it."""
    before, zero = memory_of_key(symbols(level), context_tables(1).zero), context_tables(1).zero
    for seed in (12, 13):
        moved = symbols(level).astype(np.int64) + ((numbers(int(np.prod(SHAPE)), seed) >> 30).reshape(SHAPE) == 3)
        before = remembered(before, np.minimum(moved, 39).astype(np.uint8), zero)
    return before


def predicted_symbols(level: int) -> np.ndarray:
    """The same as :func:`symbols` in most places."""
    other = (numbers(int(np.prod(SHAPE)), seed=14).reshape(SHAPE) >> 28) == 7
    return np.where(other, symbols((level + 1) % 3), symbols(level)).astype(np.uint8)


def symbols(level: int) -> np.ndarray:
    """uint8 [6, 11, 7]: mostly what the level's tables expect, and every symbol of the alphabet at least once."""
    count = int(np.prod(SHAPE))
    raw = numbers(count, seed=level + 1) >> 16
    spread = (raw % 40, 11 + raw % 7, np.where(raw % 50, 20, raw % 40))[level]
    found = spread.astype(np.uint8)
    found[:40] = np.arange(40)
    return found.reshape(SHAPE)


def packed_tables() -> PackedTables:
    """Six bits a symbol; the levels send 2, 5 and all 6 channels."""
    return PackedTables(40, SHAPE[0], (2, 5, 6))


def packed_symbols(level: int) -> np.ndarray:
    """The same as :func:`symbols`, and 0 where the level sends nothing."""
    found = symbols(level).copy()
    found[packed_tables().sent[level] :] = 0
    return found


def spec() -> CodecSpec:
    """The codec that the tables are of."""
    return CodecSpec(name="rans", shape=SHAPE, alphabet=40, levels=3, quantizer="ab" * 32)


def free_spec() -> CodecSpec:
    """The same for frames that differ in size: up to three times as high and twice as wide."""
    most = (SHAPE[0], 3 * SHAPE[1], 2 * SHAPE[2])
    return CodecSpec(name="rans", shape=most, alphabet=40, levels=3, quantizer="ab" * 32, step=SHAPE[1:])


def free_symbols() -> np.ndarray:
    """uint8 [6, 33, 7]: one level's symbols, from top to bottom three times."""
    return np.concatenate([symbols(1)] * 3, 1)


def packets(payload: bytes) -> dict[str, bytes]:
    """A packet of each kind in both forms."""
    packet = Packet(CodecId.RANS, 1, 123_456, CONTEXT.epoch_us + 7_654_321, payload, *CONTEXT[:2])
    file = (numbers(60, seed=5) >> 24).astype(np.uint8).tobytes()  # what it shows is not the packet's business
    image = Packet(CodecId.WEBP, 0, 123_457, CONTEXT.epoch_us + 7_654_322, file, *CONTEXT[:2], Kind.IMAGE)
    return {
        "packet-stream.bin": packet.to_stream_bytes(CONTEXT),
        "packet-alone.bin": packet.to_bytes(),
        "packet-image-stream.bin": image.to_stream_bytes(CONTEXT),
        "packet-image-alone.bin": image.to_bytes(),
    }


def reference_packets(payload: bytes) -> dict[str, bytes]:
    """Packets that go by a reference, in both forms."""
    at = CONTEXT.epoch_us + 7_654_321
    packet = Packet(
        CodecId.RANS_PREDICTED, 1, 123_458, at + 2, payload, *CONTEXT[:2], Kind.PREDICTED, reference=123_456
    )
    skip = Packet(CodecId.NONE, 1, 123_459, at + 3, b"", *CONTEXT[:2], Kind.SKIP, reference=123_456)
    return {
        "packet-predicted-stream.bin": packet.to_stream_bytes(CONTEXT),
        "packet-predicted-alone.bin": packet.to_bytes(),
        "packet-skip-stream.bin": skip.to_stream_bytes(CONTEXT),
        "packet-skip-alone.bin": skip.to_bytes(),
    }


def spool(packet: bytes, image: bytes) -> dict[str, bytes]:
    """A segment with two records, of which one is acknowledged."""
    from narrowcast.head.spool.cursor import slot
    from narrowcast.head.spool.records import VERSION, Record, SegmentHeader

    now_us = CONTEXT.epoch_us + 9_000_000
    segment = SegmentHeader(VERSION, 41, now_us).to_bytes()
    segment += Record(41, now_us, bytes(range(9)), packet).to_bytes() + Record(42, now_us + 1, b"", image).to_bytes()
    copies = b"".join(slot(number).ljust(512, b"\0") for number in (41, 42))
    return {"spool-segment.bin": segment, "spool-acknowledged.bin": copies}


def files() -> dict[str, bytes]:
    """Every golden file, made by the readable coder."""
    from narrowcast.transport.coder import Coder

    made: dict[str, bytes] = {}
    for lanes in (1, 2, 4):
        coder = Coder(tables(lanes), "python")
        made[f"tables-{lanes}.bin"] = tables(lanes).to_bytes()
        for level in range(3):
            made[f"payload-{lanes}-{level}.bin"] = coder.encode(symbols(level), level)
        contexts = Coder(context_tables(lanes), "python")
        made[f"contexts-{lanes}.bin"] = context_tables(lanes).to_bytes()
        for level in range(3):
            made[f"context-payload-{lanes}-{level}.bin"] = contexts.encode(symbols(level), level)
        video = video_tables(lanes)
        predicted = Coder(video.contexts, "python", memory_weights=video.memory_weights)
        made[f"video-{lanes}.bin"] = video.to_bytes()
        for level in range(3):
            frame, before = predicted_symbols(level)[None], memory(level).values[None]
            (made[f"predicted-payload-{lanes}-{level}.bin"],) = predicted.encode_batch(frame, [level], before)
    made["predicted-symbols.bin"] = b"".join(predicted_symbols(level).tobytes() for level in range(3))
    made["memory.bin"] = b"".join(memory(level).values.astype("<i2").tobytes() for level in range(3))
    made["video-fingerprint.txt"] = (video_tables(4).fingerprint().hex() + "\n").encode()
    made["packed.bin"] = packed_tables().to_bytes()
    for level in range(3):
        made[f"packed-payload-{level}.bin"] = packed_tables().pack(packed_symbols(level), level)
    made["symbols.bin"] = b"".join(symbols(level).tobytes() for level in range(3))
    made["fingerprint.txt"] = (spec().fingerprint(made["tables-4.bin"]).hex() + "\n").encode()
    made["free-fingerprint.txt"] = (free_spec().fingerprint(made["tables-4.bin"]).hex() + "\n").encode()
    made["free-payload.bin"] = bytes((3, 1)) + Coder(tables(4), "python").encode(free_symbols(), 1)
    made |= packets(made["payload-4-1.bin"])
    made |= reference_packets(made["predicted-payload-4-1.bin"])
    return made | spool(made["packet-alone.bin"], made["packet-image-alone.bin"])
