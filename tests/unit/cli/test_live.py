"""What is seen while a profile runs, and its final table."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console
from support.example_run import example_run
from support.runs import make_run

from narrowcast.cli import live
from narrowcast.cli.live import LiveView, watching
from narrowcast.cli.run_table import print_run
from narrowcast.devices.profile.observer import Observer, Outline, PowerSample

WAYS = ["local", "split-0@real", "split-0@lte"]
OUTLINE = Outline(
    WAYS, {way: f"title of {way}" for way in WAYS}, {"local": None, WAYS[1]: "real", WAYS[2]: "lte"}, 100.0, 2
)
SAMPLE = PowerSample(
    3.0, 5.25, {"VDD_IN": 4.5, "[bold]": 0.25}, {"cpu": 61.2}, {"cpu-0": 1500.0, "cpu-1": 2400.0}, ["throttled"]
)


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def screen(view: LiveView, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)
    console.print(view)
    return console.file.getvalue()


def running(height: int = 50) -> tuple[LiveView, Clock]:
    clock = Clock()
    view = LiveView(clock, lambda: height)
    view.begun(OUTLINE)
    view.phase("idle-before", 10.0)
    clock.s += 10
    view.phase("loaded", 80.0)
    return view, clock


def line(text: str, start: str) -> list[str]:
    return next(found.split() for found in text.splitlines() if start in found)


def test_before_it_begins_nobody_knows_how_long_it_takes():
    clock = Clock()
    view = LiveView(clock)
    view.phase("preparing", 0.0)
    clock.s += 5
    assert "preparing" in screen(view)
    assert "0 %" in screen(view)
    assert "left" not in screen(view)


def test_a_way_in_its_turn():
    view, clock = running()
    view.block_started("split-0@real", "single", 0, 6)
    for latency in range(1, 51):
        clock.s += 0.1
        view.frame_done("split-0@real", float(latency), "UNAVAILABLE" if latency == 50 else None)
    text = screen(view)
    assert line(text, "title of split-0@real")[-7:] == ["50", "1", "25", "ms", "47", "ms", "10"]
    assert line(text, "title of split-0@real")[0] == "▸"
    assert line(text, "title of local")[-6:] == ["-", "0", "0", "-", "-", "-"]
    assert "measuring, turn 1 of 6" in text


def test_times_with_several_in_flight_do_not_mix_with_the_others():
    view, clock = running()
    view.block_started("local", "windowed", 1, 6)
    for _ in range(9):
        clock.s += 0.1
        view.frame_done("local", 900.0, None)
    assert line(screen(view), "title of local")[:2] == ["▸▸", "title"]
    assert line(screen(view), "title of local")[-5:] == ["9", "0", "-", "-", "-"]


def test_what_is_left_follows_how_long_turns_take():
    view, clock = running()
    assert view.left_s() == pytest.approx(90.0)
    view.block_started("local", "single", 0, 4)
    clock.s += 40  # twice as long as was planned
    view.block_started("local", "single", 1, 4)
    assert view.left_s() == pytest.approx(3 * 40 + 10)
    assert view.part() == pytest.approx(50 / 180)
    assert "2:10 left" in screen(view)
    clock.s += 1e4
    view.ended(complete=True)
    assert (view.left_s(), view.part()) == (0.0, 1.0)
    assert "evaluating" in screen(view)


def test_power_temperatures_and_throttling():
    view, _ = running()
    view.sample(SAMPLE)
    text = screen(view)
    assert "power: total 5.25 W, VDD_IN 4.50 W, [bold] 0.25 W" in text
    assert "board: cpu 61 °C, clocks 1500 to 2400 MHz" in text
    assert "slowed down by: throttled" in text
    view.sample(SAMPLE._replace(total_watts=None, rails_watts={}, throttled=None, clocks_mhz={}, temperatures_c={}))
    assert "power: total not measurable" in screen(view)
    assert "slowed" not in screen(view)


def test_the_newest_notes_stay():
    view, _ = running()
    for k in range(5):
        view.note(f"note number {k} [red]\x1b[31m")
    assert "note number 1" not in screen(view)
    assert "note: note number 4 [red]\\x1b[31m" in screen(view)


def test_more_ways_than_the_terminal_has_lines():
    view, _ = running(height=16)
    many = [f"way-{k}" for k in range(40)]
    view.begun(Outline(many, {}, {}, 10.0, 1))
    view.block_started("way-20", "single", 20, 40)
    text = screen(view)
    assert "way-20" in text
    assert "18 more" in text
    assert "way-39" not in text
    assert len(text.splitlines()) <= 16


def test_a_narrow_terminal_cuts_and_does_not_wrap():
    view, _ = running()
    view.sample(SAMPLE)
    wide, narrow = screen(view, 110), screen(view, 60)
    assert len(narrow.splitlines()) == len(wide.splitlines())


SAID = "3 ways in 2 turns each: about 1:40 minutes\nthe link was opened anew [1]\n"


def use(observer: Observer) -> None:
    observer.begun(OUTLINE)
    observer.phase("loaded", 1.0)
    observer.block_started("local", "single", 0, 1)
    observer.frame_done("local", 1.0, None)
    observer.frame_done("a stranger", 1.0, None)
    observer.sample(SAMPLE)
    observer.note("the link was opened anew [1]")
    observer.ended(complete=True)


def test_without_a_terminal_only_notes_are_said(capsys):
    with watching() as observer:
        use(observer)
    assert capsys.readouterr() == ("", SAID)


def test_quiet_says_nothing(capsys):
    with watching(quiet=True) as observer:
        use(observer)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("variable", ["NO_COLOR", ""])
def test_on_a_terminal_there_is_a_view_and_colour_only_where_it_is_wanted(monkeypatch, variable):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    file = io.StringIO()
    monkeypatch.setattr(
        live, "stderr", lambda: Console(file=file, force_terminal=True, width=100, markup=False, highlight=False)
    )
    with watching() as observer:
        use(observer)
    said = file.getvalue()
    assert "title of local" in said
    assert "the link was opened anew [1]" in said.splitlines()[-1]
    assert ("\x1b[33m" in said) == (not variable)  # a note is yellow


def test_a_terminal_that_cannot_move_its_cursor_gets_notes_only(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    monkeypatch.setattr(
        live, "stderr", lambda: Console(file=file, force_terminal=True, width=100, markup=False, highlight=False)
    )
    with watching() as observer:
        use(observer)
    assert file.getvalue() == SAID


def test_the_final_table(capsys):
    print_run(example_run())
    out = capsys.readouterr().out
    assert out.startswith("Splitting pays on the real link")
    row = next(found for found in out.splitlines() if found.startswith("split, level 2") and " lte " in found)
    for expected in ("ms (", "2.62 kB", "mJ", "95.5 %"):
        assert expected in row
    assert "warning: none of these values was measured" in out


def test_the_final_table_says_what_could_not_be_measured(capsys):
    run = make_run()
    ways = [msgspec.structs.replace(way, warnings=["too short"]) for way in run.ways]
    ways[1].warnings.append("one broken link")
    print_run(msgspec.structs.replace(run, ways=ways, complete=False, why_incomplete="interrupted"))
    out = capsys.readouterr().out
    assert "energy was not measurable: no power sensor" in out
    assert "not complete: interrupted" in out
    assert "net of idle" not in out
    assert "warning: all ways: too short" in out
    assert "warning: split-1@real: one broken link" in out
