"""What the nodes of a cluster say to each other, beside what clients say: requests and their answers.

All go through the port that clients use, in Kafka frames of the private API key `PEER_API`; `codec` has the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final
from uuid import UUID

from tidegate_core.raft.messages import BeginEpoch, EndEpoch, ReplicaKey, VoteRequest, VoteResponse
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.kafka.messages import ErrorCode

PEER_API: Final = 32_000
"""Far above Kafka's own keys; it is not among the versions that clients are told."""

METADATA_KEY: Final = ReplicaKey(UUID(int=1), 0)
"""The partition of `__cluster_metadata`, whose topic id is fixed, as in Kafka."""


class Lane(IntEnum):
    """A connection to a node is used for one kind of request, so that none waits behind another kind."""

    CONTROL = 0
    """Votes and announcements: answered at once."""
    FETCH = 1
    """Replication: an answer may wait for records."""
    FORWARD = 2
    """Clients' requests, passed on to the controller."""


NO_OFFSET: Final = Offset(-1)

# The first words of a node that starts.


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who starts. A node whose data directory is still empty has no cluster id."""

    cluster_id: str | None
    node_id: NodeId
    directory_id: UUID
    """Made with the data directory: a wiped disk comes back with another one."""
    incarnation: UUID
    """Made at each start of the process."""
    voters: Sequence[NodeId]
    """Of the metadata quorum, as this node was told them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Who answers."""

    cluster_id: str | None
    node_id: NodeId
    directory_id: UUID
    incarnation: UUID
    founders: Sequence[tuple[NodeId, UUID]]
    """The metadata voters that the cluster began with, and their directory ids; empty while it has not begun."""


# Elections: for many partitions at once.


@dataclass(frozen=True, slots=True)
class Votes:
    """Asks for votes."""

    requests: Sequence[tuple[ReplicaKey, VoteRequest]]


@dataclass(frozen=True, slots=True)
class VoteAnswers:
    """In the order of the requests; None where the node has no such replica (yet)."""

    answers: Sequence[tuple[ReplicaKey, VoteResponse | None]]


@dataclass(frozen=True, slots=True)
class BeginEpochs:
    """A leader announces itself to its followers."""

    epochs: Sequence[tuple[ReplicaKey, BeginEpoch]]


@dataclass(frozen=True, slots=True)
class EndEpochs:
    """A leader steps down."""

    epochs: Sequence[tuple[ReplicaKey, EndEpoch]]


@dataclass(frozen=True, slots=True)
class Leadership:
    """Who leads a partition, and which replicas are in step; said by the leader to all nodes, the newest epoch wins."""

    key: ReplicaKey
    epoch: LeaderEpoch
    leader: NodeId
    voters: Sequence[NodeId]
    in_step: Sequence[NodeId]


@dataclass(frozen=True, slots=True)
class Leaderships:
    """Partitions that the sender leads: those of which there is news.

    A node that has not heard of all others, since it just started or thought the sender gone, refuses them
    (`fetch_session_id_not_found`): then the sender begins again.
    """

    leaderships: Sequence[Leadership]
    begins: bool = False
    """The sender says all that it leads, in this message and those that follow."""


@dataclass(frozen=True, slots=True)
class Done:
    """Heard; there is nothing to say."""


# Replication. A session is one follower's fetches from one leader, incremental as in KIP-227.


@dataclass(frozen=True, slots=True)
class FollowerPosition:
    """Where a follower stands in one partition: everything before `offset` is on its disk."""

    key: ReplicaKey
    epoch: LeaderEpoch
    """The epoch in which it follows."""
    offset: Offset
    last_epoch: LeaderEpoch
    """Of the batch before `offset`; -1 if there is none."""
    log_start_offset: Offset


@dataclass(frozen=True, slots=True)
class ReplicaFetch:
    """Positions that changed since the last request of the session, all of them in its first one."""

    session: int
    number: int
    """0 begins the session, each next request has the next number."""
    wait_ms: int
    bytes_max: int
    positions: Sequence[FollowerPosition]
    forgotten: Sequence[ReplicaKey] = ()
    """No longer followed here."""


@dataclass(frozen=True, slots=True)
class FetchedReplica:
    """News of one partition. With an error, `epoch` and `leader` say whom to follow, if that is known."""

    key: ReplicaKey
    error: ErrorCode
    epoch: LeaderEpoch
    leader: NodeId | None
    high_watermark: Offset
    """-1 while the leader has not committed a record of its epoch."""
    log_start_offset: Offset
    diverging: tuple[LeaderEpoch, Offset] | None = None
    """Where the leader's log leaves the follower's: the largest common epoch, and where that ends at the leader."""
    snapshot_offset: Offset = NO_OFFSET
    """Not -1: the leader has nothing so old; take its snapshot and go on from this offset."""
    buffers: Sequence[bytes | memoryview] = field(default=())
    """Whole record batches, back to back."""


@dataclass(frozen=True, slots=True)
class ReplicaFetched:
    """The answer to a ReplicaFetch. `fetch_session_id_not_found`: begin a new session."""

    error: ErrorCode
    replicas: Sequence[FetchedReplica]


@dataclass(frozen=True, slots=True)
class SnapshotFetch:
    """Asks for a piece of a partition's snapshot; `offset` is the `snapshot_offset` that the leader named."""

    key: ReplicaKey
    epoch: LeaderEpoch
    offset: Offset
    position: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class SnapshotFetched:
    """A piece of it."""

    error: ErrorCode
    size_bytes: int
    """Of the whole snapshot."""
    piece: bytes | memoryview


@dataclass(frozen=True, slots=True)
class ElectPreferred:
    """Asks the leader of a partition to give it back to its preferred replica."""

    key: ReplicaKey


# To the controller.


@dataclass(frozen=True, slots=True)
class Register:
    """A node is there, and tells where clients reach it."""

    node_id: NodeId
    directory_id: UUID
    host: str
    port: int
    peer_host: str
    peer_port: int


@dataclass(frozen=True, slots=True)
class Moved:
    """The leader of a partition says that its voters are now those a reassignment asked for."""

    key: ReplicaKey
    epoch: LeaderEpoch
    voters: Sequence[NodeId]


@dataclass(frozen=True, slots=True)
class Forward:
    """A client's request frame, without its length, passed on to the controller."""

    frame: bytes | memoryview
    host: str
    """The client's."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The response frame, with its length, under the client's correlation id."""

    frame: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Refused:
    """Instead of any other answer: what was asked can't be done, and why."""

    error: ErrorCode
    reason: str


PeerRequest = (
    Hello
    | Votes
    | BeginEpochs
    | EndEpochs
    | Leaderships
    | ReplicaFetch
    | SnapshotFetch
    | ElectPreferred
    | Register
    | Moved
    | Forward
)
PeerResponse = Welcome | VoteAnswers | Done | ReplicaFetched | SnapshotFetched | Forwarded | Refused
