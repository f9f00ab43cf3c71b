"""The command line, as a user meets it: one line and the right exit code for everything that can go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support import bundles
from support.command import narrowcast, narrowcast_process
from support.server import serving
from support.waiting import until

from narrowcast.cli import VERBS


@pytest.fixture
def trusted(keys_folder):
    """The test bundles' key is trusted."""
    bundles.trusted_key().write(keys_folder / "trusted" / "test.pub")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three pictures and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for k, frame in enumerate(bundles.random_frames(3)):
        Image.fromarray(frame).save(folder / f"{k}.png")
    (folder / "9.png").write_bytes(b"broken")
    return folder


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, said: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("narrowcast: ")
    assert said in line, line


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help_with_examples(verb):
    done = narrowcast(verb, "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert f"narrowcast {verb}" in done.stdout


def test_the_overview():
    assert all(verb in narrowcast_process("--help").stdout for verb in VERBS)
    assert narrowcast().returncode == 2
    assert narrowcast("--version").stdout.startswith("narrowcast 0.")
    done = narrowcast("evalute")
    assert done.returncode == 2
    assert "did you mean 'evaluate'" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["inspect", "none.ncb"], 3, "no bundle none.ncb"),
        (["keys", "verify", "none.ncb"], 3, "no bundle"),
        (["keys", "sign", "none.ncb"], 1, "no key file"),
        (["keys", "trust", "none.pub"], 1, "no key file none.pub"),
        (["compile", "none.toml", "-o", "x.ncb"], 2, "no recipe none.toml"),
        (["cuts", "resnet50"], 1, "names no model"),
        (["cuts", "x.py:f", "--size", "1", "2", "3"], 2, "one or two numbers"),
        (["serve", "--bundles", "none"], 1, "no folder none"),
        (["serve", "--bundles", ".", "--listen", "a:b"], 2, "HOST:PORT"),
        (["stream", "none.ncb", ".", "--to", "x:1"], 1, "no images under ."),
        (["stream", "none.ncb", "nothing", "--to", "x:1"], 1, "no image or folder nothing"),
        (["evaluate", "none.ncb", "--data", "."], 3, "no bundle"),
        (["probe", "--root", "/nowhere", "--architecture", "aarch64", "--json"], 0, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    if words[0] == "serve" and words[2] == ".":
        bundles.make().write(tmp_path / "tiny.ncb")
        bundles.trusted_key().write(Path(os.environ["NARROWCAST_KEYS"]) / "trusted" / "t.pub")
    done = narrowcast(*words)
    if code == 0:
        assert done.returncode == 0
        return
    assert_one_line(done, code, said)


def test_debug_shows_where():
    done = narrowcast_process("inspect", "none.ncb", "--debug")
    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_an_error_ends_the_process_with_its_line_and_code():
    assert_one_line(narrowcast_process("inspect", "none.ncb"), 3, "no bundle none.ncb")


def test_wrong_options_are_usage_errors():
    assert narrowcast("inspect").returncode == 2
    assert narrowcast("stream", "a.ncb", "b").returncode == 2
    assert narrowcast("serve", "--bundles", ".", "--max-batch", "many").returncode == 2


def test_bundles_that_must_not_be_used_have_an_exit_code_of_their_own(tmp_path, trusted):
    unsigned = bundles.make().write(tmp_path / "u.ncb", key=None)
    assert_one_line(narrowcast("inspect", unsigned), 3, "not signed")
    assert narrowcast("inspect", unsigned, "--allow-unsigned").returncode == 0
    broken = tmp_path / "b.ncb"
    broken.write_bytes(bundles.make().write(tmp_path / "ok.ncb").read_bytes()[:-100])
    assert_one_line(narrowcast("inspect", broken), 3, "is no bundle, or is truncated")


def test_keys_from_making_to_verifying(tmp_path, keys_folder):
    bundle = bundles.make().write(tmp_path / "m.ncb", key=None)
    assert narrowcast("keys", "new", "release").returncode == 0
    assert_one_line(narrowcast("keys", "new", "release"), 1, "not overwritten")
    assert_one_line(narrowcast("keys", "verify", bundle), 3, "not signed")
    signed = narrowcast("keys", "sign", bundle, "--key", keys_folder / "release.key")
    assert signed.returncode == 0, signed.stderr
    assert "signed by release" in narrowcast("keys", "verify", bundle).stdout
    (key,) = json.loads(narrowcast("keys", "show", "--json").stdout)
    assert (key["name"], key["can_sign"]) == ("release", True)
    elsewhere = tmp_path / "elsewhere"
    assert_one_line(narrowcast("keys", "verify", bundle, NARROWCAST_KEYS=str(elsewhere)), 3, "narrowcast keys trust")
    public = keys_folder / "trusted" / "release.pub"
    assert narrowcast("keys", "trust", public, NARROWCAST_KEYS=str(elsewhere)).returncode == 0
    assert narrowcast("keys", "verify", bundle, NARROWCAST_KEYS=str(elsewhere)).returncode == 0
    assert (
        narrowcast("keys", "verify", bundle, "--trust", public, NARROWCAST_KEYS=str(tmp_path / "none")).returncode == 0
    )


def test_a_precision_can_be_asked_for(tiny_folder, pictures, trusted):
    with serving(tiny_folder, tiny_folder / "test.pub") as server:
        words = ["stream", tiny_folder / "tiny.ncb", pictures / "0.png", "--to", server.address, "--precision"]
        assert narrowcast(*words, "fp32").returncode == 0
        assert_one_line(narrowcast(*words, "int8"), 3, "no head (int8) part")
        assert narrowcast(*words, "int4").returncode == 2


def test_streaming_gives_one_json_line_a_frame_and_tells_of_files_that_are_none(tiny_folder, pictures, trusted):
    with serving(tiny_folder, tiny_folder / "test.pub") as server:
        done = narrowcast(
            "stream", tiny_folder / "tiny.ncb", pictures, "--to", server.address, "--level", "0", "--full"
        )
        assert done.returncode == 1  # one file could not be read
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["frame"] for line in lines] == [0, 1, 2]
        assert [Path(line["source"]).name for line in lines] == ["0.png", "1.png", "2.png"]
        for line, frame in zip(lines, bundles.random_frames(3), strict=True):
            assert line["outputs"]["output"]["values"] == pytest.approx(bundles.expected_output(frame, 0), abs=1e-4)
            assert len(line["outputs"]["output"]["top"]) == 3
            assert line["error"] is None
        assert "skipped: " in done.stderr
        assert "3 frames in" in done.stderr
        quiet = narrowcast("stream", tiny_folder / "tiny.ncb", pictures / "0.png", "--to", server.address, "--quiet")
        assert (quiet.returncode, quiet.stderr) == (0, "")
        by_environment = narrowcast(
            "stream", tiny_folder / "tiny.ncb", pictures / "0.png", NARROWCAST_TO=str(server.address)
        )
        assert by_environment.returncode == 0
        bad = narrowcast("stream", tiny_folder / "tiny.ncb", pictures, "--to", server.address, "--level", "7")
        assert_one_line(bad, 2, "tiny has levels 0..1")


def test_a_server_that_is_not_there_is_exit_code_4(tiny_folder, pictures, trusted):
    done = narrowcast("stream", tiny_folder / "tiny.ncb", pictures / "0.png", "--to", "127.0.0.1:9", "--give-up", "0.5")
    assert_one_line(done, 4, "no answer from a tail server at 127.0.0.1:9")


def test_interrupting_is_exit_code_130(tiny_folder, pictures, trusted):
    command = [sys.executable, "-m", "narrowcast", "stream", str(tiny_folder / "tiny.ncb"), str(pictures / "0.png")]
    process = subprocess.Popen([*command, "--to", "127.0.0.1:9", "--give-up", "60"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen: list[str] = []
    until(
        lambda: "trying again" in (seen.append(process.stderr.readline()) or seen[-1]), "the client tries", seconds=30
    )
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1] == "narrowcast: interrupted"


def test_a_full_disk_is_one_line(tmp_path, trusted):
    """/dev/full gives ENOSPC on every write."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "narrowcast", "probe", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr == "narrowcast: the disk is full: free some space, or write to another one\n"


def test_a_recipe_that_cannot_be_leaves_no_key_behind(keys_folder, tmp_path):
    done = narrowcast("compile", tmp_path / "none.toml", "-o", tmp_path / "x.ncb")
    assert_one_line(done, 2, "no recipe")
    assert not keys_folder.exists()


def test_a_reader_that_goes_away_is_no_error(trusted, tiny_folder):
    done = subprocess.run(
        f"{sys.executable} -m narrowcast inspect {tiny_folder / 'tiny.ncb'} --json | head -c 1", shell=True, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr


def test_no_colour_without_a_terminal(trusted, tiny_folder):
    done = narrowcast("inspect", tiny_folder / "tiny.ncb")
    assert "\x1b" not in done.stdout + done.stderr
    assert "tiny, release 1" in done.stdout


def test_cuts(timm_free_network):
    found = json.loads(narrowcast("cuts", timm_free_network, "--size", "32", "--json").stdout)
    assert [cut["name"] for cut in found["cuts"]]
    assert found["cuts"][0]["shape"] == [8, 16, 16]
    table = narrowcast("cuts", timm_free_network, "--size", "32", "48", "--all")
    assert "8x16x24" in table.stdout
    assert_one_line(narrowcast("cuts", timm_free_network.replace(":tiny", ":uncuttable"), "--size", "16"), 1, "no cut")


@pytest.fixture
def timm_free_network() -> str:
    """A MODEL that needs no zoo."""
    return f"{Path(__file__).parents[1] / 'support' / 'networks.py'}:tiny"


def test_targets_and_probe():
    names = [target["name"] for target in json.loads(narrowcast("probe", "--targets", "--json").stdout)]
    assert {"arm64", "jetson-orin-nano", "rpi4", "rpi5", "x86-64"} <= set(names)
    assert "jetson-orin-nano" in narrowcast("probe", "--targets").stdout
    assert "cpu" in narrowcast("probe").stdout


def test_a_disk_that_fills_up_in_training_names_the_file(photo_folder, tmp_path):
    """A limit on the size of files stands for it: caches fit, the checkpoint does not."""
    networks = Path(__file__).parents[1] / "support" / "networks.py"
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[teacher]\nmodel = "{networks}:tiny"\n[data]\ntrain = "{photo_folder}"\n[cut]\nat = "stem"\n'
        '[input]\nsize = [16, 16]\n[bottleneck]\nencoder_macs = "4M"\nstride = 4\n[train]\nimages = 16\nbatch = 8\n'
    )
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
        "from narrowcast.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["compile", str(recipe), "-o", str(tmp_path / "x.ncb"), "--work", str(tmp_path / "work"), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert_one_line(done, 1, "checkpoint.pt")
    assert "File too large" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--bundles", ".", "--max-batch", "0"),
        ("serve", "--bundles", ".", "--max-delay-ms", "-1"),
        ("stream", "x.ncb", ".", "--to", "a:1", "--window", "0"),
        ("evaluate", "x.ncb", "--data", ".", "--limit", "-3"),
    ],
)
def test_numbers_that_cannot_be_are_usage(words):
    done = narrowcast(*words)
    assert done.returncode == 2
    assert "is not 0 or more" in done.stderr or "is less than" in done.stderr


def test_options_of_every_verb_and_the_environment_reach_actions_too(tiny_folder):
    bundle = tiny_folder / "tiny.ncb"
    assert narrowcast("keys", "verify", bundle, NARROWCAST_TRUST=str(tiny_folder / "test.pub")).returncode == 0
    done = narrowcast("keys", "verify", bundle, "--debug")
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert "Traceback" in narrowcast("keys", "verify", bundle, NARROWCAST_DEBUG="1").stderr


def test_a_new_key_does_not_take_the_place_of_a_trusted_one(keys_folder, tmp_path):
    bundles.trusted_key().write(tmp_path / "bob.pub")
    assert narrowcast("keys", "trust", tmp_path / "bob.pub").returncode == 0
    assert_one_line(narrowcast("keys", "new", "bob"), 1, "a key called 'bob' is trusted here already")
    assert not (keys_folder / "bob.key").exists()


def test_signing_a_damaged_bundle_is_one_line(tiny_folder, tmp_path):
    data = bytearray((tiny_folder / "tiny.ncb").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bent.ncb").write_bytes(data)
    assert narrowcast("keys", "new").returncode == 0
    assert_one_line(narrowcast("keys", "sign", tmp_path / "bent.ncb"), 3, "bent.ncb")
    assert (tmp_path / "bent.ncb").read_bytes() == bytes(data)
