"""Lanes on one side, connections to leaders on the other: sends what lanes give, brings them the answers."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from tidegate_bridge.backoff import Chance
from tidegate_bridge.batch_checks import CheckedBatch
from tidegate_bridge.errors import CoreRefused, CoreUnreachable
from tidegate_bridge.kafka.client import KafkaClient
from tidegate_bridge.kafka.connection import KafkaConnection
from tidegate_bridge.kafka.produce import ProduceResult
from tidegate_bridge.lane import Answer, Lane, LaneBatch, Settled
from tidegate_bridge.verdicts import Verdict, is_refused_after_retries, tells_of_another_leader, verdict_of
from tidegate_wire.errors import TidegateError
from tidegate_wire.kafka.messages import ErrorCode
from tidegate_wire.uplink.messages import AckError

_log = structlog.get_logger()

LaneKey = tuple[int, int, str, int]
"""Producer id, producer epoch, stream, partition."""


class _Way:
    """A lane, and what it waits for."""

    __slots__ = ("key", "lane", "search", "timer")

    def __init__(self, key: LaneKey, lane: Lane) -> None:
        self.key = key
        self.lane = lane
        self.search: asyncio.Task[None] | None = None
        """Looks for a connection to the leader."""
        self.timer: asyncio.TimerHandle | None = None


class Dispatcher:
    """Produces batches, each producer's in order."""

    def __init__(self, client: KafkaClient, *, produce_timeout_ms: int, retry_ms: int, chance: Chance) -> None:
        self._client = client
        self._produce_timeout_ms = produce_timeout_ms
        self._retry_ms = retry_ms
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._ways: dict[LaneKey, _Way] = {}
        self._closed = False

    def submit(self, batch: CheckedBatch, settled: Settled) -> None:
        """Send a batch as soon as its turn comes; `settled` is called once, never from within this call's caller."""
        header = batch.header
        key = (header.producer_id, header.producer_epoch, batch.stream, batch.partition)
        way = self._ways.get(key)
        if way is None:
            way = self._ways[key] = _Way(key, Lane(retry_ms=self._retry_ms, chance=self._chance))
        way.lane.add(batch, settled, self._now_ms())
        self._pump(way)

    async def close(self) -> None:
        """Stop sending; what has no answer yet never gets one from here."""
        self._closed = True
        searches = [way.search for way in self._ways.values() if way.search is not None]
        for way in self._ways.values():
            if way.timer is not None:
                way.timer.cancel()
        for search in searches:
            search.cancel()
        await asyncio.gather(*searches, return_exceptions=True)

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    def _pump(self, way: _Way) -> None:
        """Send what the lane gives, until it gives nothing or there is no connection to send it on."""
        if self._closed or way.search is not None:
            return
        _, _, stream, partition = way.key
        while True:
            connection = self._client.ready_leader(stream, partition)
            if connection is None and way.lane.can_take(self._now_ms()):
                way.search = self._loop.create_task(self._find_leader(way))
                return
            entry = None if connection is None else way.lane.take(self._now_ms())
            if connection is None or entry is None:
                break
            self._send(way, entry, connection)
        self._rest(way)

    def _send(self, way: _Way, entry: LaneBatch, connection: KafkaConnection) -> None:
        _, _, stream, partition = way.key
        future = connection.produce(stream, partition, entry.batch.record_batch, self._produce_timeout_ms)
        future.add_done_callback(lambda future: self._answered(way, entry, future))

    def _rest(self, way: _Way) -> None:
        """Nothing can be sent now: come back when the lane's wait is over, or forget the lane."""
        if way.lane.is_empty:
            self._ways.pop(way.key, None)
            return
        until_ms = way.lane.hold_until_ms
        if until_ms is not None and way.timer is None:
            way.timer = self._loop.call_at(until_ms / 1000, self._timer_fired, way)

    def _timer_fired(self, way: _Way) -> None:
        way.timer = None
        self._pump(way)

    async def _find_leader(self, way: _Way) -> None:
        _, _, stream, partition = way.key
        try:
            await self._client.leader(stream, partition)
        except TidegateError as error:
            code = error.code.name if isinstance(error, CoreRefused) else ErrorCode.network_exception.name
            refusal = AckError(code=code, reason=str(error), retriable=True)
            way.lane.unreachable(Answer(verdict=Verdict.RETRY, error=refusal), self._now_ms())
        finally:
            way.search = None
        self._pump(way)

    def _answered(self, way: _Way, entry: LaneBatch, future: asyncio.Future[ProduceResult]) -> None:
        if self._closed:
            if not future.cancelled():
                future.exception()  # noted: nobody else will look
            return
        _, _, stream, partition = way.key
        error = future.exception()
        if error is None:
            answer = self._read(way, future.result())
        else:
            assert isinstance(error, CoreUnreachable), error
            self._client.forget_leader(stream, partition)
            refusal = AckError(code=ErrorCode.network_exception.name, reason=str(error), retriable=True)
            answer = Answer(verdict=Verdict.RETRY, error=refusal)
        way.lane.settle(entry, answer, self._now_ms())
        self._pump(way)

    def _read(self, way: _Way, result: ProduceResult) -> Answer:
        producer_id, _, stream, partition = way.key
        code = result.error_code
        verdict = verdict_of(code)
        if verdict is Verdict.STORED:
            known = code is ErrorCode.none and result.base_offset >= 0
            return Answer(verdict=verdict, offset=result.base_offset if known else None)
        if tells_of_another_leader(code):
            self._client.forget_leader(stream, partition)
        details: dict[str, Any] = {"stream": stream, "partition": partition, "producer_id": producer_id}
        _log.debug("batch_not_stored", code=code.name, verdict=verdict.value, reason=result.message, **details)
        retriable = verdict is not Verdict.REFUSED and not is_refused_after_retries(code)
        reason = result.message or f"the core answered {code.name}"
        return Answer(verdict=verdict, error=AckError(code=code.name, reason=reason, retriable=retriable))
