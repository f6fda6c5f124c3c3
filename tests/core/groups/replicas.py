"""`__consumer_offsets-0` on several nodes in this process, with the groups that each node keeps while it leads.

The logs are real; who leads, and what followers have, is what a test says.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.core.groups.driver import join_request
from tidegate_core.groups.coordinator import CoordinatorLimits, OffsetChange
from tidegate_core.groups.group import GroupRules
from tidegate_core.groups.messages import JoinResult, SyncRequest, SyncResult
from tidegate_core.groups.offsets_topic import OFFSETS_TOPIC, OFFSETS_TOPIC_SETTINGS
from tidegate_core.groups.records import CommittedOffset, OffsetKey
from tidegate_core.groups.service import GroupService
from tidegate_core.groups.shard import GroupShard
from tidegate_core.log.config import LogConfig
from tidegate_core.log.control import leader_change
from tidegate_core.log.files import OpenFiles
from tidegate_core.log.flusher import Flusher
from tidegate_core.log.identity import PartitionIdentity
from tidegate_core.opening import create_partition
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_core.replication.messages import Leadership
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.kafka.messages import ErrorCode
from tidegate_wire.records import RecordBatchBuilder

NOW_MS = 1_700_000_000_000
DAY_MS = 24 * 60 * 60 * 1000
TOPIC_T = UUID(int=100)
DEADLINE_S = 20


class Cluster:
    """What all nodes know: `groups.offsets_topic.OffsetsTopic`, and which topics were deleted."""

    def __init__(self, directory: Path, **limits: int) -> None:
        self.directory = directory
        self.now_ms = NOW_MS
        self.replicas: list[Replica] = []
        self.leader: Replica | None = None
        self.epoch = 0
        self.deleted: set[UUID] = set()
        self.partition_count = 1
        numbers = itertools.count(1)
        self.rules = GroupRules(
            initial_delay_ms=0,
            members_max=100,
            new_member_id=lambda prefix: f"{prefix}-{next(numbers)}",
            wall_clock_ms=lambda: self.now_ms,
        )
        self.limits = CoordinatorLimits(
            **{
                "groups_max": 1_000_000,
                "session_timeout_ms_min": 1,
                "session_timeout_ms_max": 600_000,
                "offsets_retention_ms": 7 * DAY_MS,
            }
            | limits
        )

    def leader_of(self, index: int) -> Leadership | None:
        if self.leader is None or index:
            return None
        node_id = self.leader.node_id
        return Leadership(self.leader.partition.key, LeaderEpoch(self.epoch), node_id, (node_id,), (node_id,))

    async def create(self) -> None:
        self.partition_count = 1

    def add(self) -> Replica:
        replica = Replica(self, NodeId(len(self.replicas) + 1))
        self.replicas.append(replica)
        return replica

    async def elect(self, replica: Replica, *, uncommitted: bool = False) -> None:
        """`replica` leads in a new epoch and has read its log; whoever led before is not told.

        It has everything that is committed; with `uncommitted`, also what its predecessor only wrote.
        """
        await self.begin_epoch(replica, uncommitted=uncommitted)
        async with asyncio.timeout(DEADLINE_S):
            await replica.groups.loaded()

    async def begin_epoch(self, replica: Replica, *, uncommitted: bool = False) -> None:
        """As `elect`, but its log is still to be read."""
        before, self.leader = self.leader, None
        self.epoch += 1
        if before is not None:
            before.has_quorum = False
        if before is not None and before is not replica:
            replica.step_down()
            replica.follow(before, to_end=uncommitted)
        else:
            replica.step_down()
        await replica.lead(LeaderEpoch(self.epoch))
        self.leader = replica

    async def move(self, replica: Replica, *, uncommitted: bool = False) -> None:
        """`replica` leads, and its predecessor knows."""
        before = self.leader
        await self.elect(replica, uncommitted=uncommitted)
        if before is not None and before is not replica:
            before.step_down()

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.close()


class Replica:
    """One node."""

    def __init__(self, cluster: Cluster, node_id: NodeId) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.has_quorum = True
        """Whether what this replica writes as the leader is committed when it has it on its disk."""
        self._flusher = Flusher()
        directory = cluster.directory / f"node-{node_id}"
        directory.mkdir(parents=True)
        self.partition = create_partition(
            OFFSETS_TOPIC,
            0,
            directory,
            LogConfig.from_names(OFFSETS_TOPIC_SETTINGS),
            files=OpenFiles(16),
            flusher=self._flusher,
            discard=lambda path: path.unlink(missing_ok=True),
            now_ms=NOW_MS,
            identity=PartitionIdentity(UUID(int=7), (NodeId(1), NodeId(2), NodeId(3))),
        )
        self.partition.on_synced = lambda _partition: self.commit()
        self.groups = GroupService(cluster.rules, cluster.limits, cluster, cluster.deleted.__contains__)

    def commit(self) -> None:
        """As far as a leader may."""
        if self.partition.is_leader and self.has_quorum:
            self.partition.set_high_watermark(self.partition.synced_offset)

    async def lead(self, epoch: LeaderEpoch) -> None:
        self.has_quorum = True
        self.partition.lead(epoch)
        end = self.partition.append_control(leader_change(self.node_id, [self.node_id]), NOW_MS)
        async with asyncio.timeout(DEADLINE_S):
            await self.partition.committed(end)
        self.groups.on_leader(self.partition)

    def step_down(self) -> None:
        """As replication does it: the groups hear of it first."""
        if self.partition.is_leader:
            self.groups.on_follower(self.partition)
        self.partition.follow(LeaderEpoch(self.cluster.epoch))

    def follow(self, leader: Replica, *, to_end: bool = True) -> None:
        """Take over what the leader has, and nothing else that is not committed; the leader's high watermark too."""
        mine, other = self.partition, leader.partition
        mine.truncate(mine.high_watermark)
        end = other.log_end_offset if to_end else other.high_watermark
        while mine.log_end_offset < end:
            for buffer in other.read_for_replica(mine.log_end_offset, 1):
                mine.append_as_follower(memoryview(buffer), NOW_MS)
        assert mine.log_end_offset >= other.high_watermark
        mine.set_high_watermark(Offset(min(other.high_watermark, mine.log_end_offset)))

    def append(self, *records: tuple[bytes, bytes | None]) -> None:
        """Write records past the coordinator."""
        builder = RecordBatchBuilder()
        for key, value in records:
            builder.append(NOW_MS, key, value)
        self.partition.append_as_leader(memoryview(bytearray(builder.build())), NOW_MS)

    async def close(self) -> None:
        await self.groups.close()
        await self._flusher.close()
        self.partition.close()

    # What clients ask.

    @property
    def shard(self) -> GroupShard:
        """Raises KafkaError as for a request."""
        return self.groups.shard_of("g")

    def error(self, group_id: str = "g") -> ErrorCode:
        """How a request for a group is refused, if it is."""
        try:
            self.groups.shard_of(group_id)
        except KafkaError as error:
            return error.code
        return ErrorCode.none

    async def join(self, member_id: str = "", **fields: Any) -> JoinResult:
        async with asyncio.timeout(DEADLINE_S):
            return await self.shard.join(join_request(member_id=member_id, session_timeout_ms=600_000, **fields))

    async def sync(self, joined: JoinResult, instance_id: str | None = None) -> SyncResult:
        """The leader of the group assigns to each member its own id."""
        assignments = {member.member_id: member.member_id.encode() for member in joined.members}
        request = SyncRequest(
            group_id="g",
            generation=joined.generation,
            member_id=joined.member_id,
            instance_id=instance_id,
            protocol_type=None,
            protocol_name=None,
            assignments=assignments,
        )
        async with asyncio.timeout(DEADLINE_S):
            return await self.shard.sync(request)

    def heartbeat(self, joined: JoinResult, instance_id: str | None = None) -> ErrorCode:
        return self.shard.heartbeat("g", joined.member_id, instance_id, joined.generation)

    async def stable_members(self, *clients: str) -> list[JoinResult]:
        """Members that have their assignment; the first one leads."""
        results = [await self.join(client=clients[0])]
        for client in clients[1:]:
            members = [result.member_id for result in results]
            joins = [self.join(client=client), *(self.join(member_id) for member_id in members)]
            new, *again = await asyncio.gather(*joins)
            results = [*again, new]
        synced = await asyncio.gather(*(self.sync(result) for result in results))
        assert [result.assignment for result in synced] == [result.member_id.encode() for result in results]
        return results

    async def commit_offset(
        self,
        offset: int,
        *,
        group_id: str = "g",
        partition: int = 0,
        topic_id: UUID | None = TOPIC_T,
        member: JoinResult | None = None,
    ) -> ErrorCode:
        """OffsetCommit for the topic `t`."""
        try:
            shard = self.groups.shard_of(group_id)
            generation, member_id = (-1, "") if member is None else (member.generation, member.member_id)
            error = shard.check_commit(group_id, generation, member_id, None)
            if error is not ErrorCode.none:
                return error
            committed = CommittedOffset(
                offset=offset,
                leader_epoch=-1,
                metadata="",
                commit_time_ms=self.cluster.now_ms,
                topic_id=topic_id,
            )
            async with asyncio.timeout(DEADLINE_S):
                await shard.write([OffsetChange(OffsetKey(group_id, "t", partition), committed)])
        except KafkaError as error:
            return error.code
        return ErrorCode.none

    def offset(self, group_id: str = "g", partition: int = 0) -> int | None:
        """OffsetFetch."""
        committed = self.groups.shard_of(group_id).coordinator.committed(group_id).get(("t", partition))
        return None if committed is None else committed.offset


@asynccontextmanager
async def cluster_of(directory: Path, nodes: int = 2, **limits: int) -> AsyncIterator[Cluster]:
    """Nodes of which the first one leads."""
    cluster = Cluster(directory, **limits)
    try:
        for _ in range(nodes):
            cluster.add()
        await cluster.elect(cluster.replicas[0])
        yield cluster
    finally:
        await cluster.close()


async def turns(count: int = 20) -> None:
    """Let everything run that can without waiting for a disk."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(holds: Callable[[], bool]) -> None:
    """Return when that is so."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110  # what it waits for has no event
            await asyncio.sleep(0.001)
