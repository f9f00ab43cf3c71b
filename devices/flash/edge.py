"""The daemon's configuration on a board: what a user asked for, with the paths that flash decides."""

from __future__ import annotations

import json
from typing import Any

from narrowcast.devices.flash.agent.layout import Layout
from narrowcast.devices.flash.errors import EdgeConfigError
from narrowcast.devices.flash.options import FlashOptions
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import parse_toml

HEADER = "# Written by narrowcast flash; the next flash takes over what it is not told otherwise.\n"


def edge_config(options: FlashOptions, layout: Layout, there: str | None, *, tls: bool, signed: bool) -> str:
    """The file's text.

    Args:
        options: what was asked for.
        layout: of the board.
        there: the configuration that the board has; None on the first flash.
        tls: the board will have a client certificate.
        signed: the bundle is.

    Raises:
        EdgeConfigError: it would say neither where frames come from nor where they go.
    """
    settings = _base(options, there)
    if options.to:
        settings["to"] = options.to
    if options.source:
        watched = {"watch": True} if options.source.endswith("/") else {}
        first = _first_source(settings)  # in its own order: the same once more is the same release
        if not watched:  # the slash says it, not what was there
            first.pop("watch", None)
        settings["sources"] = [{**first, **watched, "uri": options.source}]
    settings |= options.settings
    missing = [
        option for key, option in (("to", "--to HOST:PORT"), ("sources", "--source SOURCE")) if not settings.get(key)
    ]
    if missing:
        raise EdgeConfigError(
            f"the board has no configuration that says it: {' and '.join(missing)}, or --config edge.toml"
        )
    settings["bundle"] = f"{layout.current}/model.ncb"
    settings["trust"] = [str(layout.trusted)] if signed else []
    if not signed:
        settings["allow_unsigned"] = True
    else:
        settings.pop("allow_unsigned", None)
    if tls:
        settings["tls"] = {**_table(settings, "tls"), "dir": f"{layout.config}/tls"}
    if options.precision is not None:
        settings["runtime"] = {**_table(settings, "runtime"), "precision": options.precision}
        if options.precision == "auto":
            del settings["runtime"]["precision"]
        if not settings["runtime"]:
            del settings["runtime"]
    return HEADER + to_toml(settings)


def servers_of(text: str) -> list[str]:
    """The addresses in a configuration."""
    found = parse_toml(text, "edge.toml").get("to", "")
    words = found if isinstance(found, list) else str(found).split(",")
    return [str(word).strip() for word in words if str(word).strip()]


def sources_of(text: str) -> list[str]:
    """The sources' URIs in a configuration."""
    return [str(one.get("uri", "")) for one in _sources(text)]


def outputs_of(text: str) -> list[str]:
    """The kinds of outputs in a configuration."""
    found = parse_toml(text, "edge.toml").get("outputs", [])
    return [str(one.get("kind", "")) for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def runtime_of(text: str) -> dict[str, Any]:
    """``[runtime]`` of a configuration: what the daemon runs the head with."""
    return _table(parse_toml(text, "edge.toml"), "runtime")


def _sources(text: str) -> list[dict[str, Any]]:
    found = parse_toml(text, "edge.toml").get("sources", [])
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def check_gate(text: str, options: FlashOptions) -> None:
    """Whether the gate's frames can come.

    Raises:
        EdgeConfigError: it waits for a server's answers, and no source asks for any.
    """
    sources = _sources(text)
    if options.gate == "frames" and sources and all(one.get("offload") == "local" for one in sources):
        raise EdgeConfigError(
            'all sources have offload = "local", so no server will answer the frames that the gate waits for: flash with '
            "--gate ready"
        )


def _base(options: FlashOptions, there: str | None) -> dict[str, Any]:
    if options.config is not None:
        try:
            return parse_toml(options.config.read_text(encoding="utf-8"), str(options.config))
        except (OSError, UnicodeDecodeError) as error:
            raise EdgeConfigError(f"{options.config} cannot be read: {error}") from error
        except ConfigError as error:
            raise EdgeConfigError(str(error)) from error
    try:
        return parse_toml(there, "the board's edge.toml") if there else {}
    except ConfigError as error:
        raise EdgeConfigError(f"{error}; --config FILE replaces it") from error


def _first_source(settings: dict[str, Any]) -> dict[str, Any]:
    """What the first source has beside its URI; a name of its own where there is none."""
    sources = settings.get("sources")
    first = sources[0] if isinstance(sources, list) and sources and isinstance(sources[0], dict) else {}
    return {"name": "camera", **first}


def _table(settings: dict[str, Any], name: str) -> dict[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def to_toml(settings: dict[str, Any], path: str = "") -> str:
    """TOML of plain settings: strings, numbers, lists, tables and lists of tables.

    Raises:
        EdgeConfigError: a value that such a file cannot hold.
    """
    plain, tables = [], []
    for key, value in settings.items():
        name = f"{path}.{_key(key)}" if path else _key(key)
        if isinstance(value, dict):
            tables.append(f"\n[{name}]\n{to_toml(value, name)}")
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            tables += [f"\n[[{name}]]\n{to_toml(one, name)}" for one in value]
        elif value is not None:
            plain.append(f"{_key(key)} = {_value(value, name)}\n")
    return "".join(plain + tables)


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's as well, but for surrogates, of which JSON has pairs.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(one, name) for one in value)}]"
    raise EdgeConfigError(f"{name} is {value!r}, which a configuration cannot hold")
