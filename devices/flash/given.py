"""Options that remember which of them somebody gave."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from narrowcast.devices.flash.options import Connection, FlashOptions


@dataclass(frozen=True)
class GivenOptions(FlashOptions):
    """Options of a command line: a flag counts as given although it says what is so by default.

    Attributes:
        said: the fields that were given, those beside the connection's.
    """

    said: frozenset[str] = frozenset()


def given_in(options: FlashOptions) -> dict[str, Any]:
    """What was given, but for the connection: the fields that are said to be, and those that differ from the default."""
    said = options.said if isinstance(options, GivenOptions) else frozenset()
    default = FlashOptions()
    return {
        field.name: value
        for field in fields(FlashOptions)
        if field.name != "connection"
        and ((value := getattr(options, field.name)) != getattr(default, field.name) or field.name in said)
    }


def given_of_connection(connection: Connection) -> dict[str, Any]:
    """The same of the connection, none of whose defaults takes anything back: they are empty, or nobody else says it."""
    default = Connection()
    return {
        field.name: value
        for field in fields(Connection)
        if (value := getattr(connection, field.name)) != getattr(default, field.name)
    }
