"""What is said while something runs."""

from __future__ import annotations

from narrowcast.cli import show


def test_without_a_terminal_a_step_is_one_line_at_its_end(capsys):
    with show.TerminalProgress().task("counting", 10, "sheep") as task:
        task.advance(4)
        task.advance(6, {"loss": 0.5})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("counting: 10 sheep in ")
    assert err.endswith("s; loss 0.5\n")


def test_a_long_step_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(show, "SECONDS_BETWEEN_LINES", 0.0)
    with show.TerminalProgress().task("counting", 10, "sheep") as task:
        task.advance(4, {"loss": 0.25})
    assert capsys.readouterr().err.splitlines()[0] == "counting: 4 of 10 sheep; loss 0.25"


def test_quiet_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(show, "SECONDS_BETWEEN_LINES", 0.0)
    progress = show.TerminalProgress(quiet=True)
    with progress.task("counting", 10, "sheep") as task:
        task.advance(10)
    progress.note("a note")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(show, "stderr", lambda: Console(stderr=True, force_terminal=True, width=100))
    with show.TerminalProgress().task("counting", 10, "sheep") as task:
        task.advance(10, {"loss": 0.5})
    err = capsys.readouterr().err
    assert "10/10" in err
    assert "loss 0.5" in err


def test_tables_go_to_stdout_whole(capsys):
    show.print_table("title [1]", ["name", ">value"], [["x" * 150, "[2]"]], note="note [brackets] stay")
    out, err = capsys.readouterr()
    assert "x" * 150 in out
    assert "title [1]" in out
    assert "[2]" in out
    assert "note [brackets] stay" in out
    assert err == ""


def test_without_a_terminal_a_table_is_as_wide_as_its_content(capsys):
    why = "the board is not reached: " + "x" * 300
    show.print_table("", ["board", "runs", "daemon"], [["dock-1", "tiny-1", "ready"], ["dock-2", "?", why]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split(maxsplit=2) == ["dock-2", "?", why]
    assert len(lines) == 3


def test_on_a_narrow_terminal_the_first_column_stays_and_nothing_is_lost(capsys, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(show, "stdout", lambda: Console(force_terminal=True, color_system=None, width=60))
    why = " ".join(f"word{number}" for number in range(30))
    show.print_table("", ["board", "runs", ">answered"], [["dock-camera-1", "?", why], ["dock-camera-2", why, "12"]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert [line.split()[0] for line in lines if line.startswith("dock")] == ["dock-camera-1", "dock-camera-2"]
    assert sum(line.count("word") for line in lines) == 60
    show.print_table("", ["", "figure"], [["n" * 90, "12.5 kB"]])
    out = capsys.readouterr().out
    assert out.count("n") == 90
    assert "12.5 kB" in out


HOSTILE = "\x1b[2Jgone\r\x07\x9b1A\u202e"
HARMLESS = "\\x1b[2Jgone\\r\\x07\\x9b1A\\u202e"


def test_what_others_say_steers_no_terminal(capsys):
    show.print_table(f"\n{HOSTILE}", [HOSTILE], [[HOSTILE], ["two\nlines"]], note=f"a note\n{HOSTILE}")
    show.TerminalProgress().note(f"said:\t{HOSTILE}\nby a board")
    out, err = capsys.readouterr()
    for text in (out, err):
        assert all(c.isprintable() or c == "\n" for c in text)
    assert out.count(HARMLESS) == 4
    assert "two\\nlines" in out
    assert f"a note\n{HARMLESS}" in out
    assert f"{HARMLESS}\nby a board\n" in err


def test_an_error_is_one_line_that_steers_no_terminal(capsys, monkeypatch):
    from narrowcast import cli
    from narrowcast.transport.errors import NarrowcastError

    def fail(words):
        raise NarrowcastError(f"the board says:\n{HOSTILE}")

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["flash"]) == 1
    said = "\\x1b[2Jgone \\x07\\x9b1A\\u202e"  # any space is one space
    assert capsys.readouterr().err == f"narrowcast: the board says: {said}\n"
    assert cli.main(["flash", "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert all(c.isprintable() or c == "\n" for c in err)


def test_precisions_stand_side_by_side(capsys):
    level = {"level": 0, "mean_packet_bytes": 792.0, "agreement": None, "output_error": 0.29}
    exact = {**level, "moved_symbols": 0.0, "largest_step": 0}
    other = {**level, "moved_symbols": 0.0151, "largest_step": 2}
    figures = {
        "precisions": {"int8": {"head_ms": 2.44, "levels": [other]}, "fp32": {"head_ms": 3.9, "levels": [exact]}},
        "head_ms_with": "onnxruntime 9.9",
        "left_out": {"fp16": "it lost too much"},
    }
    show.print_precisions(figures)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if " ms " in line] == ["fp32", "int8"]  # not as JSON sorts them
    assert any(line.split()[:3] == ["int8", "2.44", "ms"] and "1.51 %" in line for line in lines)
    assert any("onnxruntime 9.9" in line for line in lines)
    assert lines[-1] == "no fp16 head: it lost too much"
    show.print_precisions({"left_out": {}})
    assert capsys.readouterr().out == ""


def test_what_video_tables_are_worth(capsys):
    row = {
        "level": 1, "key_bytes": 2500.0, "predicted_bytes": 1200.0, "mean_bytes": 700.0, "skipped": 0.41, "error": 0.1,
        "error_with_skips": 0.09,
    }  # fmt: skip
    show.print_video({"video": {"clips": 24, "frames": 6, "levels": [row]}})
    out = capsys.readouterr().out
    assert out.split("\n")[3].split() == ["1", "2.5", "kB", "1.2", "kB", "700", "B", "41.0", "%", "0.1000", "0.0900"]
    assert "24 clips of 6 frames" in out
    show.print_video({})
    assert capsys.readouterr().out == ""


def test_what_looking_for_relevant_channels_found(capsys):
    found = {"start": 128, "kept": 64, "spent_bytes": [1.5, 20.0], "saved_macs": 2_500_000}
    show.print_channels({"channels": found})
    out = capsys.readouterr().out
    assert "128 to start from, 64 kept" in out
    assert "2.50 M multiply-accumulates" in out
    assert "level 0 2 B, level 1 20 B" in out
    show.print_channels({})
    assert capsys.readouterr().out == ""
