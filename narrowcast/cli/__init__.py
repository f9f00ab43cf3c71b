"""The command line: one module per verb, loaded only when its verb is called."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from narrowcast.text import escaped
from narrowcast.transport.errors import ConfigError, NarrowcastError
from narrowcast.transport.structs import nearest

# verb -> (module under narrowcast.cli, what it does)
VERBS = {
    "demo": ("demo", "all of it on rendered frames, in about two minutes; writes report.html"),
    "cuts": ("cuts", "where a network can be cut, what each cut costs, and whether splitting pays"),
    "compile": ("compile", "train the bottleneck, fit tables, export, verify, sign"),
    "inspect": ("inspect", "what is in a bundle, its figures, its signature"),
    "evaluate": ("evaluate", "accuracy and bytes per level, beside the teacher, JPEG, WebP and AVIF"),
    "serve": ("serve", "the tail server"),
    "models": ("models", "what a tail server has: releases, codecs, levels, tails"),
    "stream": ("stream", "the edge client: frames in, JSON lines out"),
    "probe": ("probe", "what this board is, and what it can measure"),
    "profile": ("profile", "ms and joules per stage: on the board alone, images sent, split; side by side"),
    "report": ("report", "run records of narrowcast profile as a page that needs no network, or compared"),
    "flash": ("flash", "put a model on a board, with health check and rollback; also: status, rollback, logs"),
    "deploy": ("deploy", "from a recipe to running boards: compile, publish, flash, profile, report"),
    "keys": (
        "keys",
        "signing keys: new, show, trust, sign, verify, enrol; a fleet's certificates: ca, issue, rotate, revoke, token",
    ),
    "audit": ("audit", "sealed samples of what a server received: key, list, export"),
}
INTERRUPTED = 130
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code.

    0 done, 1 failed, 2 usage, 3 verification failed, 4 peer unreachable, 5 rolled back, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not _debugging(words):
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what its core would print is in our own messages
    try:
        return _run(words)
    except NarrowcastError as error:
        return _failed(str(error), error.exit_code, words)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED, words)
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        full = f"the disk is full{where}: free some space, or write to another one"
        what = full if error.errno in _NO_SPACE else str(error)
        return _failed(what, 1, words)
    except Exception as error:  # noqa: BLE001  (the last boundary: a line, and the traceback on demand)
        return _failed(f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1, words)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        import narrowcast

        print(f"narrowcast {narrowcast.__version__}")
        return 0
    verb, *rest = words
    if verb not in VERBS:
        print(f"narrowcast: no verb {verb!r}{nearest(verb, list(VERBS))}; see narrowcast --help", file=sys.stderr)
        return 2
    module = importlib.import_module(f"narrowcast.cli.{VERBS[verb][0]}")
    parser = argparse.ArgumentParser(
        prog=f"narrowcast {verb}",
        description=VERBS[verb][1][0].upper() + VERBS[verb][1][1:] + ".",
        epilog=module.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    if (from_file := getattr(module, "defaults_from_file", None)) is not None:
        from_file(parser, rest)
    _add_common(parser)
    _defaults_from_environment(parser)
    code: int = module.run(parser.parse_args(rest))
    return code


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, (_, what) in VERBS.items())
    return (
        "usage: narrowcast VERB [options]\n\n"
        "Run the first layers of a network on the device, send a few hundred bytes instead of an image,\n"
        "finish on a server.\n\n"
        f"{verbs}\n\n"
        "narrowcast VERB --help shows a verb's options and examples. Options can also be set as\n"
        "NARROWCAST_OPTION, for instance NARROWCAST_TRUST=release.pub."
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    for one in _with_actions(parser):
        # Where an action's parser sets no default, a word before the action counts as well as one behind it.
        default = False if one is parser else argparse.SUPPRESS
        group = one.add_argument_group("everywhere")
        group.add_argument("--quiet", action="store_true", default=default, help="no progress")
        group.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")


def _defaults_from_environment(parser: argparse.ArgumentParser) -> None:
    """Switches, and options that take one value: flag, then ``NARROWCAST_*``, then default. Not what may be given again.

    A value that cannot be is a :class:`ConfigError` of the parser, where no flag is given in its place.
    """
    for one in _with_actions(parser):
        for option in one._actions:  # noqa: SLF001  (argparse has no public way to list them)
            if isinstance(option, argparse._AppendAction):  # noqa: SLF001
                continue
            name = f"NARROWCAST_{option.dest.upper()}"
            value = os.environ.get(name) if option.option_strings else None
            if value and option.nargs is None:
                # argparse converts a string default by `type` where no flag says otherwise, but asks for no `choices`.
                option.default, option.required = _FromEnvironment(value), False
                option.type = _naming(name, option.type, option.choices)
            elif value and isinstance(option.const, bool):
                option.default = _is_on(value)


class _FromEnvironment(str):
    """A value that no flag has given."""

    __slots__ = ()


def _naming(name: str, convert: Any, choices: Iterable[object] | None) -> Callable[[str], object]:
    """An option's converter, which says what is wrong with the value of a variable; that of a flag, argparse checks.

    Args:
        name: the variable.
        convert: the option's own; None for text.
        choices: what the option takes; None where it takes whatever converts.
    """

    def converted(text: str) -> object:
        if not isinstance(text, _FromEnvironment):
            return convert(text) if convert else text
        seen = str(text)
        try:
            found = convert(seen) if convert else seen
        except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
            why = str(error) if isinstance(error, argparse.ArgumentTypeError) else f"invalid {converted.__name__} value"
            raise ConfigError(f"{name} is {seen!r}: {why}") from error
        if choices is not None and found not in choices:
            raise ConfigError(f"{name} is {seen!r}; it is one of {', '.join(map(str, choices))}")
        return found

    converted.__name__ = getattr(convert, "__name__", "text")  # argparse says: invalid int value
    return converted


def _is_on(value: str) -> bool:
    return value.lower() not in {"", "0", "false", "no", "off"}


def _debugging(words: list[str]) -> bool:
    return "--debug" in words or _is_on(os.environ.get("NARROWCAST_DEBUG", ""))


def _with_actions(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The verb's parser, and those of its actions (``keys new``)."""
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]  # noqa: SLF001
    return [parser, *(one for action in nested for one in action.choices.values())]


def error_line(message: str) -> str:
    """An error as it is printed: one line, in which what it quotes of boards and servers steers no terminal."""
    return escaped(f"narrowcast: {' '.join(message.split())}")


def _failed(message: str, code: int, words: list[str]) -> int:
    if _debugging(words) and code != INTERRUPTED:
        print(escaped(traceback.format_exc(), keep="\t\n"), end="", file=sys.stderr)
    print(error_line(message), file=sys.stderr)
    return code
