"""What is taken for a camera's frames."""

from __future__ import annotations

import pytest

from narrowcast.head.sources import is_film


@pytest.mark.parametrize(
    "source", ["/dev/video0", "rtsp://camera/1", "http://camera/live.jpg", "film.mp4", "-", "unix:/run/x"]
)
def test_cameras_streams_videos_and_raw_frames_follow_one_another(source):
    assert is_film(source)


def test_images_need_not(tmp_path):
    assert not is_film(str(tmp_path))
    assert not is_film("frame.PNG")
    assert not is_film("not-there-yet", watch=True)
