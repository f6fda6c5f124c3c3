"""Produce by hand: the hot path in. Record batches are views into the request; nothing is copied and kio is not asked.

    request    transactional id (from 3), acks, timeout, [topic, [partition, records]]
    response   [topic, [partition, error, base offset, append time (from 2), log start (from 5), [], message (from 8)]],
               throttle time (from 1)

From version 9 the message is flexible (KIP-482): lengths are unsigned varints plus one, and tagged fields, which are
passed over, end each part. Versions 0 to 2 are read only to be refused.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from tidegate_core.protocol.primitives import (
    encode_compact,
    encode_string,
    encode_uvarint,
    read_compact_nullable,
    read_nullable,
    read_string,
    read_uvarint,
)
from tidegate_wire.kafka.messages import MessageError, skip_tags

FLEXIBLE_FROM: Final = 9

PARTITIONS_MAX: Final = 10_000
"""In one request; a client's batch of work has as many as it leads to on this node, and each takes a reply of ours."""

_ACKS_TIMEOUT: Final = struct.Struct(">hi")
_INT32: Final = struct.Struct(">i")
_INDEX_LENGTH: Final = struct.Struct(">ii")
_RESULT: Final = {
    0: struct.Struct(">ihq"),  # partition, error, base offset
    2: struct.Struct(">ihqq"),  # and the append time
    5: struct.Struct(">ihqqq"),  # and the log's start
}


class ProducePartition(NamedTuple):
    """What goes to one partition."""

    topic: str
    partition: int
    records: memoryview
    """One record batch, unchecked; empty where the request has null."""


class ProduceRequest(NamedTuple):
    """A Produce request of any version."""

    acks: int
    timeout_ms: int
    transactional_id: str | None
    partitions: list[ProducePartition]


class ProduceResult(NamedTuple):
    """What became of one partition's records."""

    topic: str
    partition: int
    error_code: int
    base_offset: int
    log_append_time_ms: int
    log_start_offset: int
    message: str | None


def decode_produce(frame: memoryview, offset: int, version: int) -> ProduceRequest:
    """Read the request whose header's common part ends at `offset` (`RequestHeader.body_offset`).

    Raises:
        MessageError: the bytes are not a Produce request of this version.
    """
    try:
        if version >= FLEXIBLE_FROM:
            return _decode_flexible(frame, offset)
        return _decode_fixed(frame, offset, version)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise MessageError(f"not a Produce request of version {version}: {error}") from error


def _decode_fixed(frame: memoryview, offset: int, version: int) -> ProduceRequest:
    transactional_id = None
    if version >= 3:
        transactional_id, offset = read_nullable(frame, offset)
    acks, timeout_ms = _ACKS_TIMEOUT.unpack_from(frame, offset)
    offset += _ACKS_TIMEOUT.size
    partitions: list[ProducePartition] = []
    size = len(frame)
    (topic_count,) = _INT32.unpack_from(frame, offset)
    offset += 4
    for _ in range(topic_count):
        topic, offset = read_string(frame, offset)
        (partition_count,) = _INT32.unpack_from(frame, offset)
        offset += 4
        _check_count(len(partitions) + partition_count)
        for _ in range(partition_count):
            index, length = _INDEX_LENGTH.unpack_from(frame, offset)
            offset += 8
            end = offset + length if length > 0 else offset
            if end > size:
                raise MessageError(f"records of {length} bytes where {size - offset} are left")
            partitions.append(ProducePartition(topic, index, frame[offset:end]))
            offset = end
    return ProduceRequest(acks, timeout_ms, transactional_id, partitions)


def _decode_flexible(frame: memoryview, offset: int) -> ProduceRequest:
    offset = skip_tags(frame, offset)  # the header's
    transactional_id, offset = read_compact_nullable(frame, offset)
    acks, timeout_ms = _ACKS_TIMEOUT.unpack_from(frame, offset)
    offset += _ACKS_TIMEOUT.size
    partitions: list[ProducePartition] = []
    size = len(frame)
    topic_count, offset = read_uvarint(frame, offset)
    for _ in range(topic_count - 1):
        topic, offset = read_compact_nullable(frame, offset)
        if topic is None:
            raise MessageError("a topic without a name")
        partition_count, offset = read_uvarint(frame, offset)
        _check_count(len(partitions) + partition_count - 1)
        for _ in range(partition_count - 1):
            (index,) = _INT32.unpack_from(frame, offset)
            length, offset = read_uvarint(frame, offset + 4)
            end = offset + length - 1 if length > 0 else offset
            if end > size:
                raise MessageError(f"records of {length - 1} bytes where {size - offset} are left")
            partitions.append(ProducePartition(topic, index, frame[offset:end]))
            offset = skip_tags(frame, end)
        offset = skip_tags(frame, offset)
    skip_tags(frame, offset)
    return ProduceRequest(acks, timeout_ms, transactional_id, partitions)


def _check_count(count: int) -> None:
    if count > PARTITIONS_MAX:
        raise MessageError(f"{count} partitions in one request; at most {PARTITIONS_MAX} are taken")


def encode_produce(correlation_id: int, version: int, results: list[ProduceResult]) -> bytes:
    """The response as a whole frame, length included; the results of one topic stand together, as in the request."""
    if version >= FLEXIBLE_FROM:
        body = _encode_flexible(results)
        return _INDEX_LENGTH.pack(len(body) + 5, correlation_id) + b"\0" + body
    body = _encode_fixed(results, version)
    return _INDEX_LENGTH.pack(len(body) + 4, correlation_id) + body


def _by_topic(results: list[ProduceResult]) -> list[list[ProduceResult]]:
    if len(results) == 1:
        return [results]
    groups: list[list[ProduceResult]] = []
    for result in results:
        if groups and groups[-1][0].topic == result.topic:
            groups[-1].append(result)
        else:
            groups.append([result])
    return groups


def _encode_fixed(results: list[ProduceResult], version: int) -> bytes:
    groups = _by_topic(results)
    layout = _RESULT[5 if version >= 5 else 2 if version >= 2 else 0]
    fields = 5 if version >= 5 else 4 if version >= 2 else 3
    parts = [_INT32.pack(len(groups))]
    for group in groups:
        parts += (encode_string(group[0].topic), _INT32.pack(len(group)))
        for result in group:
            parts.append(layout.pack(*result[1 : 1 + fields]))
            if version >= 8:
                parts += (b"\0\0\0\0", b"\xff\xff" if result.message is None else encode_string(result.message))
    if version >= 1:
        parts.append(b"\0\0\0\0")
    return b"".join(parts)


def _encode_flexible(results: list[ProduceResult]) -> bytes:
    groups = _by_topic(results)
    layout = _RESULT[5]
    parts = [encode_uvarint(len(groups) + 1)]
    for group in groups:
        parts += (encode_compact(group[0].topic), encode_uvarint(len(group) + 1))
        for result in group:
            message = b"\0" if result.message is None else encode_compact(result.message)
            parts += (layout.pack(*result[1:6]), b"\x01", message, b"\0")  # no record errors; no tags
        parts.append(b"\0")
    parts.append(b"\0\0\0\0\0")  # throttle time, no tags
    return b"".join(parts)
