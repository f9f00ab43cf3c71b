"""Memory, streams and copies of an NVIDIA GPU, by its driver's C interface.

TensorRT takes addresses of GPU memory and leaves it to its caller to get some. The driver library has one name on every
machine with a GPU (``libcuda.so.1``), where the runtime library changes its name with every CUDA release and lies where no
loader looks when it comes from a wheel. Its context is the device's primary one, which is the one that TensorRT works in.

Source: CUDA Driver API reference (docs.nvidia.com/cuda/cuda-driver-api), functions as of CUDA 4.0, which later ones keep.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy.typing as npt

from narrowcast.head.errors import BackendError

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream

_int, _size, _address = ctypes.c_int, ctypes.c_size_t, ctypes.c_uint64
_handle, _handles = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
# Function: its arguments. All give a status, 0 for success.
_FUNCTIONS: dict[str, list[Any]] = {
    "cuInit": [ctypes.c_uint],
    "cuGetErrorString": [_int, ctypes.POINTER(ctypes.c_char_p)],
    "cuDeviceGet": [ctypes.POINTER(_int), _int],
    "cuDeviceGetName": [ctypes.c_char_p, _int, _int],
    "cuDeviceGetAttribute": [ctypes.POINTER(_int), _int, _int],
    "cuDevicePrimaryCtxRetain": [_handles, _int],
    "cuCtxSetCurrent": [_handle],
    "cuStreamCreate": [_handles, ctypes.c_uint],
    "cuStreamSynchronize": [_handle],
    "cuStreamDestroy_v2": [_handle],
    "cuMemAlloc_v2": [ctypes.POINTER(_address), _size],
    "cuMemFree_v2": [_address],
    "cuMemcpyHtoDAsync_v2": [_address, _handle, _size, _handle],
    "cuMemcpyDtoHAsync_v2": [_handle, _address, _size, _handle],
}


class Gpu:
    """The first GPU that this process sees (``CUDA_VISIBLE_DEVICES`` chooses).

    Before anything else, a thread that uses it or TensorRT calls :meth:`enter`.

    Attributes:
        name: what its maker calls it.
        capability: its compute capability, for instance ``8.7``.

    Raises:
        BackendError: there is no driver or no GPU.
    """

    def __init__(self, library: str) -> None:
        try:
            driver = ctypes.CDLL(library)
            for name, arguments in _FUNCTIONS.items():
                getattr(driver, name).argtypes = arguments
        except (OSError, AttributeError) as error:
            raise BackendError(f"no CUDA driver: {error}") from error
        self._driver = driver
        self._call("cuInit", 0)
        device = _int()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), device)
        self.name = text.value.decode("utf-8", "replace")
        self.capability = f"{self._attribute(_MAJOR, device)}.{self._attribute(_MINOR, device)}"
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def __str__(self) -> str:
        """What is built or measured here is for this one."""
        return f"{self.name}, compute capability {self.capability}"

    def enter(self) -> None:
        """Makes the GPU the calling thread's."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes on the GPU; :meth:`free` gives them back."""
        address = _address()
        self._call("cuMemAlloc_v2", ctypes.byref(address), size)
        return address.value

    def free(self, address: int) -> None:
        """Gives memory back."""
        self._call("cuMemFree_v2", address)

    def new_stream(self) -> int:
        """A queue of work, done in order; :meth:`end_stream` ends it."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        return stream.value or 0

    def end_stream(self, stream: int) -> None:
        """Ends a stream."""
        self._call("cuStreamDestroy_v2", stream)

    def upload(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """Queues a copy of a contiguous array to the GPU; it must live until :meth:`wait`."""
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, stream)

    def download(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Queues a copy from the GPU into a contiguous array; it is there after :meth:`wait`."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, stream)

    def wait(self, stream: int) -> None:
        """Returns when all that was queued is done."""
        self._call("cuStreamSynchronize", stream)

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = _int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            said = (text.value or b"unknown").decode("utf-8", "replace")
            raise BackendError(f"CUDA's {name} failed: {said} ({status})")


class Buffers:
    """One stream, and memory on the GPU and on the host for each tensor of a network.

    Args:
        gpu: where; the calling thread has entered it.
        arrays: by tensor, what it looks like on the host.

    Attributes:
        stream: of all copies.
        addresses: on the GPU, by tensor.
        host: arrays of the tensors' shapes and types.
    """

    def __init__(self, gpu: Gpu, arrays: dict[str, npt.NDArray[Any]]) -> None:
        self._gpu = gpu
        self.host = arrays
        self.addresses: dict[str, int] = {}
        self.stream = gpu.new_stream()
        try:
            for name, array in arrays.items():
                self.addresses[name] = gpu.allocate(max(1, array.nbytes))
        except BackendError:
            self.close()
            raise

    def upload(self, name: str) -> None:
        """Queues the copy of a tensor to the GPU."""
        self._gpu.upload(self.addresses[name], self.host[name], self.stream)

    def download(self, name: str) -> None:
        """Queues the copy of a tensor from the GPU."""
        self._gpu.download(self.host[name], self.addresses[name], self.stream)

    def wait(self) -> None:
        """Returns when the queue is empty."""
        self._gpu.wait(self.stream)

    def close(self) -> None:
        """Gives everything back. Whatever the GPU says to that, nobody can mend it."""
        try:
            self._gpu.enter()
            for address in self.addresses.values():
                self._gpu.free(address)
            self._gpu.end_stream(self.stream)
        except BackendError:
            pass
        self.addresses = {}


_lock = threading.Lock()
_open: dict[str, Gpu] = {}


def open_gpu() -> Gpu:
    """The process's GPU, opened once, entered by the calling thread.

    Raises:
        BackendError: there is none.
    """
    with _lock:
        if LIBRARY not in _open:
            _open[LIBRARY] = Gpu(LIBRARY)
        gpu = _open[LIBRARY]
    gpu.enter()
    return gpu
