"""Changes the cluster's metadata: one change at a time, in effect when its record is committed.

A topic's directories are made before its record is written and removed after the record of its deletion, so that a
crash in between leaves a directory without a topic, never a topic without its data. At a start directories of topics
that the log says were deleted are removed; others that metadata does not know are reported and left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import structlog

from tidegate_core.errors import PartitionExists
from tidegate_core.log.config import LogConfig
from tidegate_core.log.identity import METADATA_TOPIC, METADATA_TOPIC_ID
from tidegate_core.log_manager import LogManager, lead_alone
from tidegate_core.metadata.assignments import config_before_metadata, config_of
from tidegate_core.metadata.image import (
    MetadataImage,
    MetadataRecord,
    Topic,
    producer_ids_taken,
    topic_deleted,
)
from tidegate_core.metadata.names import check_topic_name
from tidegate_core.partition import Partition
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_core.replay import replay
from tidegate_wire.identifiers import NodeId, Offset, ProducerId
from tidegate_wire.kafka.messages import ErrorCode
from tidegate_wire.records import RecordBatchBuilder

PRODUCER_ID_BLOCK: Final = 1000
"""Ids taken with one record, as in Kafka: a restart wastes at most this many of 2**63."""

_log = structlog.get_logger()


class Controller:
    """The only one who writes `__cluster_metadata`, makes and deletes partitions, and gives out producer ids."""

    def __init__(
        self,
        logs: LogManager,
        *,
        default_settings: Mapping[str, str],
        partitions_max: int,
        clock_ms: Callable[[], int],
        node_id: NodeId,
    ) -> None:
        self._node_id = node_id
        self.image = MetadataImage(node_id)
        self.default_settings = default_settings
        """What topics have that were given nothing else, where it differs from Kafka's defaults."""
        self._logs = logs
        self._partitions_max = partitions_max
        self._clock_ms = clock_ms
        self._changing = asyncio.Lock()
        self._taking_ids = asyncio.Lock()
        self._next_id = ProducerId(0)
        self.partitions: dict[tuple[str, int], Partition] = {}
        """Those of the topics that metadata knows, by topic and index; one that could not be opened is missing."""
        self._partition = self._logs.partitions.get((METADATA_TOPIC, 0)) or self._logs.create(
            METADATA_TOPIC, 0, config_before_metadata(METADATA_TOPIC), METADATA_TOPIC_ID, (node_id,)
        )
        for partition in self._logs.partitions.values():
            lead_alone(partition)

    async def load(self) -> None:
        """Replay the metadata log and bring the directories in line with it.

        Raises:
            PartitionError: the log can't be read, and without it nothing can be served.
            BatchError: a batch in it is malformed.
        """
        await self._partition.committed(self._partition.log_end_offset)
        for record in replay(self._partition):
            self.image.apply(record.key, record.value)
        self._next_id = self.image.next_producer_id
        for topic in self.image.topics.values():
            self._logs.configure(topic.name, self.config_of(topic))
            for index in range(topic.partition_count):
                partition = self._logs.partitions.get((topic.name, index))
                if partition is not None:
                    self.partitions[topic.name, index] = partition
                else:
                    reason = self._logs.unopened.get((topic.name, index), "its directory is gone")
                    _log.error("partition_missing", topic=topic.name, partition=index, reason=str(reason))
        for name, index in sorted(self._logs.partitions):
            self._check_found(name, index)

    def _check_found(self, name: str, index: int) -> None:
        topic = self.image.topics.get(name)
        if name == METADATA_TOPIC or (topic is not None and index < topic.partition_count):
            return
        if topic is None and self.image.is_deleted(self._logs.partitions[name, index].key.topic_id):
            self._logs.delete(name, index)
            _log.info("topic_deletion_finished", topic=name, partition=index)
        else:
            _log.warning("partition_unknown", topic=name, partition=index, hint="not in the metadata; left alone")

    def config_of(self, topic: Topic) -> LogConfig:
        """The settings a topic's partitions have."""
        return config_of(topic.settings, self.default_settings)

    # Topics.

    def check_new_topic(self, topic: Topic) -> None:
        """Raise KafkaError or InvalidLogConfig where `topic` could not be made now."""
        check_topic_name(topic.name)
        if topic.name in self.image.topics:
            raise KafkaError(ErrorCode.topic_already_exists, f"topic {topic.name!r} exists")
        if topic.name == METADATA_TOPIC:
            raise KafkaError(ErrorCode.invalid_topic_exception, f"{METADATA_TOPIC} is the cluster's own")
        self.config_of(topic)
        self._check_count(topic, topic.partition_count)

    async def create_topic(self, topic: Topic) -> None:
        """Make a topic; it can be written when this returns.

        Raises:
            KafkaError, InvalidLogConfig, PartitionExists: it can't be one; the message says why.
            PartitionError: the disk failed.
        """
        async with self._changing:
            self.check_new_topic(topic)
            made = await self._make_partitions(topic, range(topic.partition_count))
            await self._change(topic.to_record())
            self.partitions |= made
        _log.info("topic_created", topic=topic.name, partitions=topic.partition_count)

    async def delete_topic(self, name: str) -> None:
        """Delete a topic and everything in it.

        Raises:
            KafkaError: there is none of this name.
            PartitionError: the disk failed; if only the removal of its files did, the next start finishes it.
        """
        async with self._changing:
            topic = self._known(name)
            await self._change(topic_deleted(name))
            for index in range(topic.partition_count):
                self.partitions.pop((name, index), None)
                if (name, index) in self._logs.partitions:
                    self._logs.delete(name, index)
        _log.info("topic_deleted", topic=name)

    def check_more_partitions(self, name: str, partition_count: int) -> Topic:
        """The topic `name` with that many partitions.

        Raises:
            KafkaError: there is no such topic, or it has as many already.
        """
        topic = self._known(name)
        if partition_count <= topic.partition_count:
            raise KafkaError(
                ErrorCode.invalid_partitions,
                f"{name!r} has {topic.partition_count} partitions; their number can only grow, and {partition_count} "
                "is not more",
            )
        self._check_count(topic, partition_count - topic.partition_count)
        return replace(topic, replicas=((self._node_id,),) * partition_count)

    async def add_partitions(self, name: str, partition_count: int) -> None:
        """Let a topic have `partition_count` partitions; raises as `create_topic` does."""
        async with self._changing:
            before = self._known(name).partition_count
            topic = self.check_more_partitions(name, partition_count)
            made = await self._make_partitions(topic, range(before, partition_count))
            await self._change(topic.to_record())
            self.partitions |= made
        _log.info("partitions_added", topic=name, partitions=partition_count)

    def check_settings(self, name: str, settings: Mapping[str, str]) -> Topic:
        """The topic `name` with these settings; raises as `configure_topic` does."""
        known = self._known(name)
        topic = replace(known, settings=dict(settings))
        self.config_of(topic)
        return topic

    async def configure_topic(self, name: str, settings_of: Callable[[Mapping[str, str]], Mapping[str, str]]) -> None:
        """Replace a topic's settings by what `settings_of` makes of those it has.

        Raises:
            KafkaError, InvalidLogConfig: there is no such topic, or a setting is not allowed.
            PartitionError: the disk failed.
        """
        async with self._changing:
            topic = self.check_settings(name, settings_of(self._known(name).settings))
            await self._change(topic.to_record())
            self._logs.configure(name, self.config_of(topic))
        _log.info("topic_configured", topic=name, settings=dict(topic.settings))

    def _known(self, name: str) -> Topic:
        topic = self.image.topics.get(name)
        if topic is None:
            raise KafkaError(ErrorCode.unknown_topic_or_partition, f"there is no topic {name!r}")
        return topic

    def _check_count(self, topic: Topic, added: int) -> None:
        if topic.partition_count < 1:
            raise KafkaError(ErrorCode.invalid_partitions, "a topic has at least one partition")
        total = sum(known.partition_count for known in self.image.topics.values()) + added
        if total > self._partitions_max:
            raise KafkaError(
                ErrorCode.policy_violation,
                f"this node takes {self._partitions_max} partitions in all (partitions_max), and these would make "
                f"{total}",
            )

    async def _make_partitions(self, topic: Topic, indexes: range) -> dict[tuple[str, int], Partition]:
        config = self.config_of(topic)
        made: dict[tuple[str, int], Partition] = {}
        for index in indexes:
            try:
                made[topic.name, index] = self._logs.create(topic.name, index, config, topic.topic_id, (self._node_id,))
                lead_alone(made[topic.name, index])
            except PartitionExists:
                found = self._logs.partitions[topic.name, index]
                if found.log_end_offset > 0:
                    raise PartitionExists(
                        f"a directory with records of {topic.name}-{index} is there though no topic of this name is",
                        hint="move it out of the data directory",
                    ) from None
                found.config = config  # left by a creation that a crash cut short
                made[topic.name, index] = found
            await asyncio.sleep(0)  # each one waits for the disk: let others in between
        return made

    # Producer ids.

    async def take_producer_id(self) -> ProducerId:
        """A producer id that nobody was ever given.

        Raises:
            PartitionError: the disk failed.
        """
        async with self._taking_ids:
            if self._next_id >= self.image.next_producer_id:
                await self._change(producer_ids_taken(ProducerId(self._next_id + PRODUCER_ID_BLOCK)))
            taken = self._next_id
            self._next_id = ProducerId(taken + 1)
            return taken

    async def _change(self, record: MetadataRecord) -> None:
        """Write a record; in effect when this returns. Writers of one key take turns, so the order is the log's."""
        now_ms = self._clock_ms()
        builder = RecordBatchBuilder()
        builder.append(now_ms, *record)
        result = self._partition.append_as_leader(memoryview(bytearray(builder.build())), now_ms)
        await self._partition.committed(Offset(result.end_offset))
        self.image.apply(*record)
