"""Every name and signature of TensorRT that the backend uses, checked on NVIDIA's own Python bindings of three versions.

The bindings are small wheels. They import without a GPU once the engine libraries that they link to are there, so those are
made, empty, from the list of what the bindings want of them. The wheels are kept in pytest's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import fake_tensorrt, gpu, tensorrt_api

import narrowcast.head.backends as backends

SOURCE = (Path(backends.__file__).parent / "tensorrt.py").read_text()
WHEELS = {
    "8.6.1": "tensorrt-bindings==8.6.1",
    "10.3.0": "tensorrt-cu12-bindings==10.3.0",
    "11.4.0.106": "tensorrt-cu13-bindings==11.4.0.106",
}


def unpacked(version: str, folder: Path) -> Path:
    """The wheel's files; skips where it cannot be had."""
    place = folder / f"{version}-cp{sys.version_info[0]}{sys.version_info[1]}"
    if not (place / "complete").exists():
        wheels = place / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        try:
            got = subprocess.run(
                [*command, "--disable-pip-version-check", "-d", wheels, WHEELS[version]],
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            pytest.skip(f"{WHEELS[version]} did not arrive in two minutes")
        if got.returncode:
            pytest.skip(f"pip has no {WHEELS[version]} for this Python: {got.stderr.strip().splitlines()[-1]}")
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(place)
        (place / "complete").touch()
    return place


def stub_libraries(bindings: Path, folder: Path) -> None:
    """Libraries with the functions that the bindings want of TensorRT's own, which give nothing."""
    wanted = subprocess.run(["readelf", "--dynamic", bindings], capture_output=True, text=True, check=True).stdout
    names = [line.split("[")[1].rstrip("]\n") for line in wanted.splitlines() if "Shared library: [libnv" in line]
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", bindings], capture_output=True, text=True, check=True
    ).stdout
    symbols = [words[1] for line in listed.splitlines() if len(words := line.split()) == 2 and words[0] == "U"]
    own = [symbol for symbol in symbols if "@" not in symbol and not symbol.startswith(("Py", "_Py"))]
    assert {"createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL"} <= set(own)
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in own))
    assert gpu.COMPILER is not None
    subprocess.run([gpu.COMPILER, "-w", "-shared", "-fPIC", "-o", folder / "stubs.so", source], check=True)
    for name in names:
        shutil.copy(folder / "stubs.so", folder / name)


@pytest.mark.skipif(not all(map(shutil.which, ("nm", "readelf"))) or gpu.COMPILER is None, reason="no C toolchain")
@pytest.mark.skipif(sys.platform != "linux", reason="the bindings are Linux libraries")
@pytest.mark.parametrize("version", sorted(WHEELS))
def test_every_use_is_in_the_real_bindings(version, pytestconfig, tmp_path):
    place = unpacked(version, pytestconfig.cache.mkdir("tensorrt"))
    stub_libraries(place / "tensorrt_bindings" / "tensorrt.so", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(place), "LD_LIBRARY_PATH": str(tmp_path)}
    checked = subprocess.run(
        [sys.executable, tensorrt_api.__file__, "tensorrt_bindings"], input=tensorrt_api.as_json(uses()),
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    found = tensorrt_api.from_json(checked.stdout)
    assert found.version == version
    assert found.strong == (version[:2] != "8.")
    assert found.problems == []
    assert found.checked >= 40


@pytest.mark.parametrize("version", fake_tensorrt.VERSIONS)
def test_every_use_is_in_the_fake(version):
    module = fake_tensorrt.module(version)
    wanted = [use for use in uses() if use.applies_to(version)]
    assert tensorrt_api.problems(module, wanted) == []


def uses() -> list[tensorrt_api.Use]:
    return tensorrt_api.uses(SOURCE)


def test_the_list_follows_the_source():
    found = {f"{use.owner}.{use.member}" for use in uses()}
    assert {
        "Builder.build_serialized_network", "IExecutionContext.execute_async_v3", "BuilderFlag.TF32", "ILayer.precision",
        "ILogger.Severity.ERROR", ".nptype",
    } <= found  # fmt: skip
    # whatever is spelt like a method of TensorRT's in the source is on the list
    members = {use.member for use in uses()}
    for name in ("set_memory_pool_limit", "get_tensor_dtype", "set_output_type", "create_execution_context", "desc"):
        assert SOURCE.count(f".{name}(") > 0
        assert name in members


@pytest.mark.parametrize(
    ("before", "after", "trouble"),
    [
        ("trt.BuilderFlag.TF32", "trt.BuilderFlag.TF33", "there is no BuilderFlag.TF33"),
        (".execute_async_v3(", ".execute_async_v9(", "there is no IExecutionContext.execute_async_v9"),
        ("clear_flag(trt.BuilderFlag.TF32)", "clear_flag()", "takes no 0 arguments"),
        ("trt.Runtime(said)", "trt.Runtime(said, 1)", "takes no 2 arguments"),
        ("engine.num_io_tensors", "engine.num_io_tensors()", "num_io_tensors is no method"),
        ("layer.precision =", "layer.num_layers =", "there is no ILayer.num_layers"),
        ("trt.ICudaEngine = runtime.des", "trt.IHostMemory = runtime.des", "not IHostMemory"),
        ("trt.ParserError = parser", "int = parser", "and the source does not say so"),
        ("trt.nptype(", "trt.ntype(", "there is no ntype"),
    ],
)
def test_the_check_sees_what_is_wrong(before, after, trouble):
    assert before in SOURCE
    wanted = tensorrt_api.uses(SOURCE.replace(before, after))
    module = fake_tensorrt.module("8.6.1")
    applying = [use for use in wanted if use.applies_to("8.6.1")]
    assert any(trouble in line for line in tensorrt_api.problems(module, applying))
