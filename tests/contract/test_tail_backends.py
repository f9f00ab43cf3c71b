"""What every tail backend must do."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from support import bundles

from narrowcast.tail.backends import BackendSettings, TailBackend, open_tail, open_whole
from narrowcast.tail.errors import ProviderError, TailBackendError

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed (pip install 'narrowcast[tail-torch]')")
SETTINGS = [
    pytest.param(BackendSettings(threads=1), id="onnxruntime"),
    pytest.param(BackendSettings(backend="torch", threads=1), id="torch", marks=needs_torch),
]


@pytest.fixture(params=SETTINGS)
def settings(request) -> BackendSettings:
    return request.param


@pytest.fixture
def backend(settings) -> TailBackend:
    return open_tail(bundles.tail_model(), settings)


def symbols_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, bundles.ALPHABET, (count, *bundles.SHAPE)).astype(np.uint8)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_batch_mixes_levels_and_keeps_its_order(backend, count):
    symbols, levels = symbols_of(count), np.arange(count, dtype=np.int64) % bundles.LEVELS
    output = backend.run(symbols, levels)["output"]
    assert (output.dtype, output.shape) == (np.float32, (count, 3))
    assert np.allclose(output, symbols.mean((2, 3)) + 100 * levels[:, None], atol=1e-4)


def test_a_frame_gets_the_same_answer_alone_and_in_company(backend):
    symbols, levels = symbols_of(5), np.zeros(5, np.int64)
    together = backend.run(symbols, levels)["output"]
    for k in range(5):
        assert np.allclose(backend.run(symbols[k : k + 1], levels[:1])["output"][0], together[k], atol=1e-4)


def test_arrays_that_may_not_be_written_to_are_left_alone(backend):
    symbols, levels = symbols_of(2), np.zeros(2, np.int64)
    symbols.flags.writeable = levels.flags.writeable = False
    before = symbols.copy()
    output = backend.run(symbols, levels)["output"]
    kept = output.copy()
    backend.run(symbols[::-1], levels)
    assert np.array_equal(symbols, before)
    assert np.array_equal(output, kept)  # no buffer of the backend's that the next batch fills


def test_symbols_of_another_shape_are_an_error_of_ours_and_the_backend_goes_on(settings):
    # The mean of any shape is defined; a product of channels is not.
    backend = open_tail(bundles.mixing_tail_model(), settings)
    with pytest.raises(TailBackendError, match="the tail failed on a batch of 2"):
        backend.run(np.zeros((2, 4, 8, 8), np.uint8), np.zeros(2, np.int64))
    assert len(backend.run(symbols_of(1), np.zeros(1, np.int64))["output"]) == 1


def test_whole_networks_answer_images(settings):
    frames = bundles.random_frames(3)
    found = open_whole(bundles.whole_model(), settings).run_images(frames)["output"]
    assert np.allclose(found, [bundles.expected_output(frame, 1) for frame in frames], atol=1e-4)


@pytest.mark.parametrize("model", [b"", b"not onnx"])
def test_what_is_no_model_is_refused(settings, model):
    with pytest.raises(TailBackendError, match="does not load the tail"):
        open_tail(model, settings)
    with pytest.raises(TailBackendError, match="does not load the whole network"):
        open_whole(model, settings)


def test_it_says_what_it_is(backend, settings):
    assert backend.name.startswith(f"{settings.backend} ")


def test_a_provider_that_this_build_lacks():
    with pytest.raises(ProviderError, match=r"no provider 'cuba' here; it has .*cpu.*onnxruntime-gpu"):
        open_tail(bundles.tail_model(), BackendSettings(providers=("cuba", "cpu")))


def test_providers_are_tried_in_their_order():
    from narrowcast.tail.backends.onnxruntime import available_providers

    there = tuple(available_providers())
    assert "cpu" in there
    assert open_tail(bundles.tail_model(), BackendSettings(providers=there)).name.endswith(f"({', '.join(there)})")


def test_what_tensorrt_and_cuda_are_told(tmp_path):
    """No GPU needed: these are words, spelled as ONNX Runtime's pages spell them."""
    from narrowcast.tail.backends.onnxruntime import _options

    settings = BackendSettings(device=1, engine_cache=tmp_path, max_batch=8)
    inputs = {"symbols": ["N", 3, 8, 8], "level": ["N"]}
    assert _options("cpu", settings, inputs) == {}
    assert _options("cuda", settings, inputs) == {"device_id": "1"}
    assert _options("tensorrt", settings, inputs) == {
        "device_id": "1",
        "trt_profile_min_shapes": "symbols:1x3x8x8,level:1",
        "trt_profile_opt_shapes": "symbols:8x3x8x8,level:8",
        "trt_profile_max_shapes": "symbols:8x3x8x8,level:8",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
    }


def test_a_server_without_torch_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "narrowcast.tail.backends.torch", raising=False)
    with pytest.raises(ProviderError, match=r"pip install 'narrowcast\[tail-torch\]'"):
        open_tail(bundles.tail_model(), BackendSettings(backend="torch"))
