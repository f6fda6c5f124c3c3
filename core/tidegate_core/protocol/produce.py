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
    read_uvarint,
)
from tidegate_core.protocol.versions import VERSIONS, Api
from tidegate_wire.kafka.messages import MessageError, skip_tags

FLEXIBLE_FROM: Final = 9

PARTITIONS_MAX: Final = 10_000
"""In one request; a client's batch of work has as many as it leads to on this node, and each takes a reply of ours."""

_API_KEY: Final = 0
_HEADER: Final = struct.Struct(">hhih")  # API key, version, correlation id, length of the client id
_HEAD: Final = struct.Struct(">hii")  # acks, timeout, number of topics
_FLEXIBLE_HEAD: Final = struct.Struct(">hi")  # acks, timeout
_INT16: Final = struct.Struct(">h")
_INT32: Final = struct.Struct(">i")
_INDEX_LENGTH: Final = struct.Struct(">ii")
_FRAME: Final = struct.Struct(">ii")  # length, correlation id
_RESULT: Final = {
    0: struct.Struct(">ihq"),  # partition, error, base offset
    2: struct.Struct(">ihqq"),  # and the append time
    5: struct.Struct(">ihqqq"),  # and the log's start
}


_Body = tuple[int, int, str | None, list[tuple[str, int, memoryview]]]


class ProduceRequest(NamedTuple):
    """A Produce request of any version, with what its header says."""

    version: int
    correlation_id: int
    acks: int
    timeout_ms: int
    transactional_id: str | None
    partitions: list[tuple[str, int, memoryview]]
    """Topic, partition and its record batch, unchecked; empty where the request has null."""


class ProduceResult(NamedTuple):
    """What became of one partition's records."""

    topic: str
    partition: int
    error_code: int
    base_offset: int
    log_append_time_ms: int
    log_start_offset: int
    message: str | None


def is_produce(frame: memoryview) -> bool:
    """Whether a request's frame, without its length, begins as a Produce request does."""
    return len(frame) > 1 and frame[0] == frame[1] == _API_KEY


def decode_produce(frame: memoryview) -> ProduceRequest:
    """Read a Produce request, header included; `frame` is without its length.

    Raises:
        MessageError: the bytes are not a Produce request of a version that is served.
    """
    version = -1
    try:
        _, version, correlation_id, client_id_bytes = _HEADER.unpack_from(frame)
        offset = _HEADER.size + max(client_id_bytes, 0)
        if FLEXIBLE_FROM <= version <= VERSIONS[Api.PRODUCE].highest:
            return ProduceRequest(version, correlation_id, *_decode_flexible(frame, offset))
        if 0 <= version < FLEXIBLE_FROM:
            return ProduceRequest(version, correlation_id, *_decode_fixed(frame, offset, version))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise MessageError(f"not a Produce request of version {version}: {error}") from error
    raise MessageError(f"Produce version {version} is not served")


def _decode_fixed(frame: memoryview, offset: int, version: int) -> _Body:
    transactional_id = None
    if version >= 3:
        transactional_id, offset = read_nullable(frame, offset)
    acks, timeout_ms, topic_count = _HEAD.unpack_from(frame, offset)
    offset += _HEAD.size
    partitions: list[tuple[str, int, memoryview]] = []
    size = len(frame)
    for _ in range(topic_count):
        (length,) = _INT16.unpack_from(frame, offset)
        end = offset + 2 + length
        if length < 0 or end > size:
            raise MessageError(f"a topic's name of {length} bytes where {size - offset - 2} are left")
        topic = str(frame[offset + 2 : end], "utf-8")
        (partition_count,) = _INT32.unpack_from(frame, end)
        offset = end + 4
        if partition_count > 1:
            _check_count(len(partitions) + partition_count)
        for _ in range(partition_count):
            index, length = _INDEX_LENGTH.unpack_from(frame, offset)
            offset += 8
            end = offset + length if length > 0 else offset
            if end > size:
                raise MessageError(f"records of {length} bytes where {size - offset} are left")
            partitions.append((topic, index, frame[offset:end]))
            offset = end
    return acks, timeout_ms, transactional_id, partitions


def _decode_flexible(frame: memoryview, offset: int) -> _Body:
    offset = skip_tags(frame, offset)  # the header's
    transactional_id, offset = read_compact_nullable(frame, offset)
    acks, timeout_ms = _FLEXIBLE_HEAD.unpack_from(frame, offset)
    partitions: list[tuple[str, int, memoryview]] = []
    size = len(frame)
    topic_count, offset = read_uvarint(frame, offset + _FLEXIBLE_HEAD.size)
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
            partitions.append((topic, index, frame[offset:end]))
            offset = skip_tags(frame, end)
        offset = skip_tags(frame, offset)
    skip_tags(frame, offset)
    return acks, timeout_ms, transactional_id, partitions


def _check_count(count: int) -> None:
    if count > PARTITIONS_MAX:
        raise MessageError(f"{count} partitions in one request; at most {PARTITIONS_MAX} are taken")


def encode_produce(correlation_id: int, version: int, results: list[ProduceResult]) -> bytes:
    """The response as a whole frame, length included; the results of one topic stand together, as in the request."""
    groups = [results] if len(results) == 1 else _by_topic(results)
    body = _encode_flexible(groups) if version >= FLEXIBLE_FROM else _encode_fixed(groups, version)
    return _FRAME.pack(len(body) + 4, correlation_id) + body


def _by_topic(results: list[ProduceResult]) -> list[list[ProduceResult]]:
    groups: list[list[ProduceResult]] = []
    for result in results:
        if groups and groups[-1][0].topic == result.topic:
            groups[-1].append(result)
        else:
            groups.append([result])
    return groups


def _encode_fixed(groups: list[list[ProduceResult]], version: int) -> bytes:
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


def _encode_flexible(groups: list[list[ProduceResult]]) -> bytes:
    layout = _RESULT[5]
    parts = [b"\0", encode_uvarint(len(groups) + 1)]  # the header's tags come first
    for group in groups:
        parts += (encode_compact(group[0].topic), encode_uvarint(len(group) + 1))
        for result in group:
            message = b"\0" if result.message is None else encode_compact(result.message)
            parts += (layout.pack(*result[1:6]), b"\x01", message, b"\0")  # no record errors; no tags
        parts.append(b"\0")
    parts.append(b"\0\0\0\0\0")  # throttle time, no tags
    return b"".join(parts)
