"""Tar shards and images that are decoded when they are needed: the same training as from a folder; hostile shards."""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.training import Bench, Notes

from narrowcast.compiler import shards
from narrowcast.compiler.data import find_images, find_sources, prepare_images
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.job import Job
from narrowcast.compiler.progress import SILENT
from narrowcast.compiler.shards import find_shards, index_shard
from narrowcast.compiler.streaming import StreamedImages
from narrowcast.transport.errors import FrameError


def write(path: Path, members: dict[str, bytes], **how) -> Path:
    with tarfile.open(path, "w", **how) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def packed(photo_folder, tmp_path_factory):
    """The photographs in three shards, in the order in which the folder gives them, classes beside them."""
    folder = tmp_path_factory.mktemp("packed")
    files = find_images(photo_folder)
    for k in range(3):
        members: dict[str, bytes] = {}
        for number in range(k * 16, k * 16 + 16):
            members[f"set/{number:04d}.cls"] = str(number % 4).encode()
            members[f"set/{number:04d}.png"] = files[number].read_bytes()
            members[f"set/{number:04d}.json"] = b"{}"
            members[f"set/{number:04d}.seg.png"] = b"a mask, not the image"
        write(folder / f"photos-{k:03d}.tar", members)
    return folder


def trained(recipe, work: Path) -> dict[str, torch.Tensor]:
    job = Job(recipe, work, SILENT)
    job.train()
    return job.bottleneck.state_dict()


@pytest.mark.parametrize("train", ["photos-{000..002}.tar", "photos-*.tar", "."])
def test_shards_hold_what_the_folder_holds(packed, photo_folder, recipe_for, tmp_path, train):
    sources, problems = find_sources(train, packed)
    assert problems == []
    assert [source.label for source in sources] == [number % 4 for number in range(48)]
    assert str(sources[17]) == f"{packed}/photos-001.tar:set/0017.png"
    contract = recipe_for().input
    there = prepare_images(sources, contract, tmp_path / "a").images
    assert np.array_equal(there, prepare_images(find_images(photo_folder), contract, tmp_path / "b").images)


def test_streamed_shards_train_as_a_cached_folder_does(packed, recipe_for, tmp_path):
    train = {"images": 96}
    notes: list[str] = []
    cached = trained(recipe_for(train=train), tmp_path / "a")
    recipe = recipe_for(train={**train, "cache_gigabytes": 0.0}, data={"train": str(packed)})
    job = Job(recipe, tmp_path / "b", Notes(notes))
    assert isinstance(job.prepared.images, StreamedImages)
    assert any("each is decoded when it is needed" in note for note in notes)
    job.train()
    assert not list((tmp_path / "b").rglob("*.u8"))
    got = job.bottleneck.state_dict()
    # Cached features are rounded to float16; nothing else differs.
    assert all(torch.allclose(value, got[name], atol=0.02) for name, value in cached.items())
    again = trained(recipe, tmp_path / "c")
    assert all(torch.equal(value, got[name]) for name, value in again.items())


def test_streamed_images_are_begun_ahead_and_the_rest_forgotten(photo_folder, recipe_for, tmp_path):
    contract = recipe_for().input
    files = find_images(photo_folder)
    wanted = prepare_images(files, contract, tmp_path).images
    images = prepare_images(files, contract, tmp_path / "none", limit_bytes=0).images
    assert isinstance(images, StreamedImages)
    images.expect(np.arange(8))
    images.expect(np.arange(4, 12))
    assert sorted(images._begun) == list(range(4, 12))
    rows = np.array([5, 30, 5, 11])  # begun, not begun, twice
    assert np.array_equal(images[rows], wanted[rows])
    assert sorted(images._begun) == [4, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("first_crop", [1.0, 0.5])
def test_training_behind_the_teachers_own_layers_reads_no_images(recipe_for, tmp_path, first_crop):
    """Their features are cached: the images, far larger, stay where they are."""
    keys = {"trunk": "teacher", "encoder_macs": "1G", "stride": 4, "decoder_width": 8, "first_crop": first_crop}
    bench = Bench(recipe_for(bottleneck={"preset": "shallow-residual", **keys}, train={"images": 64}), tmp_path)
    bench.data.cache_features(tmp_path, "digest", 1e9, SILENT)
    bench.data.prepared = replace(bench.prepared, images=None)
    bench.train()
    bench.data.prepared = bench.prepared
    assert bench.data.batch(2, 8).images.shape == (8, *bench.recipe.input.size, 3)


def test_images_that_no_step_looks_at_are_not_decoded_ahead(photo_folder, recipe_for, tmp_path):
    bench = Bench(recipe_for(), tmp_path)
    images = prepare_images(find_images(photo_folder), bench.recipe.input, tmp_path / "none", limit_bytes=0).images
    bench.data.cache_features(tmp_path, "digest", 1e9, SILENT)
    bench.data.prepared = replace(bench.prepared, images=images)
    first = bench.data.batch(0, 8)
    images.expect(np.zeros(0, np.int64))
    later = bench.data.batch(1, 8)
    assert not images._begun
    assert len(later.images) == 8
    bench.data.batch(2, 8)
    assert len(images._begun) >= 8
    bench.data.prepared = bench.prepared
    assert torch.equal(first.images, bench.data.batch(0, 8).images)


def test_an_image_that_goes_away_while_it_is_needed_says_so(photo_folder, recipe_for, tmp_path):
    copies = [tmp_path / f"{k}.png" for k in range(3)]
    for copy, file in zip(copies, find_images(photo_folder), strict=False):
        copy.write_bytes(file.read_bytes())
    images = prepare_images(copies, recipe_for().input, tmp_path / "cache", limit_bytes=0).images
    copies[1].unlink()
    with pytest.raises(DataError, match=r"1\.png could be read before, and now it cannot: .*1\.png: no such file"):
        images[np.array([0, 1])]


def test_what_cannot_be_read_is_counted_and_listed(photo_folder, recipe_for, tmp_path):
    data = find_images(photo_folder)[0].read_bytes()
    members = {f"{k}.png": data if k % 2 else b"damaged" for k in range(10)}
    write(tmp_path / "a.tar", members)
    notes: list[str] = []
    for cache in (8.0, 0.0):
        recipe = recipe_for(data={"train": str(tmp_path / "a.tar")}, train={"cache_gigabytes": cache})
        job = Job(recipe, tmp_path / str(cache), Notes(notes))
        assert len(job.prepared) == 5
        listed = next((tmp_path / str(cache) / "cache").glob("skipped-*.txt")).read_text().splitlines()
        assert len(listed) == 5
        assert listed[1].startswith(f"{tmp_path}/a.tar:2.png: ")
    assert sum("5 of 10 images cannot be read; all are listed in" in note for note in notes) == 2
    assert sum("a.tar:" in note for note in notes) == 6  # three of the five, twice


def test_labels_come_from_cls(packed, recipe_for, tmp_path):
    bottleneck = {"tune_tail": True, "label_weight": 0.5}
    recipe = recipe_for(data={"train": str(packed)}, bottleneck=bottleneck)
    assert Job(recipe, tmp_path, SILENT).data.labels.tolist() == [number % 4 for number in range(48)]
    members = {f"{k}.png": index_png(packed) for k in range(4)}
    for cls, message in ((b"9", "has class 9; the teacher has classes 0..3"), (None, "have no .cls beside them")):
        write(tmp_path / "x.tar", members | ({f"{k}.cls": cls for k in range(4)} if cls else {}))
        with pytest.raises(DataError, match=message):
            Job(recipe_for(data={"train": str(tmp_path / "x.tar")}, bottleneck=bottleneck), tmp_path, SILENT)
    write(tmp_path / "y.tar", {"0.png": b"", "0.cls": b"cat"})
    with pytest.raises(DataError, match=r"y.tar:0.cls is b'cat'; a class is a whole number"):
        index_shard(tmp_path / "y.tar")


def index_png(packed: Path) -> bytes:
    first = index_shard(packed / "photos-000.tar")[0][0]
    return first.shard.read_bytes()[first.offset : first.offset + first.size_bytes]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photos-{000..003}.tar", r"no shard .*photos-003\.tar"),
        ("photos-{2..1}.tar", "counts from the smaller"),
        ("photos-{0..999999999}.tar", "counts from the smaller"),
        ("other-*.tar", "no shards"),
        ("nothing", "no folder .*nothing, and it names no .tar shards either"),
    ],
)
def test_names_that_are_no_shards(packed, text, message):
    with pytest.raises(DataError, match=message):
        find_sources(text, packed)


def test_braces_combine_and_keep_their_zeros(tmp_path):
    for name in ("a-08-1.tar", "a-08-2.tar", "a-09-1.tar", "a-09-2.tar"):
        (tmp_path / name).touch()
    assert [p.name for p in find_shards("a-{08..09}-{1..2}.tar", tmp_path)] == sorted(
        p.name for p in tmp_path.iterdir()
    )


def test_an_empty_folder_or_shard_has_no_images(tmp_path):
    with pytest.raises(DataError, match="no images under"):
        find_sources(".", tmp_path)
    write(tmp_path / "empty.tar", {})
    with pytest.raises(DataError, match=r"no images in .*\(1 shards\)"):
        find_sources(".", tmp_path)


class TestHostile:
    """Shards from somewhere."""

    def test_links_devices_and_paths_are_data(self, tmp_path):
        secret = tmp_path / "secret.png"
        secret.write_bytes(b"secret")
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("d.png", tarfile.CHRTYPE)):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, str(secret)
                tar.addfile(info)
            for name in ("../../out.png", "/etc/x.png", "b\x1b[31m\udcff.png", "._0.png"):
                info = tarfile.TarInfo(name)
                info.size = 3
                tar.addfile(info, io.BytesIO(b"abc"))
        before = sorted(tmp_path.rglob("*"))
        found, problem = index_shard(tmp_path / "a.tar")
        assert [m.name for m in found] == ["../../out.png", "/etc/x.png", "b?[31m?.png"]
        assert problem is None
        for member in found:
            with pytest.raises(FrameError):
                member.read()
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.xz"])
    def test_compressed_shards_are_refused(self, tmp_path, name):
        with tarfile.open(tmp_path / name, f"w:{name[-2:]}"):  # type: ignore[call-overload]
            pass
        with pytest.raises(DataError, match="is no uncompressed tar file"):
            index_shard(tmp_path / name)

    def test_a_shard_that_is_cut_short_keeps_what_is_whole(self, tmp_path):
        path = write(tmp_path / "a.tar", {f"{k}.png": bytes([k + 1]) * 1000 for k in range(4)})
        path.write_bytes(path.read_bytes()[:4000])  # in the middle of the third
        found, problem = index_shard(path)
        assert len(found) == 3
        assert "what follows is not used" in problem
        with pytest.raises(FrameError, match="2.png is cut short: 416 of 1000 bytes"):
            found[2].read()

    def test_a_shard_that_is_damaged_in_the_middle_says_where(self, tmp_path):
        path = write(tmp_path / "a.tar", {f"{k}.png": bytes(1000) for k in range(4)})
        data = bytearray(path.read_bytes())
        data[3 * 1536 + 1] ^= 1  # the fourth header's name: its checksum is wrong now
        path.write_bytes(data)
        found, problem = index_shard(path)
        assert len(found) == 3
        assert f"broken at byte {3 * 1536}: no tar header" in problem

    def test_a_class_that_is_cut_short_is_no_class(self, tmp_path):
        path = write(tmp_path / "a.tar", {"0.png": b"x", "0.cls": b"12"})
        path.write_bytes(path.read_bytes()[: 3 * 512 + 1])  # "1" of "12"
        found, problem = index_shard(path)
        assert found[0].label is None
        assert "cut short in 0.cls; what follows is not used" in problem

    def test_a_key_with_two_classes_is_refused(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, data in (("0.png", b"x"), ("0.cls", b"1"), ("0.png", b"y"), ("0.cls", b"2")):
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(data))
        with pytest.raises(DataError, match=r"0\.cls is there twice, as 1 and 2"):
            index_shard(tmp_path / "a.tar")

    def test_what_lies_behind_the_end_is_told_of(self, tmp_path):
        one, two = (write(tmp_path / f"{k}.tar", {f"{k}.png": b"x"}).read_bytes() for k in range(2))
        (tmp_path / "both.tar").write_bytes(one + two)
        found, problem = index_shard(tmp_path / "both.tar")
        assert len(found) == 1
        assert "more behind its end at byte 1024" in problem

    def test_headers_without_bound_are_not_read(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            good, bad = tarfile.TarInfo("0.png"), tarfile.TarInfo("1.png")
            bad.pax_headers = {"comment": "x" * (shards.MOST_HEADER_BYTES + 1)}
            tar.addfile(good)
            tar.addfile(bad)
        found, problem = index_shard(tmp_path / "a.tar")
        assert len(found) == 1
        assert "a header of more than" in problem

    def test_members_that_are_too_large_are_not_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shards, "MOST_IMAGE_BYTES", 10)
        found, _ = index_shard(write(tmp_path / "a.tar", {"0.png": bytes(11)}))
        with pytest.raises(FrameError, match="has 11 bytes; the limit is 10"):
            found[0].read()

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        spots=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=24), length=st.integers(0, 4096)
    )
    def test_any_bytes_end_in_an_index_or_an_error(self, tmp_path, spots, length):
        path = write(tmp_path / "a.tar", {"0.png": bytes(600), "0.cls": b"1", "1.png": b""}, format=tarfile.PAX_FORMAT)
        data = bytearray(path.read_bytes()[:length])
        for spot, value in spots:
            if spot < len(data):
                data[spot] = value
        path.write_bytes(data)
        try:
            found, _ = index_shard(path)
        except DataError:
            return
        assert len(found) <= 8
        for member in found:
            with pytest.raises(FrameError):
                member.read()


def test_a_folders_own_name_is_no_pattern(packed, tmp_path):
    for name, found in (("run[1]", "photos-001.tar"), ("run1", "photos-002.tar")):
        (tmp_path / name).mkdir()
        (tmp_path / name / found).write_bytes((packed / found).read_bytes())
    assert find_shards("photos-*.tar", tmp_path / "run[1]") == [tmp_path / "run[1]" / "photos-001.tar"]
    assert find_shards(f"{tmp_path}/run1/*.tar", tmp_path / "run[1]") == [tmp_path / "run1" / "photos-002.tar"]


def test_a_shard_that_is_cut_short_is_told_apart_from_images(packed, recipe_for, tmp_path):
    with tarfile.open(packed / "photos-000.tar") as tar:
        within = tar.getmembers()[20].offset + 100  # a header
    (tmp_path / "a.tar").write_bytes((packed / "photos-000.tar").read_bytes()[:within])
    notes: list[str] = []
    Job(recipe_for(data={"train": str(tmp_path / "a.tar")}), tmp_path / "work", Notes(notes))
    assert any(
        re.match(r"\d of \d+ images cannot be read, nor the whole of 1 shards; all are listed in", n) for n in notes
    )
