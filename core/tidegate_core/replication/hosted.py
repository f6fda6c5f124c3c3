"""A replica that this node has: its log, its Raft state, and who is interested in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidegate_core.partition import Partition
from tidegate_core.raft.messages import ReplicaKey, VoteState
from tidegate_core.raft.replica import Replica
from tidegate_wire.identifiers import LeaderEpoch, NodeId

if TYPE_CHECKING:
    from tidegate_core.replication.sessions import FollowerSession

Standing = tuple[bool, LeaderEpoch, NodeId | None]
"""Whether the replica leads, in which epoch, and who does as far as it knows."""


@dataclass(slots=True, eq=False)
class HostedReplica:
    """Changed by the `ReplicaManager` and its parts only."""

    key: ReplicaKey
    partition: Partition
    replica: Replica
    standing: Standing = (False, LeaderEpoch(-1), None)
    """What the partition, the fetchers and the sessions were told last."""
    term: int = 0
    """Grows with each change of standing: what was begun in an earlier one is void."""
    led_since_ms: int = 0
    was_settled: bool = False
    """Whether the owner was told that this node leads and knows what is committed."""
    scheduled_ms: int = -1
    """When its deadline is looked at next."""
    saving: VoteState | None = None
    """On its way to the disk."""
    sessions: list[FollowerSession] = field(default_factory=list)
    """Of the followers that fetch this partition."""
    awaits_leader: bool = False
    """The log is damaged: it is fetched anew as soon as a leader is known."""
    stands_in: bool = False
    """The log was set aside as damaged, and its copy is not complete yet."""
