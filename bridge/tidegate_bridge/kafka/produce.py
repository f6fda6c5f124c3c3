"""Produce requests of one record batch, and their responses. Source: Kafka protocol guide, Produce version 8 (KIP-467).

Written by hand because this is where the bytes are: the batch is sent from the buffer it came in.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from tidegate_wire.kafka.messages import ErrorCode, MessageError

API_KEY: Final = 0
API_VERSION: Final = 8
"""The newest that is not flexible; carries an error message for people. Kafka has it since 2.4."""

_ACKS_ALL: Final = -1
_HEAD: Final = struct.Struct(">ihhi")  # frame length, API key, version, correlation id
_BEFORE_TOPIC: Final = struct.Struct(">hhiih")  # no transactional id, acks, timeout, one topic, its name's length
_AFTER_TOPIC: Final = struct.Struct(">iii")  # one partition, its index, the batch's length
_RESPONSE_HEAD: Final = struct.Struct(">iih")  # correlation id, one topic, its name's length
_PARTITION: Final = struct.Struct(">iihqqqi")
"""One partition, index, error code, base offset, log append time, log start offset, number of record errors."""
_RECORD_ERROR: Final = struct.Struct(">ih")  # index in the batch, length of the message


class ProduceResult(NamedTuple):
    """What the core said of one batch."""

    error_code: ErrorCode
    base_offset: int
    """-1 where the core does not know it any more."""
    message: str


def encode_produce(
    correlation_id: int, client_id: bytes, topic: bytes, *, partition: int, batch_bytes: int, timeout_ms: int
) -> bytes:
    """Everything of the frame that stands before the batch, which is sent right after it."""
    head = b"".join(
        (
            len(client_id).to_bytes(2),
            client_id,
            _BEFORE_TOPIC.pack(-1, _ACKS_ALL, timeout_ms, 1, len(topic)),
            topic,
            _AFTER_TOPIC.pack(1, partition, batch_bytes),
        )
    )
    frame_bytes = _HEAD.size - 4 + len(head) + batch_bytes
    return _HEAD.pack(frame_bytes, API_KEY, API_VERSION, correlation_id) + head


def decode_produce_response(frame: bytes | memoryview) -> ProduceResult:
    """Read the response to a request of one batch.

    Raises:
        MessageError: it is not one.
    """
    try:
        _, topics, name_bytes = _RESPONSE_HEAD.unpack_from(frame)
        position = _RESPONSE_HEAD.size + name_bytes
        partitions, _, code, base_offset, _, _, record_errors = _PARTITION.unpack_from(frame, position)
        if topics != 1 or partitions != 1 or name_bytes < 0 or record_errors < 0:
            raise MessageError("a Produce response for another request")
        position += _PARTITION.size
        details: list[str] = []
        for _ in range(record_errors):
            _, text_bytes = _RECORD_ERROR.unpack_from(frame, position)
            position += _RECORD_ERROR.size
            details.append(_text(frame, position, text_bytes))
            position += max(text_bytes, 0)
        (text_bytes,) = struct.unpack_from(">h", frame, position)
        message = _text(frame, position + 2, text_bytes) or "; ".join(filter(None, details[:3]))
    except (struct.error, UnicodeDecodeError) as error:
        raise MessageError(f"not a Produce response: {error}") from error
    return ProduceResult(_error_code(code), base_offset, message)


def _error_code(code: int) -> ErrorCode:
    try:
        return ErrorCode(code)
    except ValueError:
        return ErrorCode.unknown_server_error


def _text(frame: bytes | memoryview, position: int, size_bytes: int) -> str:
    if size_bytes <= 0:
        return ""
    if position + size_bytes > len(frame):
        raise MessageError("a Produce response that ends inside a text")
    return str(frame[position : position + size_bytes], "utf-8")
