"""All groups that this node keeps: a shard for each partition of `__consumer_offsets` that it leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Final
from uuid import UUID

import structlog

from tidegate_core.errors import PartitionError
from tidegate_core.groups.coordinator import Coordinator, CoordinatorLimits
from tidegate_core.groups.group import GroupRules
from tidegate_core.groups.offsets_topic import OFFSETS_TOPIC, OffsetsTopic, partition_of
from tidegate_core.groups.records import CommittedOffset, GroupRecordError
from tidegate_core.groups.shard import GroupShard, ShardState
from tidegate_core.log.identity import id_of_old_topic
from tidegate_core.partition import Partition
from tidegate_core.protocol.error_codes import KafkaError, refusal_of
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode
from tidegate_wire.records import BatchError

EXPIRY_INTERVAL_S: Final = 600.0
"""Kafka's (offsets.retention.check.interval.ms): the retention is counted in days."""

_log = structlog.get_logger()


class GroupService:
    """The shards by partition. Whoever knows who leads calls `on_leader` and `on_follower`."""

    def __init__(
        self,
        rules: GroupRules,
        limits: CoordinatorLimits,
        topic: OffsetsTopic,
        is_deleted: Callable[[UUID], bool],
    ) -> None:
        self._rules = rules
        self._limits = limits
        self._topic = topic
        self._is_deleted = is_deleted
        """Whether a topic of this id is known to be deleted; False also for one that is not known (yet)."""
        self._shards: dict[int, GroupShard] = {}
        self._loads: dict[int, asyncio.Task[None]] = {}
        self._one_load = asyncio.Lock()
        """One partition is read at a time, so that everything else has its turn between any two pieces."""
        self._tasks: dict[asyncio.Task[None], None] = {}
        """Everything that runs, but not for ever."""
        self._creation: asyncio.Task[None] | None = None
        self._expiry = asyncio.create_task(self._expire_offsets(), name="offsets-expiry")

    async def close(self) -> None:
        """Stop everything; nothing is lost by it."""
        self._expiry.cancel()
        for shard in self.shards:
            self._unload(shard)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._expiry, *self._tasks, return_exceptions=True)

    # Who leads.

    def on_leader(self, partition: Partition) -> None:
        """This node leads a partition and knows what is committed in it: if it is one of ours, keep its groups."""
        if partition.topic != OFFSETS_TOPIC:
            return
        before = self._shards.get(partition.index)
        if before is not None:
            self._unload(before)
        shard = GroupShard(partition, Coordinator(self._rules, self._limits), self._rules.wall_clock_ms)
        self._shards[partition.index] = shard
        self._loads[partition.index] = self._spawn(self._load(shard), "groups-load")

    def on_follower(self, partition: Partition) -> None:
        """This node leads a partition no more: if it is one of ours, whoever waits is told so."""
        shard = self._shards.get(partition.index)
        if shard is not None and shard.partition is partition:
            self._unload(shard)

    async def loaded(self) -> None:
        """Return when every partition that this node leads by now was read, or can't be."""
        await asyncio.gather(*self._loads.values(), return_exceptions=True)

    async def _load(self, shard: GroupShard) -> None:
        try:
            async with self._one_load:
                await shard.load()
        except (GroupRecordError, BatchError, PartitionError) as error:
            shard.fail()
            _log.error("groups_not_loaded", topic=OFFSETS_TOPIC, partition=shard.partition.index, error=str(error))
        except Exception:
            shard.fail()
            raise
        else:
            self._spawn(self._forget_offsets(shard), "groups-forget")

    def _unload(self, shard: GroupShard) -> None:
        index = shard.partition.index
        del self._shards[index]
        self._loads.pop(index).cancel()
        shard.unload()
        self._spawn(shard.ended(), "groups-unload")
        if shard.coordinator.groups:
            _log.info("groups_unloaded", partition=index, groups=len(shard.coordinator.groups))

    def _spawn(self, job: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(job, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and task.exception() is not None:
            _log.error("groups_task_failed", task=task.get_name(), exc_info=task.exception())

    # Finding groups.

    def shard_of(self, group_id: str) -> GroupShard:
        """The shard that keeps a group.

        Raises:
            KafkaError: INVALID_GROUP_ID; NOT_COORDINATOR, where another node may keep it;
                COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, where this one does, but can't serve it.
        """
        shard = self._shards.get(self._index_of(group_id))
        if shard is None:
            raise KafkaError(ErrorCode.not_coordinator, f"this node does not keep the group {group_id!r}")
        shard.check_active()
        return shard

    def _index_of(self, group_id: str) -> int:
        if not group_id:
            raise KafkaError(ErrorCode.invalid_group_id, "a group has a name")
        count = self._topic.partition_count
        return partition_of(group_id, count) if count else -1

    async def coordinator_of(self, group_id: str) -> NodeId:
        """The node that keeps a group; the first one who asks has `__consumer_offsets` made.

        Raises:
            KafkaError: INVALID_GROUP_ID; COORDINATOR_NOT_AVAILABLE, while nobody is known to keep it.
        """
        index = self._index_of(group_id)
        if index < 0:
            await self.make_topic()
            index = self._index_of(group_id)
        shard = self._shards.get(index)
        leadership = self._topic.leader_of(index)
        if leadership is None or (shard is not None and shard.state is ShardState.FAILED):
            raise KafkaError(ErrorCode.coordinator_not_available, f"no node can keep the group {group_id!r} just now")
        return leadership.leader

    async def make_topic(self) -> None:
        """Have `__consumer_offsets` made, if it is not there; whoever asks meanwhile waits for the same attempt.

        Raises:
            KafkaError: COORDINATOR_NOT_AVAILABLE: it can't be made now; the message says why.
        """
        if self._topic.partition_count:
            return
        if self._creation is None:
            self._creation = asyncio.create_task(self._topic.create(), name="groups-create-topic")
            self._tasks[self._creation] = None
            self._creation.add_done_callback(self._created)
        try:
            await asyncio.shield(self._creation)
        except Exception as error:  # whatever it is, the client is to try again
            reason = refusal_of(error).message
            raise KafkaError(ErrorCode.coordinator_not_available, f"{OFFSETS_TOPIC} can't be made: {reason}") from error

    def _created(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._creation = None
        if not task.cancelled() and task.exception() is not None:
            _log.warning("offsets_topic_not_made", error=str(task.exception()))

    @property
    def shards(self) -> list[GroupShard]:
        """All of this node, whatever state they are in."""
        return list(self._shards.values())

    # Offsets that are over.

    def is_gone(self, topic: str, committed: CommittedOffset) -> bool:
        """Whether an offset was committed for a topic that was deleted; there may be another one of its name."""
        return self._is_deleted(committed.topic_id or id_of_old_topic(topic))

    def on_topics_deleted(self) -> None:
        """Topics were deleted: what was committed for them is taken back, by each node for the groups it keeps."""
        for shard in self._shards.values():
            if shard.state is ShardState.ACTIVE:  # the others do so when they are loaded
                self._spawn(self._forget_offsets(shard), "groups-forget")

    async def _forget_offsets(self, shard: GroupShard) -> None:
        try:
            await shard.forget_offsets(self.is_gone)
        except KafkaError as error:
            if error.code is not ErrorCode.not_coordinator:  # or else the next coordinator does it
                _log.warning("offsets_not_forgotten", partition=shard.partition.index, error=str(error))

    async def _expire_offsets(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_INTERVAL_S)
            for shard in self.shards:
                if shard.state is ShardState.ACTIVE:
                    try:
                        await shard.expire()
                    except KafkaError as error:
                        _log.warning("offsets_not_expired", partition=shard.partition.index, error=str(error))
