"""What every tail backend must do."""

from __future__ import annotations

import numpy as np
import pytest
from support import bundles

from narrowcast.tail.backends import TailBackend
from narrowcast.tail.backends.onnxruntime import OnnxRuntimeTail
from narrowcast.tail.errors import TailBackendError

BACKENDS = [OnnxRuntimeTail]


@pytest.fixture(params=BACKENDS)
def backend(request) -> TailBackend:
    return request.param(bundles.tail_model(), threads=1)


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


def test_symbols_of_another_shape_are_an_error_of_ours_and_the_backend_goes_on(backend):
    with pytest.raises(TailBackendError, match="the tail failed on a batch of 2"):
        backend.run(np.zeros((2, 3, 4, 9), np.uint8), np.zeros(2, np.int64))
    assert len(backend.run(symbols_of(1), np.zeros(1, np.int64))["output"]) == 1


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("model", [b"", b"not onnx"])
def test_what_is_no_model_is_refused(kind, model):
    with pytest.raises(TailBackendError, match="does not load the tail"):
        kind(model)
