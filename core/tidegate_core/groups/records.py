"""The records of `__consumer_offsets`, laid out as Apache Kafka does, so that its tools can read the topic.

    key    version (int16): 1 = committed offset: group, topic, partition; 2 = group: group
    value  committed offset, version 4 (flexible): offset, leader epoch, metadata, commit time, tag 0: topic id
           committed offset, version 3: the same without the topic id
           group, version 3: protocol type, generation, protocol, leader, state since, members

A null value takes back what the key names. Values are written and read in these versions only; an offset whose topic
id is not known is written in version 3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from uuid import UUID

from tidegate_core.groups.messages import StoredGroup, StoredMember
from tidegate_core.protocol.primitives import (
    encode_compact,
    encode_string,
    encode_uvarint,
    read_compact_nullable,
    read_nullable,
    read_string,
    read_uvarint,
)
from tidegate_wire.kafka.messages import MessageError

_OFFSET_KEY: Final = 1
_GROUP_KEY: Final = 2
_VALUE_VERSION: Final = 3
_OFFSET_VERSION_WITH_TOPIC_ID: Final = 4

_TOPIC_ID_TAG: Final = 0
_UUID_BYTES: Final = 16
_ONE_TAG_TOPIC_ID: Final = encode_uvarint(1) + encode_uvarint(_TOPIC_ID_TAG) + encode_uvarint(_UUID_BYTES)

_INT16: Final = struct.Struct(">h")
_INT32: Final = struct.Struct(">i")
_OFFSET_HEAD: Final = struct.Struct(">hqi")  # version, offset, leader epoch
_INT64: Final = struct.Struct(">q")
_TIMEOUTS: Final = struct.Struct(">ii")  # rebalance, session
_NULL_STRING: Final = b"\xff\xff"


class GroupRecordError(ValueError):
    """A record of `__consumer_offsets` that can't be read."""


@dataclass(frozen=True, slots=True)
class OffsetKey:
    """Names a committed offset."""

    group_id: str
    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class GroupKey:
    """Names a group."""

    group_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedOffset:
    """How far a group has read a partition."""

    offset: int
    leader_epoch: int
    """Of the last record read, -1 where the client did not say (KIP-320)."""
    metadata: str
    commit_time_ms: int
    topic_id: UUID | None = None
    """Tells the topic from a later one of the same name. None: written by a version that did not know it."""


def encode_offset_key(key: OffsetKey) -> bytes:
    """The key of a committed offset."""
    return b"".join(
        (_INT16.pack(_OFFSET_KEY), encode_string(key.group_id), encode_string(key.topic), _INT32.pack(key.partition))
    )


def encode_offset(committed: CommittedOffset) -> bytes:
    """The value of a committed offset."""
    if committed.topic_id is None:
        return b"".join(
            (
                _OFFSET_HEAD.pack(_VALUE_VERSION, committed.offset, committed.leader_epoch),
                encode_string(committed.metadata),
                _INT64.pack(committed.commit_time_ms),
            )
        )
    return b"".join(
        (
            _OFFSET_HEAD.pack(_OFFSET_VERSION_WITH_TOPIC_ID, committed.offset, committed.leader_epoch),
            encode_compact(committed.metadata),
            _INT64.pack(committed.commit_time_ms),
            _ONE_TAG_TOPIC_ID,
            committed.topic_id.bytes,
        )
    )


def encode_group_key(group_id: str) -> bytes:
    """The key of a group."""
    return _INT16.pack(_GROUP_KEY) + encode_string(group_id)


def encode_group(group: StoredGroup) -> bytes:
    """The value of a group."""
    parts = [
        _INT16.pack(_VALUE_VERSION),
        encode_string(group.protocol_type),
        _INT32.pack(group.generation),
        _nullable(group.protocol_name),
        _nullable(group.leader_id),
        _INT64.pack(group.state_since_ms),
        _INT32.pack(len(group.members)),
    ]
    for member in group.members:
        parts += (
            encode_string(member.member_id),
            _nullable(member.instance_id),
            encode_string(member.client_id),
            encode_string(member.client_host),
            _TIMEOUTS.pack(member.rebalance_timeout_ms, member.session_timeout_ms),
            _INT32.pack(len(member.metadata)),
            member.metadata,
            _INT32.pack(len(member.assignment)),
            member.assignment,
        )
    return b"".join(parts)


def decode_key(key: bytes) -> OffsetKey | GroupKey:
    """Read a key.

    Raises:
        GroupRecordError: it is neither an offset's nor a group's.
    """
    view = memoryview(key)
    try:
        (version,) = _INT16.unpack_from(view)
        if version in (0, _OFFSET_KEY):
            group_id, offset = read_string(view, 2)
            topic, offset = read_string(view, offset)
            return OffsetKey(group_id, topic, _INT32.unpack_from(view, offset)[0])
        if version == _GROUP_KEY:
            return GroupKey(read_string(view, 2)[0])
    except (struct.error, MessageError, UnicodeDecodeError) as error:
        raise GroupRecordError(f"not a key of __consumer_offsets: {error}") from error
    raise GroupRecordError(f"key version {version} of __consumer_offsets is unknown here")


def decode_offset(value: bytes) -> CommittedOffset:
    """Read the value of a committed offset.

    Raises:
        GroupRecordError: it is none.
    """
    view = memoryview(value)
    topic_id = None
    try:
        version, committed, leader_epoch = _OFFSET_HEAD.unpack_from(view)
        if version == _OFFSET_VERSION_WITH_TOPIC_ID:
            metadata, offset = read_compact_nullable(view, _OFFSET_HEAD.size)
            (commit_time_ms,) = _INT64.unpack_from(view, offset)
            topic_id = _read_topic_id(view, offset + _INT64.size)
        else:
            _check_version(version)
            metadata, offset = read_string(view, _OFFSET_HEAD.size)
            (commit_time_ms,) = _INT64.unpack_from(view, offset)
    except (struct.error, IndexError, MessageError, UnicodeDecodeError) as error:
        raise GroupRecordError(f"not a committed offset: {error}") from error
    return CommittedOffset(
        offset=committed,
        leader_epoch=leader_epoch,
        metadata=metadata or "",
        commit_time_ms=commit_time_ms,
        topic_id=topic_id,
    )


@lru_cache(maxsize=4096)  # a few topics have very many offsets: one object for each topic, made once
def _topic_id(field: bytes) -> UUID:
    return UUID(bytes=field)


def _read_topic_id(view: memoryview, offset: int) -> UUID | None:
    """From the tagged fields; those of other tags are passed over (KIP-915)."""
    topic_id = None
    count, offset = read_uvarint(view, offset)
    for _ in range(count):
        tag, offset = read_uvarint(view, offset)
        size, offset = read_uvarint(view, offset)
        field = bytes(view[offset : offset + size])
        if len(field) < size:
            raise GroupRecordError(f"a tagged field of {size} bytes where {len(field)} are left")
        if tag == _TOPIC_ID_TAG and size == _UUID_BYTES:
            topic_id = _topic_id(field)
        offset += size
    return topic_id


def decode_group(group_id: str, value: bytes) -> StoredGroup:
    """Read the value of a group.

    Raises:
        GroupRecordError: it is none.
    """
    view = memoryview(value)
    try:
        _check_version(_INT16.unpack_from(view)[0])
        protocol_type, offset = read_string(view, 2)
        (generation,) = _INT32.unpack_from(view, offset)
        protocol_name, offset = read_nullable(view, offset + 4)
        leader_id, offset = read_nullable(view, offset)
        (state_since_ms,) = _INT64.unpack_from(view, offset)
        (count,) = _INT32.unpack_from(view, offset + 8)
        offset += 12
        members = []
        for _ in range(count):
            member, offset = _read_member(view, offset)
            members.append(member)
    except (struct.error, MessageError, UnicodeDecodeError) as error:
        raise GroupRecordError(f"not a group: {error}") from error
    return StoredGroup(
        group_id=group_id,
        protocol_type=protocol_type,
        generation=generation,
        protocol_name=protocol_name,
        leader_id=leader_id,
        state_since_ms=state_since_ms,
        members=tuple(members),
    )


def _read_member(view: memoryview, offset: int) -> tuple[StoredMember, int]:
    member_id, offset = read_string(view, offset)
    instance_id, offset = read_nullable(view, offset)
    client_id, offset = read_string(view, offset)
    client_host, offset = read_string(view, offset)
    rebalance_timeout_ms, session_timeout_ms = _TIMEOUTS.unpack_from(view, offset)
    metadata, offset = _read_bytes(view, offset + _TIMEOUTS.size)
    assignment, offset = _read_bytes(view, offset)
    member = StoredMember(
        member_id=member_id,
        instance_id=instance_id,
        client_id=client_id,
        client_host=client_host,
        rebalance_timeout_ms=rebalance_timeout_ms,
        session_timeout_ms=session_timeout_ms,
        metadata=metadata,
        assignment=assignment,
    )
    return member, offset


def _read_bytes(view: memoryview, offset: int) -> tuple[bytes, int]:
    (length,) = _INT32.unpack_from(view, offset)
    offset += 4
    end = offset + length
    if length < 0 or end > len(view):
        raise GroupRecordError(f"{length} bytes where {len(view) - offset} are left")
    return bytes(view[offset:end]), end


def _check_version(version: int) -> None:
    if version != _VALUE_VERSION:
        raise GroupRecordError(f"value version {version} of __consumer_offsets is unknown here")


def _nullable(text: str | None) -> bytes:
    return _NULL_STRING if text is None else encode_string(text)
