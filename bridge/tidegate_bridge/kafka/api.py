"""The requests a bridge makes, Produce aside, and what it wants to know of the answers.

One version of each message, the newest that Apache Kafka 2.4 and 4.x and this project's core have in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from kio.schema.api_versions.v0 import request as api_versions
from kio.schema.api_versions.v0.response import ApiVersionsResponse
from kio.schema.create_topics.v5 import request as create_topics
from kio.schema.create_topics.v5.response import CreateTopicsResponse
from kio.schema.fetch.v11 import request as fetch
from kio.schema.fetch.v11.response import FetchResponse
from kio.schema.init_producer_id.v1 import request as init_producer_id
from kio.schema.init_producer_id.v1.response import InitProducerIdResponse
from kio.schema.list_offsets.v5 import request as list_offsets
from kio.schema.list_offsets.v5.response import ListOffsetsResponse
from kio.schema.metadata.v8 import request as metadata
from kio.schema.metadata.v8.response import MetadataResponse
from kio.schema.types import BrokerId, TopicName
from kio.static.primitive import i8, i16, i32, i32Timedelta, i64

from tidegate_bridge.kafka import produce
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId, Offset, ProducerEpoch, ProducerId
from tidegate_wire.kafka.messages import ErrorCode, MessageError

EARLIEST: Final = -2
"""The timestamp that asks ListOffsets for the log's start."""

VERSIONS_NEEDED: Final = {
    produce.API_KEY: produce.API_VERSION,
    **{
        int(schema.__api_key__): int(schema.__version__)
        for schema in (
            metadata.MetadataRequest,
            create_topics.CreateTopicsRequest,
            init_producer_id.InitProducerIdRequest,
            list_offsets.ListOffsetsRequest,
            fetch.FetchRequest,
        )
    },
}
"""API key to the version that is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicMetadata:
    """One topic of a Metadata response."""

    error_code: ErrorCode
    leaders: tuple[NodeId | None, ...]
    """By partition; None where there is no leader now. Empty if the topic does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMetadata:
    """A Metadata response."""

    nodes: dict[NodeId, Address]
    controller: NodeId | None
    topics: dict[str, TopicMetadata]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """How a topic is created where it is missing."""

    partitions: int
    configs: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A Fetch response for one partition."""

    error_code: ErrorCode
    high_watermark: Offset
    records: bytes | memoryview
    """Batches back to back; the last may be cut."""


API_VERSIONS_REQUEST: Final = api_versions.ApiVersionsRequest()
API_VERSIONS_RESPONSE: Final = ApiVersionsResponse


def missing_versions(response: ApiVersionsResponse) -> dict[int, int]:
    """Which of the needed versions (API key to version) the core does not speak."""
    offered = {int(api.api_key): (int(api.min_version), int(api.max_version)) for api in response.api_keys}
    return {
        key: version
        for key, version in VERSIONS_NEEDED.items()
        if key not in offered or not offered[key][0] <= version <= offered[key][1]
    }


def metadata_request(topics: Iterable[str]) -> metadata.MetadataRequest:
    """Asks for nodes, controller and `topics`; creates nothing."""
    return metadata.MetadataRequest(
        topics=tuple([metadata.MetadataRequestTopic(name=TopicName(name)) for name in topics]),
        allow_auto_topic_creation=False,
        include_cluster_authorized_operations=False,
        include_topic_authorized_operations=False,
    )


METADATA_RESPONSE: Final = MetadataResponse


def read_metadata(response: MetadataResponse) -> ClusterMetadata:
    """The response in plain values."""
    topics: dict[str, TopicMetadata] = {}
    for topic in response.topics:
        leaders: list[NodeId | None] = [None] * len(topic.partitions)
        for partition in topic.partitions:
            if not 0 <= partition.partition_index < len(leaders):
                raise MessageError(f"Metadata: topic {topic.name} has no partition {len(leaders) - 1}")
            if partition.leader_id >= 0:
                leaders[partition.partition_index] = NodeId(partition.leader_id)
        topics[topic.name] = TopicMetadata(error_code=topic.error_code, leaders=tuple(leaders))
    return ClusterMetadata(
        nodes={NodeId(broker.node_id): Address(broker.host, broker.port) for broker in response.brokers},
        controller=NodeId(response.controller_id) if response.controller_id >= 0 else None,
        topics=topics,
    )


def create_topics_request(specs: Mapping[str, TopicSpec], timeout_ms: int) -> create_topics.CreateTopicsRequest:
    """Creates topics with the core's own replication factor."""
    return create_topics.CreateTopicsRequest(
        topics=tuple(
            [
                create_topics.CreatableTopic(
                    name=TopicName(name),
                    num_partitions=i32(spec.partitions),
                    replication_factor=i16(-1),
                    assignments=(),
                    configs=tuple(
                        [
                            create_topics.CreatableTopicConfig(name=key, value=value)
                            for key, value in spec.configs.items()
                        ]
                    ),
                )
                for name, spec in specs.items()
            ]
        ),
        timeout=_milliseconds(timeout_ms),
        validate_only=False,
    )


CREATE_TOPICS_RESPONSE: Final = CreateTopicsResponse


def init_producer_id_request() -> init_producer_id.InitProducerIdRequest:
    """Asks for a producer id that nobody ever had: without a transactional id the core never gives one twice."""
    return init_producer_id.InitProducerIdRequest(transactional_id=None, transaction_timeout=_milliseconds(60_000))


INIT_PRODUCER_ID_RESPONSE: Final = InitProducerIdResponse


def read_producer_id(response: InitProducerIdResponse) -> tuple[ErrorCode, ProducerId, ProducerEpoch]:
    """Error code, producer id and epoch."""
    return response.error_code, ProducerId(response.producer_id), ProducerEpoch(response.producer_epoch)


def earliest_offset_request(topic: str, partition: int) -> list_offsets.ListOffsetsRequest:
    """Asks where the partition's log begins."""
    asked = list_offsets.ListOffsetsPartition(partition_index=i32(partition), timestamp=i64(EARLIEST))
    return list_offsets.ListOffsetsRequest(
        replica_id=BrokerId(-1),
        isolation_level=i8(0),
        topics=(list_offsets.ListOffsetsTopic(name=TopicName(topic), partitions=(asked,)),),
    )


LIST_OFFSETS_RESPONSE: Final = ListOffsetsResponse


def read_offset(response: ListOffsetsResponse) -> tuple[ErrorCode, Offset]:
    """Error code and offset of the one partition asked for."""
    answer = _only(_only(response.topics).partitions)
    return answer.error_code, Offset(answer.offset)


def fetch_request(topic: str, partition: int, offset: Offset, bytes_max: int) -> fetch.FetchRequest:
    """Asks for what the partition has from `offset` on, without waiting for more."""
    asked = fetch.FetchPartition(partition=i32(partition), fetch_offset=i64(offset), partition_max_bytes=i32(bytes_max))
    return fetch.FetchRequest(
        max_wait=_milliseconds(0),
        min_bytes=i32(1),
        max_bytes=i32(bytes_max),
        topics=(fetch.FetchTopic(topic=TopicName(topic), partitions=(asked,)),),
        forgotten_topics_data=(),
    )


FETCH_RESPONSE: Final = FetchResponse


def read_fetched(response: FetchResponse) -> Fetched:
    """The one partition asked for."""
    if response.error_code is not ErrorCode.none:
        return Fetched(error_code=response.error_code, high_watermark=Offset(-1), records=b"")
    answer = _only(_only(response.responses).partitions)
    return Fetched(
        error_code=answer.error_code,
        high_watermark=Offset(answer.high_watermark),
        records=answer.records or b"",
    )


def _only(items: tuple[Any, ...]) -> Any:
    if len(items) != 1:
        raise MessageError(f"an answer about {len(items)} topics or partitions where one was asked for")
    return items[0]


def _milliseconds(value: int) -> i32Timedelta:
    return i32Timedelta.parse(timedelta(milliseconds=value))
