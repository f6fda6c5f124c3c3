"""The bytes of the nodes' messages: a version, the kind of message, its fields. Record batches are not copied.

Replication goes through `ReplicaFetch` and `ReplicaFetched` all the time, so these two are packed by hand; for the rest
being plain is worth more.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from tidegate_core.raft.messages import BeginEpoch, EndEpoch, ReplicaKey, VoteRequest, VoteResponse
from tidegate_core.replication.fields import NOBODY, FieldReader, FieldWriter, key_of
from tidegate_core.replication.messages import (
    BeginEpochs,
    Done,
    ElectPreferred,
    EndEpochs,
    FetchedReplica,
    FollowerPosition,
    Forward,
    Forwarded,
    Hello,
    Leadership,
    Leaderships,
    Moved,
    PeerRequest,
    PeerResponse,
    Refused,
    Register,
    ReplicaFetch,
    ReplicaFetched,
    SnapshotFetch,
    SnapshotFetched,
    VoteAnswers,
    Votes,
    Welcome,
)
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.kafka.messages import ErrorCode, MessageError

VERSION: Final = 1
"""Nodes of one cluster run versions that understand each other's messages; another version is refused."""

PeerMessage = PeerRequest | PeerResponse

_HEAD: Final = struct.Struct(">bb")
_FETCH: Final = struct.Struct(">iiiii")
_FETCHED: Final = struct.Struct(">hi")
_KEY: Final = struct.Struct(">16si")
_POSITION: Final = struct.Struct(">16siiqiq")
_REPLICA: Final = struct.Struct(">16sihiiqqiqqi")
_KEY_READ: Final = struct.Struct(">20s")
_POSITION_READ: Final = struct.Struct(">20siqiq")
_REPLICA_READ: Final = struct.Struct(">20shiiqqiqqi")
"""As above, with the key as one piece, under which it is remembered."""

_CODES: Final[dict[int, ErrorCode]] = {code.value: code for code in ErrorCode}


def encode(message: PeerMessage) -> list[bytes | memoryview]:
    """The message as buffers, which make up the frame's body in this order."""
    kind = _KINDS[type(message)]
    head = _HEAD.pack(VERSION, kind)
    if type(message) is ReplicaFetched:
        return _encode_fetched(head, message)
    if type(message) is ReplicaFetch:
        return [_encode_fetch(head, message)]
    writer = FieldWriter()
    writer.buffers.append(head)
    _WRITERS[kind](writer, message)
    return writer.buffers


def decode(body: memoryview) -> PeerMessage:
    """Read what `encode` made.

    Raises:
        MessageError: it is something else.
    """
    if len(body) < _HEAD.size:
        raise MessageError("a message of a node is cut")
    version, kind = _HEAD.unpack_from(body)
    if version != VERSION:
        raise MessageError(f"a node speaks version {version} of the cluster's protocol, this one version {VERSION}")
    if kind == _KINDS[ReplicaFetched]:
        return _decode_fetched(body)
    if kind == _KINDS[ReplicaFetch]:
        return _decode_fetch(body)
    read = _READERS.get(kind)
    if read is None:
        raise MessageError(f"a node sends a message of kind {kind}, which is not known here")
    reader = FieldReader(body[_HEAD.size :])
    message = read(reader)
    reader.end()
    return message


# Replication, by hand.


def _encode_fetch(head: bytes, message: ReplicaFetch) -> bytes:
    out = [
        head,
        _FETCH.pack(message.session, message.number, message.wait_ms, message.bytes_max, len(message.positions)),
    ]
    pack = _POSITION.pack
    for position in message.positions:
        topic_id, partition = position.key
        out.append(
            pack(
                topic_id.bytes,
                partition,
                position.epoch,
                position.offset,
                position.last_epoch,
                position.log_start_offset,
            )
        )
    out += [_KEY.pack(key.topic_id.bytes, key.partition) for key in message.forgotten]
    return b"".join(out)


def _decode_fetch(body: memoryview) -> ReplicaFetch:
    at = _HEAD.size
    try:
        session, number, wait_ms, bytes_max, count = _FETCH.unpack_from(body, at)
        at += _FETCH.size
        end = at + count * _POSITION.size
        if count < 0 or end > len(body):
            raise MessageError(f"{count} positions do not fit")
        positions = [
            FollowerPosition(key_of(key), epoch, offset, last_epoch, log_start_offset)
            for key, epoch, offset, last_epoch, log_start_offset in _POSITION_READ.iter_unpack(body[at:end])
        ]
        forgotten = [key_of(key) for (key,) in _KEY_READ.iter_unpack(body[end:])]
    except struct.error as error:
        raise MessageError(f"a fetch of a replica is cut: {error}") from error
    return ReplicaFetch(session, number, wait_ms, bytes_max, positions, forgotten)


def _encode_fetched(head: bytes, message: ReplicaFetched) -> list[bytes | memoryview]:
    buffers: list[bytes | memoryview] = []
    out = [head, _FETCHED.pack(message.error, len(message.replicas))]
    for replica in message.replicas:
        size_bytes = sum(map(len, replica.buffers))
        diverging_epoch, diverging_end = replica.diverging or (NOBODY - 1, -1)
        out.append(
            _REPLICA.pack(
                replica.key.topic_id.bytes,
                replica.key.partition,
                replica.error,
                replica.epoch,
                NOBODY if replica.leader is None else replica.leader,
                replica.high_watermark,
                replica.log_start_offset,
                diverging_epoch,
                diverging_end,
                replica.snapshot_offset,
                size_bytes,
            )
        )
        if size_bytes:
            buffers.append(b"".join(out))
            buffers += replica.buffers
            out = []
    if out:
        buffers.append(b"".join(out))
    return buffers


def _decode_fetched(body: memoryview) -> ReplicaFetched:
    at = _HEAD.size
    replicas: list[FetchedReplica] = []
    unpack = _REPLICA_READ.unpack_from
    try:
        error, count = _FETCHED.unpack_from(body, at)
        at += _FETCHED.size
        for _ in range(count):
            key, code, epoch, leader, high_watermark, log_start, div_epoch, div_end, snapshot, size_bytes = unpack(
                body, at
            )
            at += _REPLICA_READ.size
            end = at + size_bytes
            if size_bytes < 0 or end > len(body):
                raise MessageError(f"{size_bytes} bytes of records do not fit")
            replicas.append(
                FetchedReplica(
                    key_of(key),
                    _CODES[code],
                    epoch,
                    None if leader == NOBODY else leader,
                    high_watermark,
                    log_start,
                    None if div_epoch < NOBODY else (div_epoch, div_end),
                    snapshot,
                    (body[at:end],) if size_bytes else (),
                )
            )
            at = end
        if at != len(body):
            raise MessageError(f"{len(body) - at} bytes follow the answer to a replica's fetch")
        return ReplicaFetched(_CODES[error], replicas)
    except struct.error as failure:
        raise MessageError(f"the answer to a replica's fetch is cut: {failure}") from failure
    except KeyError as failure:
        raise MessageError(f"there is no error code {failure}") from failure


# The rest, field by field.


def _write_founders(writer: FieldWriter, founders: Any) -> None:
    def write(founder: tuple[NodeId, UUID]) -> None:
        writer.int32(founder[0])
        writer.uuid(founder[1])

    writer.each(founders, write)


def _read_founders(reader: FieldReader) -> tuple[tuple[NodeId, UUID], ...]:
    return reader.each(lambda: (NodeId(reader.int32()), reader.uuid()))


def _write_hello(writer: FieldWriter, message: Hello) -> None:
    writer.text(message.cluster_id)
    writer.int32(message.node_id)
    writer.uuid(message.directory_id)
    writer.uuid(message.incarnation)
    writer.each(message.voters, writer.int32)


def _read_hello(reader: FieldReader) -> Hello:
    return Hello(
        cluster_id=reader.text(),
        node_id=NodeId(reader.int32()),
        directory_id=reader.uuid(),
        incarnation=reader.uuid(),
        voters=reader.each(lambda: NodeId(reader.int32())),
    )


def _write_welcome(writer: FieldWriter, message: Welcome) -> None:
    writer.text(message.cluster_id)
    writer.int32(message.node_id)
    writer.uuid(message.directory_id)
    writer.uuid(message.incarnation)
    _write_founders(writer, message.founders)


def _read_welcome(reader: FieldReader) -> Welcome:
    return Welcome(
        cluster_id=reader.text(),
        node_id=NodeId(reader.int32()),
        directory_id=reader.uuid(),
        incarnation=reader.uuid(),
        founders=_read_founders(reader),
    )


def _write_votes(writer: FieldWriter, message: Votes) -> None:
    def write(item: tuple[ReplicaKey, VoteRequest]) -> None:
        key, request = item
        writer.key(key)
        writer.int32(request.candidate)
        writer.int32(request.epoch)
        writer.int32(request.last_epoch)
        writer.int64(request.end_offset)
        writer.int8(request.is_pre_vote)

    writer.each(message.requests, write)


def _read_votes(reader: FieldReader) -> Votes:
    def read() -> tuple[ReplicaKey, VoteRequest]:
        return reader.key(), VoteRequest(
            candidate=NodeId(reader.int32()),
            epoch=LeaderEpoch(reader.int32()),
            last_epoch=LeaderEpoch(reader.int32()),
            end_offset=Offset(reader.int64()),
            is_pre_vote=reader.flag(),
        )

    return Votes(reader.each(read))


_IS_THERE: Final = 1
_IS_GRANTED: Final = 2
_IS_CONDITIONAL: Final = 4
_IS_PRE_VOTE: Final = 8


def _write_answers(writer: FieldWriter, message: VoteAnswers) -> None:
    def write(item: tuple[ReplicaKey, VoteResponse | None]) -> None:
        key, response = item
        writer.key(key)
        if response is None:
            writer.int8(0)
            return
        writer.int8(
            _IS_THERE
            | _IS_GRANTED * response.is_granted
            | _IS_CONDITIONAL * response.is_conditional
            | _IS_PRE_VOTE * response.is_pre_vote
        )
        writer.int32(response.epoch)
        writer.int32(_number(response.leader))

    writer.each(message.answers, write)


def _read_answers(reader: FieldReader) -> VoteAnswers:
    def read() -> tuple[ReplicaKey, VoteResponse | None]:
        key, flags = reader.key(), reader.int8()
        if not flags & _IS_THERE:
            return key, None
        return key, VoteResponse(
            LeaderEpoch(reader.int32()),
            _node(reader.int32()),
            is_granted=bool(flags & _IS_GRANTED),
            is_conditional=bool(flags & _IS_CONDITIONAL),
            is_pre_vote=bool(flags & _IS_PRE_VOTE),
        )

    return VoteAnswers(reader.each(read))


def _number(node: NodeId | None) -> int:
    return NOBODY if node is None else node


def _node(number: int) -> NodeId | None:
    return None if number == NOBODY else NodeId(number)


def _write_begin(writer: FieldWriter, message: BeginEpochs) -> None:
    def write(item: tuple[ReplicaKey, BeginEpoch]) -> None:
        writer.key(item[0])
        writer.int32(item[1].leader)
        writer.int32(item[1].epoch)

    writer.each(message.epochs, write)


def _read_begin(reader: FieldReader) -> BeginEpochs:
    return BeginEpochs(
        reader.each(lambda: (reader.key(), BeginEpoch(NodeId(reader.int32()), LeaderEpoch(reader.int32()))))
    )


def _write_nodes(writer: FieldWriter, nodes: Any) -> None:
    writer.each(nodes, writer.int32)


def _read_nodes(reader: FieldReader) -> tuple[NodeId, ...]:
    return reader.each(lambda: NodeId(reader.int32()))


def _write_end(writer: FieldWriter, message: EndEpochs) -> None:
    def write(item: tuple[ReplicaKey, EndEpoch]) -> None:
        writer.key(item[0])
        writer.int32(item[1].leader)
        writer.int32(item[1].epoch)
        _write_nodes(writer, item[1].successors)

    writer.each(message.epochs, write)


def _read_end(reader: FieldReader) -> EndEpochs:
    return EndEpochs(
        reader.each(
            lambda: (
                reader.key(),
                EndEpoch(NodeId(reader.int32()), LeaderEpoch(reader.int32()), _read_nodes(reader)),
            )
        )
    )


def _write_leaderships(writer: FieldWriter, message: Leaderships) -> None:
    def write(item: Leadership) -> None:
        writer.key(item.key)
        writer.int32(item.epoch)
        writer.int32(item.leader)
        _write_nodes(writer, item.voters)
        _write_nodes(writer, item.in_step)

    writer.each(message.leaderships, write)
    writer.int8(message.begins)


def _read_leaderships(reader: FieldReader) -> Leaderships:
    return Leaderships(
        reader.each(
            lambda: Leadership(
                reader.key(),
                LeaderEpoch(reader.int32()),
                NodeId(reader.int32()),
                _read_nodes(reader),
                _read_nodes(reader),
            )
        ),
        reader.flag(),
    )


def _write_snapshot_fetch(writer: FieldWriter, message: SnapshotFetch) -> None:
    writer.key(message.key)
    writer.int32(message.epoch)
    writer.int64(message.offset)
    writer.int64(message.position)
    writer.int32(message.bytes_max)


def _read_snapshot_fetch(reader: FieldReader) -> SnapshotFetch:
    return SnapshotFetch(
        reader.key(), LeaderEpoch(reader.int32()), Offset(reader.int64()), reader.int64(), reader.int32()
    )


def _write_snapshot(writer: FieldWriter, message: SnapshotFetched) -> None:
    writer.int16(message.error)
    writer.int64(message.size_bytes)
    writer.data(message.piece)


def _read_snapshot(reader: FieldReader) -> SnapshotFetched:
    return SnapshotFetched(_code(reader), reader.int64(), reader.data())


def _code(reader: FieldReader) -> ErrorCode:
    number = reader.int16()
    code = _CODES.get(number)
    if code is None:
        raise MessageError(f"there is no error code {number}")
    return code


def _write_register(writer: FieldWriter, message: Register) -> None:
    writer.int32(message.node_id)
    writer.uuid(message.directory_id)
    writer.text(message.host)
    writer.int32(message.port)
    writer.text(message.peer_host)
    writer.int32(message.peer_port)


def _read_register(reader: FieldReader) -> Register:
    return Register(NodeId(reader.int32()), reader.uuid(), reader.word(), reader.int32(), reader.word(), reader.int32())


def _write_moved(writer: FieldWriter, message: Moved) -> None:
    writer.key(message.key)
    writer.int32(message.epoch)
    _write_nodes(writer, message.voters)


def _read_moved(reader: FieldReader) -> Moved:
    return Moved(reader.key(), LeaderEpoch(reader.int32()), _read_nodes(reader))


def _write_forward(writer: FieldWriter, message: Forward) -> None:
    writer.text(message.host)
    writer.data(message.frame)


def _read_forward(reader: FieldReader) -> Forward:
    host = reader.word()
    return Forward(reader.data(), host)


def _write_nothing(_writer: FieldWriter, _message: object) -> None:
    """The kind of message says it all."""


def _write_refused(writer: FieldWriter, message: Refused) -> None:
    writer.int16(message.error)
    writer.text(message.reason)


_CODECS: Final[list[tuple[type, Callable[[FieldWriter, Any], None], Callable[[FieldReader], PeerMessage]]]] = [
    (Hello, _write_hello, _read_hello),
    (Welcome, _write_welcome, _read_welcome),
    (Done, _write_nothing, lambda _reader: Done()),
    (Refused, _write_refused, lambda reader: Refused(_code(reader), reader.word())),
    (Votes, _write_votes, _read_votes),
    (VoteAnswers, _write_answers, _read_answers),
    (BeginEpochs, _write_begin, _read_begin),
    (EndEpochs, _write_end, _read_end),
    (Leaderships, _write_leaderships, _read_leaderships),
    (SnapshotFetch, _write_snapshot_fetch, _read_snapshot_fetch),
    (SnapshotFetched, _write_snapshot, _read_snapshot),
    (
        ElectPreferred,
        lambda writer, message: writer.key(message.key),
        lambda reader: ElectPreferred(reader.key()),
    ),
    (Register, _write_register, _read_register),
    (Moved, _write_moved, _read_moved),
    (Forward, _write_forward, _read_forward),
    (
        Forwarded,
        lambda writer, message: writer.data(message.frame),
        lambda reader: Forwarded(reader.data()),
    ),
]
_KINDS: Final = {kind: number for number, (kind, _, _) in enumerate(_CODECS, 1)} | {
    ReplicaFetch: len(_CODECS) + 1,
    ReplicaFetched: len(_CODECS) + 2,
}
_WRITERS: Final = {number: write for number, (_, write, _) in enumerate(_CODECS, 1)}
_READERS: Final = {number: read for number, (_, _, read) in enumerate(_CODECS, 1)}
