"""Settings: strict, with a suggestion."""

from __future__ import annotations

import pytest

from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import Settings, from_json, from_toml, to_json


class Inner(Settings, frozen=True):
    width: int = 3


class Outer(Settings, frozen=True):
    name: str
    inner: Inner = Inner()
    list_of: list[Inner] = []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('nam = "x"', r"s.toml: unknown key 'nam'; did you mean 'name'\?|missing required field `name`"),
        ('name = "x"\n[inner]\nwith = 3', r"unknown key 'with' in \[inner\]; did you mean 'width'\?"),
        ('name = "x"\n[[list_of]]\nwidht = 3', r"unknown key 'widht' .*did you mean 'width'\?"),
        ('name = "x"\nzzz = 1', r"unknown key 'zzz'; known: inner, list_of, name"),
        ("name = 3", "Expected `str`, got `int`"),
        ("name = ", "s.toml is not TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        from_toml(Outer, text, "s.toml")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("data", [b"", b"{", b'{"name": "\xff"}', b"[" * 100_000])
def test_bad_json_is_an_error_not_a_crash(data):
    with pytest.raises(ConfigError):
        from_json(Outer, data, "s.json")


def test_json_is_canonical():
    assert to_json(Outer(name="a")) == b'{"inner":{"width":3},"list_of":[],"name":"a"}'
    assert from_json(Outer, to_json(Outer(name="ü")), "x") == Outer(name="ü")


def test_settings_do_not_change():
    with pytest.raises(AttributeError):
        Inner().width = 4
