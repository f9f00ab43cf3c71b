"""Whether a camera still sees what it used to see."""

from __future__ import annotations

import copy
import logging
from functools import lru_cache

import msgspec
import numpy as np
import pytest
from support.camera_profiles import DEVIATIONS, NUMBERS, USUAL, correlated, independent, patrol

from narrowcast.tail.drift import Detector, DriftSettings, DriftWatch, Verdict
from narrowcast.tail.drift import watch as watching
from narrowcast.tail.drift.detector import MAX_LEVELS
from narrowcast.tail.drift.profile import NAMES, STATISTICS
from narrowcast.tail.errors import DriftStateError
from narrowcast.tail.observe import FrameRecord, Observers, Silent, StreamInfo
from narrowcast.transport.packet import CodecId, Kind, Packet
from narrowcast.transport.rpc import tail_pb2 as pb

FAST = DriftSettings(learn_frames=500)


def verdicts(detector: Detector, frames: np.ndarray, level: int = 0) -> list[tuple[int, Verdict]]:
    told = [(k, detector.tell(frame, level)) for k, frame in enumerate(frames)]
    return [(k, verdict) for k, verdict in told if verdict is not Verdict.NOTHING]


@lru_cache
def _trained() -> Detector:
    detector = Detector(FAST)
    assert verdicts(detector, independent(2000, 1)) == [(FAST.learn_frames - 1, Verdict.LEARNED)]
    return detector


def trained() -> Detector:
    """After 2000 frames; each call gives one of its own."""
    return copy.deepcopy(_trained())


# The detector


def test_no_alarm_while_nothing_changes():
    assert verdicts(Detector(FAST), independent(8000, 0)) == [(499, Verdict.LEARNED)]


def test_no_alarm_on_correlated_frames():
    """Standardised as if they were independent, they would raise one every few hundred frames."""
    assert verdicts(Detector(DriftSettings()), correlated(8_000, 5, 0.9)) == [(1499, Verdict.LEARNED)]


@pytest.mark.parametrize("number", range(NUMBERS))
@pytest.mark.parametrize("shift", [-0.8, 0.8])
def test_a_shift_of_any_number_either_way_is_found_and_named(number, shift):
    detector = trained()
    found = verdicts(detector, independent(200, 9, shift * np.eye(NUMBERS)[number]))
    assert [verdict for _, verdict in found] == [Verdict.DRIFT]
    assert detector.alarm
    assert NAMES[detector.statistic] == NAMES[number]
    assert np.sign(detector.shift) == np.sign(shift)
    assert abs(detector.shift) == pytest.approx(abs(shift) * DEVIATIONS[number], rel=0.8)


@pytest.mark.parametrize("shift", [-0.25, 0.25])
def test_jumps_between_scenes_hide_no_change_that_is_small_beside_them(shift):
    blind = Detector(DriftSettings(learn_frames=500, relation_thresholds=(1e9, 1e9)))
    detector = Detector(FAST)
    for one in (blind, detector):
        assert verdicts(one, patrol(1500, 1)) == [(FAST.learn_frames - 1, Verdict.LEARNED)]
    changed = patrol(200, 2, shift)
    assert verdicts(blind, changed) == []
    assert [verdict for _, verdict in verdicts(detector, changed)] == [Verdict.DRIFT]
    assert STATISTICS[detector.statistic].startswith("relation")
    assert detector.shift != 0


def test_no_alarm_while_a_camera_jumps_between_its_scenes():
    assert verdicts(Detector(DriftSettings()), patrol(8000, 3)) == [(1499, Verdict.LEARNED)]


def test_a_scene_that_was_never_seen_is_a_change_even_among_others():
    detector = Detector(FAST)
    verdicts(detector, patrol(1500, 1))
    frames = patrol(400, 2)
    strange = np.arange(400) // 20 % 4 == 3
    frames[strange] += DEVIATIONS * np.random.default_rng(71).normal(size=NUMBERS)
    assert [verdict for _, verdict in verdicts(detector, frames)] == [Verdict.DRIFT]


def test_large_shifts_are_found_sooner_than_small_ones():
    delays = []
    for shift in (-0.6, -1.0, -3.0):
        ((first, verdict),) = verdicts(trained(), independent(300, 9, shift * np.eye(NUMBERS)[0]))
        assert verdict is Verdict.DRIFT
        delays.append(first)
    assert delays == sorted(delays, reverse=True)
    assert delays[-1] < 20


def test_single_odd_frames_raise_no_alarm():
    detector = trained()
    frames = independent(2000, 9)
    frames[::100, 0] -= 11  # one byte
    assert verdicts(detector, frames) == []


def test_a_change_of_less_than_a_percent_is_none_however_still_the_camera():
    detector = Detector(FAST)
    still = USUAL + 1e-4 * np.random.default_rng(0).normal(size=(1000, NUMBERS))
    verdicts(detector, still)
    assert verdicts(detector, still + 0.01) == []
    assert [v for _, v in verdicts(detector, still[:300] + 0.1)] == [Verdict.DRIFT]


def test_a_slow_change_is_followed_and_still_told():
    """As day becomes night: a third of a deviation in 8,000 frames."""
    settings = DriftSettings(learn_frames=500, memory_frames=3000)
    detector = Detector(settings)
    frames = independent(8_000, 6)
    frames[:, 0] -= np.linspace(0, 0.05, len(frames))
    assert verdicts(detector, frames) == [(499, Verdict.LEARNED)]
    learned = detector.learned[0]
    assert learned.mean[0] - learned.start[0] < -0.02


def test_an_alarm_ends_when_the_camera_is_as_before():
    detector = trained()
    verdicts(detector, independent(200, 9, -1.0))
    assert detector.alarm
    found = verdicts(detector, independent(1500, 10))
    assert [verdict for _, verdict in found] == [Verdict.RECOVERED]
    assert not detector.alarm
    assert detector.shift == 0


def test_an_alarm_that_lasts_becomes_normal_after_a_while():
    detector = Detector(DriftSettings(learn_frames=500, adopt_frames=1000))
    verdicts(detector, independent(2000, 1))
    found = [verdict for _, verdict in verdicts(detector, independent(4000, 9, -2.0))]
    assert found == [Verdict.DRIFT, Verdict.ADOPTED, Verdict.LEARNED]
    assert detector.learned[0].mean[0] == pytest.approx(11 - 0.3, abs=0.05)


def test_an_alarm_that_lasts_at_a_level_that_was_never_learned_becomes_normal_too():
    detector = Detector(DriftSettings(learn_frames=500, adopt_frames=1000))
    verdicts(detector, independent(2000, 1))
    ((at, verdict),) = verdicts(detector, independent(200, 9, -2.0))
    assert verdict is Verdict.DRIFT
    found = verdicts(detector, independent(2000, 10, -2.0), level=1)
    still = 1000 - (199 - at)  # the alarm's frames of the level before count, too
    assert found == [(still - 1, Verdict.ADOPTED), (still + 499, Verdict.LEARNED)]
    assert list(detector.learned) == [1]


def test_each_level_has_a_baseline_of_its_own():
    detector = Detector(FAST)
    for k, frame in enumerate(independent(4000, 2)):
        away = np.zeros(NUMBERS)
        away[0] = 2.0 * (k % 2)
        assert detector.tell(frame + away, k % 2) in (Verdict.NOTHING, Verdict.LEARNED)
    assert detector.learned[1].mean[0] - detector.learned[0].mean[0] == pytest.approx(2, abs=0.05)


def test_no_level_is_learned_during_an_alarm_and_not_too_many_ever():
    detector = trained()
    verdicts(detector, independent(200, 9, -2.0))
    verdicts(detector, independent(600, 9), level=1)
    assert list(detector.learned) == [0]
    many = Detector(FAST)
    for level in range(256):
        many.tell(USUAL, level)
    assert many.waiting == MAX_LEVELS * NUMBERS


@pytest.mark.parametrize(
    "wrong", [{"learn_frames": 210}, {"learn_frames": 0}, {"allowances": (0.0, 1.0)}, {"memory_frames": 1}, {"more": 1}]
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, DriftSettings)


# The watch


def record(profile, *, client="gate", stream=b"s" * 16, model="tiny", frame_id=0, code=0, kind=Kind.SYMBOLS, level=0):
    packet = Packet(CodecId.RANS, level, frame_id, 0, b"payload", stream or bytes(16), bytes(16), kind)
    return FrameRecord(StreamInfo(client, model, stream), 1, packet, 31, pb.Result(code=code), 9, 0.0, profile)


def tell(watch: DriftWatch, frames, **how) -> None:
    for k, frame in enumerate(frames):
        watch.frame_done(record(frame, frame_id=k, **how))


def test_alarms_are_counted_by_model_and_told_with_all_that_is_known(caplog):
    caplog.set_level(logging.INFO)
    events = []
    watch = DriftWatch(FAST, on_event=events.append)
    tell(watch, independent(1000, 1))
    tell(watch, independent(1000, 2), client="other")
    assert watch.in_alarm.get("tiny", 0) == 0
    tell(watch, independent(200, 3, -1.0))
    assert watch.in_alarm == {"tiny": 1}
    assert watch.alarms_total == {"tiny": 1}
    (event,) = events
    (alarm,) = watch.alarms(5)
    assert (alarm.camera, alarm.statistic) == (event.camera, event.statistic)
    assert alarm.shift < 0
    assert abs(alarm.since_us - event.time_us) < 1e6
    assert watch.alarms(0) == []
    assert event.verdict is Verdict.DRIFT
    assert event.camera == ("gate", "tiny", bytes(16), b"s" * 16)
    assert event.frames == 1000 + event.frame_id + 1
    assert event.statistic in STATISTICS
    assert "gate/73737373 (tiny)" in caplog.text
    assert f"at frame {event.frame_id}" in caplog.text
    first, second = watch.status()
    assert (first["state"], first["client"], second["state"]) == ("alarm", "gate", "normal")
    assert first["statistic"] == event.statistic
    assert second["shift"] is None
    assert second["levels"]["0"]["bits_per_symbol"] == pytest.approx(2048, rel=0.05)
    msgspec.json.encode(watch.status())
    assert len(watch.status(most=1)) == 1


def test_what_is_not_a_cameras_frame_is_left_out():
    watch = DriftWatch(FAST)
    watch.frame_done(record(USUAL, code=3))
    watch.frame_done(record(USUAL, stream=b""))
    watch.frame_done(record(None, kind=Kind.IMAGE))
    assert watch.status() == []


def test_the_number_of_cameras_and_of_frames_in_memory_is_bounded(monkeypatch):
    watch = DriftWatch(FAST, max_cameras=3)
    for k in range(10):
        tell(watch, independent(2, k), stream=bytes([k]) * 16)
    assert [one["stream_id"][:2] for one in watch.status()] == ["09", "08", "07"]
    monkeypatch.setattr(watching, "MAX_LEARNING", 50 * NUMBERS)
    tell(watch, independent(49, 1), stream=b"z" * 16)
    assert [one["client"] for one in watch.status()] == ["gate"]
    assert watch._learning == 49 * NUMBERS


def test_cameras_that_learn_do_not_push_out_those_that_are_watched(monkeypatch):
    watch = DriftWatch(FAST)
    tell(watch, independent(1000, 1))
    tell(watch, independent(200, 3, -2.0))
    tell(watch, independent(300, 1), stream=b"b" * 16)
    monkeypatch.setattr(watching, "MAX_LEARNING", 310 * NUMBERS)
    tell(watch, independent(20, 1), stream=b"c" * 16)
    assert watch.in_alarm == {"tiny": 1}
    assert {one["stream_id"][:2] for one in watch.status()} == {b"s".hex(), b"c".hex()}
    assert watch._learning == 20 * NUMBERS


def test_a_forgotten_camera_is_not_in_alarm_any_more():
    watch = DriftWatch(FAST, max_cameras=1)
    tell(watch, independent(1000, 1))
    tell(watch, independent(200, 3, -2.0))
    assert watch.in_alarm == {"tiny": 1}
    tell(watch, independent(1, 1), stream=b"t" * 16)
    assert watch.in_alarm == {}
    assert watch.alarms(10) == []


def test_somebody_accepts_what_a_camera_sees_now():
    watch = DriftWatch(FAST)
    tell(watch, independent(1000, 1))
    tell(watch, independent(200, 3, -2.0))
    assert watch.accept("gate", b"s" * 16) == 1
    assert watch.accept("gate", b"x" * 16) == 0
    assert watch.in_alarm == {}
    assert watch.alarms(10) == []
    tell(watch, independent(1000, 4, -2.0))
    assert watch.alarms_total == {"tiny": 1}
    assert watch.status()[0]["state"] == "normal"


def test_baselines_survive_a_restart(tmp_path):
    path = tmp_path / "drift.bin"
    watch = DriftWatch(FAST)
    assert watch.load(path) == 0
    tell(watch, independent(1000, 1))
    tell(watch, independent(1000, 1), client="second")
    tell(watch, independent(200, 3, -2.0), client="second")
    watch.save(path)
    again = DriftWatch(FAST)
    assert again.load(path) == 2
    assert again.in_alarm == {"tiny": 1}
    tell(again, independent(200, 3, -2.0))
    assert again.in_alarm == {"tiny": 2}
    tell(again, independent(1500, 4), client="second")
    assert again.in_alarm == {"tiny": 1}
    small = DriftWatch(FAST, max_cameras=1)
    assert small.load(path) == 1


def test_a_file_of_all_cameras_with_all_levels_can_be_read_again():
    """A number takes nine bytes."""
    state = trained().state
    state.baselines = dict.fromkeys(range(MAX_LEVELS), state.baselines[0])
    assert 1.05 * len(msgspec.msgpack.encode(state)) * watching.MAX_CAMERAS < watching.MAX_STATE_BYTES


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x80", b"x" * 1000])
def test_files_that_hold_no_drift_state(tmp_path, content):
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(DriftStateError, match="no drift state"):
        DriftWatch(FAST).load(tmp_path / "state")


def test_drift_state_that_lies(tmp_path):
    path = tmp_path / "state"
    watch = DriftWatch(FAST)
    tell(watch, independent(600, 1))
    whole = msgspec.msgpack.decode(watch.encode())
    whole["cameras"][0]["state"]["baselines"][0][0][1][0] = -1.0
    path.write_bytes(msgspec.msgpack.encode(whole))
    with pytest.raises(DriftStateError, match="a baseline that is none"):
        DriftWatch(FAST).load(path)
    whole["cameras"][0]["state"]["baselines"][0][0][1][0] = 1.0
    whole["cameras"][0]["state"]["baselines"][0][1].pop()
    path.write_bytes(msgspec.msgpack.encode(whole))
    with pytest.raises(DriftStateError, match="a baseline that is none"):
        DriftWatch(FAST).load(path)
    whole["schema"] = 1
    path.write_bytes(msgspec.msgpack.encode(whole))
    with pytest.raises(DriftStateError, match="schema 1; this release reads 2"):
        DriftWatch(FAST).load(path)


def test_profiles_are_made_only_where_somebody_wants_them():
    assert not Observers([Silent()]).wants_profiles
    assert Observers([Silent(), DriftWatch()]).wants_profiles
