"""Frozen, typed settings: from TOML or JSON to a struct, or one clear line about what is wrong.

Built on msgspec: a field of the wrong type, a missing field and an unknown one are errors that name their place, and an
unknown one comes with the nearest known name.
"""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from narrowcast.transport.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
S = TypeVar("S", bound="Settings")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]*)`(?: - at `(?P<path>[^`]*)`)?")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every recipe, manifest and settings struct: immutable, keyword-only, unknown keys refused."""


def from_toml(kind: type[S], text: str, name: str) -> S:
    """``text`` as a ``kind``.

    Args:
        kind: the struct to read.
        text: TOML.
        name: what to call the text in errors (usually the file's name).

    Raises:
        ConfigError: not TOML, an unknown key, a missing one, or a value of the wrong type.
    """
    return from_mapping(kind, parse_toml(text, name), name)


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """TOML as plain tables and values.

    Raises:
        ConfigError: it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not TOML: {error}") from error


def read_toml(path: Path, name: str) -> dict[str, Any]:
    """A file of TOML as plain tables and values.

    Args:
        path: of the file.
        name: what to call it where it cannot be read (``--config edge.toml``).

    Raises:
        ConfigError: it cannot be read, is larger than 1 MiB, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{name} has more than {MAX_FILE_BYTES} bytes")
    return parse_toml(text, str(path))


def from_json(kind: type[S], data: bytes, name: str) -> S:
    """``data`` (JSON, UTF-8) as a ``kind``; see :func:`from_toml`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {_explain(kind, str(error))}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON: {error}") from error


def from_mapping(kind: type[S], mapping: dict[str, Any], name: str) -> S:
    """``mapping`` (as a TOML or JSON parser gives it) as a ``kind``; see :func:`from_toml`."""
    try:
        return msgspec.convert(mapping, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {_explain(kind, str(error))}") from error


def to_json(settings: msgspec.Struct, *, indent: int = 0) -> bytes:
    """Canonical JSON: keys sorted, no spaces unless ``indent`` is given, UTF-8."""
    data = msgspec.json.encode(settings, order="sorted")
    return msgspec.json.format(data, indent=indent) if indent else data


def nearest(word: str, known: list[str]) -> str:
    """``"; did you mean 'X'?"`` for the known word nearest to ``word``, or the list where none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _explain(kind: type[msgspec.Struct], message: str) -> str:
    unknown = _UNKNOWN.fullmatch(message)
    if unknown is None:
        return message.replace("`$.", "`").replace("Object", "it")
    path = (unknown["path"] or "$").removeprefix("$").removeprefix(".")
    structs = _structs_at(kind, path)
    known = sorted({field.encode_name for struct in structs for field in msgspec.structs.fields(struct)})
    place = f" in [{path}]" if path else ""
    hint = nearest(unknown["field"], known) if known else ""
    if unknown["field"] in known:  # tables that come in kinds (presets, tasks) have keys of their own
        hint = f": {_kinds_with(unknown['field'], structs)}"
    return f"unknown key {unknown['field']!r}{place}{hint}"


def _kinds_with(key: str, structs: list[type[msgspec.Struct]]) -> str:
    """Which kinds of a table have a key, where this one has not."""
    having = [struct for struct in structs if any(one.encode_name == key for one in msgspec.structs.fields(struct))]
    tags = {(str(one.__struct_config__.tag_field), str(one.__struct_config__.tag)) for one in having}
    named = " or ".join(f'{field} = "{tag}"' for field, tag in sorted(tags) if tag != "None")
    return f"a table with {named} has it, this one has not" if named else "another kind of this table has it"


def _structs_at(kind: Any, path: str) -> list[type[msgspec.Struct]]:
    """The structs that may lie at ``path`` (``a.b[...]``) under ``kind``."""
    structs = _structs_in(kind)
    for step in filter(None, re.split(r"[.\[]", path)):
        if not step.endswith("]"):
            fields = [f for struct in structs for f in msgspec.structs.fields(struct) if f.encode_name == step]
            structs = [inner for f in fields for inner in _structs_in(f.type)]
    return structs


def _structs_in(kind: Any) -> list[type[msgspec.Struct]]:
    """The struct types that a type annotation allows."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [struct for member in get_args(kind) for struct in _structs_in(member)]
