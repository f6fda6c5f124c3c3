"""Produce: records into partitions. Written at once, in the order received; answered when they are committed.

acks=1 is answered like acks=all, after the commit: on this cluster an acknowledgement always means on disk. acks=0 gets
no answer.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tidegate_core.metadata.names import INTERNAL_TOPICS, check_not_internal
from tidegate_core.node import Node
from tidegate_core.partition import Partition
from tidegate_core.protocol.error_codes import KafkaError, refusal_of
from tidegate_core.protocol.produce import (
    ProduceRequest,
    ProduceResult,
    decode_produce,
    encode_produce,
)
from tidegate_core.protocol.versions import PRODUCE_SERVED_FROM
from tidegate_core.results import AppendResult
from tidegate_wire.identifiers import LeaderEpoch, Offset
from tidegate_wire.kafka.messages import ErrorCode

_ACKS: Final = frozenset({-1, 0, 1})


class ProduceInFlight:
    """A Produce request whose records are written and may not be committed yet."""

    __slots__ = ("_request", "_results", "_waits", "size_bytes")

    def __init__(self, request: ProduceRequest, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        """Of the request's frame."""
        self._request = request
        self._results: list[ProduceResult] = []
        self._waits: list[tuple[int, Partition, Offset, LeaderEpoch]] = []
        """Position in the results, partition, the offset it has to commit, and the epoch in which it was led."""

    def written(self, partition: Partition, appended: AppendResult, result: ProduceResult) -> None:
        """A partition took its records."""
        self._waits.append((len(self._results), partition, appended.end_offset, appended.leader_epoch))
        self._results.append(result)

    def refused(self, topic: str, index: int, error: Exception) -> None:
        """A partition did not."""
        code, message = refusal_of(error)
        self._results.append(ProduceResult(topic, index, code, -1, -1, -1, message))

    @property
    def is_answered(self) -> bool:
        """Whether the client waits for an answer."""
        return self._request.acks != 0

    @property
    def has_errors(self) -> bool:
        """Whether a partition refused its records."""
        return any(result.error_code for result in self._results)

    @property
    def is_committed(self) -> bool:
        """Whether there is nothing to wait for."""
        return all(partition.has_committed(end, epoch) for _, partition, end, epoch in self._waits)

    async def committed(self) -> None:
        """Return when every partition committed its records, or can't, or the client's time is over."""
        try:
            async with asyncio.timeout(max(self._request.timeout_ms, 1) / 1000):
                while self._waits:
                    position, partition, end_offset, epoch = self._waits[0]
                    try:
                        await partition.committed(end_offset, epoch)
                    except Exception as error:  # becomes this partition's answer
                        self._fail(position, error)
                    self._waits.pop(0)
        except TimeoutError:
            timed_out = KafkaError(
                ErrorCode.request_timed_out, f"not committed within {self._request.timeout_ms} ms; it may still be"
            )
            for position, partition, end_offset, epoch in self._waits:
                if not partition.has_committed(end_offset, epoch):
                    self._fail(position, timed_out)

    def _fail(self, position: int, error: Exception) -> None:
        code, message = refusal_of(error)
        result = self._results[position]
        self._results[position] = ProduceResult(result.topic, result.partition, code, -1, -1, -1, message)

    def encode(self) -> bytes:
        """The response, as a whole frame."""
        return encode_produce(self._request.correlation_id, self._request.version, self._results)


def begin_produce(node: Node, frame: memoryview) -> ProduceInFlight:
    """Write the records of a request; nothing waits here.

    Raises:
        MessageError: the frame is not a Produce request.
    """
    request = decode_produce(frame)
    produce = ProduceInFlight(request, len(frame))
    refusal = _refusal_of_all(request)
    now_ms = node.clock_ms()
    for topic, index, records in request.partitions:
        if refusal is not None:
            produce.refused(topic, index, refusal)
            continue
        try:
            if topic in INTERNAL_TOPICS:
                check_not_internal(topic)
            partition = node.partition(topic, index)
            result = partition.append_as_leader(records, now_ms)
        except Exception as error:  # becomes this partition's answer
            produce.refused(topic, index, error)
        else:
            offsets = result.base_offset, result.log_append_time_ms, result.log_start_offset
            produce.written(partition, result, ProduceResult(topic, index, 0, *offsets, None))
    return produce


def _refusal_of_all(request: ProduceRequest) -> KafkaError | None:
    if request.version < PRODUCE_SERVED_FROM:
        return KafkaError(
            ErrorCode.unsupported_for_message_format, "only record batches are taken (Produce 3, Kafka 0.11)"
        )
    if request.acks not in _ACKS:
        return KafkaError(ErrorCode.invalid_required_acks, f"acks is -1, 0 or 1, not {request.acks}")
    if request.transactional_id is not None:
        return KafkaError(ErrorCode.transactional_id_authorization_failed, "transactions are not served")
    return None
