"""Recipes: what is understood, and what is refused with a suggestion."""

from __future__ import annotations

from pathlib import Path

import pytest

from narrowcast.compiler.bottlenecks.plain import PlainSettings
from narrowcast.compiler.bottlenecks.shallow_residual import ShallowResidualSettings, rate_weights
from narrowcast.compiler.recipe import load_recipe, recipe_from
from narrowcast.transport.errors import ConfigError

GOOD = {
    "teacher": {"model": "timm:resnet18"},
    "data": {"train": "photos"},
    "cut": {"at": "layer2"},
    "input": {"size": [224, 224]},
}


def recipe(**tables):
    return recipe_from({**GOOD, **tables}, "recipe.toml", "my model", Path("/somewhere"))


def test_defaults():
    found = recipe()
    assert isinstance(found.bottleneck, ShallowResidualSettings)
    assert found.bottleneck.budget == 150_000_000
    assert (found.name, found.release, found.folder) == ("my-model", 1, "/somewhere")


def test_presets_have_settings_of_their_own():
    assert isinstance(recipe(bottleneck={"preset": "plain", "bits": 4}).bottleneck, PlainSettings)
    with pytest.raises(ConfigError, match="unknown key 'levels'"):
        recipe(bottleneck={"preset": "plain", "levels": 4})


def test_presets_from_papers_train_as_their_papers_unless_a_recipe_says_otherwise():
    assert recipe().train.batch == 32
    for preset in ("bottlefit", "entropic-student"):
        assert recipe(bottleneck={"preset": preset}).train.batch == 64
        assert recipe(bottleneck={"preset": preset}, train={"batch": 8, "images": 100}).train.batch == 8
    changed = recipe(bottleneck={"preset": "entropic-student", "first_decays": [0.3], "temperature": 4, "beta": 2.5})
    assert (changed.bottleneck.first_decays, changed.bottleneck.temperature) == ((0.3,), 4.0)
    with pytest.raises(ConfigError, match="train"):
        recipe(train="long")


def test_more_names_than_a_manifest_has_room_for_are_refused_before_anything_is_trained():
    imagenet_21k = [f"{number:022}" for number in range(21_841)]
    assert recipe(task={"kind": "classify", "classes": imagenet_21k}).task.classes == imagenet_21k
    long = [f"{number:080}" for number in range(65_536)]
    wanted = (
        r"^recipe\.toml: a bundle's manifest has 7340032 bytes .* take 1\d{7} here: shorten the names under 'classes'"
    )
    with pytest.raises(ConfigError, match=wanted):
        recipe(task={"kind": "classify", "classes": long})
    tail = {"model": "timm:resnet18", "task": {"kind": "classify", "classes": long[:25_000]}}
    assert len(recipe(tails=[{"name": "kind", **tail}]).tails) == 1
    with pytest.raises(ConfigError, match=wanted):
        recipe(tails=[{"name": name, **tail} for name in ("kind", "sort", "make")])


@pytest.mark.parametrize(
    ("text", "number"), [("150M", 150e6), ("1.2G", 1.2e9), ("900k", 9e5), (5000, 5000), (" 3 m ", 3e6)]
)
def test_macs(text, number):
    assert recipe(bottleneck={"encoder_macs": text}).bottleneck.budget == number


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"bottlneck": {}}, "unknown key 'bottlneck'; did you mean 'bottleneck'"),
        ({"bottleneck": {"preset": ["plain"]}}, r"unknown preset \['plain'\]"),
        ({"bottleneck": {"preset": "bottlefitt"}}, "unknown preset 'bottlefitt'; did you mean 'bottlefit'"),
        (
            {"bottleneck": {"preset": "zip"}},
            "unknown preset 'zip'; known: bottlefit, codebook, entropic-student, plain, shallow",
        ),
        ({"bottleneck": {"preset": "bottlefit", "levels": 3}}, "levels is 3; this preset has one rate per model"),
        ({"bottleneck": {"preset": "entropic-student", "levels": 4}}, "compile one for each, or use shallow-residual"),
        ({"bottleneck": {"preset": "entropic-student", "beta": 0}}, "beta"),
        ({"bottleneck": {"preset": "entropic-student", "gdn": "none"}}, "gdn"),
        (
            {"bottleneck": {"preset": "bottlefit", "beta": 1}},
            "unknown key 'beta' in .bottleneck.: a table with preset = \"entropic-student\" has it, this one has not",
        ),
        (
            {"bottleneck": {"preset": "plain", "levels": 2}},
            "unknown key 'levels' in .bottleneck.: a table with preset = .* or preset = \"shallow-residual\" has it",
        ),
        ({"bottleneck": {"preset": "bottlefit", "first_decays": [1.5]}}, "first_decays"),
        ({"bottleneck": {"preset": "residual"}}, "did you mean 'shallow-residual'"),
        ({"bottleneck": {"encoder_mac": 1}}, "did you mean 'encoder_macs'"),
        ({"bottleneck": {"encoder_macs": "much"}}, "a number, or one with K, M or G"),
        ({"bottleneck": {"stride": 12}}, "power of two"),
        ({"bottleneck": {"rate_weights": [2, 1]}}, "the smaller first"),
        ({"bottleneck": {"levels": 0}}, "levels"),
        ({"bottleneck": "plain"}, r"bottleneck is a table"),
        ({"teacher": {}}, "missing required field `model`"),
        ({"data": {"train": "x", "holdout": 1.5}}, "holdout"),
        ({"train": {"images": 0}}, "images"),
        ({"train": {"seed": -1}}, "seed"),
        ({"train": {"seed": 10**19}}, "seed"),
        ({"input": {"size": [224]}}, "size"),
        ({"cut": {"att": "x"}}, "unknown key 'att'|missing required field `at`"),
        ({"name": "a/b"}, "letters, digits"),
        ({"release": 0}, "release"),
        ({"folder": "/"}, "unknown key 'folder'"),
        ({"export": {"target": []}}, "did you mean 'targets'"),
        ({"export": {"precisions": ["int8"]}}, "fp32, and what else is wanted"),
        ({"export": {"precisions": ["fp32", "fp32"]}}, "each once"),
        ({"export": {"precisions": ["fp32", "int4"]}}, "int4"),
    ],
    ids=str,
)
def test_what_cannot_be(tables, said):
    with pytest.raises(ConfigError, match=said) as caught:
        recipe(**tables)
    assert str(caught.value).startswith("recipe.toml: ")
    assert caught.value.exit_code == 2


def test_files(tmp_path):
    path = tmp_path / "net.toml"
    path.write_text('[teacher]\nmodel="a:b"\n[data]\ntrain="x"\n[cut]\nat="y"\n[input]\nsize=[8,8]\n')
    found = load_recipe(path)
    assert (found.name, found.folder) == ("net", str(tmp_path))
    path.write_text("[teacher")
    with pytest.raises(ConfigError, match=r"net\.toml is not TOML"):
        load_recipe(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="no recipe"):
        load_recipe(tmp_path / "none.toml")


def test_level_0_weighs_bits_most():
    settings = ShallowResidualSettings(levels=3, rate_weights=(0.1, 10.0))
    assert rate_weights(settings) == pytest.approx([10.0, 1.0, 0.1])
    assert rate_weights(ShallowResidualSettings(levels=1, rate_weights=(0.1, 10.0))) == pytest.approx([1.0])


def test_an_unknown_target_is_an_error_not_a_word(recipe_for):
    with pytest.raises(ConfigError, match="no target 'rpi6'; did you mean 'rpi5'"):
        recipe_for(export={"targets": ["rpi6"]})
    assert recipe_for(export={"targets": ["rpi5"]}).export.targets == ["rpi5"]
