"""``narrowcast.report``: from run records to a page and its JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from narrowcast.devices.report.data import data
from narrowcast.devices.report.entries import Entry, read_entries
from narrowcast.devices.report.page import page
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.files import replacing


def report(runs: str | Path | Sequence[str | Path], output: str | Path = "report.html") -> dict[str, Any]:
    """Makes one page of one or several run records, side by side, and its JSON beside it.

    Args:
        runs: files that ``narrowcast profile`` wrote.
        output: ``FILE.html``; the JSON is ``FILE.json``.

    Returns:
        what the JSON holds (``docs/report.md``).

    Raises:
        RunError: a run record cannot be read, or is none.
        ConfigError: ``output`` is no name of a page, or is a run record itself.
    """
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    beside_of(Path(output), paths)
    entries = read_entries(paths)
    write_report(entries, Path(output), paths)
    return data(entries)


def write_report(entries: Sequence[Entry], output: Path, paths: Sequence[Path]) -> Path:
    """Writes the page, and its JSON beside it; gives the JSON's file. ``paths`` are the records, which are left alone."""
    beside = beside_of(output, paths)
    with replacing(output) as out:
        out.write(page(entries).encode("utf-8", "replace"))
    with replacing(beside) as out:
        out.write(json.dumps(data(entries), indent=1, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    return beside


def beside_of(output: Path, paths: Sequence[Path]) -> Path:
    """Where the JSON goes: never over a run record that it is made from."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"-o {output}: the page is HTML, so its name ends in .html; its JSON goes beside it")
    beside = output.with_suffix(".json")
    taken = [path for path in paths if path.resolve() in (beside.resolve(), output.resolve())]
    if taken:
        raise ConfigError(f"-o {output} would write {beside} over the run record {taken[0]}: take another name")
    return beside
