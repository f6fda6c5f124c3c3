"""The members of one group: who they are, by which names, and which protocol they agree on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tidegate_core.groups.messages import JoinedMember, JoinRequest, Protocols, StoredMember
from tidegate_wire.kafka.messages import ErrorCode


@dataclass(slots=True, kw_only=True)
class Member:
    """A member; owned by its group."""

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocols: Protocols
    deadline_ms: int
    """When its session ends, unless it is heard of."""
    assignment: bytes = b""
    is_new: bool = True
    """It never saw a generation begin."""
    join_token: object | None = None
    sync_token: object | None = None
    has_synced: bool = False
    """It asked for this generation's assignment."""

    def metadata(self, protocol_name: str | None) -> bytes:
        """Its metadata for one of its protocols; empty where it has none of that name."""
        return next((metadata for name, metadata in self.protocols if name == protocol_name), b"")

    @property
    def can_expire(self) -> bool:
        """Whoever waits for an answer of ours can't send heartbeats; a rebalance's own timeout ends that."""
        return self.sync_token is None and (self.join_token is None or self.is_new)

    def hear_of(self, now_ms: int) -> None:
        """Begin its session timeout anew."""
        self.deadline_ms = now_ms + self.session_timeout_ms

    def update(self, request: JoinRequest) -> None:
        """Take over what the member says of itself when it joins."""
        self.protocols = request.protocols
        self.session_timeout_ms = request.session_timeout_ms
        self.rebalance_timeout_ms = request.rebalance_timeout_ms
        self.client_id = request.client_id
        self.client_host = request.client_host

    def take_join_token(self) -> object | None:
        """The join that waits, if one does; it waits no longer."""
        token, self.join_token = self.join_token, None
        return token

    def take_sync_token(self) -> object | None:
        """The sync that waits, if one does; it waits no longer."""
        token, self.sync_token = self.sync_token, None
        return token

    def to_stored(self, protocol_name: str | None) -> StoredMember:
        """The member as it is written down."""
        return StoredMember(
            member_id=self.member_id,
            instance_id=self.instance_id,
            client_id=self.client_id,
            client_host=self.client_host,
            rebalance_timeout_ms=self.rebalance_timeout_ms,
            session_timeout_ms=self.session_timeout_ms,
            metadata=self.metadata(protocol_name),
            assignment=self.assignment,
        )

    @classmethod
    def restore(cls, stored: StoredMember, protocol_name: str | None, now_ms: int) -> Member:
        """A member as it was written down; it has its session timeout from now on to be heard of."""
        return cls(
            member_id=stored.member_id,
            instance_id=stored.instance_id,
            client_id=stored.client_id,
            client_host=stored.client_host,
            session_timeout_ms=stored.session_timeout_ms,
            rebalance_timeout_ms=stored.rebalance_timeout_ms,
            protocols=((protocol_name or "", stored.metadata),),
            deadline_ms=now_ms + stored.session_timeout_ms,
            assignment=stored.assignment,
            is_new=False,
            has_synced=True,
        )


class Members:
    """A group's members in the order in which they joined, by member id and, static ones, by instance id (KIP-345)."""

    __slots__ = ("_by_id", "_static_ids")

    def __init__(self) -> None:
        self._by_id: dict[str, Member] = {}
        self._static_ids: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._by_id.values())

    def __getitem__(self, member_id: str) -> Member:
        return self._by_id[member_id]

    def get(self, member_id: str | None) -> Member | None:
        """The member of this id."""
        return None if member_id is None else self._by_id.get(member_id)

    def with_instance_id(self, instance_id: str | None) -> Member | None:
        """The static member of this instance id."""
        return None if instance_id is None else self.get(self._static_ids.get(instance_id))

    def check(self, member_id: str, instance_id: str | None) -> ErrorCode:
        """Whether a request's member is one, and not replaced by another with its instance id."""
        if instance_id is not None:
            current = self._static_ids.get(instance_id)
            if current is None:
                return ErrorCode.unknown_member_id
            if current != member_id:
                return ErrorCode.fenced_instance_id
        return ErrorCode.none if member_id in self._by_id else ErrorCode.unknown_member_id

    def add(self, member: Member) -> None:
        """A new member, the last in order."""
        self._by_id[member.member_id] = member
        if member.instance_id is not None:
            self._static_ids[member.instance_id] = member.member_id

    def remove(self, member: Member) -> None:
        """The member is gone."""
        del self._by_id[member.member_id]
        if member.instance_id is not None:
            del self._static_ids[member.instance_id]

    def rename(self, member: Member, member_id: str) -> None:
        """Give a static member another member id; it keeps its place in the order."""
        assert member.instance_id is not None
        self._by_id = {member_id if kept is member else kept.member_id: kept for kept in self._by_id.values()}
        self._static_ids[member.instance_id] = member_id
        member.member_id = member_id

    def common_protocols(self) -> set[str]:
        """The protocols that every member supports."""
        return set.intersection(*({name for name, _ in member.protocols} for member in self))

    def select_protocol(self, leader_id: str | None) -> str | None:
        """Each member votes for the first of its protocols that all have; among equals the leader's order decides."""
        common = self.common_protocols()
        if not common:
            return None
        votes = Counter(next(name for name, _ in member.protocols if name in common) for member in self)
        first = self.get(leader_id) or next(iter(self))
        return max((name for name, _ in first.protocols if name in common), key=votes.__getitem__)

    def as_joined(self, protocol_name: str | None) -> tuple[JoinedMember, ...]:
        """All of them as their leader sees them."""
        return tuple(
            JoinedMember(
                member_id=member.member_id, instance_id=member.instance_id, metadata=member.metadata(protocol_name)
            )
            for member in self
        )
