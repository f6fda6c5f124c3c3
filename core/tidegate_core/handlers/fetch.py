"""Fetch: records out of partitions, waiting for them up to the client's time if there are too few (long poll)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tidegate_core.node import Node
from tidegate_core.protocol.error_codes import KafkaError, refusal_of
from tidegate_core.protocol.fetch import FetchedPartition, encode_fetch
from tidegate_core.protocol.translate import milliseconds
from tidegate_core.waits import ReadWait
from tidegate_wire.identifiers import Offset
from tidegate_wire.kafka.messages import ErrorCode, RequestHeader

if TYPE_CHECKING:
    from kio.schema.fetch.v12.request import FetchRequest


class _Wanted(NamedTuple):
    topic: str
    partition: int
    offset: Offset
    bytes_max: int
    leader_epoch: int


class _Fetched(NamedTuple):
    topics: list[tuple[str, list[FetchedPartition]]]
    size_bytes: int
    is_final: bool
    """Something of it must not wait: an error."""


async def fetch(node: Node, header: RequestHeader, request: FetchRequest) -> list[bytes]:
    """Answer a Fetch; `request` is of the client's own version, whose missing fields have their defaults here."""
    if getattr(request, "session_id", 0) != 0:
        return encode_fetch(
            header.correlation_id, header.api_version, [], error_code=ErrorCode.fetch_session_id_not_found
        )
    wanted = [
        _Wanted(
            topic.topic,
            part.partition,
            Offset(part.fetch_offset),
            part.partition_max_bytes,
            getattr(part, "current_leader_epoch", -1),
        )
        for topic in request.topics
        for part in topic.partitions
    ]
    bytes_max = min(request.max_bytes, node.settings.fetch_bytes_max)
    bytes_min = min(request.min_bytes, bytes_max)
    fetched = _read(node, wanted, bytes_max)
    wait_ms = min(milliseconds(request.max_wait), node.settings.fetch_wait_ms_max)
    if wanted and wait_ms > 0:
        deadline = asyncio.get_running_loop().time() + wait_ms / 1000
        while fetched.size_bytes < bytes_min and not fetched.is_final:
            if not await _more(node, wanted, fetched, deadline):
                break
            fetched = _read(node, wanted, bytes_max)
    return encode_fetch(header.correlation_id, header.api_version, fetched.topics)


def _read(node: Node, wanted: list[_Wanted], bytes_max: int) -> _Fetched:
    topics: list[tuple[str, list[FetchedPartition]]] = []
    room, is_final = bytes_max, False
    for topic, index, offset, partition_bytes_max, leader_epoch in wanted:
        try:
            partition = node.partition(topic, index, leader_epoch)
            if room > 0:
                result = partition.read(offset, min(partition_bytes_max, room))
                room -= result.size_bytes
                fetched = FetchedPartition(
                    index, 0, result.high_watermark, result.log_start_offset, result.buffers, result.size_bytes
                )
            else:  # the client asks again, with this partition before those that filled the answer
                fetched = FetchedPartition(index, 0, partition.high_watermark, partition.log_start_offset, (), 0)
        except Exception as error:  # becomes this partition's answer
            is_final = True
            fetched = FetchedPartition(index, refusal_of(error).code, -1, -1, (), 0)
        if topics and topics[-1][0] == topic:
            topics[-1][1].append(fetched)
        else:
            topics.append((topic, [fetched]))
    return _Fetched(topics, bytes_max - room, is_final)


async def _more(node: Node, wanted: list[_Wanted], fetched: _Fetched, deadline: float) -> bool:
    """Whether a partition's high watermark moved past what was fetched, before the deadline."""
    loop = asyncio.get_running_loop()
    happened: asyncio.Future[bool] = loop.create_future()
    timer = loop.call_at(deadline, _resolver(happened, outcome=False))
    on_more = _resolver(happened, outcome=True)
    watermarks = (part.high_watermark for _, parts in fetched.topics for part in parts)
    waits: list[ReadWait] = []
    try:
        for (topic, index, offset, _, _), watermark in zip(wanted, watermarks, strict=True):
            partition = node.partition(topic, index)
            if partition.failure is None:  # else it has no more, and calls back at once
                waits.append(partition.when_readable(Offset(max(offset, watermark)), on_more))
        return await happened
    except KafkaError:
        return True  # it was deleted meanwhile: reading again tells
    finally:
        timer.cancel()
        for wait in waits:
            wait.cancel()


def _resolver(future: asyncio.Future[bool], *, outcome: bool) -> Callable[[], None]:
    def resolve() -> None:
        if not future.done():
            future.set_result(outcome)

    return resolve
