"""Positions in partitions: ListOffsets, OffsetForLeaderEpoch, DeleteRecords."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tidegate_core.metadata.names import check_not_internal
from tidegate_core.node import Client, Node
from tidegate_core.partition import Partition
from tidegate_core.protocol.error_codes import ACCEPTED, KafkaError, refusal_of
from tidegate_core.protocol.translate import Fields
from tidegate_core.replication.quorum import low_watermark
from tidegate_wire.identifiers import LeaderEpoch, Offset
from tidegate_wire.kafka.messages import ErrorCode

if TYPE_CHECKING:
    from kio.schema.delete_records.v2.request import DeleteRecordsRequest
    from kio.schema.list_offsets.v7.request import ListOffsetsRequest
    from kio.schema.offset_for_leader_epoch.v4.request import OffsetForLeaderEpochRequest

LATEST: Final = -1
EARLIEST: Final = -2
MAX_TIMESTAMP: Final = -3
"""KIP-734."""

DELETED_POLL_S: Final = 0.01
"""Between two looks at what followers have deleted; they say so with their next fetch."""

_UNKNOWN: Final = -1
_TO_HIGH_WATERMARK: Final = -1


async def list_offsets(node: Node, request: ListOffsetsRequest, _client: Client) -> Fields:
    """The offset at a time, or at an end of the log (KIP-79)."""
    topics = []
    for topic in request.topics:
        partitions = []
        for part in topic.partitions:
            refusal, found = ACCEPTED, (_UNKNOWN, _UNKNOWN, _UNKNOWN)
            try:
                partition = _settled(node, topic.name, part.partition_index, part.current_leader_epoch)
                found = _find(partition, part.timestamp)
            except Exception as error:  # becomes this partition's answer
                refusal = refusal_of(error)
            offset, timestamp_ms, leader_epoch = found
            partitions.append(
                {
                    "partition_index": part.partition_index,
                    "error_code": refusal.code,
                    "timestamp": timestamp_ms,
                    "offset": offset,
                    "leader_epoch": leader_epoch,
                }
            )
        topics.append({"name": topic.name, "partitions": partitions})
    return {"topics": topics}


def _find(partition: Partition, timestamp_ms: int) -> tuple[int, int, int]:
    """Offset, its time, and the leader epoch where that is known."""
    if timestamp_ms == LATEST:
        return partition.high_watermark, _UNKNOWN, partition.leader_epoch
    if timestamp_ms == EARLIEST:
        return partition.log_start_offset, _UNKNOWN, _UNKNOWN
    if timestamp_ms == MAX_TIMESTAMP:
        found = partition.offset_of_latest_time()
    elif timestamp_ms >= 0:
        found = partition.offset_for_time(timestamp_ms)
    else:
        raise KafkaError(ErrorCode.unsupported_version, f"a time of {timestamp_ms} has no meaning here")
    return (*(found or (_UNKNOWN, _UNKNOWN)), _UNKNOWN)


async def offset_for_leader_epoch(node: Node, request: OffsetForLeaderEpochRequest, _client: Client) -> Fields:
    """Where an epoch ended, so that a consumer sees whether what it read is still there (KIP-320)."""
    topics = []
    for topic in request.topics:
        partitions = []
        for part in topic.partitions:
            refusal, found = ACCEPTED, (LeaderEpoch(_UNKNOWN), Offset(_UNKNOWN))
            try:
                partition = node.partition(topic.topic, part.partition, part.current_leader_epoch)
                found = partition.end_offset_for_epoch(LeaderEpoch(part.leader_epoch))
            except Exception as error:  # becomes this partition's answer
                refusal = refusal_of(error)
            partitions.append(
                {
                    "error_code": refusal.code,
                    "partition": part.partition,
                    "leader_epoch": found[0],
                    "end_offset": found[1],
                }
            )
        topics.append({"topic": topic.topic, "partitions": partitions})
    return {"topics": topics}


async def delete_records(node: Node, request: DeleteRecordsRequest, _client: Client) -> Fields:
    """Delete what is before an offset; -1 is the high watermark (KIP-107)."""
    deadline_s = asyncio.get_running_loop().time() + request.timeout.total_seconds()
    topics = []
    for topic in request.topics:
        partitions = []
        for part in topic.partitions:
            refusal, low = ACCEPTED, Offset(_UNKNOWN)
            try:
                check_not_internal(topic.name)
                partition = _settled(node, topic.name, part.partition_index)
                before = partition.high_watermark if part.offset == _TO_HIGH_WATERMARK else Offset(part.offset)
                low = await _delete_before(node, partition, before, deadline_s)
            except Exception as error:  # becomes this partition's answer
                refusal = refusal_of(error)
            partitions.append(
                {
                    "partition_index": part.partition_index,
                    "low_watermark": low,
                    "error_code": refusal.code,
                }
            )
        topics.append({"name": topic.name, "partitions": partitions})
    return {"topics": topics}


async def _delete_before(node: Node, partition: Partition, offset: Offset, deadline_s: float) -> Offset:
    """Raise the log's start, and wait for the followers in step to do so too; returns the lowest start of them all."""
    replicas = node.replicas
    partition.delete_before(offset)
    hosted = replicas.hosted(partition.key)
    assert hosted is not None
    replicas.sessions.watermark_moved(hosted)
    while (low := low_watermark(replicas, hosted)) < offset:
        if not partition.is_leader:
            raise KafkaError(ErrorCode.not_leader_or_follower, "deleted here, and another node leads by now")
        if asyncio.get_running_loop().time() >= deadline_s:
            raise KafkaError(ErrorCode.request_timed_out, "deleted here, and not yet on every replica in step")
        await asyncio.sleep(DELETED_POLL_S)
    return low


def _settled(node: Node, topic: str, index: int, leader_epoch: int = -1) -> Partition:
    """A partition that this node leads, and of which it knows what is committed."""
    partition = node.partition(topic, index, leader_epoch)
    if not node.replicas.is_settled(partition):
        raise KafkaError(
            ErrorCode.offset_not_available,
            f"{topic}-{index} has a new leader, which does not know yet what is committed",
        )
    return partition
