"""What members ask of a group and what they are told: the group requests without their versions and encodings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tidegate_wire.kafka.messages import ErrorCode

NO_GENERATION: Final = -1
NO_MEMBER: Final = ""

Protocols = tuple[tuple[str, bytes], ...]
"""What a member supports, best first: the assignor's name, and its metadata (for consumers: the subscription)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """JoinGroup: become, or stay, a member."""

    group_id: str
    member_id: str
    """Empty for a member that has none yet."""
    instance_id: str | None
    """Names a static member (KIP-345)."""
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocol_type: str
    protocols: Protocols
    knows_member_id: bool
    """The client takes MEMBER_ID_REQUIRED for an answer (version 4, KIP-394)."""
    may_skip_assignment: bool
    """The client knows what `skip_assignment` means (version 9, KIP-814)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedMember:
    """A member as the leader sees it."""

    member_id: str
    instance_id: str | None
    metadata: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinResult:
    """The answer to a JoinGroup."""

    error: ErrorCode = ErrorCode.none
    generation: int = NO_GENERATION
    protocol_type: str | None = None
    protocol_name: str | None = None
    leader_id: str = NO_MEMBER
    member_id: str = NO_MEMBER
    members: tuple[JoinedMember, ...] = ()
    """All of them for the leader, none for others."""
    skip_assignment: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequest:
    """SyncGroup: wait for the leader's assignment, or, from the leader, bring it."""

    group_id: str
    generation: int
    member_id: str
    instance_id: str | None
    protocol_type: str | None
    protocol_name: str | None
    assignments: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """The answer to a SyncGroup."""

    error: ErrorCode = ErrorCode.none
    protocol_type: str | None = None
    protocol_name: str | None = None
    assignment: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeavingMember:
    """One member of a LeaveGroup (version 3, KIP-345); a static one may be named by its instance id alone."""

    member_id: str
    instance_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMember:
    """A member as it is written down."""

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    metadata: bytes
    assignment: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGroup:
    """A group as it is written down: what lets its members go on after the coordinator started again."""

    group_id: str
    protocol_type: str
    generation: int
    protocol_name: str | None
    leader_id: str | None
    """None: no members, or the generation has begun and its assignment is not there yet."""
    state_since_ms: int
    members: tuple[StoredMember, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinReply:
    """Effect: the request that came with `token` has its answer."""

    token: object
    result: JoinResult


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReply:
    """Effect: the request that came with `token` has its answer."""

    token: object
    result: SyncResult


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreGroup:
    """Effect: write the group down, then tell it with `Group.stored(number, ...)`."""

    number: int
    group: StoredGroup


Effect = JoinReply | SyncReply | StoreGroup
