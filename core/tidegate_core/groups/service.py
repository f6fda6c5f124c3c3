"""All groups of this node: finds a group's shard, and lets offsets expire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from tidegate_core.errors import PartitionError
from tidegate_core.groups.coordinator import Coordinator, CoordinatorLimits
from tidegate_core.groups.group import GroupRules
from tidegate_core.groups.offsets_topic import OFFSETS_TOPIC, partition_of
from tidegate_core.groups.records import GroupRecordError
from tidegate_core.groups.shard import GroupShard
from tidegate_core.partition import Partition
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_wire.kafka.messages import ErrorCode
from tidegate_wire.records import BatchError

EXPIRY_INTERVAL_S: Final = 600.0
"""Kafka's (offsets.retention.check.interval.ms): the retention is counted in days."""

_log = structlog.get_logger()


class GroupService:
    """The shards by partition of `__consumer_offsets`, which is made when the first group is asked for."""

    def __init__(
        self,
        rules: GroupRules,
        limits: CoordinatorLimits,
        offsets_partitions: Callable[[], Awaitable[list[Partition | None]]],
    ) -> None:
        self._rules = rules
        self._limits = limits
        self._offsets_partitions = offsets_partitions
        """Gives the partitions of `__consumer_offsets`, made if need be; None for one that could not be opened."""
        self._shards: dict[int, GroupShard] = {}
        self._partition_count = 0
        self._loading = asyncio.Lock()
        self._expiry: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Make or replay `__consumer_offsets`; done already, this returns at once.

        A partition that can't be read is reported and its groups are not available; the others are.

        Raises:
            KafkaError, PartitionError: the topic can't be made.
        """
        async with self._loading:
            if self._partition_count:
                return
            partitions = await self._offsets_partitions()
            for partition in partitions:
                if partition is None:
                    continue  # which was reported when the metadata was read
                shard = GroupShard(partition, Coordinator(self._rules, self._limits), self._rules.wall_clock_ms)
                try:
                    await shard.load()
                except (GroupRecordError, BatchError, PartitionError) as error:
                    _log.error("groups_not_loaded", topic=OFFSETS_TOPIC, partition=partition.index, error=str(error))
                    await shard.close()
                else:
                    self._shards[partition.index] = shard
            self._partition_count = len(partitions)
            self._expiry = asyncio.create_task(self._expire_offsets(), name="offsets-expiry")

    async def close(self) -> None:
        """Stop everything; nothing is lost by it."""
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.gather(self._expiry, return_exceptions=True)
        for shard in self._shards.values():
            await shard.close()
        self._shards.clear()

    async def shard_of(self, group_id: str) -> GroupShard:
        """The shard that keeps a group.

        Raises:
            KafkaError: the group id is empty, or its partition can't be read.
        """
        if not group_id:
            raise KafkaError(ErrorCode.invalid_group_id, "a group has a name")
        if not self._partition_count:
            await self.load()
        shard = self._shards.get(partition_of(group_id, self._partition_count))
        if shard is None:
            raise KafkaError(ErrorCode.coordinator_not_available, f"the partition that keeps {group_id!r} is damaged")
        return shard

    @property
    def shards(self) -> list[GroupShard]:
        """All shards that can be used."""
        return list(self._shards.values())

    async def forget_topic(self, topic: str) -> None:
        """A topic was deleted: its committed offsets go too.

        Raises:
            PartitionError: that can't be written.
        """
        for shard in self.shards:
            await shard.write(shard.coordinator.forget_topic(topic))

    async def _expire_offsets(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_INTERVAL_S)
            for shard in self.shards:
                try:
                    await shard.expire()
                except PartitionError as error:
                    _log.warning("offsets_not_expired", error=str(error))
