"""Whether edges are online, written into a compacted topic: the newest of each edge, many at a time."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from tidegate_bridge.backoff import Backoff, Chance
from tidegate_bridge.errors import CoreRefused
from tidegate_bridge.kafka.api import TopicSpec
from tidegate_bridge.kafka.client import KafkaClient
from tidegate_wire.errors import TidegateError
from tidegate_wire.records import RecordBatchBuilder
from tidegate_wire.uplink.event import EDGES_STREAM, partition_for

PRESENCE_BYTES_MAX: Final = 16 * 1024
"""A presence takes some 300 bytes; the rest is for what later versions add."""

EDGES_MAX: Final = 10_000
"""Edges with a presence that is not written yet; beyond it the newcomer's is passed over until its next one."""

BATCH_BYTES_MAX: Final = 512 * 1024
"""Half of what a Kafka topic takes in one batch by default."""

TOPIC: Final = TopicSpec(partitions=1, configs={"cleanup.policy": "compact"})
RETRY: Final = Backoff(first_ms=100, longest_ms=5_000)

_log = structlog.get_logger()


class PresenceWriter:
    """Writes what `put` was given last for each edge; `run` does the writing."""

    def __init__(self, client: KafkaClient, *, chance: Chance) -> None:
        self._client = client
        self._chance = chance
        self._unwritten: dict[str, bytes] = {}
        self._changed = asyncio.Event()

    def put(self, edge: str, presence: bytes) -> bool:
        """Take an edge's presence; False if too many wait to be written."""
        if edge not in self._unwritten and len(self._unwritten) >= EDGES_MAX:
            return False
        self._unwritten[edge] = presence
        self._changed.set()
        return True

    async def run(self) -> None:
        """Write until cancelled."""
        failures = 0
        while True:
            await self._changed.wait()
            self._changed.clear()
            taken, self._unwritten = self._unwritten, {}
            try:
                await self._write(taken)
                failures = 0
            except TidegateError as error:
                self._unwritten = taken | self._unwritten  # a newer presence of the same edge wins
                self._changed.set()
                failures += 1
                if failures == 1:
                    _log.warning("presence_not_written", edges=len(taken), reason=str(error))
                await asyncio.sleep(RETRY.delay_ms(failures, self._chance) / 1000)

    async def _write(self, presences: dict[str, bytes]) -> None:
        found = (await self._client.ensure_topics({EDGES_STREAM: TOPIC}))[EDGES_STREAM]
        if isinstance(found, CoreRefused):
            raise found
        now_ms = time.time_ns() // 1_000_000
        builders: dict[int, RecordBatchBuilder] = {}
        for edge, presence in presences.items():
            partition = partition_for(edge, found)
            builder = builders.setdefault(partition, RecordBatchBuilder())
            builder.append(now_ms, edge.encode(), presence)
            if builder.size_bytes > BATCH_BYTES_MAX:
                await self._client.produce(EDGES_STREAM, partition, builders.pop(partition).build())
        for partition, builder in builders.items():
            await self._client.produce(EDGES_STREAM, partition, builder.build())
