"""A bundle's part ``video``: tables, limits of change, and what they are worth on frames that were not fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.codec import collect_symbols
from narrowcast.compiler.contexts import commonest, context_bits, fit_predicted
from narrowcast.compiler.progress import SILENT, Progress
from narrowcast.compiler.tables import lanes_for
from narrowcast.compiler.video.clips import CLIP_FRAMES, filmed
from narrowcast.compiler.video.follow import follow
from narrowcast.compiler.video.unchanged import Outputs, errors_of, limit_of_change
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.codec import Codec, CodecSpec
from narrowcast.transport.packet import Kind
from narrowcast.transport.video import VideoCodec, VideoTables, memory_of_key, remembered

Symbols = npt.NDArray[np.uint8]
Frames = npt.NDArray[np.uint8]

# Tables are fitted to a clip for so many images that the codec's are fitted to.
IMAGES_PER_CLIP = 4
LEAST_CLIPS = 8
STILL_CLIPS, HELD_CLIPS = 12, 24


class Networks(NamedTuple):
    """What answers frames while limits are chosen.

    Attributes:
        heads: of the bundle, by precision; limits go by the first.
        tail: the outputs of symbols uint8 ``[n, C, H, W]`` at a level.
        teacher: those of frames uint8 ``[n, H, W, 3]``.
    """

    heads: Mapping[Precision, bytes]
    tail: Callable[[Symbols, int], Outputs]
    teacher: Callable[[Frames], Outputs]


class Material(NamedTuple):
    """Clips uint8 ``[N, T, H, W, 3]``: to fit to, of still scenes, and to measure on."""

    fitted: Frames
    still: Frames
    held: Frames


def material(
    photos: Frames, held: Frames, images: int, seed: int, videos: Callable[[int], Frames] | None = None
) -> Material:
    """What video tables are made from.

    Args:
        photos: training images uint8 ``[N, H, W, 3]``.
        held: images that are kept from training.
        images: how many the recipe fits tables to.
        seed: of everything random.
        videos: so many clips of the user's; every fourth is measured on. None: there are none.
    """
    count = max(LEAST_CLIPS, images // IMAGES_PER_CLIP)
    still = filmed(photos, min(count, STILL_CLIPS), seed + 1, "still")
    if videos is not None:
        clips = videos(count + HELD_CLIPS)
        kept = np.arange(len(clips)) % 4 == 3 if len(clips) >= 4 else np.arange(len(clips)) == len(clips) - 1
        return Material(clips[~kept], still, clips[kept])
    unseen = held if len(held) > 1 else photos
    return Material(filmed(photos, count, seed), still, filmed(unseen, min(count, HELD_CLIPS), seed + 2))


def fit_video(
    spec: CodecSpec, codec: Codec, networks: Networks, clips: Material, progress: Progress = SILENT
) -> tuple[bytes, dict[str, Any]]:
    """The part, and its figures: one entry per level (``docs/video.md``)."""
    symbols = _symbols(networks.heads, clips.fitted, spec, progress)
    first = dict([next(iter(networks.heads.items()))])
    count = len(clips.fitted)
    still, held = (_symbols(first, some, spec, progress) for some in (clips.still, clips.held))
    with progress.task("fitting video tables", 1 + 2 * spec.levels, "steps") as task:
        tables = fit_tables_to(symbols, spec.alphabet)
        task.advance(1)
        # Also by what the networks were not trained on: of what they were, they are surer than of anything else.
        fitted, unseen = networks.teacher(_flat(clips.fitted)), networks.teacher(_flat(clips.held))
        both = {name: np.concatenate([values, unseen[name]]) for name, values in fitted.items()}
        limits, measured = [], []
        for level in range(spec.levels):
            shown = np.concatenate([symbols[level, :count], held[level]])
            found = limit_of_change(shown, _at(networks.tail, level), both, still[level])
            limits.append(found[0])
            measured.append(found[1])
            task.advance(1)
        tables = replace(tables, unchanged=np.array(limits, np.uint32))
        data = tables.to_bytes()
        video = VideoCodec(spec, data)
        rows = []
        for level in range(spec.levels):
            row = worth(codec, video, held[level], level, _at(networks.tail, level), unseen)
            rows.append({"level": level, "unchanged": limits[level], **row, "noise": measured[level]["noise"]})
            task.advance(1)
    return data, {"clips": len(clips.held), "frames": CLIP_FRAMES, "levels": rows}


def fit_tables_to(symbols: Symbols, alphabet: int) -> VideoTables:
    """Tables for clips of symbols uint8 ``[levels, N, T, C, H, W]``, which skip what is identical alone."""
    zero = commonest(symbols, alphabet)
    before = memory_of_key(symbols[:, :, 0], zero)
    frames, memories = [], []
    for t in range(1, symbols.shape[2]):
        frames.append(symbols[:, :, t])
        memories.append(before.values)
        before = remembered(before, symbols[:, :, t], zero)
    shown, memory = np.concatenate(frames, 1), np.concatenate(memories, 1)
    contexts, weights = fit_predicted(shown, alphabet, zero, memory)
    bits = sum(context_bits(shown[k], contexts, k, memory[k], weights) for k in range(len(shown)))
    lanes = lanes_for(bits / 8 / (shown.shape[0] * shown.shape[1]))
    contexts = replace(contexts, bank=replace(contexts.bank, lanes=lanes))
    return VideoTables(np.zeros(len(symbols), np.uint32), weights, contexts)


def worth(
    codec: Codec, video: VideoCodec, clips: Symbols, level: int, answers: Callable[[Symbols], Outputs], wanted: Outputs
) -> dict[str, float]:
    """What a level's packets take on clips uint8 ``[N, T, C, H, W]``, behind their first frames; and what skipping costs."""
    keys, predicted, sent, skips, by = [], [], [], 0, list[int]()
    length = clips.shape[1]
    for number, clip in enumerate(clips):
        keys += [24 + len(codec.encode(frame, level)) for frame in clip[1:]]
        predicted += [step.size for step in follow(codec, video, clip, level, skip=False)][1:]
        steps = list(follow(codec, video, clip, level))
        sent += [step.size for step in steps[1:]]
        skips += sum(step.kind is Kind.SKIP for step in steps)
        by += [number * length + step.answered_by for step in steps]
    outputs = answers(_flat(clips))
    own = errors_of(outputs, wanted)
    skipped = errors_of({name: values[by] for name, values in outputs.items()}, wanted)
    return {
        "key_bytes": round(float(np.mean(keys)), 1),
        "predicted_bytes": round(float(np.mean(predicted)), 1),
        "mean_bytes": round(float(np.mean(sent)), 1),
        "skipped": round(skips / len(keys), 4),
        "error": round(float(own.mean()), 5),
        "error_with_skips": round(float(skipped.mean()), 5),
    }


def _symbols(heads: Mapping[Precision, bytes], clips: Frames, spec: CodecSpec, progress: Progress) -> Symbols:
    """What heads give for clips: uint8 ``[levels, heads * N, T, C, h, w]``."""
    found = collect_symbols(heads, _flat(clips), spec, progress)
    return found.reshape(found.shape[0], -1, clips.shape[1], *found.shape[2:])


def _flat(clips: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return clips.reshape(-1, *clips.shape[2:])


def _at(tail: Callable[[Symbols, int], Outputs], level: int) -> Callable[[Symbols], Outputs]:
    return lambda symbols: tail(symbols, level)


def tail_of(network: Callable[..., dict[str, Any]], chunk: int = 16) -> Callable[[Symbols, int], Outputs]:
    """An exported tail's outputs by name, a few frames at a time."""

    def run(symbols: Symbols, level: int) -> Outputs:
        parts: Sequence[dict[str, Any]] = [
            network(symbols=some, level=np.full(len(some), level, np.int64))
            for some in (symbols[start : start + chunk] for start in range(0, len(symbols), chunk))
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return run
