"""What a leader knows of the replicas of a partition, for whoever asks: how far they are, and where they begin."""

from __future__ import annotations

from dataclasses import dataclass

from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.hosted import HostedReplica
from tidegate_core.replication.replicas import ReplicaManager
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaProgress:
    """How far a replica is. Times are Unix times in milliseconds, -1 for never."""

    node: NodeId
    end_offset: Offset
    """Of what it has on its disk; -1 while that is not known."""
    last_fetch_ms: int
    last_caught_up_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumState:
    """A partition as its leader sees it."""

    epoch: LeaderEpoch
    leader: NodeId
    high_watermark: Offset
    """-1 while it is not known."""
    voters: tuple[ReplicaProgress, ...]
    observers: tuple[ReplicaProgress, ...]


def describe_quorum(replicas: ReplicaManager, key: ReplicaKey) -> QuorumState | None:
    """A partition that this node leads; None if it does not."""
    hosted = replicas.hosted(key)
    if hosted is None or not hosted.replica.is_leader:
        return None
    replica, voters = hosted.replica, hosted.partition.voters
    unix_ms, loop_ms = replicas.wall_clock_ms(), replicas.now_ms()

    def progress_of(node: NodeId) -> ReplicaProgress:
        if node == replicas.node_id:
            end_offset = hosted.partition.synced_offset
            return ReplicaProgress(node=node, end_offset=end_offset, last_fetch_ms=unix_ms, last_caught_up_ms=unix_ms)
        progress = replica.progress.get(node)
        if progress is None:
            return ReplicaProgress(node=node, end_offset=Offset(-1), last_fetch_ms=-1, last_caught_up_ms=-1)

        def unix(at_ms: int) -> int:
            return -1 if at_ms < 0 else unix_ms - (loop_ms - at_ms)

        # While nothing is new a follower's fetches do not name the partition, and it has all there is.
        fetched_ms = replicas.sessions.last_fetch_ms.get(node, -1)
        has_all = progress.end_offset >= hosted.partition.log_end_offset
        return ReplicaProgress(
            node=node,
            end_offset=progress.end_offset,
            last_fetch_ms=unix(fetched_ms),
            last_caught_up_ms=unix(fetched_ms if has_all else progress.last_caught_up_ms),
        )

    return QuorumState(
        epoch=replica.epoch,
        leader=replicas.node_id,
        high_watermark=replica.high_watermark if replica.is_settled else Offset(-1),
        voters=tuple(progress_of(node) for node in voters),
        observers=tuple(progress_of(node) for node in sorted(replica.progress) if node not in voters),
    )


def low_watermark(replicas: ReplicaManager, hosted: HostedReplica) -> Offset:
    """The lowest log start of the replicas in step, of a partition that this node leads (KIP-107)."""
    starts = [hosted.partition.log_start_offset]
    for session in hosted.sessions:
        followed = session.followed.get(hosted.key)
        if followed is not None and replicas.is_in_step(hosted, session.follower):
            starts.append(followed.log_start_offset)
    return min(starts)
