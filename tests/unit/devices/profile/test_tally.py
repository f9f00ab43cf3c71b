"""What one way's frames took, put together."""

from __future__ import annotations

from narrowcast.devices.profile.runners import Sample, WayInfo
from narrowcast.devices.profile.tally import MAX_SIZES, Tally


def test_each_different_frames_packet_is_told_whatever_came_back_how_often():
    tally = Tally(WayInfo("split-0@real", "split", "a split", "real"))
    assert tally.up_bytes_by_frame() == []
    for frame, failed in ((0, None), (1, "DEADLINE_EXCEEDED"), (2, None), (3, "UNAVAILABLE"), (0, None)):
        tally.add(Sample(1.0, {}, {}, failed, up_bytes=100 + frame), None, 0, frame)
    assert tally.up_bytes_by_frame() == [100.0, None, 102.0]
    tally.add(Sample(1.0, {}, {}, up_bytes=100), None, 0, MAX_SIZES)
    assert len(tally.up_bytes_by_frame()) == 3
