"""Topics: Metadata, CreateTopics, DeleteTopics, CreatePartitions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from tidegate_core.groups.offsets_topic import OFFSETS_TOPIC
from tidegate_core.log.identity import METADATA_TOPIC
from tidegate_core.metadata.image import Topic
from tidegate_core.metadata.names import INTERNAL_TOPICS, check_not_internal, check_topic_name
from tidegate_core.node import Client, Node
from tidegate_core.protocol.error_codes import ACCEPTED, KafkaError, Refusal, refusal_of
from tidegate_core.protocol.translate import Fields
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode

if TYPE_CHECKING:
    from kio.schema.create_partitions.v3.request import CreatePartitionsRequest
    from kio.schema.create_topics.v7.request import CreatableTopic, CreateTopicsRequest
    from kio.schema.delete_topics.v6.request import DeleteTopicsRequest, DeleteTopicState
    from kio.schema.metadata.v12.request import MetadataRequest

TOPIC_OPERATIONS: Final = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11
"""Read, write, create, delete, alter, describe, describe and alter configs (KIP-430): all are allowed."""

_NOT_TOLD: Final = -(2**31)
_DEFAULT: Final = -1
_SOURCE_DYNAMIC_TOPIC: Final = 1
_SOURCE_DEFAULT: Final = 5


# Metadata.


async def metadata(node: Node, request: MetadataRequest, _client: Client) -> Fields:
    """The nodes, and topics by name or all of them; a topic that is missing is made, if the client lets us."""
    operations = TOPIC_OPERATIONS if request.include_topic_authorized_operations else _NOT_TOLD
    if request.topics is None:
        names = sorted(name for name in node.controller.image.topics if name != METADATA_TOPIC)
        topics = [_topic_fields(node, name, operations) for name in names]
    else:
        topics = []
        for asked in request.topics:
            if asked.name is None:
                topics.append(_unknown_topic(ErrorCode.unknown_topic_id, topic_id=asked.topic_id))
            else:
                creates = request.allow_auto_topic_creation and node.settings.auto_create_topics
                topics.append(await _topic_or_error(node, asked.name, operations, creates=creates))
    return {
        "brokers": [{"node_id": node.settings.node_id, "host": node.advertised.host, "port": node.advertised.port}],
        "cluster_id": node.cluster_id,
        "controller_id": node.settings.node_id,
        "topics": topics,
    }


async def _topic_or_error(node: Node, name: str, operations: int, *, creates: bool) -> Fields:
    try:
        if name not in node.controller.image.topics:
            check_topic_name(name)
            if not creates:
                return _unknown_topic(ErrorCode.unknown_topic_or_partition, name=name)
            await _create_on_demand(node, name)
        return _topic_fields(node, name, operations)
    except Exception as error:  # becomes this topic's answer
        return _unknown_topic(refusal_of(error).code, name=name)


async def _create_on_demand(node: Node, name: str) -> None:
    if name == OFFSETS_TOPIC:
        await node.groups.make_topic()
        return
    try:
        replicas = ((NodeId(node.settings.node_id),),) * node.settings.default_partitions
        await node.controller.create_topic(Topic(name=name, topic_id=uuid4(), replicas=replicas))
    except KafkaError as error:
        if error.code is not ErrorCode.topic_already_exists:  # by another client, meanwhile
            raise


def _unknown_topic(error: ErrorCode, *, name: str | None = None, topic_id: Any = None) -> Fields:
    return {"error_code": error, "name": name, "topic_id": topic_id, "is_internal": name in INTERNAL_TOPICS}


def _topic_fields(node: Node, name: str, operations: int) -> Fields:
    topic = node.controller.image.topics[name]
    node_id = node.settings.node_id
    partitions: list[Fields] = []
    for index in range(topic.partition_count):
        partition = node.controller.partitions.get((name, index))
        is_there = partition is not None
        partitions.append(
            {
                "error_code": ErrorCode.none if is_there else ErrorCode.leader_not_available,
                "partition_index": index,
                "leader_id": node_id if is_there else -1,
                "leader_epoch": -1 if partition is None else partition.leader_epoch,
                "replica_nodes": (node_id,),
                "isr_nodes": (node_id,) if is_there else (),
                "offline_replicas": () if is_there else (node_id,),
            }
        )
    return {
        "error_code": ErrorCode.none,
        "name": name,
        "is_internal": name in INTERNAL_TOPICS,
        "partitions": partitions,
        "topic_authorized_operations": operations,
    }


# CreateTopics.


async def create_topics(node: Node, request: CreateTopicsRequest, _client: Client) -> Fields:
    """Make topics; each is made or refused by itself."""
    times = Counter(wanted.name for wanted in request.topics)
    topics = []
    for wanted in request.topics:
        refusal, topic = ACCEPTED, None
        try:
            topic = _wanted_topic(node, wanted, is_once=times[wanted.name] == 1)
            if request.validate_only:
                node.controller.check_new_topic(topic)
            else:
                await node.controller.create_topic(topic)
        except Exception as error:  # becomes this topic's answer
            refusal, topic = refusal_of(error), None
        topics.append(_created(node, wanted.name, refusal, topic))
    return {"topics": topics}


def _wanted_topic(node: Node, wanted: CreatableTopic, *, is_once: bool) -> Topic:
    if not is_once:
        raise KafkaError(ErrorCode.invalid_request, f"topic {wanted.name!r} stands in the request twice")
    check_not_internal(wanted.name)
    node_id = node.settings.node_id
    partition_count = int(wanted.num_partitions)
    if wanted.assignments:
        if partition_count != _DEFAULT or wanted.replication_factor != _DEFAULT:
            raise KafkaError(ErrorCode.invalid_request, "give a number of partitions or an assignment, not both")
        partition_count = len(wanted.assignments)
        indexes = sorted(assignment.partition_index for assignment in wanted.assignments)
        if indexes != list(range(partition_count)) or any(
            tuple(assignment.broker_ids) != (node_id,) for assignment in wanted.assignments
        ):
            raise KafkaError(ErrorCode.invalid_replica_assignment, f"all partitions from 0 on belong on node {node_id}")
    elif wanted.replication_factor not in (_DEFAULT, 1):
        raise KafkaError(
            ErrorCode.invalid_replication_factor,
            f"{wanted.replication_factor} replicas on one node: 1 or -1 is possible",
        )
    if partition_count == _DEFAULT:
        partition_count = node.settings.default_partitions
    settings = {config.name: config.value for config in wanted.configs if config.value is not None}
    replicas = ((NodeId(node_id),),) * partition_count
    return Topic(name=wanted.name, topic_id=uuid4(), replicas=replicas, settings=settings)


def _created(node: Node, name: str, refusal: Refusal, topic: Topic | None) -> Fields:
    fields: dict[str, Any] = {
        "name": name,
        "error_code": refusal.code,
        "error_message": refusal.message,
        "configs": None,
    }
    if topic is not None:
        fields |= {"num_partitions": topic.partition_count, "replication_factor": 1}
        fields["configs"] = [
            {
                "name": setting,
                "value": value,
                "read_only": False,
                "config_source": _SOURCE_DYNAMIC_TOPIC if setting in topic.settings else _SOURCE_DEFAULT,
                "is_sensitive": False,
            }
            for setting, value in node.controller.config_of(topic).to_names().items()
        ]
    return fields


# DeleteTopics and CreatePartitions.


async def delete_topics(node: Node, request: DeleteTopicsRequest, _client: Client) -> Fields:
    """Delete topics, with their committed offsets."""
    responses = []
    for wanted in request.topics:
        refusal = ACCEPTED
        try:
            name = _named(wanted)
            check_not_internal(name)
            await node.controller.delete_topic(name)
            node.groups.on_topics_deleted()
        except Exception as error:  # becomes this topic's answer
            refusal = refusal_of(error)
        responses.append(
            {
                "name": wanted.name,
                "topic_id": wanted.topic_id,
                "error_code": refusal.code,
                "error_message": refusal.message,
            }
        )
    return {"responses": responses}


def _named(wanted: DeleteTopicState) -> str:
    if wanted.name is None:
        raise KafkaError(ErrorCode.unknown_topic_id, "topics are named here, they have no ids")
    return wanted.name


async def create_partitions(node: Node, request: CreatePartitionsRequest, _client: Client) -> Fields:
    """Let topics have more partitions (KIP-195)."""
    results = []
    for wanted in request.topics:
        refusal = ACCEPTED
        try:
            check_not_internal(wanted.name)
            topic = node.controller.check_more_partitions(wanted.name, wanted.count)
            _check_assignments(node, wanted.assignments, topic.partition_count, wanted.name)
            if not request.validate_only:
                await node.controller.add_partitions(wanted.name, wanted.count)
        except Exception as error:  # becomes this topic's answer
            refusal = refusal_of(error)
        results.append({"name": wanted.name, "error_code": refusal.code, "error_message": refusal.message})
    return {"results": results}


def _check_assignments(node: Node, assignments: Any, partition_count: int, name: str) -> None:
    if assignments is None:
        return
    added = partition_count - node.controller.image.topics[name].partition_count
    node_id = node.settings.node_id
    if len(assignments) != added or any(tuple(assignment.broker_ids) != (node_id,) for assignment in assignments):
        raise KafkaError(
            ErrorCode.invalid_replica_assignment, f"each of the {added} new partitions is for node {node_id}"
        )
