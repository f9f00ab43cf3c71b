"""What a bundle is made of, as far as files tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from narrowcast.compiler.recipe import load_recipe
from narrowcast.deploy.kept import inputs_digest

RECIPE = """
teacher.model = "timm:resnet18"
data.train = "photos"
cut.at = "stem"
input = { size = [32, 32], mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25] }
"""
LABELLED = "[bottleneck]\npreset = 'shallow-residual'\ntune_tail = true\nlabel_weight = 0.5\n"
FILMED = "[coding]\nvideo = true\n"


@pytest.fixture
def digest(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "films" / "dock").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")

    def of(rest: str) -> str:
        (tmp_path / "r.toml").write_text(RECIPE + rest)
        return inputs_digest(load_recipe(tmp_path / "r.toml"), "")

    return of


def changed(digest, path: Path, rest: str) -> bool:
    """Whether each of what may happen to a file gives another digest."""
    found = [digest(rest)]
    for text in ("one", "other"):
        path.write_text(text)
        found.append(digest(rest))
    assert found[-1] == digest(rest)
    assert len(set(found)) in (1, 3)
    return len(set(found)) == 3


def test_labels_count_where_they_have_a_weight(digest, tmp_path):
    assert changed(digest, tmp_path / "photos" / "labels.csv", LABELLED)
    (tmp_path / "photos" / "labels.csv").unlink()
    assert not changed(digest, tmp_path / "photos" / "labels.csv", LABELLED.replace("0.5", "0.0"))


def test_videos_count_where_they_are_named(digest, tmp_path):
    film, preset = tmp_path / "films" / "dock" / "a.mp4", 'bottleneck.preset = "shallow-residual"\n'
    assert changed(digest, film, f'data.video = "films"\n{preset}{FILMED}')
    film.unlink()
    assert not changed(digest, film, f"{preset}{FILMED}")
