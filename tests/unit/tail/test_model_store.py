"""A folder of bundles that changes while it is served."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from support import bundles

from narrowcast.head.session import HeadSession
from narrowcast.tail.backends import BackendSettings
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.errors import DowngradeError, ModelUnavailableError, StoreError
from narrowcast.tail.models import ModelTable
from narrowcast.tail.store import ModelStore, StoreSettings
from narrowcast.transport.bundle import describe_part
from narrowcast.transport.errors import PartHashError, UnsignedBundleError
from narrowcast.transport.packet import CodecId, Packet
from narrowcast.transport.rpc.tensors import from_tensors

TRUSTED = [bundles.trusted_key()]
ONE_THREAD = BackendSettings(threads=1, max_batch=2)


def made(release: int = 1, *, codec: int = 0, name: str = "tiny") -> bundles.Made:
    """A bundle; those of another ``codec`` have another fingerprint, as after training anew."""
    one = bundles.make(name, release)
    return bundles.with_codec(one, codec) if codec else one


def publish(folder: Path, file: str, one: bundles.Made, **options) -> None:
    """By renaming it into the folder."""
    one.write(folder / f"{file}.partial", **options)
    (folder / f"{file}.partial").rename(folder / file)


class Recorder:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[list] = []

    def models_changed(self, models) -> None:
        self.told.append(list(models))


class Running:
    """A store on a folder, with its table."""

    def __init__(self, folder: Path, **settings) -> None:
        self.folder = folder
        self.table = ModelTable()
        self.recorder = Recorder()
        self.batchers: list[weakref.ref[Batcher]] = []
        settings = {"trusted": TRUSTED, "backend": ONE_THREAD, "interval_seconds": 0.0, **settings}
        self.store = ModelStore(StoreSettings(folder, **settings), self.table, self.batcher, [self.recorder])

    def batcher(self, model) -> Batcher:
        made = Batcher(model, max_batch=2)
        self.batchers.append(weakref.ref(made))
        return made

    async def __aenter__(self) -> Running:
        await self.store.open()
        return self

    async def __aexit__(self, *_) -> None:
        await self.store.close()
        for slot in self.table:
            await slot.batcher.close()

    def releases(self) -> list[tuple[str, int]]:
        return sorted((slot.name, slot.batcher.model.manifest.release) for slot in self.table)

    def row(self, file: str, state: str):
        return next((row for row in self.store.status() if (row.file, row.state) == (file, state)), None)

    async def until(self, condition, what: str) -> None:
        """Polls with a bound."""
        async with asyncio.timeout(20) if hasattr(asyncio, "timeout") else _Bound(20):
            while not condition():
                await asyncio.sleep(0.01)
        assert condition(), what

    async def serves(self, *releases) -> None:
        wanted = sorted(("tiny", one) if isinstance(one, int) else one for one in releases)
        await self.until(lambda: self.releases() == wanted, f"serving {wanted}")


class _Bound:
    """``asyncio.timeout`` for Python 3.10."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handle = asyncio.get_running_loop().call_later(self._seconds, task.cancel)

    async def __aexit__(self, *_) -> None:
        self._handle.cancel()


async def test_of_each_codec_the_highest_release_is_served(tmp_path):
    for file, one in {"1": made(1), "2": made(2), "3": made(3, codec=1), "b": made(7, name="b")}.items():
        publish(tmp_path, f"{file}.ncb", one)
    async with Running(tmp_path) as running:
        assert running.releases() == [("b", 7), ("tiny", 2), ("tiny", 3)]
        assert running.row("1.ncb", "standby").reason == "release 2 (2.ncb) has the same codec and is served"
        assert (running.row("3.ncb", "ready").name, running.row("3.ncb", "ready").release) == ("tiny", 3)


async def test_keep_bounds_how_many_codecs_of_a_model_are_served(tmp_path):
    for release in (1, 2, 3):
        publish(tmp_path, f"{release}.ncb", made(release, codec=release))
    publish(tmp_path, "b.ncb", made(1, name="b"))
    async with Running(tmp_path, keep=2) as running:
        assert running.releases() == [("b", 1), ("tiny", 2), ("tiny", 3)]
        assert (
            running.row("1.ncb", "standby").reason == "2 later releases of 'tiny' are served, which is what --keep says"
        )
        (tmp_path / "3.ncb").unlink()
        await running.serves(("b", 1), 1, 2)


async def test_a_new_release_takes_the_place_of_the_old_one_and_of_its_memory(tmp_path):
    publish(tmp_path, "1.ncb", made(1))
    async with Running(tmp_path) as running:
        slot = next(iter(running.table))
        old = weakref.ref(slot.batcher.model.backend)
        publish(tmp_path, "2.ncb", made(2))
        await running.serves(2)
        assert next(iter(running.table)) is slot
        assert not slot.retired.is_set()

        def freed() -> bool:
            gc.collect()
            return old() is None and running.batchers[0]() is None

        await running.until(freed, "the old model is freed")
        states = [[row.state for row in rows] for rows in running.recorder.told]
        assert states[0] == ["standby"] or states[0] == ["loading"]
        assert ["ready", "loading"] in states
        assert states[-1] == ["standby", "ready"]


async def test_what_an_old_batcher_took_is_answered(tmp_path):
    publish(tmp_path, "1.ncb", made(1))
    frame = bundles.random_frames(1)[0]
    payload = HeadSession(bundles.open_made(tmp_path / "1.ncb")).encode(frame, 1).payload
    async with Running(tmp_path) as running:
        slot = next(iter(running.table))
        answers = [slot.batcher.submit(Packet(CodecId.RANS, 1, k, 0, payload, bytes(16), bytes(16))) for k in range(40)]
        old = weakref.ref(slot.batcher)
        publish(tmp_path, "2.ncb", made(2))
        await running.serves(2)
        for answer in await asyncio.gather(*answers):
            found = from_tensors(answer.outputs, bundles.OUTPUTS)["output"]
            assert np.allclose(found, bundles.expected_output(frame, 1), atol=1e-4)
        del answers, answer

        def freed() -> bool:
            gc.collect()
            return old() is None

        await running.until(freed, "the old batcher is gone")


@pytest.mark.parametrize("release", [1, 2])
async def test_a_bundle_may_be_replaced_under_its_name(tmp_path, release, caplog):
    publish(tmp_path, "tiny.ncb", made(1))
    async with Running(tmp_path) as running:
        model = next(iter(running.table)).batcher.model
        publish(tmp_path, "tiny.ncb", bundles.with_second_tail(made(release)))
        await running.until(lambda: next(iter(running.table)).batcher.model is not model, "exchanged")
        assert next(iter(running.table)).batcher.model.tails == ["main", "second"]
        assert ("under the same release" in caplog.text) == (release == 1)


async def test_another_codec_under_the_same_name_replaces_the_old_one(tmp_path):
    publish(tmp_path, "tiny.ncb", made(1))
    async with Running(tmp_path) as running:
        slot = next(iter(running.table))
        publish(tmp_path, "tiny.ncb", made(2, codec=1))
        await running.serves(2)
        assert slot.retired.is_set()
        with pytest.raises(ModelUnavailableError, match="release 2 has"):
            running.table.find("tiny", slot.fingerprint)


def head_as_tail() -> bundles.Made:
    model = bundles.head_model()
    part = describe_part("tail.onnx", model, "tail", ["server"], precision="fp32")
    return made(2).with_part(part, model)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (lambda path: path.write_bytes(b"broken"), "is no bundle, or is truncated"),
        (lambda path: path.write_bytes(path.with_name("1.ncb").read_bytes()[:700]), "is no bundle, or is truncated"),
        (lambda path: made(2).write(path, key=None), "is not signed"),
        (lambda path: head_as_tail().write(path), "tail failed"),
    ],
    ids=["broken", "truncated", "unsigned", "does not run"],
)
@pytest.mark.parametrize("file", ["1.ncb", "2.ncb"], ids=["in its place", "beside it"])
async def test_what_is_refused_changes_nothing_and_says_why(tmp_path, caplog, replace, message, file):
    publish(tmp_path, "1.ncb", made(1))
    async with Running(tmp_path) as running:
        model = next(iter(running.table)).batcher.model
        replace(tmp_path / f"{file}.partial")
        (tmp_path / f"{file}.partial").rename(tmp_path / file)
        await running.until(lambda: running.row(file, "failed"), "refused")
        assert message in running.row(file, "failed").reason
        assert message in caplog.text
        assert next(iter(running.table)).batcher.model is model
        assert running.row("1.ncb", "ready").release == 1
        publish(tmp_path, file, made(3))  # and a sound one behind it is taken
        await running.serves(3)
        assert running.row(file, "failed") is None


async def test_an_older_release_under_the_same_name_is_refused(tmp_path):
    publish(tmp_path, "tiny.ncb", made(5))
    async with Running(tmp_path) as running:
        publish(tmp_path, "tiny.ncb", made(4))
        await running.until(lambda: running.row("tiny.ncb", "failed"), "refused")
        row = running.row("tiny.ncb", "failed")
        assert row.reason.startswith(
            "tiny.ncb was release 5 of 'tiny' and is release 4 now, with the same codec; release 5"
        )
        assert row.release == 4
        assert running.releases() == [("tiny", 5)]
        (tmp_path / "tiny.ncb").unlink()
        await running.serves()
    assert issubclass(DowngradeError, StoreError)


async def test_taking_the_newer_one_away_goes_back_to_the_older_one(tmp_path):
    publish(tmp_path, "1.ncb", made(1))
    publish(tmp_path, "2.ncb", made(2))
    async with Running(tmp_path) as running:
        slot = next(iter(running.table))
        (tmp_path / "2.ncb").unlink()
        await running.serves(1)
        assert not slot.retired.is_set()


async def test_a_file_that_is_taken_out_is_unloaded(tmp_path):
    publish(tmp_path, "a.ncb", made(1))
    publish(tmp_path, "b.ncb", made(1, name="b"))
    async with Running(tmp_path) as running:
        slot = running.table.find("tiny", bytes.fromhex(made(1).manifest.fingerprint))
        (tmp_path / "a.ncb").unlink()
        await running.serves(("b", 1))
        assert slot.retired.is_set()
        assert [row.file for row in running.store.status()] == ["b.ncb"]
        publish(tmp_path, "a.ncb", made(1))
        await running.serves(("b", 1), 1)


async def test_a_renamed_file_is_not_loaded_again(tmp_path):
    publish(tmp_path, "a.ncb", made(1))
    async with Running(tmp_path) as running:
        model = next(iter(running.table)).batcher.model
        (tmp_path / "a.ncb").rename(tmp_path / "z.ncb")
        await running.until(lambda: running.row("z.ncb", "ready"), "under its new name")
        assert next(iter(running.table)).batcher.model is model
        assert len(running.batchers) == 1


async def test_two_of_one_name_and_release_the_loaded_one_stays(tmp_path, caplog):
    publish(tmp_path, "a.ncb", made(1))
    async with Running(tmp_path) as running:
        model = next(iter(running.table)).batcher.model
        publish(tmp_path, "b.ncb", made(1, codec=1))
        await running.until(lambda: running.row("b.ncb", "failed"), "refused")
        assert running.row("b.ncb", "failed").reason == "b.ncb and a.ncb are both 'tiny' release 1; remove one"
        assert "b.ncb and a.ncb are both" in caplog.text
        assert running.row("a.ncb", "ready")
        assert next(iter(running.table)).batcher.model is model
        (tmp_path / "a.ncb").unlink()
        await running.until(lambda: running.row("b.ncb", "ready"), "alone")


async def test_two_of_one_name_and_release_at_the_start_stop_neither_the_others_nor_the_server(tmp_path):
    for file in ("a.ncb", "b.ncb"):
        publish(tmp_path, file, made(1))
    with pytest.raises(StoreError, match="both 'tiny' release 1; remove one"):
        await Running(tmp_path).store.open()
    publish(tmp_path, "c.ncb", made(1, name="c"))
    async with Running(tmp_path) as running:
        assert running.releases() == [("c", 1)]


async def test_a_file_that_is_still_being_written_is_not_served(tmp_path):
    publish(tmp_path, "1.ncb", made(1))
    data = made(2).write(tmp_path / "whole").read_bytes()
    async with Running(tmp_path) as running:
        with (tmp_path / "2.ncb").open("wb") as file:
            for start in range(0, len(data), 400):
                file.write(data[start : start + 400])
                file.flush()
                await asyncio.sleep(0)
                assert running.releases() == [("tiny", 1)]
        await running.serves(2)
        (tmp_path / "3.ncb.partial").write_bytes(made(3).write(tmp_path / "whole").read_bytes())
        (tmp_path / ".3.ncb").write_bytes(b"hidden")
        (tmp_path / "4.ncb").mkdir()
        publish(tmp_path, "b.ncb", made(1, name="b"))
        await running.serves(2, ("b", 1))
        assert {row.file for row in running.store.status()} == {"1.ncb", "2.ncb", "b.ncb"}


async def test_reload_tries_again_what_was_refused(tmp_path, monkeypatch):
    publish(tmp_path, "1.ncb", made(1))
    async with Running(tmp_path) as running:
        from narrowcast.tail import store as module

        real, failing = module.load_model, [True]

        def load(*arguments, **options):
            if failing:
                raise MemoryError("no memory for two")
            return real(*arguments, **options)

        monkeypatch.setattr(module, "load_model", load)
        publish(tmp_path, "2.ncb", made(2))
        await running.until(lambda: running.row("2.ncb", "failed"), "refused")
        assert running.row("2.ncb", "failed").reason == "2.ncb does not load: MemoryError: no memory for two"
        assert running.row("2.ncb", "failed").release == 2
        assert running.releases() == [("tiny", 1)]
        failing.clear()
        running.store.reload()
        await running.serves(2)


async def test_the_interval_finds_what_nobody_told_of(tmp_path, monkeypatch):
    """As on a network drive; here nobody tells because the watch is refused."""
    import asyncinotify

    def refuse(*_, **__):
        raise OSError("no watches left")

    monkeypatch.setattr(asyncinotify, "Inotify", refuse)
    publish(tmp_path, "1.ncb", made(1))
    async with Running(tmp_path, interval_seconds=0.05) as running:
        publish(tmp_path, "2.ncb", made(2))
        await running.serves(2)


async def test_a_folder_that_goes_away_takes_no_model_with_it(tmp_path, caplog):
    folder = tmp_path / "models"
    folder.mkdir()
    publish(folder, "1.ncb", made(1))
    async with Running(folder, interval_seconds=0.05) as running:
        folder.rename(tmp_path / "away")
        await running.until(lambda: "what is served stays" in caplog.text, "told")
        assert running.releases() == [("tiny", 1)]
        (tmp_path / "away").rename(folder)
        publish(folder, "2.ncb", made(2))
        await running.serves(2)


async def test_a_part_that_changes_between_verifying_and_loading_is_read_again(tmp_path, monkeypatch):
    publish(tmp_path, "1.ncb", made(1))
    async with Running(tmp_path) as running:
        from narrowcast.tail import store as module

        real, once = module.load_model, [True]

        def load(*arguments, **options):
            if once:
                once.clear()
                publish(tmp_path, "2.ncb", made(3))
                raise PartHashError("2.ncb: tail.onnx is not the part that was signed (its SHA-256 differs)")
            return real(*arguments, **options)

        monkeypatch.setattr(module, "load_model", load)
        publish(tmp_path, "2.ncb", made(2))
        await running.serves(3)
        assert not any(row.state == "failed" for rows in running.recorder.told for row in rows)


async def test_nothing_to_serve(tmp_path):
    with pytest.raises(StoreError, match="no folder"):
        await Running(tmp_path / "none").store.open()
    with pytest.raises(StoreError, match="no bundles"):
        await Running(tmp_path).store.open()
    publish(tmp_path, "a.ncb", made(1), key=None)
    with pytest.raises(UnsignedBundleError, match="a.ncb is not signed"):
        await Running(tmp_path).store.open()
    async with Running(tmp_path, allow_unsigned=True) as running:
        assert running.releases() == [("tiny", 1)]


async def test_uncut_networks_are_loaded_where_they_are_wanted(tmp_path):
    publish(tmp_path, "a.ncb", bundles.with_whole(made(1)))
    async with Running(tmp_path) as running:
        assert next(iter(running.table)).batcher.model.image_tails == ["main"]
    async with Running(tmp_path, images=False) as running:
        assert next(iter(running.table)).batcher.model.image_tails == []
