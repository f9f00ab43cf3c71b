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

from narrowcast.devices.flash.agent import environment, store
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
