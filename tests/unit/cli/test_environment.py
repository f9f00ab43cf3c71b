"""Options by variables: converted and checked as flags are."""

from __future__ import annotations

import argparse

import pytest

from narrowcast.cli import _defaults_from_environment, flash, main, stream
from narrowcast.transport.errors import ConfigError


@pytest.fixture
def parsed():
    """A function: a verb's options by a command line, and by the environment."""

    def parse(verb, *words: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser(exit_on_error=False)
        verb.add_arguments(parser)
        _defaults_from_environment(parser)
        return parser.parse_args(words)

    return parse


def test_a_value_is_converted_and_a_flag_wins(parsed, monkeypatch):
    monkeypatch.setenv("NARROWCAST_LINES", "7")
    monkeypatch.setenv("NARROWCAST_GATE", "ready")
    monkeypatch.setenv("NARROWCAST_TARGET", "rpi5")
    args = parsed(flash, "logs", "board")
    assert (args.lines, args.gate, args.target) == (7, "ready", "rpi5")
    assert type(args.target) is str
    args = parsed(flash, "logs", "board", "--lines", "8", "--gate", "frames")
    assert (args.lines, args.gate) == (8, "frames")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("GATE", "nope", "NARROWCAST_GATE is 'nope'; it is one of frames, "),
        ("LINES", "many", "NARROWCAST_LINES is 'many': invalid whole number value"),
        ("LINES", "0", "NARROWCAST_LINES is '0': 0 is less than 1"),
    ],
)
def test_a_value_that_cannot_be_names_the_variable(parsed, monkeypatch, capsys, name, value, said):
    monkeypatch.setenv(f"NARROWCAST_{name}", value)
    with pytest.raises(ConfigError) as caught:
        parsed(flash, "logs", "board")
    assert said in str(caught.value)
    assert main(["flash", "logs", "board"]) == 2
    assert said in capsys.readouterr().err
    words = {"GATE": ("--gate", "ready"), "LINES": ("--lines", "3")}[name]
    parsed(flash, "logs", "board", *words)  # nobody asks for the variable


def test_a_flag_that_cannot_be_is_still_the_parsers_to_say(parsed, monkeypatch):
    monkeypatch.setenv("NARROWCAST_WINDOW", "8")
    with pytest.raises(argparse.ArgumentError, match="invalid whole number value: 'x'"):
        parsed(stream, "model.ncb", "0.png", "--to", "server:1", "--window", "x")
