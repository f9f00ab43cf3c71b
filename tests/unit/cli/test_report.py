"""``narrowcast report``: what is written where, and how it ends."""

from __future__ import annotations

import json

import msgspec
import pytest
from support.runs import make_run, make_way

import narrowcast as nc
from narrowcast.cli import main
from narrowcast.devices.profile.schema import write_run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three records: good, slow, and one that is torn."""
    monkeypatch.chdir(tmp_path)
    slow = make_run([make_way("local", 20.0, link=None, kind="local"),
                     make_way("split-1@real", 15.0, 200.0, kind="split", level=1)])  # fmt: skip
    write_run(make_run(), tmp_path / "good.json")
    write_run(slow, tmp_path / "slow.json")
    (tmp_path / "torn.json").write_bytes((tmp_path / "good.json").read_bytes()[:500])
    return tmp_path


def test_a_page_and_its_json(folder, capsys):
    assert main(["report", "good.json"]) == 0
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads((folder / "report.json").read_text())["runs"][0]["name"] == "good"
    out, err = capsys.readouterr()
    assert out == "Splitting pays.\n"
    assert err == "report.html is written, its figures in report.json\n"
    assert main(["report", "good.json", "slow.json", "-o", "deep/er.html", "--quiet"]) == 0
    assert (folder / "deep" / "er.json").exists()
    assert capsys.readouterr() == ("good: Splitting pays.\nslow: Splitting pays.\n", "")


def test_the_same_in_python(folder):
    found = nc.report("good.json", "one.html")
    assert json.loads((folder / "one.json").read_text()) == found
    assert len(nc.report(["good.json", folder / "slow.json"], folder / "two.html")["runs"]) == 2
    with pytest.raises(nc.NarrowcastError, match="over the run record"):
        nc.report("good.json", "good.html")


def test_json_alone_writes_no_file(folder, capsys):
    assert main(["report", "good.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "narrowcast-report"
    assert not (folder / "report.html").exists()


def test_compare_ends_with_1_where_something_got_worse(folder, capsys):
    assert main(["report", "--compare", "good.json", "good.json"]) == 0
    assert "nothing got worse beyond noise; 6 of 6 figures are the same" in capsys.readouterr().out
    assert main(["report", "--compare", "good.json", "slow.json"]) == 1
    out = capsys.readouterr().out
    assert "WORSE  split, level 1 over the real link  latency, median  10 ms  15 ms  +50.0 %" in out
    assert "1 figure got worse beyond noise" in out
    assert main(["report", "--compare", "slow.json", "good.json"]) == 0
    assert "better" in capsys.readouterr().out
    assert main(["report", "--compare", "good.json", "slow.json", "--least", "latency=60"]) == 0
    assert main(["report", "--compare", "good.json", "slow.json", "--json"]) == 1
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["regressions"] == 1


def test_a_record_does_not_steer_the_terminal(folder, capsys):
    run = make_run()
    hostile = msgspec.structs.replace(
        run,
        verdict=msgspec.structs.replace(run.verdict, text=["\x1b]0;title\x07 pays"]),
        board=msgspec.structs.replace(run.board, model="\x1b[31mred\u202e"),
    )
    write_run(hostile, folder / "hostile.json")
    assert main(["report", "hostile.json"]) == 0
    assert main(["report", "--compare", "good.json", "hostile.json"]) == 0
    out, err = capsys.readouterr()
    assert "not alike: board" in out
    assert not set("\x1b\x07\u202e") & set(out + err)


def test_compare_shows_everything_where_it_is_asked_to(folder, capsys):
    assert main(["report", "--compare", "good.json", "good.json", "--all"]) == 0
    assert "frames answered" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "no run record given"),
        (["torn.json"], 1, "torn.json is no run record"),
        (["none.json"], 1, "none.json cannot be read: No such file"),
        (["good.json", "-o", "good.html"], 2, "would write good.json over the run record good.json"),
        (["good.json", "-o", "good.json"], 2, "its name ends in .html"),
        (["good.json", "--all"], 2, "are for --compare"),
        (["good.json", "--least", "latency=1"], 2, "are for --compare"),
        (["--compare", "good.json", "slow.json", "-o", "x.html"], 2, "--compare takes two run records and prints"),
        (["--compare", "good.json", "slow.json", "--least", "x=1"], 2, "no figure 'x'"),
        (["--compare", "good.json", "torn.json"], 1, "torn.json is no run record"),
    ],
)
def test_what_cannot_be_is_one_line(folder, capsys, words, code, message):
    assert main(["report", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert "report.html" not in {path.name for path in folder.iterdir()}
