"""Single Kafka requests to one node, each on a connection of its own: no client library retries or looks elsewhere."""

from __future__ import annotations

import datetime
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

from kio.schema.create_topics.v5.request import CreatableTopic, CreateTopicsRequest
from kio.schema.delete_topics.v4.request import DeleteTopicsRequest
from kio.schema.describe_quorum.v1.request import DescribeQuorumRequest, PartitionData, TopicData
from kio.schema.metadata.v9.request import MetadataRequest, MetadataRequestTopic
from kio.schema.produce.v9.request import PartitionProduceData, ProduceRequest, TopicProduceData
from kio.schema.types import TopicName
from kio.static.primitive import Records, i16, i32, i32Timedelta
from kio.static.protocol import RequestPayload

from tidegate_wire.address import Address
from tidegate_wire.kafka.messages import ErrorCode, decode_response, encode_request, response_type
from tidegate_wire.records import RecordBatchBuilder


@dataclass(frozen=True, slots=True)
class PartitionView:
    """What a node says about a partition."""

    leader: int
    """-1: none is known."""
    leader_epoch: int
    replicas: tuple[int, ...]
    in_step: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What a node says about the cluster, and about one topic."""

    controller: int
    nodes: tuple[int, ...]
    partitions: dict[int, PartitionView] | None
    """None: the node has no such topic."""


def ask(address: Address, request: RequestPayload, timeout_s: float) -> Any:
    """Send a request, and return its answer.

    Raises:
        OSError: no connection, or it broke; the request may or may not have been carried out.
        TimeoutError: no answer in time; the same is true.
    """
    with socket.create_connection((address.host, address.port), timeout=timeout_s) as connection:
        connection.sendall(encode_request(request, 1, "test"))
        (length,) = struct.unpack(">i", _receive(connection, 4))
        answer = _receive(connection, length)
    _, response = decode_response(response_type(request.__api_key__, request.__version__), answer)
    return response


def view_cluster(address: Address, topic: str, timeout_s: float = 2.0) -> ClusterView:
    """A node's Metadata answer; it makes no topic."""
    request = MetadataRequest(
        topics=(MetadataRequestTopic(name=TopicName(topic)),),
        allow_auto_topic_creation=False,
        include_cluster_authorized_operations=False,
        include_topic_authorized_operations=False,
    )
    response = ask(address, request, timeout_s)
    (found,) = response.topics
    partitions = None
    if found.error_code in {ErrorCode.none, ErrorCode.leader_not_available}:
        partitions = {
            int(partition.partition_index): PartitionView(
                int(partition.leader_id),
                int(partition.leader_epoch),
                tuple(map(int, partition.replica_nodes)),
                tuple(map(int, partition.isr_nodes)),
            )
            for partition in found.partitions
        }
    return ClusterView(int(response.controller_id), tuple(int(node.node_id) for node in response.brokers), partitions)


def view_caught_up(address: Address, topic: str, partition: int, timeout_s: float = 2.0) -> dict[int, int] | None:
    """When each voter of a partition last had everything, in the leader's Unix time (ms); None: the node is not it."""
    data = TopicData(topic_name=TopicName(topic), partitions=(PartitionData(partition_index=i32(partition)),))
    response = ask(address, DescribeQuorumRequest(topics=(data,)), timeout_s)
    found = response.topics[0].partitions[0]
    if found.error_code is not ErrorCode.none:
        return None
    return {int(voter.replica_id): int(voter.last_caught_up_timestamp) for voter in found.current_voters}


def create_topic(address: Address, name: str, partitions: int, replicas: int, timeout_s: float) -> ErrorCode:
    """Ask once for a topic; how `ask` fails says that nobody knows."""
    topic = CreatableTopic(
        name=TopicName(name),
        num_partitions=i32(partitions),
        replication_factor=i16(replicas),
        assignments=(),
        configs=(),
    )
    timeout = i32Timedelta.parse(datetime.timedelta(seconds=timeout_s))
    response = ask(address, CreateTopicsRequest(topics=(topic,), timeout=timeout), timeout_s + 1)
    code: ErrorCode = response.topics[0].error_code
    return code


def delete_topic(address: Address, name: str, timeout_s: float) -> ErrorCode:
    """Ask once for a topic's end; how `ask` fails says that nobody knows."""
    timeout = i32Timedelta.parse(datetime.timedelta(seconds=timeout_s))
    response = ask(address, DeleteTopicsRequest(topic_names=(TopicName(name),), timeout=timeout), timeout_s + 1)
    code: ErrorCode = response.responses[0].error_code
    return code


def produce(
    address: Address, topic: str, partition: int, *, key: bytes, value: bytes, timeout_s: float
) -> tuple[ErrorCode, int]:
    """Send one record once, to a node that may lead the partition, with acks=all; the error and the offset."""
    builder = RecordBatchBuilder()
    builder.append(int(time.time() * 1000), key, value)
    data = PartitionProduceData(index=i32(partition), records=Records.parse(builder.build()))
    timeout = i32Timedelta.parse(datetime.timedelta(seconds=timeout_s))
    topic_data = (TopicProduceData(name=TopicName(topic), partition_data=(data,)),)
    response = ask(address, ProduceRequest(acks=i16(-1), timeout=timeout, topic_data=topic_data), timeout_s)
    answer = response.responses[0].partition_responses[0]
    return answer.error_code, int(answer.base_offset)


def _receive(connection: socket.socket, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionError("the node closed the connection before it answered")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
