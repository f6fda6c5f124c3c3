"""Whose a producer id is: a compacted topic in the core, and a table of it here.

A bridge writes `producer id -> edge` before it tells the edge its producer id, and reads on to the topic's end when it
meets an id that it does not know; so any bridge knows every id that was ever given out, and keeps nothing of its own.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Final

import structlog

from tidegate_bridge.errors import CoreRefused, CoreUnreachable
from tidegate_bridge.kafka.api import TopicSpec
from tidegate_bridge.kafka.client import KafkaClient
from tidegate_wire.identifiers import Offset, ProducerId
from tidegate_wire.kafka.messages import ErrorCode
from tidegate_wire.records import (
    BatchError,
    RecordBatchBuilder,
    TornBatch,
    check_batch,
    iter_batches,
    read_records,
)
from tidegate_wire.uplink.event import PRODUCERS_STREAM, partition_for

PRODUCERS_MAX: Final = 1_000_000
"""Producer ids in the table, some 150 MB; 5,000 edges that start daily reach it in half a year. The oldest go first."""

RETENTION_MS: Final = 180 * 24 * 60 * 60 * 1000
"""Half a year, as long as cores remember producers; an edge offline for longer has to take a new producer id."""

TOPIC: Final = TopicSpec(partitions=1, configs={"cleanup.policy": "compact,delete", "retention.ms": str(RETENTION_MS)})


_log = structlog.get_logger()


class ProducerTable:
    """Producer id to edge, in the order in which ids were learned; no I/O."""

    def __init__(self, producers_max: int = PRODUCERS_MAX) -> None:
        self._producers_max = producers_max
        self._owners: dict[int, str] = {}
        self._names: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def owner(self, producer_id: int) -> str | None:
        """The edge that was given the id; None if the table does not know it."""
        return self._owners.get(producer_id)

    def learn(self, producer_id: int, edge: str) -> None:
        """The id belongs to the edge. What was learned first stays: ids are given out once."""
        if producer_id in self._owners:
            return
        self._owners[producer_id] = self._names.setdefault(edge, edge)
        if len(self._owners) > self._producers_max:
            del self._owners[next(iter(self._owners))]

    def learn_batches(self, records: bytes | memoryview) -> Offset | None:
        """Learn from batches of the topic; returns the offset after the last whole one, None if there was none.

        Raises:
            BatchError: the core sent something else than record batches.
        """
        next_offset: Offset | None = None
        try:
            for view in iter_batches(records):
                header = check_batch(view)
                next_offset = Offset(header.last_offset + 1)
                if header.is_control:
                    continue
                for record in read_records(view):
                    self._learn_record(record.key, record.value)
        except TornBatch:
            pass  # a Fetch response may end inside a batch
        return next_offset

    def _learn_record(self, key: bytes | None, value: bytes | None) -> None:
        if key is None or value is None:
            return
        try:
            producer_id, edge = int(key), json.loads(value)["edge"]
        except (ValueError, KeyError, TypeError, RecursionError):
            _log.warning("producer_record_unreadable", key=key[:40].decode(errors="replace"))
            return
        if isinstance(edge, str):
            self.learn(producer_id, edge)


class Producers:
    """The table, and its topic."""

    def __init__(self, client: KafkaClient) -> None:
        self._client = client
        self._table = ProducerTable()
        self._positions: dict[int, Offset] = {}
        self._next_read: asyncio.Task[None] | None = None
        self._reads: set[asyncio.Task[None]] = set()
        self._reading = asyncio.Lock()

    def owner(self, producer_id: int) -> str | None:
        """The edge that an id belongs to, as far as the topic was read."""
        return self._table.owner(producer_id)

    async def close(self) -> None:
        """Stop reading."""
        for task in list(self._reads):
            task.cancel()
        await asyncio.gather(*self._reads, return_exceptions=True)

    async def give_out(self, edge: str) -> tuple[ProducerId, int]:
        """A fresh producer id and its epoch, written down as the edge's before this returns.

        Raises:
            CoreUnreachable: the core does not answer; the id, if there was one, is used by nobody.
            CoreRefused: the core refuses.
        """
        producer_id, producer_epoch = await self._client.init_producer_id()
        partitions = await self._partitions()
        key = str(producer_id)
        issued_ms = time.time_ns() // 1_000_000
        builder = RecordBatchBuilder()
        value = json.dumps({"edge": edge, "issued_ms": issued_ms}, separators=(",", ":"))
        builder.append(issued_ms, key.encode(), value.encode())
        await self._client.produce(PRODUCERS_STREAM, partition_for(key, partitions), builder.build())
        self._table.learn(producer_id, edge)
        return producer_id, producer_epoch

    async def read_to_end(self) -> None:
        """Learn everything that was written before this call; calls made meanwhile share the next read.

        Raises:
            CoreUnreachable: the core does not answer.
            CoreRefused: the core refuses.
        """
        if self._next_read is None:
            self._next_read = asyncio.create_task(self._read())
            self._reads.add(self._next_read)
            self._next_read.add_done_callback(self._read_done)
        await asyncio.shield(self._next_read)

    def _read_done(self, task: asyncio.Task[None]) -> None:
        self._reads.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def _read(self) -> None:
        async with self._reading:
            self._next_read = None
            for partition in range(await self._partitions()):
                await self._read_partition(partition)

    async def _partitions(self) -> int:
        known = self._client.partition_count(PRODUCERS_STREAM)
        if known is not None:
            return known
        found = (await self._client.ensure_topics({PRODUCERS_STREAM: TOPIC}))[PRODUCERS_STREAM]
        if isinstance(found, CoreRefused):
            raise found
        return found

    async def _read_partition(self, partition: int) -> None:
        offset = self._positions.get(partition, Offset(0))
        while True:
            fetched = await self._client.fetch(PRODUCERS_STREAM, partition, offset)
            if fetched.error_code is ErrorCode.offset_out_of_range:
                offset = await self._client.earliest_offset(PRODUCERS_STREAM, partition)
                continue
            try:
                after = self._table.learn_batches(fetched.records)
            except BatchError as error:
                raise CoreUnreachable(f"{PRODUCERS_STREAM} can't be read: {error}") from error
            if after is None or after <= offset:
                break
            self._positions[partition] = offset = after
            if offset >= fetched.high_watermark:
                break
        _log.debug("producers_read", partition=partition, offset=offset, known=len(self._table))
