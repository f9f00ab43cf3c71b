"""A daemon's settings: read, placed, overridden by flags, and refused with the place and what would be right."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from narrowcast.cli import _defaults_from_environment, daemon, stream
from narrowcast.head import affinity
from narrowcast.head.daemon.config import DaemonConfig, load_config
from narrowcast.transport.errors import ConfigError

OWN = 'bundle = "m.ncb"\nto = "one:1"\n'
SOURCE = '[[sources]]\nname = "gate"\nuri = "/dev/video0"\n'
DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
DOCS = Path(__file__).resolve().parents[3] / "docs"


def read(tmp_path, text: str, **overrides) -> DaemonConfig:
    file = tmp_path / "edge.toml"
    file.write_text(text)
    return load_config(file, {key.replace("__", "."): value for key, value in overrides.items()})


def test_paths_are_the_files_own(tmp_path):
    config = read(
        tmp_path,
        'bundle = "m.ncb"\nto = ["one:1", "two:2"]\ntrust = ["/etc/key.pub"]\nstate = "state"\n'
        '[tls]\ndir = "tls"\n[[sources]]\nname = "a"\nuri = "photos"\n[[sources]]\nname = "b"\nuri = "rtsp://camera/1"\n'
        '[[sources]]\nname = "c"\nuri = "unix:in.sock"\nraw = "4x4"\n[[outputs]]\nkind = "socket"\npath = "out.sock"\n'
        '[[outputs]]\nkind = "lines"\n[metrics]\nlisten = "unix:m.sock"\n',
    )
    assert config.bundle == f"{tmp_path}/m.ncb"
    assert (config.trust, config.state_folder) == (["/etc/key.pub"], tmp_path / "state")
    assert [one.uri for one in config.sources] == [f"{tmp_path}/photos", "rtsp://camera/1", f"unix:{tmp_path}/in.sock"]
    assert [one.key for one in config.outputs] == [f"socket {tmp_path}/out.sock", "lines -"]
    assert config.tls.dir == f"{tmp_path}/tls"
    assert config.metrics.listen == f"unix:{tmp_path}/m.sock"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("bundel = 1\n" + OWN + SOURCE, "unknown key 'bundel'; did you mean 'bundle'?"),
        (OWN + SOURCE + "fsp = 3\n", r"unknown key 'fsp' in \[sources\[0\]\]; did you mean 'fps'\?"),
        (OWN + SOURCE + '[[outputs]]\nkind = "mqtt"\nbroker = "b:1/t"\ntsl = true\n', "did you mean 'tls'?"),
        (OWN + SOURCE + '[[outputs]]\nkind = "kafka"\n', "'kafka'"),
        (OWN + SOURCE + SOURCE, "two sources with the name 'gate'"),
        (OWN + SOURCE + '[[outputs]]\nkind = "lines"\n' * 2, "two outputs 'lines -'"),
        (OWN + SOURCE.replace("gate", "a/b"), "a source with the name 'a/b'"),
        (OWN + SOURCE + "[sources.spool]\nmib = 3\n", 'has a spool, which wants on_outage = "spool"'),
        (OWN + SOURCE + "level = -1\n", "level = -1"),
        (OWN + SOURCE + 'budget = "much"\n', "a budget of 'much'"),
        (OWN + SOURCE + 'data_cap = "1GB"\n', "a data cap of '1GB'"),
        (OWN + SOURCE + 'raw = "4x"\n', "raw frames of '4x'"),
        (OWN + SOURCE + 'offload = "cloud"\n', r"sources\[0\].offload"),
        (OWN + SOURCE + 'video = "maybe"\n', r"sources\[0\].video"),
        (OWN + SOURCE + 'offload = "local"\nway = "image"\n', "'gate'.*say different things"),
        (OWN + SOURCE + 'offload = "image"\nvideo = "on"\n', "'gate': video = \"on\" is for symbols"),
        (OWN + SOURCE + 'way = "image"\nlevel = "auto"\n', "'gate': level = \"auto\" is for symbols"),
        (OWN + SOURCE + "way_joules = { local = 1 }\n", "'gate'.*for offload 'auto'"),
        (OWN + SOURCE + 'offload = "auto"\nway_joules = { here = 1 }\n', r"sources\[0\].way_joules"),
        (OWN + SOURCE + "exit_after_seconds = 0\n", r"sources\[0\].exit_after_seconds"),
        (OWN + SOURCE + "fps = 0\n", r"sources\[0\].fps"),
        (OWN + SOURCE + "fps = 10000\n", r"sources\[0\].fps"),
        (OWN + SOURCE + "max_packet_bytes = 24\n", "max_packet_bytes"),  # a header alone
        (OWN + "sources = []\n", "sources"),
        (OWN, "sources"),
        (OWN.replace("one:1", "one:port") + SOURCE, "'one:port' is no address"),
        (OWN + SOURCE + '[runtime]\ncpus = "3-1"\n', "processors '3-1'"),
        (OWN + SOURCE + '[[outputs]]\nkind = "mqtt"\nbroker = "b:1/t"\npassword_file = "p"\n', "goes with user"),
        (OWN + SOURCE + '[[outputs]]\nkind = "socket"\npath = "s"\nmode = "9"\n', "mode"),
        (OWN + SOURCE + '[[outputs]]\nkind = "socket"\npath = "s"\nmode = "660\\n"\n', "mode"),
        (OWN + SOURCE + '[[outputs]]\nkind = "lines"\npath = "~nobody_has_this_name/out"\n', "is no path: Could not"),
        ("= 3", "is not TOML"),
    ],
)
def test_what_cannot_be_is_refused_at_its_place(tmp_path, text, why):
    with pytest.raises(ConfigError, match=why):
        read(tmp_path, text)


def test_a_file_that_is_not_there_or_none_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "bytes.toml")
    (tmp_path / "big.toml").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigError, match="more than"):
        load_config(tmp_path / "big.toml")


def test_without_a_folder_for_its_state_nothing_starts(tmp_path, monkeypatch):
    config = read(tmp_path, OWN + SOURCE)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match="no folder for the daemon's state"):
        _ = config.state_folder
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/narrowcast:/var/lib/other")
    assert config.state_folder == Path("/var/lib/narrowcast")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/narrowcast")
    assert config.run_folder == Path("/run/narrowcast")


def flags(*words: str) -> dict:
    """As the command line makes them."""
    parser = argparse.ArgumentParser()
    stream.add_arguments(parser)
    stream.defaults_from_file(parser, words)
    _defaults_from_environment(parser)
    return daemon.overrides(parser.parse_args(words))


def test_flags_win_over_variables_and_those_over_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("NARROWCAST_TO", "variable:1")
    monkeypatch.setenv("NARROWCAST_FPS", "7")
    monkeypatch.setenv("NARROWCAST_ALLOW_UNSIGNED", "1")
    found = flags(
        "--config", "edge.toml", "--fps", "3", "--threads", "2", "--cpus", "0", "--level", "auto", "--trust", "k.pub",
        "--video", "on", "--offload", "auto", "--way-joules", "local=1,split=0.5",
    )  # fmt: skip
    assert found == {
        "to": "variable:1", "sources.fps": 3.0, "runtime.threads": 2, "runtime.cpus": "0", "sources.level": "auto",
        "sources.video": "on", "sources.offload": "auto", "sources.way_joules": {"local": 1.0, "split": 0.5},
        "allow_unsigned": True, "trust": [str(Path("k.pub").absolute())],
    }  # fmt: skip
    file = tmp_path / "edge.toml"
    file.write_text(OWN + SOURCE + "fps = 25\nwindow = 4\n")
    config = load_config(file, found)
    assert (config.to, config.sources[0].fps, config.sources[0].window) == ("variable:1", 3.0, 4)
    assert (config.runtime.threads, config.allow_unsigned) == (2, True)
    assert flags("--config", "edge.toml", "other.ncb")["bundle"] == str(Path("other.ncb").absolute())


def test_no_frame_is_to_be_given_up_before_it_is_sent(capsys):
    with pytest.raises(SystemExit):
        flags("--config", "edge.toml", "--exit-after", "0")
    assert "0 is not above 0" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--masks", "m"], ["--spool", "s"], ["m.ncb", "photos/"], ["--audit"]])
def test_flags_that_no_key_stands_for_are_refused(words):
    with pytest.raises(ConfigError, match="does not go with --config"):
        flags("--config", "edge.toml", *words)


def test_without_a_file_all_is_as_it_was(capsys):
    parser = argparse.ArgumentParser()
    stream.add_arguments(parser)
    stream.defaults_from_file(parser, [])
    with pytest.raises(SystemExit):
        parser.parse_args(["model.ncb"])
    args = parser.parse_args(["model.ncb", "photos", "--to", "one:1"])
    assert (args.window, args.backend, args.config) == (8, "auto", None)
    with pytest.raises(ConfigError, match="goes with --config"):
        stream.run(parser.parse_args(["model.ncb", "photos", "--to", "one:1", "--check"]))


def test_what_is_there_to_be_copied_is_sound(tmp_path):
    config = load_config(DEPLOY / "edge.toml")
    assert config.bundle == "/opt/narrowcast/current/model.ncb"
    blocks = (DOCS / "daemon.md").read_text().split("```toml\n")[1:]
    assert blocks
    for block in blocks:
        read(tmp_path, block.split("```")[0])


@pytest.mark.parametrize(("text", "cpus"), [("0", {0}), ("0,2-4", {0, 2, 3, 4}), (" 1 - 2 ", {1, 2})])
def test_processors(text, cpus):
    assert affinity.parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "1,,2", "99999"])
def test_no_processors(text):
    with pytest.raises(ConfigError, match="numbers and ranges"):
        affinity.parse_cpus(text)


def test_a_processor_that_is_not_here():
    with pytest.raises(ConfigError, match="processor 9999 is not here"):
        affinity.check_cpus("0,9999")
