"""Sources: real files, pipes, sockets and streams; and what keeps them running."""

from __future__ import annotations

import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.waiting import until

from narrowcast.head.errors import SourceError
from narrowcast.head.sources import Captured, Feed, open_source
from narrowcast.head.sources import feed as feeds
from narrowcast.head.sources.files import WatchedFolder
from narrowcast.head.sources.raw import RawForm, read_frames
from narrowcast.head.sources.video import without_password
from narrowcast.transport.contract import MAX_SIDE
from narrowcast.transport.errors import ConfigError, FrameError
from narrowcast.transport.frames import to_rgb

try:
    import av
except ImportError:
    av = None

wants_av = pytest.mark.skipif(av is None, reason="PyAV (narrowcast[video]) is not installed")
FRAME = np.zeros((4, 6, 3), np.uint8)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(feeds, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(feeds, "CLOSE_SECONDS", 0.1)


class Scripted:
    """A live source whose openings are what the test says."""

    name, live, paced = "camera", True, False

    def __init__(self, *openings, live: bool = True) -> None:
        self.openings, self.opened, self.live = list(openings), 0, live
        self.closed = threading.Event()

    def frames(self):
        self.opened += 1
        yield from self.openings[min(self.opened, len(self.openings)) - 1](self)

    def close(self):
        self.closed.set()


def brings(*levels):
    def opening(source):
        for level in levels:
            yield Captured.now(np.full((2, 2, 3), level, np.uint8), str(level))

    return opening


def hangs(source):
    yield Captured.now(FRAME, "last")
    source.closed.wait(20)


def stuck(source):
    """In a driver, deaf to everything."""
    source.gone = getattr(source, "gone", threading.Event())
    source.gone.wait(20)
    yield Captured.now(FRAME, "too late")


def fails(source):
    raise OSError(19, "No such device")
    yield


def names(frames) -> list[str]:
    return [frame.name for frame in frames]


class TestFeed:
    def test_live_drops_the_oldest(self):
        dropped = []
        source = Scripted(brings(*range(50)), hangs)
        with Feed(source, queue=3, on_drop=lambda: dropped.append(1)) as feed:
            until(lambda: source.opened == 2 and len(feed._frames) == 3, "all have come")
            until(lambda: feed.counters.dropped == 48, "the oldest are dropped")
            frames = iter(feed)
            assert names(next(frames) for _ in range(3)) == ["48", "49", "last"]
        assert len(dropped) == 48

    def test_files_wait(self):
        source = Scripted(brings(*range(50)), live=False)
        with Feed(source, queue=3) as feed:
            until(lambda: len(feed._frames) == 3, "the queue is full")
            assert names(feed) == [str(k) for k in range(50)]
        assert (feed.counters.frames, feed.counters.dropped, source.opened) == (50, 0, 1)

    def test_a_camera_that_vanishes_is_opened_again(self):
        troubles = []
        source = Scripted(brings(1), fails, fails, brings(2), hangs)
        with Feed(source, on_trouble=troubles.append, queue=100) as feed:
            frames = iter(feed)
            assert names(next(frames) for _ in range(3)) == ["1", "2", "last"]
        assert source.opened == 5
        assert "camera: it has ended; opening it again" in troubles[0]
        assert "camera: OSError: [Errno 19] No such device; opening it again" in troubles[1]

    def test_one_that_is_gone_for_months_is_told_of_while_pauses_grow(self, monkeypatch):
        monkeypatch.setattr(feeds, "LONGEST_PAUSE_SECONDS", 0.03)
        troubles = []
        source = Scripted(*[fails] * 30, brings(1), hangs)
        with Feed(source, on_trouble=troubles.append) as feed:
            assert next(iter(feed)).name == "1"
            until(lambda: source.opened == 32, "it is opened again")
        assert len(troubles) == 3  # 0.01 and 0.02 s, and that it has ended
        assert "it has ended; opening it again in 0.0 s" in troubles[-1]

    def test_a_camera_that_hangs(self):
        """The watchdog closes it; a thread that hears nothing is left behind, and what it says later is not heard."""
        source = Scripted(hangs, stuck, brings(3), hangs)
        with Feed(source, watchdog_seconds=1, queue=100) as feed:
            frames = iter(feed)
            assert names(next(frames) for _ in range(2)) == ["last", "3"]
            assert feed.counters.hangs == 2
            source.closed.clear()
            source.gone.set()
            assert next(frames).name == "last"

    def test_one_that_hangs_for_good(self):
        source = Scripted(stuck)
        with pytest.raises(SourceError, match="4 tries to read it hang in the system"):
            with Feed(source, watchdog_seconds=0.01) as feed:
                list(feed)
        source.gone.set()

    def test_one_whose_hung_opening_keeps_it_from_those_after(self, monkeypatch):
        """The thread that hangs has the device: whoever opens it again is told that it is busy, for ever."""
        monkeypatch.setattr(feeds, "LONGEST_PAUSE_SECONDS", 0.01)
        source = Scripted(stuck, fails)
        with Feed(source, watchdog_seconds=0.05) as feed:
            until(lambda: feed._ended, "the source counts as lost")
            with pytest.raises(SourceError, match="hangs in the system, and 6 after it brought nothing"):
                next(iter(feed))
        assert source.opened == 7
        source.gone.set()

    def test_failures_beside_a_hung_opening_count_in_a_row(self, monkeypatch):
        monkeypatch.setattr(feeds, "LONGEST_PAUSE_SECONDS", 0.01)

        def patient(source):
            feed._watchdog = 60  # what comes from now on may take its time
            yield from fails(source)

        source = Scripted(stuck, patient, *[*[fails] * 4, brings(1), fails] * 3, hangs)
        with Feed(source, watchdog_seconds=0.1, queue=10) as feed:
            frames = iter(feed)
            assert names(next(frames) for _ in range(4)) == ["1", "1", "1", "last"]
        source.gone.set()

    def test_an_error_of_a_file_is_raised_after_its_frames(self):
        def breaks(source):
            yield from brings(1, 2)(source)
            raise SourceError("damaged")

        with Feed(Scripted(breaks, live=False), queue=1) as feed:
            frames = iter(feed)
            assert names([next(frames), next(frames)]) == ["1", "2"]
            with pytest.raises(SourceError, match="damaged"):
                next(frames)

    def test_a_frame_rate_limit(self):
        begin = time.monotonic() - 10

        def camera(source):  # 30 a second, by its own clock
            for k in range(91):
                yield Captured(FRAME, begin + k / 30, str(k))

        with Feed(Scripted(camera, hangs), fps=10, queue=100) as feed:
            until(lambda: feed.counters.openings == 2 and len(feed._frames) >= 31, "all have come")
            assert 31 <= len(feed._frames) <= 32
            assert feed.counters.skipped == 60

    @pytest.mark.parametrize("options", [{"fps": 0}, {"queue": 0}, {"watchdog_seconds": 0}])
    def test_settings_that_cannot_be(self, options):
        with pytest.raises(ConfigError, match="a source with"):
            Feed(Scripted(hangs), **options)


def save(path: Path, level: int) -> None:
    Image.fromarray(np.full((4, 6, 3), level, np.uint8)).save(path)


class TestFolders:
    def test_a_folder_and_a_file(self, tmp_path):
        for k in (2, 0, 1):
            save(tmp_path / f"{k}.png", k)
        (tmp_path / "3.png").write_bytes(b"broken")
        troubles = []
        source = open_source(str(tmp_path), on_trouble=troubles.append)
        with Feed(source) as feed:
            assert [int(frame.image[0, 0, 0]) for frame in feed] == [0, 1, 2]
        assert source.skipped == len(troubles) == 1
        with Feed(open_source(str(tmp_path / "1.png"))) as feed:
            assert names(feed) == [str(tmp_path / "1.png")]

    def test_an_image_that_no_network_takes_is_one_image(self, tmp_path, monkeypatch):
        monkeypatch.setattr("narrowcast.head.sources.files.PATIENCE_SECONDS", 0.05)
        for name in ("a", "c"):
            save(tmp_path / f"{name}.png", 1)
        Image.fromarray(np.zeros((1, MAX_SIDE + 1, 3), np.uint8)).save(tmp_path / "b.png")
        said = f"skipped: {tmp_path / 'b.png'} has {MAX_SIDE + 1} x 1 pixels; a side has {MAX_SIDE} at most"
        troubles = []
        source = open_source(str(tmp_path), on_trouble=troubles.append)
        with Feed(source) as feed:
            assert [Path(name).name for name in names(feed)] == ["a.png", "c.png"]
        assert (troubles, source.skipped) == ([said], 1)
        with Feed(WatchedFolder(tmp_path, troubles.append, poll_seconds=0.02)) as feed:
            frames = iter(feed)
            assert [Path(next(frames).name).name for _ in range(2)] == ["a.png", "c.png"]
            until(lambda: troubles == [said, said], "it is told of")

    def test_watched(self, tmp_path, monkeypatch):
        """Half a file is not a frame; one that is written over is a new one."""
        monkeypatch.setattr("narrowcast.head.sources.files.PATIENCE_SECONDS", 0.05)
        folder, troubles = tmp_path / "inbox", []
        source = WatchedFolder(folder, troubles.append, poll_seconds=0.02)
        with Feed(source) as feed:
            frames = iter(feed)
            folder.mkdir()
            save(folder / "a.png", 1)
            assert next(frames).image[0, 0, 0] == 1
            whole = (folder / "a.png").read_bytes()
            (folder / "b.png").write_bytes(whole[:40])
            until(lambda: troubles, "half a file is told of")
            (folder / "b.png").write_bytes(whole)
            assert next(frames).name.endswith("b.png")
            (folder / ".c.png").write_bytes(whole)
            (folder / ".c.png").rename(folder / "c.png")
            assert next(frames).name.endswith("c.png")
            save(folder / "a.png", 9)
            assert next(frames).image[0, 0, 0] == 9
        assert len(troubles) == 1

    def test_a_file_that_is_not_there_any_more_hides_none_behind_it(self, tmp_path):
        looks = Looks(tmp_path)
        with Feed(looks) as feed:
            frames = iter(feed)
            (tmp_path / "a.png").symlink_to("nowhere")
            save(tmp_path / "b.png", 1)
            until(lambda: feed._frames, "what lies behind a link to nowhere is read")
            assert next(frames).name.endswith("b.png")

    def test_what_was_told_stays_told_while_another_file_or_the_folder_cannot_be_looked_at(self, tmp_path):
        folder = tmp_path / "inbox"
        folder.mkdir()
        save(folder / "b.png", 1)
        looks = Looks(folder)
        with Feed(looks) as feed:
            frames = iter(feed)
            assert next(frames).name.endswith("b.png")
            (folder / "a.png").symlink_to("nowhere")
            looks.wait()
            (folder / "a.png").unlink()
            looks.wait()
            folder.rename(tmp_path / "aside")
            looks.wait()
            (tmp_path / "aside").rename(folder)
            looks.wait()
            save(folder / "c.png", 2)
            assert next(frames).name.endswith("c.png")


class Looks(WatchedFolder):
    """Counts them."""

    def __init__(self, folder: Path) -> None:
        self.count = 0
        super().__init__(folder, poll_seconds=0.01)

    def _look(self):
        found = super()._look()
        self.count += 1
        return found

    def wait(self) -> None:
        """For some that begin from now on, and what follows from them."""
        until(lambda before=self.count: self.count >= before + 4, "it is looked at")


class TestRaw:
    @pytest.mark.parametrize("layout", ["rgb", "bgr", "rgba", "gray", "nv12"])
    def test_from_a_pipe(self, tmp_path, layout):
        form = RawForm.parse(f"6x4:{layout}")
        pixels = np.random.default_rng(0).integers(0, 256, (5, *form.shape)).astype(np.uint8)
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(pixels.tobytes()))
        writer.start()
        with Feed(open_source(str(tmp_path / "pipe"), raw=form)) as feed:
            found = [frame.image for frame in feed]
        writer.join()
        assert np.array_equal(found, [to_rgb(one, layout) for one in pixels])

    def test_a_pipe_that_is_left_before_its_writer_comes_is_the_next_readers(self, tmp_path):
        path, form = tmp_path / "pipe", RawForm(6, 4)
        os.mkfifo(path)
        with Feed(open_source(str(path), raw=form)) as feed:
            reading = f"{path}-1"
            until(lambda: reading in {thread.name for thread in threading.enumerate()}, "it waits for a writer")
        until(lambda: reading not in {thread.name for thread in threading.enumerate()}, "it has left the pipe")
        with Feed(open_source(str(path), raw=form)) as feed:
            writer = threading.Thread(target=lambda: path.write_bytes(bytes(72 * 5)))
            writer.start()
            assert len(list(feed)) == 5
            writer.join()

    def test_what_is_closed_takes_nothing_more(self, tmp_path):
        reader, writer = os.pipe()
        os.write(writer, bytes(72))
        assert list(read_frames("pipe", reader, RawForm(6, 4), lambda: True)) == []
        assert os.read(reader, 100) == bytes(72)
        os.close(reader)
        os.close(writer)
        (tmp_path / "frames").write_bytes(bytes(72))
        source = open_source(str(tmp_path / "frames"), raw=RawForm(6, 4))
        source.close()
        assert list(source.frames()) == []

    def test_from_stdin(self):
        code = (
            "import sys; from narrowcast.head.sources import Feed, open_source; from narrowcast.head.sources.raw import *\n"
            "with Feed(open_source('-', raw=RawForm.parse('2x1'))) as feed: print([f.image.tolist() for f in feed])"
        )
        done = subprocess.run([sys.executable, "-c", code], input=bytes(range(12)), capture_output=True, check=True)
        assert eval(done.stdout) == [[[[0, 1, 2], [3, 4, 5]]], [[[6, 7, 8], [9, 10, 11]]]]

    def test_half_a_frame_at_the_end(self, tmp_path):
        (tmp_path / "frames").write_bytes(bytes(72 + 10))
        with Feed(open_source(str(tmp_path / "frames"), raw=RawForm(6, 4))) as feed:
            frames = iter(feed)
            next(frames)
            with pytest.raises(SourceError, match="ends after 10 of the 72 bytes of frame 1: is 6x4:rgb right"):
                next(frames)

    def test_a_socket_takes_one_writer_after_the_other(self, tmp_path):
        path = tmp_path / "camera.sock"
        with Feed(open_source(f"unix:{path}", raw=RawForm(6, 4)), queue=10) as feed:
            assert path.stat().st_mode & 0o777 == 0o600
            frames = iter(feed)
            for level in (1, 2):
                with socket.socket(socket.AF_UNIX) as writer:
                    writer.connect(str(path))
                    writer.sendall(bytes([level]) * 72 * 2)
                assert [int(next(frames).image[0, 0, 0]) for _ in range(2)] == [level] * 2
        assert not path.exists()
        (tmp_path / "file").write_text("")
        with pytest.raises(SourceError, match="a file that is no socket"):
            open_source(f"unix:{tmp_path / 'file'}", raw=RawForm(6, 4))

    @pytest.mark.parametrize("text", ["640", "640x", "640x480:yuv", "0x4", "5x4:nv12", "99999x99999", "axb"])
    def test_forms_that_cannot_be(self, text):
        with pytest.raises(ConfigError, match="raw frames of"):
            RawForm.parse(text)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Ten frames, each brighter than the one before, as a file."""
    if av is None:
        pytest.skip("PyAV (narrowcast[video]) is not installed")
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * k + 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# A track's matrix (a point's x' = ax + cy, y' = bx + dy), and where the stored picture's top left comes to lie: row, column.
TURNS = {
    (1, 0, 0, 1): (0, 0),
    (0, 1, -1, 0): (0, 1),  # a quarter clockwise: a phone that is held upright
    (-1, 0, 0, -1): (1, 1),
    (0, -1, 1, 0): (1, 0),
}


def check_film(frames) -> None:
    assert [round(float(frame.image.mean()) / 20) for frame in frames] == list(range(1, 11))
    assert {frame.image.shape for frame in frames} == {(48, 64, 3)}


class TestVideo:
    def test_a_file(self, film):
        with Feed(open_source(str(film))) as feed:
            frames = list(feed)
        check_film(frames)
        assert frames[3].name == f"{film}@0.300"

    @pytest.mark.parametrize(("turn", "corner"), TURNS.items())
    def test_a_phones_clip_is_upright(self, tmp_path, turn, corner):
        """As players show it: the film's bright corner, at the top left as it is stored, comes to lie elsewhere."""
        if av is None:
            pytest.skip("PyAV (narrowcast[video]) is not installed")
        path, pixels = tmp_path / "clip.mp4", np.zeros((48, 64, 3), np.uint8)
        pixels[:16, :16] = 255
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        data = bytearray(path.read_bytes())
        matrix = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2, version 0
        assert struct.unpack_from(">4i", data, matrix) == (1 << 16, 0, 0, 0)
        a, b, c, d = (number << 16 for number in turn)
        struct.pack_into(">9i", data, matrix, a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(data)
        with Feed(open_source(str(path))) as feed:
            (frame,) = list(feed)
        assert frame.image.shape == ((64, 48, 3) if turn[1] else (48, 64, 3))
        rows, columns = (slice(None, 12) if side == 0 else slice(-12, None) for side in corner)
        assert frame.image[rows, columns].mean() > 200
        assert frame.image.mean() < 60
        assert frame.image.flags.c_contiguous

    def test_what_is_none(self, film, tmp_path):
        (tmp_path / "text.mp4").write_text("not a film")
        with Feed(open_source(str(tmp_path / "text.mp4"))) as feed:
            with pytest.raises(SourceError, match="text.mp4: Invalid data"):
                list(feed)
        (tmp_path / "half.mp4").write_bytes(film.read_bytes()[:200])
        with Feed(open_source(str(tmp_path / "half.mp4"))) as feed:
            with pytest.raises(SourceError, match="half.mp4: "):
                list(feed)

    @wants_av
    def test_a_stream_over_http_that_breaks_off_and_comes_back(self):
        """MJPEG as network cameras send it; the first connection ends in the middle."""
        sent = []

        class Camera(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                sent.append(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for k in range(8):
                    jpeg = frames[min(k + 8 * (len(sent) > 1), 15)]
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
                    self.wfile.write(head + jpeg + b"\r\n")

        frames = [jpeg_of(10 * k) for k in range(16)]
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://user:secret@127.0.0.1:{server.server_address[1]}/live?key=secret"
            troubles = []
            with Feed(open_source(address), queue=100, on_trouble=troubles.append) as feed:
                found, frames_of = [], iter(feed)
                while len(found) < 10:
                    found.append(next(frames_of))
            server.shutdown()
        assert len(sent) >= 2
        assert not any("secret" in text for text in [*troubles, *names(found)])
        assert all("127.0.0.1" in line for line in troubles)

    @wants_av
    def test_nobody_there(self):
        troubles = []
        with Feed(open_source("http://127.0.0.1:9/live"), on_trouble=troubles.append) as feed:
            until(lambda: len(troubles) >= 2, "it is tried again")
            assert feed.counters.openings >= 2
        assert "refused" in troubles[0]

    @wants_av
    def test_a_camera_that_is_not_there(self):
        troubles = []
        with Feed(open_source("/dev/video99"), on_trouble=troubles.append):
            until(lambda: troubles, "it is told")
        assert "/dev/video99: no such camera; opening it again" in troubles[0]

    @wants_av
    def test_a_real_camera(self):
        if not Path("/dev/video0").exists():
            pytest.skip("there is no camera (/dev/video0)")
        with Feed(open_source("/dev/video0")) as feed:
            assert next(iter(feed)).image.ndim == 3


def jpeg_of(level: int) -> bytes:
    import io

    out = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), level, np.uint8)).save(out, "jpeg")
    return out.getvalue()


@pytest.mark.parametrize(
    ("uri", "options", "error", "said"),
    [
        ("-", {}, ConfigError, "--raw"),
        ("unix:/x", {}, ConfigError, "--raw"),
        ("gopher://x", {}, ConfigError, "no source gopher://"),
        ("nothing", {}, FrameError, "no image or folder nothing"),
        (__file__, {"watch": True}, ConfigError, "cannot be watched"),
    ],
)
def test_names_that_are_none(uri, options, error, said):
    with pytest.raises(error, match=said):
        open_source(uri, **options)


def test_passwords_are_not_told():
    assert without_password("rtsp://me:secret@camera:554/1?token=x") == "rtsp://camera:554/1"
    assert without_password("/dev/video0") == "/dev/video0"
