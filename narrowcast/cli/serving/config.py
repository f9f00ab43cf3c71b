"""``narrowcast serve --config FILE.toml``: the verb's options as keys of a file.

The file's schema is made of the parser's own options, so that no option can be forgotten here. What a flag or
``NARROWCAST_*`` says wins over the file.
"""

from __future__ import annotations

import argparse
import os
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from narrowcast.transport.errors import ConfigError
from narrowcast.transport.files import at_home
from narrowcast.transport.structs import Settings, from_mapping, read_toml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The option."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE.toml",
        help="options as keys (max_batch = 32, no_drift = true, bundles = \"models\"; paths from the file's folder); "
        "flags and NARROWCAST_* win over it",
    )  # fmt: skip


def defaults_from_file(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Makes what the file says the options' defaults.

    Args:
        parser: with all of the verb's options.
        words: the command line behind the verb.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has an unknown key or a value that cannot be.
    """
    path = path_in(words)
    if path is None:
        return
    mapping: dict[str, Any] = {}
    for key, value in read_toml(path, f"--config {path}").items():
        name = key.replace("-", "_")  # as the flag is written, too
        if name in mapping:
            raise ConfigError(f"{path}: {name} is there twice")
        mapping[name] = value
    options = {option.dest: option for option in _options(parser)}
    settings = from_mapping(_schema(options), mapping, str(path))
    for name, option in options.items():
        value = getattr(settings, name)
        if value is not UNSET:
            option.default, option.required = _converted(option, value, path), False


def path_in(words: Sequence[str]) -> Path | None:
    """The file that ``--config`` or ``NARROWCAST_CONFIG`` names, before the command line is parsed."""
    finder = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    finder.add_argument("--config", type=Path)
    if "-h" in words or "--help" in words:
        return None
    try:
        found: Path | None = finder.parse_known_args(list(words))[0].config
    except argparse.ArgumentError:  # the parser itself says it
        return None
    named = os.environ.get("NARROWCAST_CONFIG")
    return found or (Path(named) if named else None)


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    # argparse has no public way to list them.
    return [one for one in parser._actions if one.option_strings and one.dest not in ("help", "config")]  # noqa: SLF001


def _schema(options: dict[str, argparse.Action]) -> type[Settings]:
    fields = [(name, typing.Union[_kind(option), UnsetType], UNSET) for name, option in options.items()]  # noqa: UP007
    made = msgspec.defstruct(
        "ServerConfig", fields, bases=(Settings,), frozen=True, kw_only=True, forbid_unknown_fields=True
    )
    return typing.cast("type[Settings]", made)


def _kind(option: argparse.Action) -> Any:
    """What TOML has for an option: by what its converter gives."""
    if isinstance(option.const, bool):
        return bool
    if isinstance(option.type, type) or option.type is None:
        gives = option.type
    else:
        gives = typing.get_type_hints(option.type)["return"]
    if gives in (int, float):
        return gives
    return str | list[str] if typing.get_origin(gives) is tuple else str


def _converted(option: argparse.Action, value: Any, path: Path) -> Any:
    """As the option's own converter wants it."""
    if isinstance(value, bool):
        return value
    text = ",".join(value) if isinstance(value, list) else str(value)
    if option.type is Path:
        return path.parent / at_home(text)
    try:
        made = option.type(text) if callable(option.type) else text
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ConfigError(f"{path}: {option.dest} = {value!r}: {error}") from error
    if option.choices is not None and made not in option.choices:
        raise ConfigError(f"{path}: {option.dest} = {value!r}; it is one of {', '.join(map(str, option.choices))}")
    return made
