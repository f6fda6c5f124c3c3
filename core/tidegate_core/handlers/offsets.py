"""Positions in partitions: ListOffsets, OffsetForLeaderEpoch, DeleteRecords."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate_core.metadata.names import check_not_internal
from tidegate_core.node import Client, Node
from tidegate_core.partition import Partition
from tidegate_core.protocol.error_codes import ACCEPTED, KafkaError, refusal_of
from tidegate_core.protocol.translate import Fields
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
                partition = node.partition(topic.name, part.partition_index, part.current_leader_epoch)
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
    topics = []
    for topic in request.topics:
        partitions = []
        for part in topic.partitions:
            refusal, low_watermark = ACCEPTED, _UNKNOWN
            try:
                check_not_internal(topic.name)
                partition = node.partition(topic.name, part.partition_index)
                before = partition.high_watermark if part.offset == _TO_HIGH_WATERMARK else Offset(part.offset)
                low_watermark = partition.delete_before(before)
            except Exception as error:  # becomes this partition's answer
                refusal = refusal_of(error)
            partitions.append(
                {
                    "partition_index": part.partition_index,
                    "low_watermark": low_watermark,
                    "error_code": refusal.code,
                }
            )
        topics.append({"name": topic.name, "partitions": partitions})
    return {"topics": topics}
