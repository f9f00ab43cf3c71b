"""What every head backend must do; each one that is installed runs them on the same real ONNX head.

TensorRT runs them twice: as it is, where there is a GPU, and everywhere on fakes of its library and of the CUDA driver,
which ``test_tensorrt_api.py`` holds to the real API.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support import bundles, fake_tensorrt, gpu

from narrowcast.head.backends import BACKENDS, HeadBackend, load_backend
from narrowcast.head.errors import BackendError

FAKES = [f"fake tensorrt {version}" for version in fake_tensorrt.VERSIONS]


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    if gpu.COMPILER is None:
        pytest.skip("there is no C compiler for the fake CUDA driver")
    return gpu.build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(params=[*sorted(BACKENDS), *FAKES])
def backend(request) -> HeadBackend:
    if request.param in FAKES:
        with gpu.machine(request.getfixturevalue("driver"), request.param.split()[-1]):
            yield load_backend("tensorrt", bundles.head_model(), threads=1)
        return
    try:
        yield load_backend(request.param, bundles.head_model(), threads=1)
    except BackendError as error:
        if "cannot be used" in str(error):
            pytest.skip(str(error))
        raise


def test_it_names_its_library_and_version(backend):
    name, version = backend.name.split()
    assert name in BACKENDS
    assert version[0].isdigit()


@pytest.mark.parametrize("level", range(bundles.LEVELS))
def test_an_image_becomes_the_symbols_of_its_level(backend, level):
    frame = bundles.random_frames(1)[0]
    symbols = backend.run(frame, level)
    assert (symbols.dtype, symbols.shape) == (np.uint8, bundles.SHAPE)
    assert np.array_equal(symbols, (frame // (32 if level == 0 else 16)).transpose(2, 0, 1))


def test_its_answers_are_its_own(backend):
    """A later frame does not change the symbols of an earlier one."""
    frames = bundles.random_frames(2)
    first = backend.run(frames[0], 1)
    kept = first.copy()
    backend.run(frames[1], 1)
    assert np.array_equal(first, kept)


def test_an_image_is_taken_as_it_lies_in_memory_and_left_as_it_is(backend):
    """A camera's buffer: not to be written to, or a part of a larger one."""
    frame = bundles.random_frames(1)[0]
    expected = (frame // 16).transpose(2, 0, 1)
    frame.flags.writeable = False
    assert np.array_equal(backend.run(frame, 1), expected)
    wide = np.zeros((frame.shape[0], 2 * frame.shape[1], 3), np.uint8)
    wide[:, ::2] = frame
    kept = wide.copy()
    assert np.array_equal(backend.run(wide[:, ::2], 1), expected)
    assert np.array_equal(backend.run(np.ascontiguousarray(frame[:, :, ::-1])[:, :, ::-1], 1), expected)
    assert np.array_equal(wide, kept)


def test_it_does_not_read_the_image_once_it_has_answered(backend):
    """Whoever owns the memory may fill it with the next frame."""
    frames = bundles.random_frames(2)
    buffer = frames[0].copy()
    first = backend.run(buffer, 1)
    buffer[...] = frames[1]
    assert np.array_equal(first, (frames[0] // 16).transpose(2, 0, 1))
    assert np.array_equal(backend.run(buffer, 1), (frames[1] // 16).transpose(2, 0, 1))


def test_several_threads_may_run_it(backend):
    frames = bundles.random_frames(16)
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.__setitem__(k, backend.run(frames[k], 1))) for k in range(len(frames))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, frame in enumerate(frames):
        assert np.array_equal(found[k], (frame // 16).transpose(2, 0, 1))


def test_an_image_of_another_size_is_an_error_of_ours_and_the_backend_goes_on(backend):
    with pytest.raises(BackendError, match="the head failed"):
        backend.run(np.zeros((3, 5, 3), np.uint8), 0)
    assert backend.run(bundles.random_frames(1)[0], 0).shape == bundles.SHAPE


@pytest.mark.parametrize("name", sorted(BACKENDS))
@pytest.mark.parametrize("model", [b"", b"not onnx", bundles.tail_model()[:50]])
def test_what_is_no_model_is_refused(name, model):
    with pytest.raises(BackendError):
        load_backend(name, model, threads=1)


def test_onnx_runtime_has_as_many_threads_as_it_is_told():
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = threads()
    three = load_backend("onnxruntime", bundles.head_model(), threads=3)
    assert threads() == before + 2, "the caller's own is one of them"
    one = load_backend("onnxruntime", bundles.head_model(), threads=1)
    assert threads() == before + 2
    frame = bundles.random_frames(1)[0]
    assert np.array_equal(three.run(frame, 1), one.run(frame, 1))


AFFINE = """
import os, sys
from pathlib import Path
import numpy
from narrowcast.head.affinity import run_on
from narrowcast.head.backends import load_backend
assert run_on(sys.argv[1]) == 1
backend = load_backend("onnxruntime", Path(sys.argv[2]).read_bytes(), threads=3)
print(sorted({tuple(os.sched_getaffinity(int(task.name))) for task in Path("/proc/self/task").iterdir()}))
"""


def test_all_threads_stay_on_the_chosen_processors(tmp_path):
    """Those that libraries made before, and those that ONNX Runtime makes after."""
    (tmp_path / "head.onnx").write_bytes(bundles.head_model())
    cpu = max(os.sched_getaffinity(0))
    command = [sys.executable, "-c", AFFINE, str(cpu), str(tmp_path / "head.onnx")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"[({cpu},)]\n"


def test_onnx_runtime_tells_nobody_what_it_runs(tmp_path):
    """From 1.31 on it keeps a file of what it would report, in the user's caches, and sends it."""
    code = (
        "from pathlib import Path; import sys; from narrowcast.head.backends import load_backend\n"
        "load_backend('onnxruntime', Path(sys.argv[1]).read_bytes(), threads=1)"
    )
    (tmp_path / "head.onnx").write_bytes(bundles.head_model())
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(tmp_path / "head.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.rglob("*")] == ["head.onnx"]
