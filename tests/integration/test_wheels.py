"""The wheels: what is in them, the arm64 coder under emulation, and a device that has nothing else."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import bundles
from support.fleet import Fleet

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "files"
ARM64_ROOT = Path("/usr/aarch64-linux-gnu")
CONSTRAINTS = ROOT / "constraints.txt"
MIB = 1024 * 1024
WHEELS_LIMIT_BYTES = 65_000_000
INSTALLED_LIMIT_BYTES = 185 * MIB


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """Both wheels, built as `make wheels` builds them, from a copy of the sources."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang, which cross-compiles the coder, is not installed (pip install 'narrowcast[wheels]')")
    copy = tmp_path_factory.mktemp("source") / "narrowcast"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "demo-output", "tests")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    done = subprocess.run(
        [sys.executable, copy / "scripts" / "build_wheels.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        ("aarch64" if "aarch64" in line else "x86_64"): copy / json.loads(line)["wheel"]
        for line in done.stdout.splitlines()
    }


def test_there_is_one_wheel_per_architecture_for_every_python(wheels):
    assert {path.name.split("-", 2)[2] for path in wheels.values()} == {
        "py3-none-manylinux_2_17_x86_64.whl",
        "py3-none-manylinux_2_17_aarch64.whl",
    }


def test_a_wheel_holds_the_package_and_nothing_else(wheels):
    for architecture, path in wheels.items():
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            kernel = archive.read("narrowcast/transport/coder/_rans.so")
        assert kernel[:4] == b"\x7fELF"
        assert int.from_bytes(kernel[18:20], "little") == {"x86_64": 62, "aarch64": 183}[architecture]
        assert {name.split("/")[0] for name in names} == {"narrowcast", "narrowcast-0.1.0.dist-info"}
        for wanted in (
            "py.typed",
            "devices/report/style.css",
            "devices/targets/rpi5.toml",
            "compiler/operators/onnxruntime-1.20.toml",
            "compiler/operators/tensorrt-8.6.toml",
            "demo/page.html",
            "tail/operations/web/page.html",
            "tail/operations/web/page.js",
            "tail/operations/web/page.css",
            "tail/operations/web/icon.svg",
            "transport/bundle/reader.py",
        ):
            assert f"narrowcast/{wanted}" in names


def test_the_arm64_coder_gives_the_golden_bytes(wheels, tmp_path):
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-aarch64-static is not installed (Debian: qemu-user-static)")
    if not (ARM64_ROOT / "lib" / "ld-linux-aarch64.so.1").exists():
        pytest.skip("an arm64 C library is not installed (Debian: libc6-arm64-cross)")
    with zipfile.ZipFile(wheels["aarch64"]) as archive:
        library = Path(archive.extract("narrowcast/transport/coder/_rans.so", tmp_path))
    zig = Path(importlib.util.find_spec("ziglang").origin).with_name("zig")
    driver = tmp_path / "driver"
    source = ROOT / "tests" / "support" / "coder_driver.c"
    subprocess.run([zig, "cc", "-target", "aarch64-linux-gnu.2.17", "-O1", "-o", driver, source, "-ldl"], check=True)
    for lanes in (1, 2, 4):
        for level in range(3):
            for tables, payload, symbols, *more in (
                ("tables", "payload", "symbols.bin"),
                ("contexts", "context-payload", "symbols.bin"),
                ("video", "predicted-payload", "predicted-symbols.bin", GOLDEN / "memory.bin"),
            ):
                words = [library, GOLDEN / f"{tables}-{lanes}.bin", GOLDEN / symbols, str(level), "11", "7", *more]
                done = subprocess.run([emulator, "-L", ARM64_ROOT, driver, *words], capture_output=True, check=False)
                assert done.returncode == 0, (words, done.returncode, done.stderr)
                assert done.stdout == (GOLDEN / f"{payload}-{lanes}-{level}.bin").read_bytes()


DEVICE = """
import importlib.util, json, sys
from pathlib import Path
import numpy as np

golden, bundle_file, key_file = map(Path, sys.argv[1:4])
for absent in ("torch", "onnx", "PIL", "scipy", "matplotlib", "sklearn", "grpc_health", "cryptography"):
    assert importlib.util.find_spec(absent) is None, f"{absent} is here; this is no thin device"

from narrowcast.transport.coder import Coder
from narrowcast.transport.tables import Tables

symbols = np.frombuffer((golden / "symbols.bin").read_bytes(), np.uint8).reshape(3, 6, 11, 7)
coder = Coder(Tables.from_bytes((golden / "tables-4.bin").read_bytes()))
assert coder.kernel == "c"
for level in range(3):
    assert coder.encode(symbols[level], level) == (golden / f"payload-4-{level}.bin").read_bytes()

import narrowcast as nc
from narrowcast.transport.bundle import PublicKey
from narrowcast.transport.packet import Packet

bundle = nc.Bundle.open(bundle_file, "device", trusted=[PublicKey.read(key_file)])
session = nc.HeadSession(bundle)
frame = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
encoded = session.encode(frame, 1)
packet = Packet(session.codec.codec_id, 1, 0, 0, encoded.payload, bytes(16), session.codec.fingerprint)
again = Packet.from_bytes(packet.to_bytes())
decoded, (error,) = session.codec.decode_batch([again.payload], [again.level])
assert error is None and (decoded[0] == (frame // 16).transpose(2, 0, 1)).all()
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def unpacked_bytes(folder: Path) -> int:
    """What the wheels in a folder take when they are installed."""
    total = 0
    for path in folder.glob("*.whl"):
        with zipfile.ZipFile(path) as archive:
            total += sum(info.file_size for info in archive.infolist())
    return total


@pytest.mark.slow
def test_a_device_needs_the_head_and_nothing_else(wheels, tmp_path, capsys):
    """Installed from the wheel with [head] alone into an empty environment: encodes, codes, and stays small."""
    python = tmp_path / "device" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "device"], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    requirement = f"{wheels['x86_64']}[head]"
    fetched = tmp_path / "wheels"
    done = subprocess.run(
        [*pip, "download", "--dest", fetched, "--only-binary=:all:", "--constraint", CONSTRAINTS, requirement],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and "No matching distribution" in done.stderr + done.stdout:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    subprocess.run(
        [*pip, "--python", python, "install", "--no-index", "--no-compile", "--find-links", fetched, requirement],
        check=True,
    )
    made = bundles.make()
    script, bundle, key = tmp_path / "device.py", made.write(tmp_path / "tiny.ncb"), tmp_path / "key.pub"
    script.write_text(DEVICE)
    bundles.trusted_key().write(key)
    run = subprocess.run([python, "-I", script, GOLDEN, bundle, key], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    loaded = set(json.loads(run.stdout))
    assert not loaded & {"torch", "PIL", "rich", "grpc"}, "a frame can be encoded without these"
    board = Fleet(tmp_path).board()
    secured = "import sys, narrowcast as nc; nc.ClientTls.from_folder(sys.argv[1]).credentials()"
    subprocess.run([python, "-I", "-c", secured, board], check=True)
    probe = subprocess.run(
        [python, "-I", "-m", "narrowcast", "probe", "--json"], capture_output=True, text=True, check=False
    )
    assert probe.returncode == 0, probe.stderr
    assert json.loads(probe.stdout)["coder"] == "c"

    wheel_bytes = sum(path.stat().st_size for path in fetched.glob("*.whl"))
    site = next((tmp_path / "device" / "lib").glob("python*/site-packages"))
    others = {"pip", "setuptools", "pkg_resources", "_distutils_hack"}
    installed = sum(
        path.stat().st_size
        for path in site.rglob("*")
        if path.is_file() and path.relative_to(site).parts[0].split("-")[0] not in others and path.suffix != ".pyc"
    )
    with capsys.disabled():
        print(
            f"\n  thin device: {wheel_bytes / 1e6:.1f} MB of wheels, {installed / MIB:.0f} MiB installed (x86-64)",
            end="",
        )
    assert wheel_bytes <= WHEELS_LIMIT_BYTES
    assert installed <= INSTALLED_LIMIT_BYTES


def test_an_arm64_device_is_small_too(wheels, tmp_path, capsys):
    """The same set for a Raspberry Pi (arm64, Python 3.11), downloaded and added up."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 24, 26, 27, 28, 34)]
    requirement = f"{wheels['aarch64']}[head]"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--dest", tmp_path / "w",
         "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp", *platforms,
         "--platform=manylinux2014_aarch64", "--constraint", CONSTRAINTS, requirement],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and "No matching distribution" in done.stderr + done.stdout:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    wheel_bytes, installed = (
        sum(p.stat().st_size for p in (tmp_path / "w").glob("*.whl")),
        unpacked_bytes(tmp_path / "w"),
    )
    with capsys.disabled():
        print(
            f"\n  thin device: {wheel_bytes / 1e6:.1f} MB of wheels, {installed / MIB:.0f} MiB installed (arm64)",
            end="",
        )
    assert wheel_bytes <= WHEELS_LIMIT_BYTES
    assert installed <= INSTALLED_LIMIT_BYTES
