"""``narrowcast serve --config``: which of flag, environment, file and default counts, and what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from narrowcast.cli import _defaults_from_environment, main, serve
from narrowcast.transport.errors import ConfigError


@pytest.fixture
def parsed(tmp_path):
    """A function: the options, by a file's text and a command line."""

    def parse(text: str, *words: str) -> argparse.Namespace:
        path = tmp_path / "server.toml"
        path.write_text(text)
        parser = argparse.ArgumentParser(exit_on_error=False)
        serve.add_arguments(parser)
        line = ["--config", str(path), *words]
        serve.defaults_from_file(parser, line)
        _defaults_from_environment(parser)
        return parser.parse_args(line)

    return parse


def test_flag_then_environment_then_file_then_default(parsed, monkeypatch):
    text = 'bundles = "models"\nmax_batch = 3\nmax_queue = 4\nrate = 5\nno_drift = true\nmqtt_tls = true'
    monkeypatch.setenv("NARROWCAST_MAX_BATCH", "30")
    monkeypatch.setenv("NARROWCAST_MAX_QUEUE", "40")
    monkeypatch.setenv("NARROWCAST_MQTT_TLS", "0")
    args = parsed(text, "--max-batch", "300")
    assert (args.max_batch, args.max_queue, args.rate, args.max_streams) == (300, 40, 5.0, 4096)
    assert (args.no_drift, args.mqtt_tls, args.insecure) == (True, False, False)


def test_keys_may_be_written_as_flags_and_paths_lie_beside_the_file(parsed, tmp_path):
    args = parsed('bundles = "models"\nmax-delay-ms = 2\nproviders = ["cuda", "cpu"]\ntls = "/etc/tls"\nlog = "json"')
    assert args.bundles == tmp_path / "models"
    assert (args.max_delay_ms, args.providers, args.tls, args.log) == (2.0, ("cuda", "cpu"), Path("/etc/tls"), "json")
    assert parsed('bundles = "x"\nproviders = "cpu"', "--bundles", "y").bundles == Path("y")


def test_every_option_is_a_key(parsed):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    names = {option.dest for option in parser._actions} - {"help", "config"}
    with pytest.raises(ConfigError) as caught:
        parsed("zzzzzz = 1")
    assert names == set(str(caught.value).partition("known: ")[2].split(", "))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_bach = 3", "unknown key 'max_bach'; did you mean 'max_batch'?"),
        ('max_batch = "3"', "Expected `int"),
        ("max_batch = 0", "max_batch = 0: 0 is less than 1"),
        ("drain_timeout = -1", "drain_timeout = -1.0: "),
        ("no_drift = 1", "Expected `bool"),
        ("bundles = 1", "Expected `str"),
        ('log = "xml"', "one of text, json"),
        ("max_batch = 3\nmax-batch = 4", "max_batch is there twice"),
        ('config = "other.toml"', "unknown key 'config'"),
        ("[drift]\nlearn = 1", "unknown key 'drift'"),
        ("max_batch = ", "is not TOML"),
    ],
)
def test_what_is_refused_names_the_file_and_the_key(parsed, text, said):
    with pytest.raises(ConfigError, match="server.toml") as caught:
        parsed(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"#" * ((1 << 20) + 1), None])
def test_files_that_cannot_be_read(tmp_path, capsys, data):
    path = tmp_path / "server.toml"
    if data is not None:
        path.write_bytes(data)
    assert main(["serve", "--config", str(path)]) == 2
    assert f"--config {path}" in capsys.readouterr().err


def test_the_verb_takes_it(tmp_path, capsys):
    (tmp_path / "server.toml").write_text('bundles = "none-there"\nlisten = "127.0.0.1:0"')
    assert main(["serve", "--config", str(tmp_path / "server.toml")]) == 1
    assert "none-there" in capsys.readouterr().err
    assert main(["serve", "--config", str(tmp_path / "server.toml"), "--no-drift", "--drift-state", "x"]) == 2
