"""Moves of partitions: AlterPartitionReassignments, ListPartitionReassignments (KIP-455, KIP-860).

The controller answers. A partition's leader moves it; the controller only says where to, and notes that it has arrived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate_core.log.identity import METADATA_TOPIC
from tidegate_core.metadata.image import Topic
from tidegate_core.node import Client, Node
from tidegate_core.protocol.error_codes import ACCEPTED, KafkaError, refusal_of
from tidegate_core.protocol.translate import Fields
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode

if TYPE_CHECKING:
    from kio.schema.alter_partition_reassignments.v1.request import (
        AlterPartitionReassignmentsRequest,
        ReassignablePartition,
    )
    from kio.schema.list_partition_reassignments.v0.request import ListPartitionReassignmentsRequest


async def alter_partition_reassignments(
    node: Node, request: AlterPartitionReassignmentsRequest, client: Client
) -> Fields:
    """Let partitions move to other nodes; no nodes at all takes a move back."""
    topics = []
    for topic in request.topics:
        partitions = []
        for part in topic.partitions:
            refusal = ACCEPTED
            try:
                client.check_controller()
                await _reassign(node, topic.name, part, allows_other_factor=request.allow_replication_factor_change)
            except Exception as error:  # becomes this partition's answer
                refusal = refusal_of(error)
            partitions.append(
                {
                    "partition_index": part.partition_index,
                    "error_code": refusal.code,
                    "error_message": refusal.message,
                }
            )
        topics.append({"name": topic.name, "partitions": partitions})
    return {
        "allow_replication_factor_change": request.allow_replication_factor_change,
        "error_code": ErrorCode.none,
        "responses": topics,
    }


async def _reassign(node: Node, topic: str, part: ReassignablePartition, *, allows_other_factor: bool) -> None:
    if topic == METADATA_TOPIC:
        raise KafkaError(ErrorCode.invalid_topic_exception, "the metadata's voters are those that every node is given")
    target = None if part.replicas is None else tuple(NodeId(replica) for replica in part.replicas)
    await node.controller.reassign(topic, part.partition_index, target, allows_other_factor=allows_other_factor)


async def list_partition_reassignments(
    node: Node, request: ListPartitionReassignmentsRequest, client: Client
) -> Fields:
    """Partitions on their way: all of them, or those asked for."""
    asked: dict[str, set[int] | None] = dict.fromkeys(node.image.topics)
    if request.topics is not None:
        asked = {topic.name: set(topic.partition_indexes) for topic in request.topics}
    topics: list[Fields] = []
    try:
        client.check_controller()
        for name, indexes in sorted(asked.items()):
            topic = node.image.topics.get(name)
            moves = [] if topic is None else _moves(topic, indexes)
            if moves:
                topics.append({"name": name, "partitions": moves})
    except Exception as error:  # becomes the answer
        refusal = refusal_of(error)
        return {"error_code": refusal.code, "error_message": refusal.message, "topics": []}
    return {"error_code": ErrorCode.none, "error_message": None, "topics": topics}


def _moves(topic: Topic, indexes: set[int] | None) -> list[dict[str, Any]]:
    return [
        {
            "partition_index": index,
            "replicas": topic.hosts(index),
            "adding_replicas": topic.adding(index),
            "removing_replicas": topic.removing(index),
        }
        for index, target in sorted(topic.reassigning.items())
        if target != topic.replicas[index] and (indexes is None or index in indexes)
    ]
