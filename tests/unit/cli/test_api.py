"""The public surface of the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

import narrowcast as nc

PUBLIC = {
    "AsyncClient", "Bundle", "Client", "ClientTls", "FlashOptions", "HeadSession", "InputContract", "NarrowcastError",
    "ProfileSettings", "PublicKey", "SecretKey", "TailServer", "__version__", "compile", "cuts", "evaluate", "flash",
    "plan", "probe", "profile", "read_image", "read_keys", "read_run", "report",
}  # fmt: skip


def test_the_public_names_are_these():
    assert set(nc.__all__) == PUBLIC == set(dir(nc))


def test_every_public_name_is_there():
    pytest.importorskip("torch", reason="torch, which compile and cuts need, is not installed")
    for name in PUBLIC:
        assert getattr(nc, name) is not None


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match="it has AsyncClient, Bundle"):
        _ = nc.Cliant


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import narrowcast", ["numpy", "grpc", "torch"]),
        ("import narrowcast; narrowcast.Bundle", ["grpc", "onnxruntime", "torch", "rich", "PIL"]),
        ("import narrowcast; narrowcast.HeadSession", ["grpc", "onnxruntime", "torch", "rich", "PIL"]),
        ("import narrowcast; narrowcast.Client", ["onnxruntime", "torch", "rich", "PIL"]),
        ("import narrowcast; narrowcast.TailServer", ["torch", "rich", "PIL"]),
        ("import narrowcast; narrowcast.probe", ["grpc", "onnxruntime", "torch", "rich", "PIL"]),
        (
            "import narrowcast; narrowcast.report",
            ["numpy", "grpc", "onnxruntime", "torch", "rich", "PIL", "matplotlib"],
        ),
        ("import narrowcast; narrowcast.flash", ["grpc", "onnxruntime", "torch", "rich", "PIL"]),
        ("import narrowcast.cli", ["numpy", "grpc", "torch", "rich"]),
    ],
)
def test_a_name_loads_what_it_needs_and_no_more(code, absent):
    script = f"{code}\nimport sys\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
