"""``narrowcast cuts`` as a planner, and recipes whose cut it chooses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from narrowcast.cli import main
from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.data import find_images
from narrowcast.transport.bundle import Bundle

NETWORK = f"{Path(__file__).parents[1] / 'support' / 'networks.py'}:tiny"


def run(capsys, *words) -> str:
    """A verb's standard output."""
    assert main([*map(str, words)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_network_is_planned(capsys, photo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in find_images(photo_folder)[:12]:
        shutil.copyfile(file, photos / file.name)
    (photos / "bad.png").write_bytes(b"no image")
    words = (
        "cuts", NETWORK, "--size", 32, "--mean", 0.5, 0.5, 0.5, "--data", photos, "--images", 99, "--at", "stem",
        "--uplink", "800kbit", "--rtt", "20ms", "--slowdown", 5, "--encoder-macs", "1M", "--target", "rpi5",
        "--plot", tmp_path / "plan.svg", "--json", "--quiet",
    )  # fmt: skip
    found = json.loads(run(capsys, *words))
    (cut,) = found["cuts"]
    assert cut["name"] == "stem"
    assert min(cut["head_ms"], cut["tail_ms"], cut["decoder_ms"]) > 0
    assert cut["trunk"] in ("teacher", "new")
    assert "one without" in cut["trunk_why"]
    assert found["images"] == 12
    (skipped,) = found["skipped"]
    assert "bad.png" in skipped
    assert found["link"] == {"uplink": 8e5, "downlink": 8e5, "rtt_ms": 20}
    assert found["split"] is False
    assert found["answer"].startswith("Do not split")
    assert found["best"]["way"] == "local"
    assert found["best"]["board_ms"] == pytest.approx(5 * found["whole_ms"], abs=0.01)
    assert found["times_of"] == "a Raspberry Pi 5, as this machine times 5"
    assert {way["way"] for way in found["ways"]} == {"local", "image", "split"}
    assert "Do not split" in (tmp_path / "plan.svg").read_text()


RECIPE = """
[teacher]
model = "{network}"
[data]
train = "{photos}"
[cut]
at = "auto"
[input]
size = [32, 32]
[bottleneck]
preset = "plain"
[export]
whole = false
[plan]
uplink = "2mbit"
rtt = "10ms"
images = 16
cuts = ["stem", "body"]
"""


@pytest.mark.slow
def test_a_recipe_is_planned_and_compiled_where_the_planner_says(capsys, photo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.format(network=NETWORK, photos=photo_folder))
    table = run(capsys, "cuts", recipe, "--at", "stem", "--threads", "1", "--quiet")
    assert "* all on the board" in " ".join(table.split())
    assert "split at stem" in table
    assert "Over 2 Mbit/s up, round trip 10 ms" in table
    assert "Do not split: running locally" in table

    compiled = compile_recipe(recipe, tmp_path / "small.ncb", work=tmp_path / "work")
    plan = Bundle.open(tmp_path / "small.ncb", allow_unsigned=True).manifest.figures["plan"]
    assert plan == compiled.manifest.figures["plan"]
    assert plan["link"] == "2 Mbit/s up, round trip 10 ms"
    assert plan["pays"] is False
    assert plan["cut"] == compiled.manifest.recipe["cut"]["at"]
    splits = [way for way in plan["ways"] if way["way"] == "split"]
    assert splits[0]["detail"] == plan["cut"]
    assert len(splits) == 2


def test_a_bundle_says_which_trunk_it_has(compiled):
    result, _ = compiled
    choice = result.manifest.figures["plan"]["trunk"]
    assert choice["trunk"] == result.manifest.recipe["bottleneck"]["trunk"] == "teacher"
    assert "no more than a quarter of encoder_macs" in choice["why"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--uplink", "5mbti", "--rtt", "20ms"], "did you mean 'mbit'"),
        (["--uplink", "5mbit", "--rtt", "20"], "'20' has no unit"),
        (["--uplink", "5mbit"], "--rtt is missing"),
        (["--rtt", "5ms"], "--uplink is missing"),
        (["--uplink", "5mbit", "--rtt", "20ms", "--keep", "97"], "keep"),
        (["--preset", "plian"], "did you mean 'plain'"),
        (["--preset", "plain", "--encoder-macs", "1M"], "unknown key 'encoder_macs'"),
        (["--at", "stam"], "did you mean 'stem'"),
        (["--target", "rpi6"], "did you mean 'rpi5'"),
        (["--at", "stem", "--all"], "--all lists every cut and measures nothing"),
        (["--at", "stem", "--plot", "plan.pdf"], "plots are .svg or .png"),
        (["--data", "nowhere"], "no folder nowhere"),
        (["--mean", "0.5", "0.5", "0.5"], "give --data DIR as well"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_planned(capsys, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["cuts", NETWORK, "--size", "32", *words, "--quiet"]) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("narrowcast: ")
    assert said in line


def test_weights_are_where_the_command_says_not_beside_the_recipe(capsys, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "r.toml").write_text(RECIPE.format(network=NETWORK, photos="."))
    (tmp_path / "a" / "w.pt").write_bytes(b"others")
    monkeypatch.chdir(tmp_path)
    assert main(["cuts", "a/r.toml", "--weights", "w.pt", "--quiet"]) != 0
    assert f"no weights file {tmp_path / 'w.pt'}" in capsys.readouterr().err


def test_what_a_recipe_says_is_not_said_again(capsys, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(network=NETWORK, photos="."))
    for option in (["--preset", "plain"], ["--mean", "0", "0", "0"]):
        assert main(["cuts", str(recipe), *option]) == 2
        assert "is for a model that is no recipe" in capsys.readouterr().err
