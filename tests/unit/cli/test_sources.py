"""What is taken for a camera's frames, and which of them are sent by reference."""

from __future__ import annotations

import pytest
from support import bundles

from narrowcast.head.sources import is_film
from narrowcast.head.video.wanted import by_reference


@pytest.mark.parametrize(
    "source", ["/dev/video0", "rtsp://camera/1", "http://camera/live.jpg", "film.mp4", "-", "unix:/run/x"]
)
def test_cameras_streams_videos_and_raw_frames_follow_one_another(source):
    assert is_film(source)


def test_images_need_not(tmp_path):
    assert not is_film(str(tmp_path))
    assert not is_film("frame.PNG")
    assert not is_film("not-there-yet", watch=True)


def test_symbols_of_a_film_go_by_reference_where_the_bundle_has_the_tables(tmp_path):
    with_tables = bundles.open_made(bundles.with_video(bundles.make()).write(tmp_path / "video.ncb"), "device")
    without = bundles.open_made(bundles.make().write(tmp_path / "tiny.ncb"), "device")
    assert by_reference("auto", with_tables, "film.mp4", offload=None)
    assert by_reference("auto", with_tables, "film.mp4", offload="auto")
    assert not by_reference("auto", without, "film.mp4", offload=None)
    assert not by_reference("auto", with_tables, "photo.png", offload=None)
    assert not by_reference("auto", with_tables, "film.mp4", way="image", offload=None)
    for offload in ("image", "local"):  # nothing that could refer to anything
        assert not by_reference("auto", with_tables, "film.mp4", offload=offload)
    assert by_reference("on", without, "photo.png", offload=None)
    assert not by_reference("off", with_tables, "film.mp4", offload=None)
