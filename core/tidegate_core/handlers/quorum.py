"""DescribeQuorum (KIP-595, KIP-836): who votes on a partition, and how far each is. Its leader answers.

Kafka describes the metadata's quorum; here every partition has one, and all are described by the name of their topic.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from tidegate_core.handlers.metadata import client_addresses
from tidegate_core.log.identity import METADATA_TOPIC
from tidegate_core.node import Client, Node
from tidegate_core.protocol.error_codes import KafkaError, refusal_of
from tidegate_core.protocol.translate import Fields
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.messages import METADATA_KEY
from tidegate_core.replication.quorum import QuorumState, ReplicaProgress
from tidegate_core.replication.quorum import describe_quorum as describe
from tidegate_wire.kafka.messages import ErrorCode

if TYPE_CHECKING:
    from kio.schema.describe_quorum.v2.request import DescribeQuorumRequest
_LISTENER: Final = "PLAINTEXT"


async def describe_quorum(node: Node, request: DescribeQuorumRequest, client: Client) -> Fields:
    """Voters and learners of partitions; a node that does not lead one says who does."""
    topics = []
    for topic in request.topics:
        name = topic.topic_name
        partitions = [_quorum_or_error(node, name, part.partition_index, client) for part in topic.partitions]
        topics.append({"topic_name": name, "partitions": partitions})
    nodes = [
        {"node_id": node_id, "listeners": [{"name": _LISTENER, "host": address.host, "port": address.port}]}
        for node_id, address in client_addresses(node).items()
    ]
    return {"error_code": ErrorCode.none, "error_message": None, "topics": topics, "nodes": nodes}


def _quorum_or_error(node: Node, topic: str, index: int, client: Client) -> dict[str, Any]:
    leader, epoch = -1, -1
    try:
        key = _key(node, topic, index)
        leadership = node.leaders.get(key)
        if leadership is not None:
            leader, epoch = leadership.leader, leadership.epoch
        if key == METADATA_KEY:
            client.check_controller()
        quorum = _quorum(node, key)
    except Exception as error:  # becomes this partition's answer
        refusal = refusal_of(error)
        return {
            "partition_index": index,
            "error_code": refusal.code,
            "error_message": refusal.message,
            "leader_id": leader,
            "leader_epoch": epoch,
            "high_watermark": -1,
            "current_voters": [],
            "observers": [],
        }
    return {
        "partition_index": index,
        "error_code": ErrorCode.none,
        "error_message": None,
        "leader_id": quorum.leader,
        "leader_epoch": quorum.epoch,
        "high_watermark": quorum.high_watermark,
        "current_voters": _replicas(node, quorum.voters),
        "observers": _replicas(node, quorum.observers),
    }


def _quorum(node: Node, key: ReplicaKey) -> QuorumState:
    quorum = describe(node.replicas, key)
    if quorum is None:
        raise KafkaError(ErrorCode.not_leader_or_follower, "another node leads the partition, or nobody just now")
    return quorum


def _key(node: Node, topic: str, index: int) -> ReplicaKey:
    if topic == METADATA_TOPIC and index == METADATA_KEY.partition:
        return METADATA_KEY
    known = node.image.topics.get(topic)
    if known is None or not 0 <= index < known.partition_count:
        raise KafkaError(ErrorCode.unknown_topic_or_partition, f"there is no partition {index} of a topic {topic!r}")
    return known.key(index)


def _replicas(node: Node, replicas: Iterable[ReplicaProgress]) -> list[Fields]:
    nodes = node.image.nodes
    return [
        {
            "replica_id": replica.node,
            "replica_directory_id": nodes[replica.node].directory_id if replica.node in nodes else None,
            "log_end_offset": replica.end_offset,
            "last_fetch_timestamp": replica.last_fetch_ms,
            "last_caught_up_timestamp": replica.last_caught_up_ms,
        }
        for replica in replicas
    ]
