"""What can go wrong on the server.

::

    NarrowcastError
    └── TailError
        ├── StoreError           no bundles, or two of one name and release
        │   └── DowngradeError   a bundle was replaced by an older release of itself
        ├── TailBackendError     a tail does not load or run
        │   └── ProviderError    what should run it (CUDA, torch, ...) is not there
        ├── ListenError          the address cannot be listened on
        ├── AccessError          a caller that is not to be served; carries the status
        ├── ModelUnavailableError  no such model, or not with the client's codec
        ├── InferRequestError    a request of the Open Inference Protocol that cannot be answered
        ├── DriftStateError      a file that is no drift state
        ├── AuditError           samples that cannot be kept or read
        └── FrameRefusedError    one frame cannot be answered; carries the status that its result gets
            └── NeedKeyError     it refers to a frame that is not there; the client sends it as a key frame
"""

from __future__ import annotations

import grpc

from narrowcast.transport.errors import NarrowcastError


class TailError(NarrowcastError):
    """Root of the server's errors."""


class StoreError(TailError):
    """No bundles, or two of one name and release."""


class DowngradeError(StoreError):
    """A bundle was replaced by an older release with the same codec."""


class TailBackendError(TailError):
    """A tail does not load or run."""


class ProviderError(TailBackendError):
    """What should run networks is not there: an execution provider, a device, a library."""


class ListenError(TailError):
    """The address cannot be listened on."""


class AccessError(TailError):
    """A caller that is not to be served. ``code`` is the status: UNAUTHENTICATED, PERMISSION_DENIED, RESOURCE_EXHAUSTED."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class ModelUnavailableError(TailError):
    """No such model here, or not with the client's codec; the message says what there is."""


class InferRequestError(TailError):
    """A request of the Open Inference Protocol that cannot be answered; INVALID_ARGUMENT."""


class DriftStateError(TailError):
    """A file that holds no drift state, or one of another release."""


class AuditError(TailError):
    """Samples for audit that cannot be kept, or not be read."""


class FrameRefusedError(TailError):
    """One frame cannot be answered.

    Attributes:
        code: the google.rpc.Code of its result.
        retry_after_ms: when it is worth trying again; 0 where that is not known.
        need_key: whether the same frame would be answered as a key frame.
    """

    need_key = False

    def __init__(self, code: int, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_ms = retry_after_ms


class NeedKeyError(FrameRefusedError):
    """A frame refers to one that is not there, or is another one: its client sends it as a key frame."""

    need_key = True

    def __init__(self, message: str) -> None:
        super().__init__(grpc.StatusCode.FAILED_PRECONDITION.value[0], f"{message}; send this frame as a key frame")
