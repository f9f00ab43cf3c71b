"""This machine's side of a flash, without a board: destinations, configuration, wheels, preflight, what ssh says, plans."""

from __future__ import annotations

import pytest
from support import bundles
from support.facts import RIGHTS, facts

from narrowcast.devices.flash import Connection, FlashOptions, Observer, edge
from narrowcast.devices.flash.agent.services import Supervised, Systemd, services_for
from narrowcast.devices.flash.answers import Facts, printable
from narrowcast.devices.flash.answers import checked as checked_answer
from narrowcast.devices.flash.board import layout_of, look, services_of
from narrowcast.devices.flash.destination import Destination
from narrowcast.devices.flash.errors import (
    BY_NAME,
    BoardError,
    BoardUnreachableError,
    DestinationError,
    EdgeConfigError,
    FlashError,
    HostKeyError,
    LoginError,
    PreflightError,
    RolledBackError,
    SudoError,
    WheelhouseError,
    from_board,
)
from narrowcast.devices.flash.given import GivenOptions
from narrowcast.devices.flash.going_back import gate_of
from narrowcast.devices.flash.plan import STEPS, Command, Plan, PlannedStep
from narrowcast.devices.flash.ssh import Ssh
from narrowcast.devices.flash.wheelhouse import BoardPython, constraints, extras_for, from_folder
from narrowcast.devices.targets import DeployPaths
from narrowcast.transport.bundle.signing import read_keys
from narrowcast.transport.errors import ConfigError, KeyFileError
from narrowcast.transport.structs import parse_toml

LAYOUT = layout_of("", DeployPaths())


# ---------------------------------------------------------------- destinations


@pytest.mark.parametrize(
    ("text", "words", "host"),
    [
        ("pi@camera-7", ("--", "pi@camera-7"), "camera-7"),
        ("camera-7", ("--", "camera-7"), "camera-7"),
        ("pi@192.0.2.7", ("--", "pi@192.0.2.7"), "192.0.2.7"),
        ("pi@2001:db8::7", ("--", "pi@2001:db8::7"), "2001:db8::7"),
        ("ssh://pi@camera-7:2222", ("-p", "2222", "--", "pi@camera-7"), "camera-7"),
        ("ssh://[2001:db8::7]:2222/", ("-p", "2222", "--", "2001:db8::7"), "2001:db8::7"),
    ],
)
def test_boards_are_named_as_ssh_takes_them(text, words, host):
    found = Destination.parse(text)
    assert (found.words, found.host) == (words, host)


@pytest.mark.parametrize(
    "text",
    ["", " ", "-oProxyCommand=x", "pi@-x", "a b", "pi@", "@x", "ssh://", "ssh://x:y", "ssh://-x", "ssh://a/b", "a:b"],
)
def test_what_is_no_board(text):
    with pytest.raises(DestinationError, match="is no board"):
        Destination.parse(text)


# ---------------------------------------------------------------- the daemon's configuration


def test_a_configuration_is_made_of_options_and_of_what_is_there():
    options = FlashOptions(to="tail:7433", source="/dev/video0", precision="int8")
    text = edge.edge_config(options, LAYOUT, None, tls=True, signed=True)
    made = parse_toml(text, "x")
    assert made == {
        "to": "tail:7433", "sources": [{"name": "camera", "uri": "/dev/video0"}],
        "bundle": "/opt/narrowcast/current/model.ncb", "trust": ["/etc/narrowcast/trusted.pub"],
        "tls": {"dir": "/etc/narrowcast/tls"}, "runtime": {"precision": "int8"},
    }  # fmt: skip
    there = text.replace('name = "camera"', 'name = "door"\nfps = 5.0') + '\n[metrics]\nlisten = "unix:/x"\n'
    kept = parse_toml(edge.edge_config(FlashOptions(to="other:1"), LAYOUT, there, tls=True, signed=True), "x")
    assert kept["to"] == "other:1"
    assert kept["sources"] == [{"name": "door", "fps": 5.0, "uri": "/dev/video0"}]
    assert kept["metrics"] == {"listen": "unix:/x"}
    unsigned = parse_toml(edge.edge_config(options, LAYOUT, None, tls=False, signed=False), "x")
    assert (unsigned["trust"], unsigned["allow_unsigned"]) == ([], True)


def test_a_folder_is_watched_and_a_prefix_is_a_folder_of_the_board():
    text = edge.edge_config(FlashOptions(to="a:1", source="/srv/inbox/"), LAYOUT, None, tls=False, signed=True)
    assert parse_toml(text, "x")["sources"] == [{"name": "camera", "watch": True, "uri": "/srv/inbox/"}]
    assert edge.edge_config(FlashOptions(), LAYOUT, text, tls=False, signed=True) == text
    assert edge.edge_config(FlashOptions(source="/srv/inbox/"), LAYOUT, text, tls=False, signed=True) == text
    runs = FlashOptions(settings={"runtime": {"precision": "int8", "threads": 2}})
    text = edge.edge_config(runs, LAYOUT, text, tls=False, signed=True)
    assert edge.edge_config(FlashOptions(precision="int8"), LAYOUT, text, tls=False, signed=True) == text
    assert layout_of("/home/me/x/", DeployPaths()).config == "/home/me/x/etc"
    for prefix in ("~/x", "x", "/"):
        with pytest.raises(ConfigError, match="from its root"):
            layout_of(prefix, DeployPaths())


def test_a_configuration_that_says_too_little_is_refused(tmp_path):
    with pytest.raises(EdgeConfigError, match="--to HOST:PORT and --source SOURCE"):
        edge.edge_config(FlashOptions(), LAYOUT, None, tls=False, signed=True)
    with pytest.raises(EdgeConfigError, match="cannot be read"):
        edge.edge_config(FlashOptions(config=tmp_path / "none.toml"), LAYOUT, None, tls=False, signed=True)
    with pytest.raises(EdgeConfigError, match="is not TOML"):
        edge.edge_config(FlashOptions(), LAYOUT, "a = ", tls=False, signed=True)


def test_any_settings_come_back_from_their_text():
    settings = {
        "text": 'a "b" \\ \n \x7f \u20ac', "number": 3, "part": 0.25, "yes": True, "list": ["a", 1], "odd key": {"x.y": 1},
        "table": {"inner": {"deep": 1}, "plain": 2}, "many": [{"a": 1, "b": {"c": [True]}}, {"a": 2}], "empty": [],
    }  # fmt: skip
    assert parse_toml(edge.to_toml(settings), "x") == settings
    with pytest.raises(EdgeConfigError, match="cannot hold"):
        edge.to_toml({"x": object()})


# ---------------------------------------------------------------- wheels


def test_wheels_are_for_the_boards_python_and_not_for_this_one():
    board = BoardPython("3.10", "aarch64", "2.35")
    assert board.platforms()[:2] == ["manylinux_2_35_aarch64", "manylinux_2_34_aarch64"]
    assert "manylinux_2_17_aarch64" in board.platforms()
    pins = constraints(board)
    assert [line for line in pins if line.startswith("onnxruntime==")] == ["onnxruntime==1.23.2"]
    newer = constraints(BoardPython("3.11", "aarch64", "2.36"))
    assert [line for line in newer if line.startswith("numpy==")] != [
        line for line in pins if line.startswith("numpy==")
    ]
    assert not any(";" in line or line.startswith("#") for line in pins)
    with pytest.raises(WheelhouseError, match="C library"):
        BoardPython("3.11", "aarch64", "").platforms()


def test_a_folder_of_wheels_must_hold_what_a_board_needs(tmp_path):
    with pytest.raises(WheelhouseError, match="no wheel of narrowcast"):
        from_folder(tmp_path)
    (tmp_path / "narrowcast-1-py3-none-any.whl").touch()
    with pytest.raises(WheelhouseError, match="no wheel of pip"):
        from_folder(tmp_path)


def test_a_source_is_watched_by_its_slash_and_not_by_what_was_there():
    first = edge.edge_config(FlashOptions(to="t:1", source="/in/"), LAYOUT, None, tls=False, signed=True)
    assert parse_toml(first, "x")["sources"] == [{"name": "camera", "watch": True, "uri": "/in/"}]
    again = edge.edge_config(FlashOptions(source="/in/"), LAYOUT, first, tls=False, signed=True)
    assert again == first, "the same once more is the same release"
    then = edge.edge_config(FlashOptions(source="rtsp://camera/1"), LAYOUT, first, tls=False, signed=True)
    assert parse_toml(then, "x")["sources"] == [{"name": "camera", "uri": "rtsp://camera/1"}]


def test_a_precision_stays_until_another_one_is_said():
    """And what is measured on the board is what its daemon will run."""
    text = edge.edge_config(FlashOptions(to="t:1", source="-", precision="int8"), LAYOUT, None, tls=False, signed=True)
    assert edge.runtime_of(text) == {"precision": "int8"}
    text = edge.edge_config(FlashOptions(), LAYOUT, text, tls=False, signed=True)
    assert edge.runtime_of(text) == {"precision": "int8"}
    text = edge.edge_config(FlashOptions(precision="auto"), LAYOUT, text, tls=False, signed=True)
    assert "runtime" not in parse_toml(text, "x")


@pytest.mark.parametrize(
    ("options", "before", "wanted"),
    [
        (FlashOptions(), None, ("frames", 3, 120.0)),
        (FlashOptions(), {"kind": "ready", "frames": 5, "seconds": 30.0}, ("ready", 5, 30.0)),
        (FlashOptions(gate_seconds=7.0), {"kind": "ready", "frames": 5, "seconds": 30.0}, ("ready", 5, 7.0)),
        (GivenOptions(said=frozenset({"gate"})), {"kind": "ready", "frames": 5, "seconds": 30.0}, ("frames", 5, 30.0)),
        (FlashOptions(), {"kind": "none", "frames": "many"}, ("frames", 3, 120.0)),
    ],
)
def test_the_way_back_has_the_gate_of_the_release_unless_another_is_named(options, before, wanted):
    found = gate_of(options, {"id": "m-1", "gate": before})
    assert (found["kind"], found["frames"], found["seconds"]) == wanted


def test_extras_follow_the_outputs_too():
    text = 'to = "t:1"\n[[sources]]\nuri = "/dev/video0"\n[[outputs]]\nkind = "lines"\n[[outputs]]\nkind = "mqtt"\n'
    assert extras_for(edge.sources_of(text), edge.outputs_of(text)) == ["head", "video", "mqtt"]


@pytest.mark.parametrize(
    ("sources", "extras"),
    [
        (["/dev/video0"], ["head", "video"]),
        (["rtsp://camera/1", "photos/"], ["head", "video"]),
        (["clip.MP4"], ["head", "video"]),
        (["photos/"], ["head", "images"]),
        (["unix:/run/camera.sock"], ["head"]),
        (["-"], ["head"]),
    ],
)
def test_extras_follow_the_sources(sources, extras):
    assert extras_for(sources) == extras


# ---------------------------------------------------------------- what ssh says


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("ssh: Could not resolve hostname x", BoardUnreachableError, "cannot be reached"),
        ("", BoardUnreachableError, "ssh says nothing"),
        ("root@x: Permission denied (publickey).", LoginError, "does not let us in"),
        ("Host key verification failed.", HostKeyError, "not accepted"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", HostKeyError, "another host key than before"),
    ],
)
def test_what_ssh_says_becomes_an_error_that_says_what_to_do(said, kind, words):
    found = Ssh(Destination.parse("pi@x"), Connection()).explain(said)
    assert type(found) is kind
    assert words in str(found)


@pytest.mark.parametrize(
    ("seen", "kind", "words"),
    [
        ("uid 1000\nsudo yes\npython 3.6 /usr/bin/python3", PreflightError, r"no Python 3\.10.*3\.6"),
        ("uid 1000", PreflightError, "found: none"),
        ("uid 1000\npython 3.11 /usr/bin/python3", SudoError, "NOPASSWD"),
    ],
)
def test_a_board_without_python_or_rights_is_told_so(tmp_path, seen, kind, words):
    with pytest.raises(kind, match=words):
        look(said_by(tmp_path, seen), Connection(), LAYOUT)


def test_sudo_is_taken_where_it_is_needed(tmp_path):
    python = "python 3.11 /usr/bin/python3"
    assert look(said_by(tmp_path, f"uid 1000\nsudo yes\n{python}"), Connection(), LAYOUT) == RIGHTS
    assert not look(said_by(tmp_path, f"uid 1000\nwritable yes\n{python}"), Connection(), LAYOUT).root
    assert not look(said_by(tmp_path, f"uid 0\n{python}"), Connection(), LAYOUT).root
    assert not look(said_by(tmp_path, f"uid 1000\n{python}"), Connection(sudo=False), LAYOUT).root


def said_by(folder, text):
    """An ssh to a board that answers the first look so."""
    program = folder / "ssh"
    program.write_text(f"#!/bin/sh\ncat <<'SAID'\n{text}\nSAID\n")
    program.chmod(0o755)
    return Ssh(Destination.parse("pi@x"), Connection(ssh=str(program)))


def test_host_keys_are_checked_whatever_options_are_given():
    loose = Connection(options=("StrictHostKeyChecking=no", "BatchMode=no"))
    words = Ssh(Destination.parse("pi@x"), loose).command("true")
    checks = [word for word in words if "StrictHostKeyChecking" in word]
    assert checks[0] == "-oStrictHostKeyChecking=yes", "of two, ssh takes the first"


def test_a_program_that_is_no_ssh(tmp_path):
    with pytest.raises(FlashError, match="install OpenSSH"):
        Ssh(Destination.parse("pi@x"), Connection(ssh=str(tmp_path / "none"))).call("true")


# ---------------------------------------------------------------- what a board may answer


@pytest.mark.parametrize("answer", [None, 3, [], {}, {"hostname": 3}, {**dict.fromkeys(Facts.__annotations__)}])
def test_a_board_that_answers_something_else_is_an_error(answer):
    with pytest.raises(BoardError, match="pi@x answered what is no answer"):
        checked_answer(answer, Facts, "pi@x")


def test_lines_of_a_board_cannot_move_the_cursor():
    assert printable("fine \ta\u20ac") == "fine \ta\u20ac"
    found = checked_answer({"name": "\x1b[2Jpi", "edge": "a = 1\n"}, dict[str, str], "pi@x")
    assert found == {"name": "\ufffd[2Jpi", "edge": "a = 1\n"}
    assert printable("\x1b[2Jgone\r\n") == "\ufffd[2Jgone\ufffd\ufffd"


# ---------------------------------------------------------------- the rest


def test_errors_that_a_board_names_are_these():
    assert all(type(from_board(name, "x")) is kind for name, kind in BY_NAME.items())
    assert type(from_board("FromTheFuture", "x")) is BoardError
    assert {kind.exit_code for kind in BY_NAME.values()} == {1, 2, 3, 4, 5}
    assert RolledBackError("x").report is None


def test_who_keeps_the_daemon_running():
    assert services_of("auto", facts(), "") == "systemd"
    assert services_of("auto", facts(systemd=False), "") == "supervised"
    assert services_of("auto", facts(root=False), "") == "supervised"
    assert services_of("auto", facts(), "/home/me/x") == "supervised"
    assert services_of("systemd", facts(), "/home/me/x") == "systemd"
    assert isinstance(services_for(LAYOUT, "systemd"), Systemd)
    assert isinstance(services_for(LAYOUT, "supervised"), Supervised)


def test_a_plan_says_what_needs_root():
    steps = [
        PlannedStep(name="switch", what="renames", commands=[Command(text="mv a b", root=True), Command(text="id")])
    ]
    plan = Plan(
        destination="pi@x", board="Pi", target="rpi5", release="m-2-a", model="m", number=2, steps=steps, signed_by="me",
        enrols=True, upload_bytes=10, upload_files=[("x", 10)], root=True, warnings=["odd"],
    )  # fmt: skip
    text = "\n".join(plan.lines())
    for words in ("sudo$  mv a b", "board$ id", "will trust this key", "note: odd", "by `sudo -n`", "10 B in 1 files"):
        assert words in text
    assert plan.as_dict()["steps"][0]["commands"][0]["root"] is True
    assert next(iter(STEPS)) == "connect"
    assert Observer().confirm(plan)
    assert not Observer().accept_host("x", "ED25519", "SHA256:x")


def test_a_file_of_trusted_keys_may_hold_several(tmp_path):
    first, path = bundles.trusted_key(), tmp_path / "trusted.pub"
    path.write_text(f"{first.line}\n\n{first.line} too\n")
    assert [key.name for key in read_keys(path)] == ["test", "test too"]
    path.write_text(f"{first.line}\nhello\n")
    with pytest.raises(KeyFileError, match=r"trusted\.pub is no key file"):
        read_keys(path)
