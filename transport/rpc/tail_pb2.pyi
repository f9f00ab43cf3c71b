from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_BACKGROUND: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_URGENT: _ClassVar[Priority]

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT16: _ClassVar[DataType]
    DATA_TYPE_INT64: _ClassVar[DataType]
    DATA_TYPE_INT32: _ClassVar[DataType]
    DATA_TYPE_INT8: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_BOOL: _ClassVar[DataType]
    DATA_TYPE_FLOAT64: _ClassVar[DataType]

class Packing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PACKING_UNSPECIFIED: _ClassVar[Packing]
    PACKING_RAW: _ClassVar[Packing]
    PACKING_ZSTD: _ClassVar[Packing]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_BACKGROUND: Priority
PRIORITY_NORMAL: Priority
PRIORITY_URGENT: Priority
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_FLOAT16: DataType
DATA_TYPE_INT64: DataType
DATA_TYPE_INT32: DataType
DATA_TYPE_INT8: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_BOOL: DataType
DATA_TYPE_FLOAT64: DataType
PACKING_UNSPECIFIED: Packing
PACKING_RAW: Packing
PACKING_ZSTD: Packing

class StreamRequest(_message.Message):
    __slots__ = ("open", "packet", "ping", "audit", "deadline_ms")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    PACKET_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    open: Open
    packet: bytes
    ping: Ping
    audit: bytes
    deadline_ms: int
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., packet: _Optional[bytes] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., audit: _Optional[bytes] = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("opened", "result", "drain", "credits", "pong")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    result: Result
    drain: Drain
    credits: Credits
    pong: Pong
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., credits: _Optional[_Union[Credits, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("number", "silence_limit_ms")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SILENCE_LIMIT_MS_FIELD_NUMBER: _ClassVar[int]
    number: int
    silence_limit_ms: int
    def __init__(self, number: _Optional[int] = ..., silence_limit_ms: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("grace_ms", "reason", "come_back")
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COME_BACK_FIELD_NUMBER: _ClassVar[int]
    grace_ms: int
    reason: str
    come_back: bool
    def __init__(self, grace_ms: _Optional[int] = ..., reason: _Optional[str] = ..., come_back: _Optional[bool] = ...) -> None: ...

class Credits(_message.Message):
    __slots__ = ("window",)
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    window: int
    def __init__(self, window: _Optional[int] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("model", "codec_fingerprint", "packet_version", "stream_id", "epoch_us", "window", "tails", "resume_from", "deadline_ms", "priority", "silence_limit_ms", "audit", "references", "video_fingerprint")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CODEC_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PACKET_VERSION_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_US_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    TAILS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FROM_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SILENCE_LIMIT_MS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    VIDEO_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    model: str
    codec_fingerprint: bytes
    packet_version: int
    stream_id: bytes
    epoch_us: int
    window: int
    tails: _containers.RepeatedScalarFieldContainer[str]
    resume_from: int
    deadline_ms: int
    priority: Priority
    silence_limit_ms: int
    audit: bool
    references: int
    video_fingerprint: bytes
    def __init__(self, model: _Optional[str] = ..., codec_fingerprint: _Optional[bytes] = ..., packet_version: _Optional[int] = ..., stream_id: _Optional[bytes] = ..., epoch_us: _Optional[int] = ..., window: _Optional[int] = ..., tails: _Optional[_Iterable[str]] = ..., resume_from: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ..., silence_limit_ms: _Optional[int] = ..., audit: _Optional[bool] = ..., references: _Optional[int] = ..., video_fingerprint: _Optional[bytes] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("model", "release", "window", "max_packet_bytes", "client", "references")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    MAX_PACKET_BYTES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    model: str
    release: int
    window: int
    max_packet_bytes: int
    client: str
    references: int
    def __init__(self, model: _Optional[str] = ..., release: _Optional[int] = ..., window: _Optional[int] = ..., max_packet_bytes: _Optional[int] = ..., client: _Optional[str] = ..., references: _Optional[int] = ...) -> None: ...

class InferRequest(_message.Message):
    __slots__ = ("model", "packet", "tails", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PACKET_FIELD_NUMBER: _ClassVar[int]
    TAILS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    packet: bytes
    tails: _containers.RepeatedScalarFieldContainer[str]
    priority: Priority
    def __init__(self, model: _Optional[str] = ..., packet: _Optional[bytes] = ..., tails: _Optional[_Iterable[str]] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class InferResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: Result
    def __init__(self, result: _Optional[_Union[Result, _Mapping]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("frame_id", "code", "message", "outputs", "times", "retry_after_ms", "audit", "same_as", "need_key")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    SAME_AS_FIELD_NUMBER: _ClassVar[int]
    NEED_KEY_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    code: int
    message: str
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    times: ServerTimes
    retry_after_ms: int
    audit: _containers.RepeatedScalarFieldContainer[int]
    same_as: int
    need_key: bool
    def __init__(self, frame_id: _Optional[int] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., times: _Optional[_Union[ServerTimes, _Mapping]] = ..., retry_after_ms: _Optional[int] = ..., audit: _Optional[_Iterable[int]] = ..., same_as: _Optional[int] = ..., need_key: _Optional[bool] = ...) -> None: ...

class ServerTimes(_message.Message):
    __slots__ = ("queue_us", "decode_us", "tail_us", "total_us", "batch", "arrived_us")
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    DECODE_US_FIELD_NUMBER: _ClassVar[int]
    TAIL_US_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_US_FIELD_NUMBER: _ClassVar[int]
    queue_us: int
    decode_us: int
    tail_us: int
    total_us: int
    batch: int
    arrived_us: int
    def __init__(self, queue_us: _Optional[int] = ..., decode_us: _Optional[int] = ..., tail_us: _Optional[int] = ..., total_us: _Optional[int] = ..., batch: _Optional[int] = ..., arrived_us: _Optional[int] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "data_type", "shape", "packing", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    PACKING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    data_type: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    packing: Packing
    data: bytes
    def __init__(self, name: _Optional[str] = ..., data_type: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., packing: _Optional[_Union[Packing, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "release", "codec_fingerprint", "symbols_shape", "levels", "tails", "images")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SYMBOLS_SHAPE_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    TAILS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    name: str
    release: int
    codec_fingerprint: bytes
    symbols_shape: _containers.RepeatedScalarFieldContainer[int]
    levels: int
    tails: _containers.RepeatedScalarFieldContainer[str]
    images: bool
    def __init__(self, name: _Optional[str] = ..., release: _Optional[int] = ..., codec_fingerprint: _Optional[bytes] = ..., symbols_shape: _Optional[_Iterable[int]] = ..., levels: _Optional[int] = ..., tails: _Optional[_Iterable[str]] = ..., images: _Optional[bool] = ...) -> None: ...
