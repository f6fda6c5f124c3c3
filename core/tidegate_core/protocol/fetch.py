"""Fetch responses by hand: the hot path out. Record batches go to the socket as the buffers they were read in.

    response   throttle time, error and session id (from 7), [topic, [partition, error, high watermark, last stable
               offset, log start (from 5), aborted transactions, preferred read replica (from 11), records]]

From version 12 the message is flexible (KIP-482). Requests are read by kio, which is fast enough for them. Session id 0
declines incremental fetch sessions (KIP-227): the client then names all its partitions in every request.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from tidegate_core.protocol.primitives import encode_compact, encode_string, encode_uvarint

FLEXIBLE_FROM: Final = 12

_FRAME: Final = struct.Struct(">ii")
_INT32: Final = struct.Struct(">i")
_THROTTLE: Final = b"\0\0\0\0"
_SESSION: Final = struct.Struct(">hi")
_NO_TRANSACTIONS: Final = b"\xff\xff\xff\xff"
_NO_REPLICA: Final = b"\xff\xff\xff\xff"
_PARTITION: Final = struct.Struct(">ihqq")
_LOG_START: Final = struct.Struct(">q")


class FetchedPartition(NamedTuple):
    """One partition of a Fetch response. Without transactions the last stable offset is the high watermark."""

    partition: int
    error_code: int
    high_watermark: int
    log_start_offset: int
    buffers: tuple[bytes, ...]
    size_bytes: int


def encode_fetch(
    correlation_id: int, version: int, topics: list[tuple[str, list[FetchedPartition]]], *, error_code: int = 0
) -> list[bytes]:
    """The response as buffers that make up the whole frame, length included."""
    encode = _encode_flexible if version >= FLEXIBLE_FROM else _encode_fixed
    buffers = encode(version, topics, error_code)
    size = sum(map(len, buffers)) + 4
    buffers.insert(0, _FRAME.pack(size, correlation_id))
    return buffers


def _encode_fixed(version: int, topics: list[tuple[str, list[FetchedPartition]]], error_code: int) -> list[bytes]:
    head = [_THROTTLE]
    if version >= 7:
        head.append(_SESSION.pack(error_code, 0))
    head.append(_INT32.pack(len(topics)))
    buffers: list[bytes] = []
    for topic, partitions in topics:
        head += (encode_string(topic), _INT32.pack(len(partitions)))
        for index, code, high_watermark, log_start_offset, records, size_bytes in partitions:
            head.append(_PARTITION.pack(index, code, high_watermark, high_watermark))
            if version >= 5:
                head.append(_LOG_START.pack(log_start_offset))
            head.append(_NO_TRANSACTIONS)
            if version >= 11:
                head.append(_NO_REPLICA)
            head.append(_INT32.pack(size_bytes))
            if records:
                buffers += (b"".join(head), *records)
                head = []
    buffers.append(b"".join(head))
    return buffers


def _encode_flexible(_version: int, topics: list[tuple[str, list[FetchedPartition]]], error_code: int) -> list[bytes]:
    head = [b"\0", _THROTTLE, _SESSION.pack(error_code, 0), encode_uvarint(len(topics) + 1)]
    buffers: list[bytes] = []
    for topic, partitions in topics:
        head += (encode_compact(topic), encode_uvarint(len(partitions) + 1))
        for index, code, high_watermark, log_start_offset, records, size_bytes in partitions:
            head += (
                _PARTITION.pack(index, code, high_watermark, high_watermark),
                _LOG_START.pack(log_start_offset),
                b"\0",  # aborted transactions: null
                _NO_REPLICA,
                encode_uvarint(size_bytes + 1),
            )
            if records:
                buffers += (b"".join(head), *records)
                head = []
            head.append(b"\0")
        head.append(b"\0")
    head.append(b"\0")
    buffers.append(b"".join(head))
    return buffers
