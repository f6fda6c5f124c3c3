"""The bytes of the nodes' messages: whatever is written is read again, and whatever else comes is refused."""

from __future__ import annotations

import struct
from dataclasses import fields, is_dataclass
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_core.raft.messages import BeginEpoch, EndEpoch, ReplicaKey, VoteRequest, VoteResponse
from tidegate_core.replication.codec import VERSION, PeerMessage, decode, encode
from tidegate_core.replication.messages import (
    METADATA_KEY,
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

GIANT = struct.pack(">i", 2**31 - 1)

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
NODES = st.integers(0, 2**31 - 1).map(NodeId)
EPOCHS = st.integers(-1, 2**31 - 1).map(LeaderEpoch)
OFFSETS = INT64.map(Offset)
KEYS = st.builds(ReplicaKey, st.uuids(), INT32)
TEXT = st.text(max_size=30)
DATA = st.binary(max_size=100)
ERRORS = st.sampled_from(ErrorCode)
NODE_LISTS = st.lists(NODES, max_size=5)
NODE_TUPLES = NODE_LISTS.map(tuple)
FLAGS = st.booleans()


def lists_of(item: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(item, max_size=4)


VOTES = st.tuples(KEYS, st.builds(VoteRequest, NODES, EPOCHS, EPOCHS, OFFSETS, FLAGS))
ANSWERS = st.tuples(KEYS, st.none() | st.builds(VoteResponse, EPOCHS, st.none() | NODES, FLAGS, FLAGS, FLAGS))
POSITIONS = st.builds(FollowerPosition, KEYS, EPOCHS, OFFSETS, EPOCHS, OFFSETS)
FETCHED = st.builds(
    FetchedReplica,
    KEYS,
    ERRORS,
    EPOCHS,
    st.none() | NODES,
    OFFSETS,
    OFFSETS,
    st.none() | st.tuples(EPOCHS, OFFSETS),
    OFFSETS,
    lists_of(DATA),
)

MESSAGES: dict[type, st.SearchStrategy[Any]] = {
    Hello: st.builds(
        Hello,
        cluster_id=st.none() | TEXT,
        node_id=NODES,
        directory_id=st.uuids(),
        incarnation=st.uuids(),
        voters=NODE_LISTS,
    ),
    Welcome: st.builds(
        Welcome,
        cluster_id=st.none() | TEXT,
        node_id=NODES,
        directory_id=st.uuids(),
        incarnation=st.uuids(),
        founders=lists_of(st.tuples(NODES, st.uuids())),
    ),
    Votes: st.builds(Votes, lists_of(VOTES)),
    VoteAnswers: st.builds(VoteAnswers, lists_of(ANSWERS)),
    BeginEpochs: st.builds(BeginEpochs, lists_of(st.tuples(KEYS, st.builds(BeginEpoch, NODES, EPOCHS)))),
    EndEpochs: st.builds(EndEpochs, lists_of(st.tuples(KEYS, st.builds(EndEpoch, NODES, EPOCHS, NODE_TUPLES)))),
    Leaderships: st.builds(
        Leaderships, lists_of(st.builds(Leadership, KEYS, EPOCHS, NODES, NODE_LISTS, NODE_LISTS)), st.booleans()
    ),
    Done: st.just(Done()),
    ReplicaFetch: st.builds(ReplicaFetch, INT32, INT32, INT32, INT32, lists_of(POSITIONS), lists_of(KEYS)),
    ReplicaFetched: st.builds(ReplicaFetched, ERRORS, lists_of(FETCHED)),
    SnapshotFetch: st.builds(SnapshotFetch, KEYS, EPOCHS, OFFSETS, INT64, INT32),
    SnapshotFetched: st.builds(SnapshotFetched, ERRORS, INT64, DATA),
    ElectPreferred: st.builds(ElectPreferred, KEYS),
    Register: st.builds(Register, NODES, st.uuids(), TEXT, INT32, TEXT, INT32),
    Moved: st.builds(Moved, KEYS, EPOCHS, NODE_LISTS),
    Forward: st.builds(Forward, DATA, TEXT),
    Forwarded: st.builds(Forwarded, DATA),
    Refused: st.builds(Refused, ERRORS, TEXT),
}
ANY = st.one_of(*MESSAGES.values())

KEY = ReplicaKey(UUID(int=77), 3)
EXAMPLES: list[PeerMessage] = [
    Hello(
        cluster_id="c",
        node_id=NodeId(1),
        directory_id=UUID(int=5),
        incarnation=UUID(int=6),
        voters=[NodeId(1), NodeId(2)],
    ),
    Welcome(
        cluster_id=None,
        node_id=NodeId(1),
        directory_id=UUID(int=5),
        incarnation=UUID(int=6),
        founders=[(NodeId(1), UUID(int=5))],
    ),
    Votes([(KEY, VoteRequest(NodeId(1), LeaderEpoch(4), LeaderEpoch(3), Offset(99), True))]),
    VoteAnswers([(KEY, VoteResponse(LeaderEpoch(4), NodeId(2), True)), (METADATA_KEY, None)]),
    BeginEpochs([(KEY, BeginEpoch(NodeId(1), LeaderEpoch(4)))]),
    EndEpochs([(KEY, EndEpoch(NodeId(1), LeaderEpoch(4), (NodeId(2), NodeId(3))))]),
    Leaderships([Leadership(KEY, LeaderEpoch(4), NodeId(1), [NodeId(1), NodeId(2)], [NodeId(1)])]),
    Done(),
    ReplicaFetch(
        1, 2, 500, 2**20, [FollowerPosition(KEY, LeaderEpoch(4), Offset(9), LeaderEpoch(3), Offset(0))], [KEY]
    ),
    ReplicaFetched(
        ErrorCode.none,
        [
            FetchedReplica(
                KEY,
                ErrorCode.none,
                LeaderEpoch(4),
                NodeId(1),
                Offset(8),
                Offset(0),
                (LeaderEpoch(3), Offset(7)),
                buffers=[b"records"],
            )
        ],
    ),
    SnapshotFetch(KEY, LeaderEpoch(4), Offset(10), 0, 2**20),
    SnapshotFetched(ErrorCode.none, 7, b"a piece"),
    ElectPreferred(KEY),
    Register(NodeId(1), UUID(int=5), "host", 9092, "peer", 9093),
    Moved(KEY, LeaderEpoch(4), [NodeId(1)]),
    Forward(b"a frame", "host"),
    Forwarded(b"a frame"),
    Refused(ErrorCode.not_controller, "reason"),
]


def written(message: PeerMessage) -> bytes:
    return b"".join(encode(message))


def plain(value: Any) -> Any:
    """Comparable whatever kinds of sequences and buffers it is made of."""
    if isinstance(value, FetchedReplica):
        rest = [getattr(value, field.name) for field in fields(value) if field.name != "buffers"]
        return FetchedReplica, plain(rest), b"".join(value.buffers)
    if is_dataclass(value):
        return type(value), tuple(plain(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if isinstance(value, memoryview):
        return bytes(value)
    return value


def refused_or_read(body: bytes) -> PeerMessage | None:
    """Anything but a message or a MessageError is raised."""
    try:
        return decode(memoryview(body))
    except MessageError:
        return None


def test_every_message_is_among_those_tried_here() -> None:
    known = {*PeerRequest.__args__, *PeerResponse.__args__}
    assert set(MESSAGES) == known
    assert {type(example) for example in EXAMPLES} == known


@given(ANY)
def test_what_is_written_is_read_again(message: PeerMessage) -> None:
    again = decode(memoryview(written(message)))
    assert plain(again) == plain(message)
    assert written(again) == written(message), "a message that is passed on changes"


@given(ANY, st.data())
def test_a_message_that_is_cut_is_refused(message: PeerMessage, data: st.DataObject) -> None:
    body = written(message)
    end = data.draw(st.integers(0, len(body) - 1))
    shorter = refused_or_read(body[:end])
    # The list of forgotten replicas goes on to the end: a fetch may lose whole ones, were the frame's length not right.
    assert shorter is None or isinstance(shorter, ReplicaFetch)


@given(ANY, st.binary(min_size=1, max_size=19))
def test_bytes_that_follow_a_message_are_refused(message: PeerMessage, more: bytes) -> None:
    assert refused_or_read(written(message) + more) is None


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_prefix_and_every_flipped_bit_is_refused_or_read(message: PeerMessage) -> None:
    body = written(message)
    for end in range(len(body)):
        refused_or_read(body[:end])
    for bit in range(8 * len(body)):
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        again = refused_or_read(bytes(flipped))
        if again is not None:
            assert plain(again) != plain(message) or _is_flag(message), f"bit {bit} says nothing"


def _is_flag(message: PeerMessage) -> bool:
    """Bytes of flags have bits to spare."""
    return isinstance(message, Votes | VoteAnswers)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_giant_count_or_length_anywhere_is_refused_without_a_thought(message: PeerMessage) -> None:
    body = written(message)
    for at in range(2, len(body) - 3):
        for number in (GIANT, b"\xff\xff\xff\xff", b"\x80\0\0\0"):
            refused_or_read(body[:at] + number + body[at + 4 :])


@given(st.binary(max_size=300))
def test_noise_is_refused_or_read(noise: bytes) -> None:
    refused_or_read(noise)


@given(st.integers(1, len(EXAMPLES)), st.binary(max_size=300))
def test_noise_after_a_known_kind_is_refused_or_read(kind: int, noise: bytes) -> None:
    refused_or_read(bytes([VERSION, kind]) + noise)


def test_another_version_is_refused_by_its_number() -> None:
    with pytest.raises(MessageError, match=f"version {VERSION + 1} of the cluster's protocol"):
        decode(memoryview(bytes([VERSION + 1]) + written(Done())[1:]))


@pytest.mark.parametrize("kind", [0, len(EXAMPLES) + 1, 127, 255])
def test_a_kind_of_message_that_is_not_known_is_refused(kind: int) -> None:
    with pytest.raises(MessageError, match="is not known here"):
        decode(memoryview(bytes([VERSION, kind])))


@pytest.mark.parametrize(
    "message",
    [
        Refused(ErrorCode.none, ""),
        SnapshotFetched(ErrorCode.none, 0, b""),
        ReplicaFetched(ErrorCode.none, []),
        ReplicaFetched(
            ErrorCode.none,
            [FetchedReplica(KEY, ErrorCode.none, LeaderEpoch(-1), None, Offset(0), Offset(0))],
        ),
    ],
)
def test_an_error_code_that_does_not_exist_is_refused(message: PeerMessage) -> None:
    body = bytearray(written(message))
    is_nested = isinstance(message, ReplicaFetched) and message.replicas
    struct.pack_into(">h", body, 2 + 6 + 20 if is_nested else 2, 30_000)
    with pytest.raises(MessageError, match="no error code 30000"):
        decode(memoryview(body))


def test_a_string_that_is_not_utf_8_is_refused() -> None:
    body = written(Refused(ErrorCode.none, "abc")).replace(b"abc", b"\xff\xfe\xfd")
    with pytest.raises(MessageError, match="UTF-8"):
        decode(memoryview(body))


def test_records_are_not_copied_on_their_way_in_and_out() -> None:
    records = bytes(1000)
    replica = FetchedReplica(KEY, ErrorCode.none, LeaderEpoch(1), None, Offset(0), Offset(0), buffers=[records])
    buffers = encode(ReplicaFetched(ErrorCode.none, [replica, replica]))
    assert [buffer for buffer in buffers if buffer is records] == [records, records]
    body = bytearray(b"".join(buffers))
    read = decode(memoryview(body))
    assert isinstance(read, ReplicaFetched)
    body[-1] = 1
    assert read.replicas[1].buffers[0][-1] == 1, "the records are another copy of what came"


def test_a_copy_of_a_frame_that_is_passed_on_is_not_made() -> None:
    frame = bytes(1000)
    assert any(buffer is frame for buffer in encode(Forward(frame, "host")))
    assert any(buffer is frame for buffer in encode(Forwarded(frame)))
    assert any(buffer is frame for buffer in encode(SnapshotFetched(ErrorCode.none, 1000, frame)))
