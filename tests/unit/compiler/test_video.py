"""What video tables are made from, how they are fitted, and when a frame counts as unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from support.films import write_film

from narrowcast.compiler.contexts import fit_contexts
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.recipe import load_recipe
from narrowcast.compiler.video.camera import SCENES, Camera
from narrowcast.compiler.video.clips import CLIP_FRAMES, filmed, recorded
from narrowcast.compiler.video.fit import fit_tables_to, material
from narrowcast.compiler.video.follow import follow
from narrowcast.compiler.video.unchanged import LEAST_PAIRS, errors_of, limit_of_change
from narrowcast.transport.codec import CodecSpec, open_codec
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import Kind
from narrowcast.transport.video import VideoCodec, VideoTables

CONTRACT = InputContract(size=(24, 32))


def photos(count: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth pictures uint8 ``[count, 48, 64, 3]``."""
    rough = np.random.default_rng(seed).integers(0, 256, (count, 6, 8, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((64, 48), Image.Resampling.BICUBIC)) for one in rough])


class TestCamera:
    @pytest.mark.parametrize("scene", SCENES)
    def test_frames_of_a_scene_resemble_one_another_and_photographs_do_not(self, scene):
        a, b, _ = photos()
        clip = Camera(3).clip(a, b, 4, scene)
        assert (clip.shape, clip.dtype) == ((4, 48, 64, 3), np.uint8)
        away = np.abs(np.diff(clip.astype(int), axis=0)).mean((1, 2, 3))
        assert 0 < away.max() < 12 < np.abs(a.astype(int) - b).mean()

    def test_the_same_seed_gives_the_same_clips_and_another_one_others(self):
        clips = [filmed(photos(), 3, seed) for seed in (1, 1, 2)]
        assert clips[0].shape == (3, CLIP_FRAMES, 48, 64, 3)
        assert np.array_equal(clips[0], clips[1])
        assert not np.array_equal(clips[0], clips[2])


class TestRecorded:
    def test_videos_and_folders_of_frames_give_clips(self, tmp_path):
        frames = Camera(0).clip(*photos(2), 2 * CLIP_FRAMES + 1, "pan")
        write_film(tmp_path / "a.mkv", frames)
        (tmp_path / "b").mkdir()
        for number, frame in enumerate(frames[: CLIP_FRAMES + 2]):
            Image.fromarray(frame).save(tmp_path / "b" / f"{number:03d}.png")
        (tmp_path / "notes.txt").write_text("no video")
        clips, skipped = recorded(tmp_path, CONTRACT, 10, seed=0)
        assert [line.split(": ")[0] for line in skipped] == [str(tmp_path / "notes.txt")]
        assert clips.shape == (3, CLIP_FRAMES, 24, 32, 3)
        wanted = [CONTRACT.prepare(frame).image for frame in frames[:CLIP_FRAMES]]
        assert np.array_equal(clips[2], wanted)
        assert np.abs(clips[0].astype(int) - wanted).mean() < 6  # what the video's codec makes of them
        assert len(recorded(tmp_path, CONTRACT, 2, seed=0).clips) == 2

    def test_frames_of_any_size_give_clips_of_one(self, tmp_path):
        """Each clip is cut out at one place: a still scene stays still."""
        contract = InputContract(size=(32, 48), fit="free", max_size=(96, 96), multiple_of=16)
        for name, shape in (("high", (64, 48)), ("small", (20, 96)), ("wide", (48, 64))):
            (tmp_path / name).mkdir()
            random = np.random.default_rng(0)
            scenes = random.integers(0, 256, (2, *shape, 3)).astype(np.uint8)
            for number, frame in enumerate(scenes.repeat(CLIP_FRAMES, 0)):
                Image.fromarray(frame).save(tmp_path / name / f"{number:03d}.png")
        clips = recorded(tmp_path, contract, 10, seed=0).clips
        assert clips.shape == (6, CLIP_FRAMES, 32, 48, 3)
        assert (clips == clips[:, :1]).all()
        still = np.asarray(Image.open(tmp_path / "wide" / f"{CLIP_FRAMES:03d}.png"))
        assert np.array_equal(clips[5, 0], contract.training_view(still))

    @pytest.mark.parametrize("kind", ["images", "video"])
    def test_no_clip_reaches_over_a_frame_that_cannot_be_read(self, tmp_path, kind):
        """Five frames before the damage: those behind it begin a clip of their own. (More than decoders have threads.)"""
        shades = 10 * np.arange(6 + 3 * CLIP_FRAMES, dtype=np.uint8)
        frames = np.broadcast_to(shades[:, None, None, None], (len(shades), 48, 64, 3))
        if kind == "video":
            write_film(tmp_path / "a.mkv", frames, damaged=5)
        else:
            for number, frame in enumerate(frames):
                Image.fromarray(frame).save(tmp_path / f"{number:03d}.png")
            (tmp_path / "005.png").write_bytes(b"no image")
        clips, skipped = recorded(tmp_path, CONTRACT, 10, seed=0)
        wanted = shades[6:].reshape(3, CLIP_FRAMES)
        assert np.abs(clips.astype(int) - wanted[:, :, None, None, None]).max() <= 2  # YUV's rounding
        (line,) = skipped
        assert line.startswith(f"{tmp_path}/a.mkv@0.400: damaged" if kind == "video" else f"{tmp_path}/005.png cannot")

    def test_too_few_are_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"\[data\] video: no folder"):
            recorded(tmp_path / "nowhere", CONTRACT, 4, 0)
        (tmp_path / "broken.mkv").write_bytes(b"no video")
        with pytest.raises(DataError, match="0 clips of 6 frames.*two at least; .*broken.mkv"):
            recorded(tmp_path, CONTRACT, 4, 0)

    def test_a_part_of_the_users_clips_is_kept_to_measure_on(self):
        clips = np.arange(9, dtype=np.uint8).repeat(CLIP_FRAMES * 12).reshape(9, CLIP_FRAMES, 2, 2, 3)
        found = material(photos(), photos(), 8, 0, lambda count: clips)
        assert (len(found.fitted), len(found.held)) == (7, 2)
        assert not set(found.fitted.ravel()) & set(found.held.ravel())


def noisy(count: int = 10, seed: int = 0) -> np.ndarray:
    """Symbols uint8 ``[1, count, 6, 3, 10, 9]`` of still scenes: noise moves those that are near to the next step."""
    random = np.random.default_rng(seed)
    scenes = random.laplace(0, 3, (count, 1, 3, 10, 9))
    return np.clip(np.rint(scenes + random.normal(0, 0.2, (count, 6, 3, 10, 9))) + 20, 0, 40).astype(np.uint8)[None]


def test_a_chain_takes_fewer_bytes_than_key_frames_and_ever_fewer_where_noise_is_all():
    spec = CodecSpec("rans-context", (3, 10, 9), 41, 1, "ab" * 32)
    clips = noisy(60)
    codec = open_codec(spec, fit_contexts(clips[:, :, 0], 41, lanes=1).to_bytes())
    video = VideoCodec(spec, fit_tables_to(clips, 41).to_bytes())
    steps = [list(follow(codec, video, clip, 0, skip=False)) for clip in noisy(20, seed=9)[0]]
    sizes = np.mean([[step.size for step in clip] for clip in steps], 0)
    assert {step.kind for clip in steps for step in clip[1:]} == {Kind.PREDICTED}
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[5] < 0.9 * sizes[1]  # by a memory of five frames
    slow = list(follow(codec, video, noisy(1, seed=9)[0, 0], 0, skip=False, behind=3))
    assert [step.kind for step in slow[:4]] == [Kind.SYMBOLS] * 3 + [Kind.PREDICTED]


def test_following_skips_what_is_unchanged_and_says_who_answers():
    spec = CodecSpec("rans-context", (3, 10, 9), 41, 1, "ab" * 32)
    tables = fit_tables_to(noisy(), 41)
    data = VideoTables(np.array([4], np.uint32), tables.memory_weights, tables.contexts).to_bytes()
    codec = open_codec(spec, fit_contexts(noisy()[:, :, 0], 41, lanes=1).to_bytes())
    frame = noisy()[0, 0, 0]
    near, far = frame.copy(), frame.copy()
    near[0, 0, 0] ^= 1
    far[:, 5, 5] += 9
    steps = list(follow(codec, VideoCodec(spec, data), [frame, near, frame, far, near], 0))
    assert [step.answered_by for step in steps] == [0, 0, 0, 3, 4]
    assert [step.kind for step in steps[:3]] == [Kind.SYMBOLS, Kind.SKIP, Kind.SKIP]
    assert steps[1].size == 24


class TestUnchanged:
    def tail(self, symbols: np.ndarray) -> dict[str, np.ndarray]:
        """Two classes: whether the first channel has more than the second one."""
        sums = symbols.reshape(len(symbols), symbols.shape[1], -1).sum(2)
        return {"scores": sums[:, :2].astype(np.float32)}

    def clips(self, changes: list[int], flips: list[bool]) -> np.ndarray:
        """Clips of two frames: the second one differs by so much; with a flip, also in its class."""
        clips = np.zeros((len(changes), 2, 2, 3, 3), np.uint8)
        clips[:, :, 0] = 1
        for clip, change, flip in zip(clips, changes, flips, strict=True):
            clip[1, 1 if flip else 0, 1, 1] += change
        return clips

    def found(self, changes, flips, noise: int, wanted=None, least: int = 1) -> int:
        clips = self.clips(changes, flips)
        wanted = wanted or self.tail(clips.reshape(-1, *clips.shape[2:]))
        still = self.clips([noise] * 5, [False] * 5)
        return limit_of_change(clips, self.tail, wanted, still, least_pairs=least)[0]

    def test_it_is_what_changes_no_answer(self):
        changes = [0, 2, 4, 6, 12, 20, 30]
        assert self.found(changes, [False] * 7, noise=25) == 20
        assert self.found(changes, [False] * 4 + [True, False, False], noise=25) == 6
        assert self.found([10, 10, 12], [False, True, False], noise=25) == 0  # all of one change, or none

    def test_luck_behind_a_loss_makes_nothing_good(self):
        clips = self.clips([2, 12, 14], [False, True, True])
        right = self.tail(clips.reshape(-1, *clips.shape[2:]))
        right["scores"][5] = right["scores"][5][
            ::-1
        ]  # the third clip's second frame is answered wrongly, its first rightly
        assert self.found([2, 12, 14], [False, True, True], noise=99, wanted=right) == 2

    def test_it_is_no_more_than_noise_makes(self):
        assert self.found([0, 3, 6, 9], [False] * 4, noise=7) == 6

    def test_few_pairs_prove_nothing_and_those_that_do_not_differ_are_none(self):
        assert self.found([3] * 300, [False] * 300, noise=7, least=LEAST_PAIRS) == 3
        assert self.found([3] * 299, [False] * 299, noise=7, least=LEAST_PAIRS) == 0
        assert self.found([0] * 100 + [3] * 299, [False] * 399, noise=7, least=LEAST_PAIRS) == 0

    def test_an_answer_that_a_skip_puts_right_makes_good_none_that_it_spoils(self):
        clips = self.clips([2, 12, 14], [False, True, True])
        right = self.tail(clips.reshape(-1, *clips.shape[2:]))
        right["scores"][3] = right["scores"][2]  # the second clip's own second answer is wrong, its first one's right
        assert self.found([2, 12, 14], [False, True, True], noise=99, wanted=right) == 12

    def test_an_answer_that_was_wrong_anyway_is_no_loss(self):
        clips = self.clips([10, 12], [True, False])
        right = self.tail(clips.reshape(-1, *clips.shape[2:]))
        right["scores"][1] = right["scores"][1][
            ::-1
        ]  # the teacher disagrees with the tail on the first clip's second frame
        assert self.found([10, 12], [True, False], noise=99, wanted=right) == 12

    def test_without_class_scores_the_error_may_hardly_grow(self):
        random = np.random.default_rng(0)
        clips = random.integers(0, 9, (20, 2, 2, 3, 3)).astype(np.uint8)
        clips[:10, 1] = clips[:10, 0]
        outputs = {"map": clips.reshape(40, 2, 3, 3).astype(np.float32)}
        wanted = {"map": outputs["map"] + random.normal(0, 1, (40, 2, 3, 3)).astype(np.float32)}
        limit, figures = limit_of_change(clips, lambda symbols: outputs, wanted, clips, least_pairs=1)
        assert limit == 0
        assert figures["pairs_within"] == 10
        assert errors_of(outputs, wanted).shape == (40,)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[bottleneck]\npreset = "codebook"\n[coding]\nvideo = true\n', "codebook's symbols have no order"),
        ('[bottleneck]\npreset = "plain"\n[coding]\nvideo = "yes"\n', "video"),
    ],
)
def test_recipes_that_cannot_be(tmp_path, more, said):
    head = '[teacher]\nmodel = "timm:x"\n[data]\ntrain = "photos"\n[cut]\nat = "a"\n[input]\nsize = [32, 32]\n'
    (tmp_path / "r.toml").write_text(head + more)
    with pytest.raises(ConfigError, match=said):
        load_recipe(tmp_path / "r.toml")
    plain = head.replace('"photos"', '"photos"\nvideo = "clips"') + '[bottleneck]\npreset = "plain"\n'
    (tmp_path / "r.toml").write_text(plain)
    with pytest.raises(ConfigError, match=r"set video = true under \[coding\]"):
        load_recipe(tmp_path / "r.toml")
    (tmp_path / "r.toml").write_text(plain + "[coding]\nvideo = true\n")
    assert load_recipe(tmp_path / "r.toml").coding.video
