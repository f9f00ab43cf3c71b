"""From a recipe with video tables to a bundle whose packets refer to one another."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from support import bundles
from support.films import write_film
from support.training import Notes

from narrowcast.compiler.bottlenecks.plain import PlainSettings
from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.video.camera import Camera
from narrowcast.compiler.video.follow import follow
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.frames import read_image
from narrowcast.transport.packet import Kind

TRUSTED = [bundles.KEY.public]


@pytest.fixture(scope="module")
def plain(recipe_for, photo_folder, tmp_path_factory):
    """A recipe that trains nothing, with three videos of a user's, and one that cannot be read."""
    clips = tmp_path_factory.mktemp("clips")
    photos = [np.asarray(read_image(path)) for path in sorted(photo_folder.rglob("*.png"))[:3]]
    for number, photo in enumerate(photos):
        write_film(clips / f"{number}.mkv", Camera(number).clip(photo, photos[number - 1], 24, "object"))
    (clips / "broken.mkv").write_bytes(b"no video")
    recipe = recipe_for(coding={"video": True, "images": 24}, data={"video": str(clips)}, export={"whole": False})
    return msgspec.structs.replace(recipe, bottleneck=PlainSettings(bits=4))


@pytest.fixture(scope="module")
def made(plain, tmp_path_factory):
    folder, notes = tmp_path_factory.mktemp("video"), list[str]()
    compile_recipe(plain, folder / "plain.ncb", key=bundles.KEY, work=folder / "work", progress=Notes(notes))
    (folder / "notes.txt").write_text("\n".join(notes))
    return folder


def test_a_video_that_cannot_be_read_is_told_and_listed(made, plain):
    (file,) = (made / "work" / "cache").glob("skipped-videos-*.txt")
    (line,) = file.read_text().splitlines()
    assert line.startswith(f"{plain.data.video}/broken.mkv: ")
    said = "[data] video: 1 images or videos cannot be read, or not to the end"
    assert f"{said}; all are listed in {file}\n  {line}" in (made / "notes.txt").read_text()


def test_a_bundle_has_the_tables_and_says_what_they_are_worth(made, photo_folder):
    for role in ("device", "server"):
        bundle = Bundle.open(made / "plain.ncb", role, trusted=TRUSTED)
        assert bundle.manifest.find("video").roles == ["device", "server"]
    assert bundle.manifest.figures["video"]["clips"] == 3  # every fourth of twelve is measured on
    (figures,) = bundle.manifest.figures["video"]["levels"]
    assert figures["mean_bytes"] <= figures["predicted_bytes"] < 0.8 * figures["key_bytes"]
    assert 0 <= figures["skipped"] <= 1
    assert figures["unchanged"] <= figures["noise"]
    assert figures["error_with_skips"] <= figures["error"] + 0.05

    session = HeadSession(Bundle.open(made / "plain.ncb", "device", trusted=TRUSTED))
    video = session.video_codec()
    photos = [bundle.manifest.input.prepare(read_image(path)).image for path in sorted(photo_folder.rglob("*.png"))[:2]]
    clip = Camera(7).clip(*photos, 8, "object")
    symbols = np.stack([session.symbols(frame, 0) for frame in clip])
    steps = list(follow(session.codec, video, symbols, 0, skip=False))
    assert [step.kind for step in steps] == [Kind.SYMBOLS] + [Kind.PREDICTED] * 7
    assert sum(step.size for step in steps[1:]) < 0.8 * 7 * steps[0].size


def test_retuning_keeps_them(made, plain, tmp_path):
    """A server's new release must decode what boards with the old one send."""
    from narrowcast.compiler.retune import _OnTop

    old = Bundle.open(made / "plain.ncb", trusted=TRUSTED)
    assembly = object.__new__(_OnTop)
    assembly.old, assembly.recipe = old, plain
    added = {}
    assembly.parts = type("Parts", (), {"add": lambda self, name, data, *rest, **more: added.update({name: data})})()
    assert assembly._video({}, b"", old.manifest.codec, old.codec()) == {"video": old.manifest.figures["video"]}
    assert added == {"video": old.read("video")}
