"""What edge and bridge say to each other, encoded and decoded without I/O.

All but `Batch` are JSON objects, so that `mosquitto_sub -t 'tidegate/v1/#'` shows them to a person. Unknown keys are
passed over, so that an older side understands a newer one.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

PROTOCOL_VERSION: Final = 1

_BATCH_PREFIX = struct.Struct(">BiH")  # layout version, partition, length of the stream's name
_BATCH_LAYOUT: Final = 1


class UplinkMessageError(ValueError):
    """An uplink payload that can't be read; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """What an edge must know of a stream to cut its batches."""

    name: str
    partitions: int
    """How many partitions the stream has; batches go to `partition_for(edge or device, partitions)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """An edge introduces itself after connecting, and again when it needs a new producer id."""

    edge: str
    session: str
    """A random word of this connection; the welcome repeats it, so that an old welcome is not taken for a new one."""
    streams: tuple[str, ...]
    wants_producer_id: bool
    """False while batches cut under an earlier producer id still wait for their acks."""
    software: str = ""
    protocol_version: int = PROTOCOL_VERSION

    def encode(self) -> bytes:
        """The JSON payload."""
        return _to_json(asdict(self))

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> Self:
        """Read a payload.

        Raises:
            UplinkMessageError: it is not a hello.
        """
        fields = _from_json(payload, "hello")
        return cls(
            edge=_get(fields, "edge", str),
            session=_get(fields, "session", str),
            streams=tuple(_strings(_get(fields, "streams", list), "streams")),
            wants_producer_id=_get(fields, "wants_producer_id", bool),
            software=_get(fields, "software", str, ""),
            protocol_version=_get(fields, "protocol_version", int, PROTOCOL_VERSION),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """A bridge's answer to a hello: the producer id if one was wanted, the streams, the limits."""

    session: str
    producer_id: int | None
    producer_epoch: int
    streams: tuple[StreamInfo, ...]
    refused_streams: dict[str, str] = field(default_factory=dict)
    """Stream name to the reason it may not be written by this edge."""
    batch_bytes_max: int
    window_batches_max: int
    bridge: str = ""

    def encode(self) -> bytes:
        """The JSON payload."""
        return _to_json(asdict(self))

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> Self:
        """Read a payload.

        Raises:
            UplinkMessageError: it is not a welcome.
        """
        fields = _from_json(payload, "welcome")
        streams = [
            StreamInfo(name=_get(stream, "name", str), partitions=_get(stream, "partitions", int))
            for stream in _get(fields, "streams", list)
        ]
        if any(stream.partitions < 1 for stream in streams):
            raise UplinkMessageError("welcome: a stream has at least one partition")
        return cls(
            session=_get(fields, "session", str),
            producer_id=_get_optional(fields, "producer_id", int),
            producer_epoch=_get(fields, "producer_epoch", int),
            streams=tuple(streams),
            refused_streams={str(k): str(v) for k, v in _get(fields, "refused_streams", dict, {}).items()},
            batch_bytes_max=_get(fields, "batch_bytes_max", int),
            window_batches_max=_get(fields, "window_batches_max", int),
            bridge=_get(fields, "bridge", str, ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A record batch on its way: the bytes that the core will store, and where they go."""

    stream: str
    partition: int
    record_batch: bytes | memoryview
    """One whole record batch (magic 2) with producer id, epoch and base sequence in its header."""

    def encode(self) -> bytes:
        """A binary payload: layout version (1), partition (4), name length (2), name, record batch."""
        name = self.stream.encode()
        return b"".join((_BATCH_PREFIX.pack(_BATCH_LAYOUT, self.partition, len(name)), name, self.record_batch))

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> Self:
        """Read a payload; `record_batch` is a view into it, unchecked.

        Raises:
            UplinkMessageError: it is not a batch of a layout known here.
        """
        view = memoryview(payload)
        if len(view) < _BATCH_PREFIX.size:
            raise UplinkMessageError(f"batch: {len(view)} bytes are fewer than its prefix has")
        layout, partition, name_length = _BATCH_PREFIX.unpack_from(view)
        if layout != _BATCH_LAYOUT:
            raise UplinkMessageError(f"batch: layout {layout} is unknown; this side knows {_BATCH_LAYOUT}")
        start = _BATCH_PREFIX.size + name_length
        if partition < 0 or start > len(view):
            raise UplinkMessageError("batch: the prefix does not fit the payload")
        try:
            stream = str(view[_BATCH_PREFIX.size : start], "utf-8")
        except UnicodeDecodeError as error:
            raise UplinkMessageError("batch: the stream's name is not UTF-8") from error
        return cls(stream=stream, partition=partition, record_batch=view[start:])


@dataclass(frozen=True, slots=True, kw_only=True)
class AckError:
    """Why a batch was not stored."""

    code: str
    """A Kafka error's name in lower case (`corrupt_message`, `out_of_order_sequence_number`, ...) or
    `unknown_producer_id`, `stream_not_allowed`, `malformed_batch`."""
    reason: str
    retriable: bool
    """True: send the same bytes again. False: this batch will never be taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """A bridge's answer to one batch; named by what stands in the batch's header."""

    stream: str
    partition: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    offset: int | None = None
    """The batch's first offset in the partition; None where the core only knows that it has the batch."""
    error: AckError | None = None

    def encode(self) -> bytes:
        """The JSON payload."""
        return _to_json(asdict(self))

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> Self:
        """Read a payload.

        Raises:
            UplinkMessageError: it is not an ack.
        """
        fields = _from_json(payload, "ack")
        error = _get_optional(fields, "error", dict)
        return cls(
            stream=_get(fields, "stream", str),
            partition=_get(fields, "partition", int),
            producer_id=_get(fields, "producer_id", int),
            producer_epoch=_get(fields, "producer_epoch", int),
            base_sequence=_get(fields, "base_sequence", int),
            offset=_get_optional(fields, "offset", int),
            error=None
            if error is None
            else AckError(
                code=_get(error, "code", str),
                reason=_get(error, "reason", str),
                retriable=_get(error, "retriable", bool),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """Whether an edge is online, and how it does; retained, and the edge's last will says `online: false`."""

    edge: str
    online: bool
    session: str = ""
    time_ms: int = 0
    """When the edge wrote this (Unix time)."""
    backlog_events: int = 0
    backlog_bytes: int = 0
    oldest_event_time_ms: int | None = None
    lost_events: int = 0
    """Events that loss records of this edge account for, since its event log was made."""

    def encode(self) -> bytes:
        """The JSON payload."""
        return _to_json(asdict(self))

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> Self:
        """Read a payload.

        Raises:
            UplinkMessageError: it is not a presence.
        """
        fields = _from_json(payload, "presence")
        return cls(
            edge=_get(fields, "edge", str),
            online=_get(fields, "online", bool),
            session=_get(fields, "session", str, ""),
            time_ms=_get(fields, "time_ms", int, 0),
            backlog_events=_get(fields, "backlog_events", int, 0),
            backlog_bytes=_get(fields, "backlog_bytes", int, 0),
            oldest_event_time_ms=_get_optional(fields, "oldest_event_time_ms", int),
            lost_events=_get(fields, "lost_events", int, 0),
        )


def _to_json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()


def _from_json(payload: bytes | memoryview, kind: str) -> dict[str, Any]:
    try:
        fields = json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        raise UplinkMessageError(f"{kind}: the payload is not JSON") from error
    if not isinstance(fields, dict):
        raise UplinkMessageError(f"{kind}: the payload is not a JSON object")
    return fields


_MISSING: Final = object()


def _get(fields: Any, key: str, kind: type, default: Any = _MISSING) -> Any:
    value = fields.get(key, default) if isinstance(fields, dict) else _MISSING
    if value is _MISSING:
        raise UplinkMessageError(f"{key!r} is missing")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UplinkMessageError(f"{key!r} is {value!r}, not {kind.__name__}")
    return value


def _get_optional(fields: Any, key: str, kind: type) -> Any:
    return None if isinstance(fields, dict) and fields.get(key) is None else _get(fields, key, kind)


def _strings(values: list[Any], key: str) -> list[str]:
    if not all(isinstance(value, str) for value in values):
        raise UplinkMessageError(f"{key!r} holds something that is not a string")
    return values
