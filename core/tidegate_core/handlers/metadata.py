"""Metadata and DescribeTopicPartitions: the cluster as this node knows it; topics are made on demand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from tidegate_core.groups.offsets_topic import OFFSETS_TOPIC
from tidegate_core.metadata.controller import NewTopic
from tidegate_core.metadata.controller_link import leaders_known
from tidegate_core.metadata.image import Topic
from tidegate_core.metadata.names import INTERNAL_TOPICS, check_topic_name
from tidegate_core.node import Client, Node
from tidegate_core.protocol.error_codes import KafkaError, refusal_of
from tidegate_core.protocol.translate import Fields
from tidegate_core.replication.messages import METADATA_KEY
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode

if TYPE_CHECKING:
    from kio.schema.describe_topic_partitions.v0.request import DescribeTopicPartitionsRequest
    from kio.schema.metadata.v12.request import MetadataRequest, MetadataRequestTopic

TOPIC_OPERATIONS: Final = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11
"""Read, write, create, delete, alter, describe, describe and alter configs (KIP-430): all are allowed."""

ELECTION_WAIT_S: Final = 0.5
"""How long an answer waits for leaders that are being elected, once for each; an election takes a part of it."""

PARTITIONS_DESCRIBED_MAX: Final = 2000
"""In one answer, whatever the client would take, as in Kafka (max.request.partition.size.limit)."""

NOBODY: Final = NodeId(-1)

_NOT_TOLD: Final = -(2**31)


async def metadata(node: Node, request: MetadataRequest, _client: Client) -> Fields:
    """The nodes, and topics by name or all of them; a topic that is missing is made, if the client lets us."""
    operations = TOPIC_OPERATIONS if request.include_topic_authorized_operations else _NOT_TOLD
    if request.topics is None:
        topics = [_whole_topic(node, topic, operations) for _, topic in sorted(node.image.topics.items())]
    else:
        creates = request.allow_auto_topic_creation and node.settings.auto_create_topics
        topics = [await _topic_or_error(node, asked, operations, creates=creates) for asked in request.topics]
    return {
        "brokers": [
            {"node_id": node_id, "host": address.host, "port": address.port}
            for node_id, address in client_addresses(node).items()
        ],
        "cluster_id": node.cluster_id,
        "controller_id": controller_id(node),
        "topics": topics,
    }


def client_addresses(node: Node) -> dict[NodeId, Address]:
    """Where clients reach the nodes, as they registered; of this one it is known anyway."""
    addresses = {node_id: Address(info.host, info.port) for node_id, info in node.image.nodes.items()}
    return dict(sorted((addresses | {node.node_id: node.advertised}).items()))


def controller_id(node: Node) -> NodeId:
    """Who leads the metadata, as far as this node knows."""
    leadership = node.leaders.get(METADATA_KEY)
    return NOBODY if leadership is None else leadership.leader


async def _topic_or_error(node: Node, asked: MetadataRequestTopic, operations: int, *, creates: bool) -> Fields:
    if asked.name is None:
        topic = None if asked.topic_id is None else node.image.topic_by_id(asked.topic_id)
        if topic is None:
            return _unknown_topic(ErrorCode.unknown_topic_id, topic_id=asked.topic_id)
        await _await_elections(node, topic)
        return _whole_topic(node, topic, operations)
    try:
        if asked.name not in node.image.topics:
            await _create_on_demand(node, asked.name, creates=creates)
        await _await_elections(node, _known_topic(node, asked.name))
        return _whole_topic(node, _known_topic(node, asked.name), operations)  # it may be gone by now
    except Exception as error:  # becomes this topic's answer
        return _unknown_topic(refusal_of(error).code, name=asked.name)


def _known_topic(node: Node, name: str) -> Topic:
    topic = node.image.topics.get(name)
    if topic is None:
        raise KafkaError(ErrorCode.unknown_topic_or_partition, f"there is no topic {name!r}")
    return topic


async def _await_elections(node: Node, topic: Topic) -> None:
    """Clients ask at once when a leader dies, and then more and more rarely: let the first answer be of use."""
    keys = [key for index in range(topic.partition_count) if node.leaders.is_being_elected(key := topic.key(index))]
    if keys and not await leaders_known(node.leaders, keys, ELECTION_WAIT_S):
        node.leaders.give_up(keys)


async def _create_on_demand(node: Node, name: str, *, creates: bool) -> None:
    check_topic_name(name)
    if not creates:
        raise KafkaError(ErrorCode.unknown_topic_or_partition, f"there is no topic {name!r}")
    if name == OFFSETS_TOPIC:
        await node.groups.make_topic()
    else:
        await node.link.create_topic(NewTopic(name=name, partition_count=node.settings.default_partitions))


def _unknown_topic(error: ErrorCode, *, name: str | None = None, topic_id: Any = None) -> Fields:
    return {"error_code": error, "name": name, "topic_id": topic_id, "is_internal": name in INTERNAL_TOPICS}


def _whole_topic(node: Node, topic: Topic, operations: int) -> Fields:
    parts = [_partition_fields(node, topic, index) for index in range(topic.partition_count)]
    return _topic_fields(topic, parts, operations)


def _topic_fields(topic: Topic, partitions: Sequence[Fields], operations: int) -> Fields:
    return {
        "error_code": ErrorCode.none,
        "name": topic.name,
        "topic_id": topic.topic_id,
        "is_internal": topic.name in INTERNAL_TOPICS,
        "partitions": partitions,
        "topic_authorized_operations": operations,
    }


def _partition_fields(node: Node, topic: Topic, index: int) -> Fields:
    replicas = topic.hosts(index)
    leadership = node.leaders.get(topic.key(index))
    fields = {"partition_index": index, "replica_nodes": replicas, "error_code": ErrorCode.none}
    if leadership is None or (leadership.leader != node.node_id and leadership.leader not in node.image.nodes):
        return fields | {"error_code": ErrorCode.leader_not_available, "leader_id": NOBODY}
    return fields | {
        "leader_id": leadership.leader,
        "leader_epoch": leadership.epoch,
        "isr_nodes": tuple(leadership.in_step),
        "offline_replicas": tuple(replica for replica in replicas if replica not in leadership.in_step),
    }


async def describe_topic_partitions(node: Node, request: DescribeTopicPartitionsRequest, _client: Client) -> Fields:
    """The partitions of topics, by name, so many at once (KIP-966); the cursor says where the next answer begins."""
    names = sorted({topic.name for topic in request.topics} or node.image.topics)
    first = ("", 0) if request.cursor is None else (request.cursor.topic_name, int(request.cursor.partition_index))
    room = max(1, min(request.response_partition_limit, PARTITIONS_DESCRIBED_MAX))
    topics: list[Fields] = []
    for name in names:
        topic = node.image.topics.get(name)
        if name < first[0]:
            continue
        if topic is None:
            topics.append(_unknown_topic(ErrorCode.unknown_topic_or_partition, name=name))
            continue
        begin = first[1] if name == first[0] else 0
        if not room:
            return {"topics": topics, "next_cursor": {"topic_name": name, "partition_index": begin}}
        end = min(topic.partition_count, begin + room)
        room -= max(end - begin, 0)
        parts = [_partition_fields(node, topic, index) for index in range(begin, end)]
        topics.append(_topic_fields(topic, parts, TOPIC_OPERATIONS))
        if end < topic.partition_count:
            return {"topics": topics, "next_cursor": {"topic_name": name, "partition_index": end}}
    return {"topics": topics, "next_cursor": None}
