"""The board's environments: made of wheels that came along, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import pytest

from narrowcast.devices.flash.agent import environment, store, supervise
from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.journal import Journal
from narrowcast.devices.flash.agent.services import services_for
from narrowcast.devices.flash.agent.work import Work
from narrowcast.devices.flash.board import layout_of
from narrowcast.devices.targets import DeployPaths


@pytest.fixture
def layout(tmp_path):
    return layout_of(str(tmp_path / "board"), DeployPaths())


def wheel(name, body):
    """A wheel of one module, as bytes."""
    info = f"{name}-1.dist-info"
    files = {
        f"{name}.py": body,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return buffer.getvalue()


def environment_work(layout, tmp_path, name, data):
    """A job whose environment is made of pip and one more wheel, which are there; and that wheel's hash."""
    pip = next(Path(str(resources.files("ensurepip") / "_bundled")).glob("pip-*.whl"))
    wheels = []
    for file, content in ((pip.name, pip.read_bytes()), (name, data)):
        sha256 = hashlib.sha256(content).hexdigest()
        store.append(layout, sha256, 0, content, len(content))
        wheels.append({"name": file, "sha256": sha256})
    job = {"id": "x", "release": {"id": "m-1-a"}, "env": "env-1", "wheels": wheels, "python": sys.executable}
    job["system_site"] = False
    return Work(layout, job, Journal(tmp_path / "journal"), services_for(layout, "supervised")), wheels[1]["sha256"]


def test_an_environment_is_made_of_wheels_without_a_network_and_shared(layout, tmp_path):
    name = "brought-1-py3-none-any.whl"
    work, sha256 = environment_work(layout, tmp_path, name, wheel("brought", "ANSWER = 42\n"))
    assert environment.build_environment(work) == "env-1, 2 wheels"
    python = work.folder / "venv" / "bin" / "python"
    shown = subprocess.run(
        [python, "-I", "-c", "import brought; print(brought.ANSWER)"], capture_output=True, check=True
    )
    assert shown.stdout == b"42\n"
    (site,) = (layout.envs / "env-1").glob("lib/python*/site-packages")
    assert list(site.glob("__pycache__/brought.*.pyc")), "the daemon's user could not write it"
    assert environment.build_environment(work) == "env-1, which was there"
    # Half of one, as a kill leaves it, is made anew; wheels that are gone are told of.
    (layout.envs / "env-1" / ".complete").unlink()
    store.file_of(layout, sha256).unlink()
    with pytest.raises(AgentError, match=f"{name} is not on the board") as caught:
        environment.build_environment(work)
    assert caught.value.kind == "UploadError"
    work.job["environment"] = str(tmp_path / "none")
    with pytest.raises(AgentError, match="no environment") as caught:
        environment.build_environment(work)
    assert caught.value.kind == "RuntimeSetupError"


def test_a_wheel_that_is_none_fails_the_environment_and_leaves_nothing_that_counts(layout, tmp_path):
    work, _ = environment_work(layout, tmp_path, "broken-1-py3-none-any.whl", b"no zip")
    with pytest.raises(AgentError, match="the environment cannot be built") as caught:
        environment.build_environment(work)
    assert caught.value.kind == "RuntimeSetupError"
    assert not (layout.envs / "env-1" / ".complete").exists()


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        ("kill -9 $$", "BoardError", "x was killed on the board by signal 9: has its memory run out?"),
        ("kill -11 $$", "BoardError", "x was killed on the board by signal 11"),
        ("echo MemoryError >&2; exit 1", "BoardVerifyError", "MemoryError"),
        ("echo 'BundleError: cut short' >&2; exit 1", "BundleError", "cut short"),
    ],
)
def test_a_check_that_is_killed_says_nothing_of_the_bundle(layout, tmp_path, program, kind, message):
    work, _ = environment_work(layout, tmp_path, "x-1-py3-none-any.whl", wheel("x", ""))
    python = work.folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    with pytest.raises(AgentError) as caught:
        work.run_in_release("-m", "x", kind="BoardVerifyError")
    assert (caught.value.kind, caught.value.message) == (kind, message)


def test_a_supervised_daemons_log_is_shortened_under_it(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "LOG_BYTES", 2000)
    run = Path(layout.run)
    run.mkdir(parents=True)
    supervisor = supervise._Supervisor(layout)
    with (run / "edge.log").open("ab") as out:  # as it is started: for appending
        for number in range(400):
            out.write(b"line %d\n" % number)
            out.flush()
            supervisor._shorten()
    kept = [(run / name).read_text().split() for name in ("edge.log.1", "edge.log")]
    assert (run / "edge.log").stat().st_size <= 2100
    assert kept[1][-1] == "399"
    assert [int(word) for words in kept for word in words[1::2]] == list(range(int(kept[0][1]), 400))
    services = services_for(layout, "supervised")
    assert list(services.logs(2)) == ["line 398", "line 399"]
