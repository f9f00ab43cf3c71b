"""The run record: written, read, refused; and that its page has every key."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from support.runs import make_run

from narrowcast.devices.errors import RunError
from narrowcast.devices.profile import figures, schema
from narrowcast.devices.profile.schema import parse_run, read_run, write_run
from narrowcast.transport.structs import Settings, to_json

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "profile-schema.md").read_text()


def test_a_record_comes_back_as_it_was_written(tmp_path):
    run = make_run()
    write_run(run, tmp_path / "RUN.json")
    assert read_run(tmp_path / "RUN.json") == run
    assert run.way("split-1@real").level == 1
    assert run.way("nobody") is None


@pytest.mark.parametrize("kind", [k for m in (schema, figures) for k in vars(m).values() if isinstance(k, type)])
def test_the_page_has_every_key(kind):
    if not issubclass(kind, Settings) or kind in (Settings, schema.LinkSettings, figures.Histogram):
        return
    section = re.search(rf"^##+ {kind.__name__}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
    assert section is not None, kind.__name__
    for field in msgspec.structs.fields(kind):
        assert f"`{field.name}`" in section[1], f"{kind.__name__}.{field.name}"
    for kind_of_its_own in (schema.LinkSettings, figures.Histogram):
        for field in msgspec.structs.fields(kind_of_its_own):
            assert f"`{field.name}`" in PAGE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:100], "is no run record"),
        (lambda data: b"\xff" + data, "is no run record"),
        (lambda data: b"[" * 100_000, "is no run record"),
        (lambda data: data.replace(b"narrowcast-run", b"something"), "its format is 'something'"),
        (lambda data: data.replace(b'"schema":1', b'"schema":7'), "has schema 7; this release reads 1"),
        (lambda data: data.replace(b'"ways":', b'"wasy":'), "unknown key 'wasy'.*; did you mean 'ways'"),
        (lambda data: data.replace(b'"complete":true', b'"complete":"yes"'), "complete"),
    ],
)
def test_what_is_no_record_is_refused(change, message):
    with pytest.raises(RunError, match=message):
        parse_run(change(to_json(make_run())), "RUN.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        read_run(tmp_path / "none.json")
