"""How far each replica of a partition is, as its leader knows: for people who ask (DescribeQuorum, KIP-595)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset

if TYPE_CHECKING:
    from tidegate_core.replication.hosted import HostedReplica
    from tidegate_core.replication.replicas import ReplicaManager


@dataclass(frozen=True, slots=True)
class ReplicaProgress:
    """One replica; times are Unix time in milliseconds, -1 where there was none."""

    node: NodeId
    end_offset: Offset
    """On its disk; -1 until it has fetched in this epoch."""
    last_fetch_ms: int
    last_caught_up_ms: int


@dataclass(frozen=True, slots=True)
class QuorumState:
    """A partition, as its leader sees it."""

    leader: NodeId
    epoch: LeaderEpoch
    high_watermark: Offset
    voters: tuple[ReplicaProgress, ...]
    observers: tuple[ReplicaProgress, ...]


def quorum_of(replicas: ReplicaManager, hosted: HostedReplica) -> QuorumState:
    """The state of a partition that this node leads."""
    voters = hosted.partition.voters
    others = tuple(node for node in hosted.replica.progress if node not in voters and node != replicas.node_id)
    return QuorumState(
        leader=replicas.node_id,
        epoch=hosted.replica.epoch,
        high_watermark=hosted.partition.high_watermark,
        voters=tuple(_progress(replicas, hosted, node) for node in voters),
        observers=tuple(_progress(replicas, hosted, node) for node in others),
    )


def _progress(replicas: ReplicaManager, hosted: HostedReplica, node: NodeId) -> ReplicaProgress:
    now_ms = replicas.wall_clock_ms()
    if node == replicas.node_id:
        return ReplicaProgress(node, hosted.partition.synced_offset, now_ms, now_ms)
    progress = hosted.replica.progress.get(node)
    fetched_ms = replicas.sessions.last_fetch_ms.get(node)
    if progress is None or progress.end_offset < 0 or fetched_ms is None:
        return ReplicaProgress(node, Offset(-1), -1, -1)
    since_start_ms = now_ms - replicas.now_ms()
    has_all = progress.end_offset >= hosted.partition.log_end_offset
    caught_up_ms = fetched_ms if has_all else progress.last_caught_up_ms
    return ReplicaProgress(
        node,
        progress.end_offset,
        since_start_ms + fetched_ms,
        -1 if caught_up_ms < 0 else since_start_ms + caught_up_ms,
    )
