"""Changes the cluster's metadata: one change after the other, each a record that is in effect once it is committed.

Only the leader of `__cluster_metadata` does it, and only after a record of its own epoch is committed, so that it knows
all there is. It writes records and nothing else: the directories of replicas are made and removed by each node for
itself when the record reaches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final
from uuid import UUID

import structlog

from tidegate_core.errors import NotLeader
from tidegate_core.metadata.assignments import config_of
from tidegate_core.metadata.image import (
    MetadataImage,
    MetadataRecord,
    NodeInfo,
    Replicas,
    Topic,
    node_registered,
    node_unregistered,
    producer_ids_taken,
    topic_deleted,
)
from tidegate_core.metadata.metadata_log import MetadataLog
from tidegate_core.metadata.names import check_topic_name
from tidegate_core.metadata.placement import check_assignment, check_count, check_room, place_partitions
from tidegate_core.metadata.topic_settings import check_min_insync_replicas
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_core.raft.messages import ReplicaKey
from tidegate_wire.identifiers import NodeId, Offset, ProducerId
from tidegate_wire.kafka.messages import ErrorCode
from tidegate_wire.records import RecordBatchBuilder

PRODUCER_ID_BLOCK: Final = 1000
"""Ids taken with one record, as in Kafka: a restart of a node wastes at most this many of 2**63."""

COMMIT_TIMEOUT_S: Final = 5.0
"""For one record: longer than it takes to find a new leader, and no client is kept waiting for a lost majority."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTopic:
    """What somebody wants made. Without `assignment` the controller chooses the nodes."""

    name: str
    partition_count: int
    replication_factor: int | None = None
    """None takes the default."""
    assignment: tuple[Replicas, ...] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerRules:
    """What the controller goes by, from the node's settings."""

    voters: tuple[NodeId, ...]
    """Of the metadata: they belong to the cluster even before they register."""
    default_settings: Mapping[str, str]
    """What topics have that were given nothing else, where it differs from Kafka's defaults."""
    default_replication_factor: int
    partitions_max: int
    """Replicas on one node."""


class Controller:
    """Every node has one; `is_active` says whether it is the one that counts."""

    def __init__(
        self,
        metadata: MetadataLog,
        *,
        rules: ControllerRules,
        is_settled: Callable[[], bool],
        is_alive: Callable[[NodeId], bool],
        random: Random,
        clock_ms: Callable[[], int],
    ) -> None:
        self.rules = rules
        self._metadata = metadata
        self._is_settled = is_settled
        """Whether this node leads the metadata, and knows what is committed."""
        self._is_alive = is_alive
        self._random = random
        self._clock_ms = clock_ms
        self._changing = asyncio.Lock()

    @property
    def is_active(self) -> bool:
        """Whether this node may change the metadata."""
        return self._is_settled()

    @property
    def image(self) -> MetadataImage:
        """What is committed, as far as this node knows."""
        return self._metadata.image

    @property
    def nodes(self) -> set[NodeId]:
        """All that may have replicas."""
        return {*self.rules.voters, *self.image.nodes}

    # --- topics

    async def check_topic(self, wanted: NewTopic) -> Topic:
        """The topic that `create_topic` would make now; raises as that does."""
        async with self._turn():
            return self._plan_topic(wanted)

    async def create_topic(self, wanted: NewTopic) -> Topic:
        """Make a topic; its replicas are made by their nodes as they hear of it.

        Raises:
            KafkaError, InvalidLogConfig: it can't be one; the message says why.
            PartitionError: the disk failed.
        """
        async with self._turn():
            topic = self._plan_topic(wanted)
            await self._write(topic.to_record())
        _log.info("topic_created", topic=topic.name, topic_id=str(topic.topic_id), partitions=topic.partition_count)
        return topic

    def _plan_topic(self, wanted: NewTopic) -> Topic:
        check_topic_name(wanted.name)
        if wanted.name in self.image.topics:
            raise KafkaError(ErrorCode.topic_already_exists, f"topic {wanted.name!r} exists")
        config_of(wanted.settings, self.rules.default_settings)
        topic = Topic(name=wanted.name, topic_id=self._new_id(), replicas=(), settings=dict(wanted.settings))
        factor = wanted.replication_factor
        if factor is None:
            factor = min(self.rules.default_replication_factor, len(self.nodes))
        topic = self._grown(topic, wanted.partition_count, factor, wanted.assignment)
        check_min_insync_replicas(topic.settings, min(map(len, topic.replicas)))
        return topic

    def _new_id(self) -> UUID:
        return UUID(int=self._random.getrandbits(128), version=4)

    async def delete_topic(self, name: str) -> None:
        """Delete a topic and everything in it.

        Raises:
            KafkaError: there is none of this name.
            PartitionError: the disk failed.
        """
        async with self._turn():
            self._known(name)
            await self._write(topic_deleted(name))
        _log.info("topic_deleted", topic=name)

    async def check_partitions(
        self, name: str, partition_count: int, assignment: tuple[Replicas, ...] | None = None
    ) -> Topic:
        """The topic that `add_partitions` would make now; raises as that does."""
        async with self._turn():
            return self._plan_partitions(name, partition_count, assignment)

    async def add_partitions(
        self, name: str, partition_count: int, assignment: tuple[Replicas, ...] | None = None
    ) -> Topic:
        """Let a topic have `partition_count` partitions; `assignment` is for those that it has not yet.

        Raises:
            KafkaError: there is no such topic, it has as many already, or the nodes can't have them.
            PartitionError: the disk failed.
        """
        async with self._turn():
            topic = self._plan_partitions(name, partition_count, assignment)
            await self._write(topic.to_record())
        _log.info("partitions_added", topic=name, partitions=partition_count)
        return topic

    def _plan_partitions(self, name: str, partition_count: int, assignment: tuple[Replicas, ...] | None) -> Topic:
        topic = self._known(name)
        added = partition_count - topic.partition_count
        if added <= 0:
            raise KafkaError(
                ErrorCode.invalid_partitions,
                f"{name!r} has {topic.partition_count} partitions; their number can only grow, and {partition_count} "
                "is not more",
            )
        return self._grown(topic, added, len(topic.replicas[0]), assignment)

    def _grown(
        self, topic: Topic, added: int, replication_factor: int, assignment: tuple[Replicas, ...] | None
    ) -> Topic:
        if added < 1:
            raise KafkaError(ErrorCode.invalid_partitions, "a topic has at least one partition")
        nodes = self.nodes
        placed = list(self._placed())
        if assignment is None:
            check_count(placed, added, replication_factor, len(nodes), self.rules.partitions_max)
            assignment = place_partitions(
                nodes,
                added,
                replication_factor,
                in_topic=topic.replicas,
                in_all=placed,
                is_alive=self._is_alive,
            )
        if len(assignment) != added:
            raise KafkaError(
                ErrorCode.invalid_replica_assignment, f"{added} partitions, and replicas for {len(assignment)}"
            )
        for replicas in assignment:
            check_assignment(nodes, replicas)
        if len({len(replicas) for replicas in (*topic.replicas[:1], *assignment)}) > 1:
            raise KafkaError(ErrorCode.invalid_replica_assignment, "each partition is to have as many replicas")
        check_room([*placed, *assignment], self.rules.partitions_max)
        return replace(topic, replicas=(*topic.replicas, *assignment))

    def _placed(self, instead: Topic | None = None) -> Iterator[Replicas]:
        """The nodes of each partition; `instead` takes the place of the topic of its name."""
        for topic in self.image.topics.values():
            now = instead if instead is not None and instead.name == topic.name else topic
            yield from map(now.hosts, range(now.partition_count)) if now.reassigning else now.replicas

    async def check_settings(self, name: str, settings_of: Callable[[Mapping[str, str]], Mapping[str, str]]) -> Topic:
        """The topic that `configure_topic` would make now; raises as that does."""
        async with self._turn():
            return self._plan_settings(name, settings_of)

    async def configure_topic(self, name: str, settings_of: Callable[[Mapping[str, str]], Mapping[str, str]]) -> None:
        """Replace a topic's settings by what `settings_of` makes of those it has.

        Raises:
            KafkaError, InvalidLogConfig: there is no such topic, or a setting is not allowed.
            PartitionError: the disk failed.
        """
        async with self._turn():
            topic = self._plan_settings(name, settings_of)
            if topic != self.image.topics[name]:
                await self._write(topic.to_record())
        _log.info("topic_configured", topic=name, settings=dict(topic.settings))

    def _plan_settings(self, name: str, settings_of: Callable[[Mapping[str, str]], Mapping[str, str]]) -> Topic:
        topic = self._known(name)
        topic = replace(topic, settings=dict(settings_of(topic.settings)))
        config_of(topic.settings, self.rules.default_settings)
        check_min_insync_replicas(topic.settings, min(map(len, topic.replicas)))
        return topic

    def _known(self, name: str) -> Topic:
        topic = self.image.topics.get(name)
        if topic is None:
            raise KafkaError(ErrorCode.unknown_topic_or_partition, f"there is no topic {name!r}")
        return topic

    # --- moving partitions

    async def reassign(
        self, name: str, index: int, target: Replicas | None, *, allows_other_factor: bool = True
    ) -> None:
        """Let a partition move to the nodes `target`, the preferred leader first; None takes a move back.

        The partition's leader moves it, and says so with `moved`.

        Raises:
            KafkaError: there is no such partition, node or move.
            PartitionError: the disk failed.
        """
        async with self._turn():
            topic = self._known(name)
            if not 0 <= index < topic.partition_count:
                raise KafkaError(
                    ErrorCode.unknown_topic_or_partition, f"there is no partition {index} of a topic {name!r}"
                )
            if target is None:
                if topic.reassigning.get(index, topic.replicas[index]) == topic.replicas[index]:
                    raise KafkaError(ErrorCode.no_reassignment_in_progress, f"{name}-{index} does not move")
                target = topic.replicas[index]
            elif not self._is_move(topic, index, target, allows_other_factor=allows_other_factor):
                return
            await self._write(topic.moving(index, target).to_record())
        _log.info("partition_moves", topic=name, partition=index, target=target)

    def _is_move(self, topic: Topic, index: int, target: Replicas, *, allows_other_factor: bool) -> bool:
        check_assignment(self.nodes, target)
        if not allows_other_factor and len(target) != len(topic.replicas[index]):
            raise KafkaError(
                ErrorCode.invalid_replication_factor,
                f"{topic.name}-{index} has {len(topic.replicas[index])} replicas, and their number is to stay",
            )
        check_min_insync_replicas(topic.settings, len(target))
        check_room(self._placed(topic.moving(index, target)), self.rules.partitions_max)
        return topic.reassigning.get(index, topic.replicas[index]) != target

    async def moved(self, key: ReplicaKey, voters: Iterable[NodeId]) -> None:
        """A partition's leader says that its voters are now `voters`: if it was to move there, the move is over.

        Raises:
            KafkaError, PartitionError: this could not be written; the leader says it again.
        """
        async with self._turn():
            topic = self.image.topic_by_id(key.topic_id)
            target = None if topic is None else topic.reassigning.get(key.partition)
            if topic is None or target is None or set(target) != set(voters):
                return  # it was deleted, or is to move elsewhere by now
            await self._write(topic.moved(key.partition).to_record())
        _log.info("partition_moved", topic=topic.name, partition=key.partition, replicas=target)

    # --- nodes and producer ids

    async def register_node(self, node_id: NodeId, info: NodeInfo) -> None:
        """A node is there, and tells where it is.

        Raises:
            KafkaError, PartitionError: this could not be written; the node says it again.
        """
        async with self._turn():
            if self.image.nodes.get(node_id) == info:
                return
            await self._write(node_registered(node_id, info))
        _log.info("node_registered", node_id=node_id, host=info.host, port=info.port)

    async def unregister_node(self, node_id: NodeId) -> None:
        """Take a node out of the cluster that is gone for good and has no replicas.

        Raises:
            KafkaError: there is no such node, or it is still needed.
            PartitionError: the disk failed.
        """
        async with self._turn():
            if node_id not in self.image.nodes:
                raise KafkaError(ErrorCode.broker_id_not_registered, f"there is no node {node_id}")
            if node_id in self.rules.voters:
                raise KafkaError(ErrorCode.policy_violation, f"node {node_id} votes on the metadata")
            for topic in self.image.topics.values():
                for index in range(topic.partition_count):
                    if node_id in topic.hosts(index):
                        raise KafkaError(
                            ErrorCode.policy_violation, f"node {node_id} has a replica of {topic.name}-{index}: move it"
                        )
            await self._write(node_unregistered(node_id))
        _log.info("node_unregistered", node_id=node_id)

    async def allocate_producer_ids(self) -> range:
        """Producer ids that nobody was ever given.

        Raises:
            KafkaError, PartitionError: that could not be written.
        """
        async with self._turn():
            first = self.image.next_producer_id
            end = ProducerId(first + PRODUCER_ID_BLOCK)
            await self._write(producer_ids_taken(end))
        return range(first, end)

    # --- writing

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One change at a time, on top of all that was written before: also of what nobody waited for to the end."""
        async with self._changing:
            self._check_active()
            try:
                await self._committed(self._metadata.partition.log_end_offset)
            except (TimeoutError, NotLeader) as error:
                raise KafkaError(ErrorCode.not_controller, "what was written before is not committed") from error
            self._check_active()
            yield

    def _check_active(self) -> None:
        if not self.is_active:
            raise KafkaError(ErrorCode.not_controller, "another node is the controller, or nobody is just now")

    async def _write(self, record: MetadataRecord) -> None:
        """Write a record; in the image when this returns."""
        now_ms = self._clock_ms()
        builder = RecordBatchBuilder()
        builder.append(now_ms, *record)
        try:
            result = self._metadata.partition.append_as_leader(memoryview(bytearray(builder.build())), now_ms)
        except NotLeader as error:
            raise KafkaError(ErrorCode.not_controller, str(error)) from error
        try:
            await self._committed(result.end_offset)
        except (TimeoutError, NotLeader) as error:
            raise KafkaError(
                ErrorCode.request_timed_out,
                "written, and not committed yet; it may be, once there is a controller again",
            ) from error

    async def _committed(self, offset: Offset) -> None:
        metadata = self._metadata
        async with asyncio.timeout(COMMIT_TIMEOUT_S):
            await metadata.partition.committed(offset)
            await metadata.applied(offset)
