"""Looks at every replica of the real nodes whenever it may have changed, and holds it against the invariants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol
from unittest.mock import patch

from tests.simulator.disk import NodeDisk
from tests.simulator.invariants import COMMITTED_STAYS, Batch, PartitionInvariants, Violation
from tests.simulator.virtual_loop import Life, current_life
from tidegate_core.errors import PartitionError
from tidegate_core.log.segment import Segment
from tidegate_core.partition import Partition
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.hosted import HostedReplica
from tidegate_core.replication.replicas import ReplicaManager
from tidegate_wire.records import BatchError, BatchHeader, iter_batches


class ObservedNode(Protocol):
    """A node as the observer sees it."""

    name: str
    disk: NodeDisk
    replicas: ReplicaManager | None
    """Of the current life; None while there is none."""
    safe_at_death: dict[ReplicaKey, int]
    """Up to where the partitions were on the disk when the last life ended."""
    lost_disk: bool
    """The disk was replaced or damaged, and not everything is back."""

    @property
    def life(self) -> Life | None:
        """The last one that began."""


@dataclass(slots=True)
class _Seen:
    """A replica from the start of its process, or from its making, on."""

    hosted: HostedReplica
    name: str
    high_watermark: int = 0
    was_leader: bool = False


class Observer:
    """`with observer.watching():` while the nodes live."""

    def __init__(self, nodes: Mapping[int, ObservedNode]) -> None:
        self._nodes = nodes
        self.partitions: dict[ReplicaKey, PartitionInvariants] = {}
        self._seen: dict[int, _Seen] = {}
        self.has_lying_disks = False
        """Acknowledged records may be gone; what one replica knows to be committed must still stay there."""
        self.checks = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what each `settle` did, in lives that count."""
        real = ReplicaManager.settle

        def settle(manager: ReplicaManager, hosted: HostedReplica) -> None:
            real(manager, hosted)
            life = current_life()
            if life is not None and not life.is_dead:
                self._observe(self._nodes[manager.node_id], manager, hosted)

        with patch.object(ReplicaManager, "settle", settle):
            yield

    def _observe(self, node: ObservedNode, manager: ReplicaManager, hosted: HostedReplica) -> None:
        node.replicas = manager
        self.checks += 1
        partition, replica = hosted.partition, hosted.replica
        seen = self._seen.get(id(hosted))
        if seen is None:
            name = f"{node.life} of {partition.topic}-{partition.index} no. {len(self._seen)}"
            seen = self._seen[id(hosted)] = _Seen(hosted, name, partition.log_start_offset)
        checker = self._checker(hosted, seen)
        is_shared = not partition.had_one_voter_only  # a single voter keeps its epoch over restarts
        checker.observe(
            seen.name,
            epoch=replica.epoch,
            is_leader=replica.is_leader and is_shared,
            high_watermark=partition.high_watermark,
            end_offset=partition.log_end_offset,
        )
        if replica.is_leader and not seen.was_leader and is_shared and not partition.config.compacts:
            start = partition.log_start_offset
            checker.elected(seen.name, replica.epoch, _batches_from(partition, start), start)
        seen.was_leader = replica.is_leader
        if partition.high_watermark > seen.high_watermark:
            self._watermark_moved(node, checker, hosted, seen)

    def _checker(self, hosted: HostedReplica, seen: _Seen) -> PartitionInvariants:
        key = hosted.key
        if self.has_lying_disks:
            key = ReplicaKey(key.topic_id, id(seen))  # each replica for itself
        checker = self.partitions.get(key)
        if checker is None:
            name = f"{hosted.partition.topic}-{hosted.partition.index}"
            checker = self.partitions[key] = PartitionInvariants(name)
        return checker

    def _watermark_moved(
        self, node: ObservedNode, checker: PartitionInvariants, hosted: HostedReplica, seen: _Seen
    ) -> None:
        partition, replica = hosted.partition, hosted.replica
        end = partition.high_watermark
        if replica.is_leader and not self.has_lying_disks:
            checker.held(node.name, end, partition.voters, self._safe(hosted, end))
        start, seen.high_watermark = max(seen.high_watermark, partition.log_start_offset), end
        if partition.config.compacts:
            return
        batches = [batch for batch in _batches_from(partition, start) if batch.end_offset <= end]
        if batches and replica.is_leader:
            checker.leader_committed(node.name, replica.epoch, batches[-1])
        if self.has_lying_disks and not len(checker.committed) and batches:
            checker.committed.end_offset = batches[0].base_offset
        checker.committed.observe(seen.name, replica.epoch, batches)

    def check_all(self) -> None:
        """What every replica that counts has below its high watermark is what was committed there."""
        for node in self._nodes.values():
            if node.replicas is None or node.life is None or node.life.is_dead:
                continue
            for hosted in list(node.replicas.hosted_replicas):
                seen = self._seen.get(id(hosted))
                partition = hosted.partition
                if seen is None or partition.is_closed or partition.config.compacts or partition.failure is not None:
                    continue
                checker = self._checker(hosted, seen)
                start, end = partition.log_start_offset, seen.high_watermark
                batches = [batch for batch in _batches_from(partition, start) if batch.end_offset <= end]
                wanted = [batch for batch in checker.committed.from_offset(start) if batch.end_offset <= end]
                if batches != wanted:
                    missing = [batch for batch in wanted if batch not in batches]
                    raise Violation(COMMITTED_STAYS, f"{seen.name} lacks {missing[:3]}, knew up to {end}")

    # --- what is on the disks

    def _safe(self, hosted: HostedReplica, offset: int) -> dict[int, int]:
        """Up to where each voter's disk has the partition, as far as `offset`."""
        return {voter: self._safe_on(self._nodes[voter], hosted.key, offset) for voter in hosted.partition.voters}

    @staticmethod
    def _safe_on(node: ObservedNode, key: ReplicaKey, offset: int) -> int:
        if node.lost_disk:
            return offset  # it may have had it
        if node.life is None or node.life.is_dead or node.replicas is None:
            return node.safe_at_death.get(key, -1)
        hosted = node.replicas.hosted(key)
        if hosted is None:
            return node.safe_at_death.get(key, -1)
        if hosted.stands_in or hosted.partition.is_damaged or not hosted.replica.may_vote:
            return offset
        return min(safe_end(node.disk, hosted.partition), offset)

    def ends_at_death(self, replicas: ReplicaManager, disk: NodeDisk) -> dict[ReplicaKey, int]:
        """Up to where each partition of a node is on its disk."""
        return {hosted.key: safe_end(disk, hosted.partition) for hosted in replicas.hosted_replicas}


def safe_end(disk: NodeDisk, partition: Partition) -> int:
    """What the partition says it has synced, if that is so; -1 if the disk knows better."""
    offset = partition.synced_offset
    try:
        end = partition.log.position_at(offset) if offset < partition.log_end_offset else partition.log.end
    except PartitionError:
        return -1
    for segment in partition.log.segments[-2:]:
        if not _is_safe(disk, segment, end.byte if segment.base_offset == end.segment_base else None, offset):
            return -1
    return offset


def _is_safe(disk: NodeDisk, segment: Segment, wanted_bytes: int | None, offset: int) -> bool:
    if segment.base_offset >= offset and not wanted_bytes:
        return True
    size_bytes = segment.size_bytes if wanted_bytes is None else wanted_bytes
    return disk.safe_bytes(segment.path) >= size_bytes and disk.has_safe_name(segment.path)


def _batches_from(partition: Partition, start: int) -> list[Batch]:
    """What stands in the log from `start` on, synced or not; up to what can't be a batch.

    From the files, past the partition: to look must change nothing.
    """
    batches: list[Batch] = []
    for segment in partition.log.segments:
        if segment.end_offset <= start:
            continue
        data = segment.path.read_bytes()[: segment.size_bytes]
        try:
            for batch in iter_batches(data):
                header = BatchHeader.parse(batch)
                if header.base_offset >= start:
                    end = header.last_offset + 1
                    batches.append(Batch(header.base_offset, end, header.leader_epoch, header.crc))
        except BatchError:
            break
    return batches
