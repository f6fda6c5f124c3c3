"""The uplink's shell: it reads clock, log and broker for the window, and carries out what the window asks for."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog

from tidegate_edge.errors import CutConflict
from tidegate_edge.event_log import (
    CutBatch,
    CutRows,
    EventLog,
    LogStats,
    Refusal,
    RefuseEvent,
    SettleCut,
)
from tidegate_edge.event_log import TakeProducer as RememberProducer
from tidegate_edge.uplink.broker_client import BrokerClient, BrokerUnreachable, Will
from tidegate_edge.uplink.encoder import BatchEncoder, EncodedCut, TooLarge
from tidegate_edge.uplink.outputs import (
    CutWanted,
    Notice,
    Output,
    Reconnect,
    SendBatch,
    SendHello,
    Settle,
    TakeProducer,
)
from tidegate_edge.uplink.window import Window
from tidegate_wire.address import Address
from tidegate_wire.uplink.messages import Ack, Batch, Hello, Presence, UplinkMessageError, Welcome
from tidegate_wire.uplink.topics import TO_EDGE, UplinkKind, parse_topic, topic

ROWS_PER_CUT_MAX: Final = 20_000
"""Rows read for one cut, whatever their size: smaller ones than 50 bytes would make batches of more."""

ROWS_PER_PARTITION_SHARE: Final = 4
"""A cut by device reads up to so many batches' worth of rows, since they go to several partitions."""

INBOX_MAX: Final = 1_024
"""Messages from the broker that wait to be handled; an ack beyond it is lost, and comes again when its batch does."""

RECONNECT_FIRST_S: Final = 0.5
CLOSE_TIMEOUT_S: Final = 2.0
"""For the last presence and DISCONNECT at shutdown."""

KEEPALIVE_MAX_S: Final = 240
"""paho gives a connection up when one packet takes longer than two keep-alives to send. A connection that ends without
any progress while batches were on their way is tried again with twice the keep-alive, up to this."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class UplinkOptions:
    """How an uplink behaves."""

    edge: str
    address: Address
    by_device: Mapping[str, bool]
    """Stream name to whether it is partitioned by device; streams that only the log knows are not."""
    linger_ms: int
    keepalive_s: int
    reconnect_delay_max_s: float
    presence_interval_s: float
    software: str


class Uplink:
    """Carries the log's events to a bridge until cancelled."""

    def __init__(self, event_log: EventLog, options: UplinkOptions) -> None:
        self._log = event_log
        self._options = options
        self._encoder = BatchEncoder(options.edge)
        producer = event_log.stats.producer
        self._window = Window(
            streams=[(name, options.by_device.get(name, False)) for name in event_log.stats.streams],
            in_flight=event_log.batches,
            last_producer_id=None if producer is None else producer[0],
            linger_ms=options.linger_ms,
        )
        self._batches = {batch.number: batch for batch in event_log.batches}
        self._encoded: dict[int, bytes] = {}
        self._uncut: dict[str, int] = {}
        self._inbox: deque[Callable[[float], None]] = deque()
        self._lost_messages = 0
        self._wake = asyncio.Event()
        self._client: BrokerClient | None = None
        self._publishing: dict[int, int] = {}
        self._connection_lost: str | None = None
        self._session = ""
        self._works: set[asyncio.Task[None]] = set()
        self._keepalive_s = options.keepalive_s
        self._progress = 0
        self._was_welcomed = False
        event_log.on_commit(self._committed)

    async def run(self) -> None:
        """Connect, and connect again, until cancelled; then say goodbye to the broker.

        Raises:
            EventLogFailed, EventLogDamaged: the log can't be read or written.
        """
        failures = 0
        try:
            while True:
                try:
                    await self._open()
                except BrokerUnreachable as error:
                    if failures == 0:
                        log.warning("uplink.unreachable", address=str(self._options.address), reason=str(error))
                else:
                    log.info("uplink.connected", address=str(self._options.address), session=self._session)
                    reason = await self._serve()
                    log.warning("uplink.disconnected", reason=reason)
                    if self._was_welcomed:
                        failures = 0
                delay_max_s = min(self._options.reconnect_delay_max_s, RECONNECT_FIRST_S * 2 ** min(failures, 16))
                failures += 1
                # Full jitter: a thousand edges that lost the same broker do not come back at the same time.
                await self._pause(random.uniform(0, delay_max_s))
        finally:
            await self._close()

    # Connecting ------------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        edge = self._options.edge
        self._session = secrets.token_hex(8)
        self._connection_lost = None
        self._publishing.clear()
        client = BrokerClient(
            client_id=f"tidegate-edge-{edge}",
            keepalive_s=self._keepalive_s,
            will=Will(
                topic=topic(edge, UplinkKind.PRESENCE),
                payload=Presence(edge=edge, online=False, session=self._session).encode(),
            ),
            on_message=self._received,
            on_confirmed=self._confirmed,
            on_lost=self._lost,
        )
        await client.open(self._options.address, tuple(topic(edge, kind) for kind in TO_EDGE))
        self._client = client

    async def _serve(self) -> str:
        """Carry out what the window asks for until the connection ends; why it did."""
        progress = self._progress
        self._window.connected(_now_ms(), self._session)
        presence = self._work(self._refresh_presence())
        try:
            while self._connection_lost is None:
                await self._step()
        finally:
            presence.cancel()
            if self._client is not None and self._connection_lost is not None:
                self._client.abort()
                self._client = None
                self._was_welcomed = self._window.is_welcomed
                had_batches = self._window.batches_in_flight > 0
                self._window.disconnected(_now_ms())
                is_stuck = had_batches and self._progress == progress
                self._keepalive_s = (
                    min(KEEPALIVE_MAX_S, 2 * self._keepalive_s) if is_stuck else self._options.keepalive_s
                )
        return self._connection_lost

    async def _pause(self, delay_s: float) -> None:
        """Wait before the next attempt; the log's answers are still taken."""
        end_ms = _now_ms() + delay_s * 1000
        while (left_ms := end_ms - _now_ms()) > 0:
            await self._step(left_ms)

    async def _close(self) -> None:
        for work in self._works:
            work.cancel()
        await asyncio.gather(*self._works, return_exceptions=True)
        if self._client is not None:
            self._client.publish(
                topic(self._options.edge, UplinkKind.PRESENCE), self._presence(online=False, oldest=None), retain=True
            )
            await self._client.close(CLOSE_TIMEOUT_S)
            self._client = None

    # The driver ------------------------------------------------------------------------------------------------------

    async def _step(self, wait_max_ms: float | None = None) -> None:
        """Give the window what came in, carry out what it asks for, and wait for more."""
        self._wake.clear()
        now_ms = _now_ms()
        for name, state in self._log.stats.streams.items():
            if self._uncut.get(name) != state.uncut:
                self._uncut[name] = state.uncut
                self._window.rows_available(now_ms, name, state.uncut)
        while self._inbox:
            self._inbox.popleft()(now_ms)
        self._window.tick(now_ms)
        for output in self._window.take_outputs():
            await self._carry_out(output)
        if self._inbox or self._connection_lost is not None:
            return
        deadline_ms = self._window.next_deadline_ms()
        wait_ms = None if deadline_ms is None else max(0.0, deadline_ms - _now_ms())
        if wait_max_ms is not None:
            wait_ms = wait_max_ms if wait_ms is None else min(wait_ms, wait_max_ms)
        try:
            async with asyncio.timeout(None if wait_ms is None else wait_ms / 1000):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _carry_out(self, output: Output) -> None:
        match output:
            case SendBatch():
                await self._send_batch(self._batches[output.number])
            case SendHello():
                self._send_hello(output)
            case CutWanted():
                self._work(self._cut(output))
            case Settle():
                self._work(self._settle(output))
            case TakeProducer():
                self._work(self._take_producer(output))
            case Reconnect():
                self._lost(output.reason)
            case Notice():
                log.warning(output.event, **output.facts)

    def _work(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._works.add(task)
        task.add_done_callback(self._worked)
        return task

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._works.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._input(partial(_raise, error))

    def _input(self, function: Callable[[float], None]) -> None:
        """Have `function` called with the time in the next step."""
        self._inbox.append(function)
        self._wake.set()

    # What the window asks for ----------------------------------------------------------------------------------------

    def _send_hello(self, hello: SendHello) -> None:
        message = Hello(
            edge=self._options.edge,
            session=hello.session,
            streams=tuple(self._log.stats.streams),
            wants_producer_id=hello.wants_producer_id,
            software=self._options.software,
        )
        if self._client is not None:
            self._client.publish(topic(self._options.edge, UplinkKind.HELLO), message.encode())

    async def _send_batch(self, batch: CutBatch) -> None:
        record_batch = self._encoded.get(batch.number)
        if record_batch is None:
            record_batch = await self._encode_again(batch)
        message = Batch(stream=batch.stream, partition=batch.partition, record_batch=record_batch)
        mid = None
        if self._client is not None:
            mid = self._client.publish(topic(self._options.edge, UplinkKind.BATCH), message.encode())
        if mid is not None:
            self._publishing[mid] = batch.number

    async def _encode_again(self, batch: CutBatch) -> bytes:
        record_batch = await self._log.read(
            batch.stream,
            batch.first_sequence,
            batch.last_sequence,
            partial(self._encoder.again, batch),
            rows_max=batch.last_sequence - batch.first_sequence + 1,
            bytes_max=2**62,
        )
        assert record_batch is not None, batch
        self._encoded[batch.number] = record_batch
        return record_batch

    async def _cut(self, wanted: CutWanted) -> None:
        state = self._log.stats.streams[wanted.stream]
        share = ROWS_PER_PARTITION_SHARE if wanted.by_device and wanted.partitions > 1 else 1
        encoded = await self._log.read(
            wanted.stream,
            state.first_uncut,
            2**62,
            partial(self._encoder.cut, wanted),
            rows_max=min(wanted.rows_max, ROWS_PER_CUT_MAX) * share,
            bytes_max=wanted.target_bytes * share,
        )
        try:
            if isinstance(encoded, EncodedCut):
                await self._write_cut(wanted, state.first_uncut, encoded)
                return
            if isinstance(encoded, TooLarge):
                await self._refuse_event(wanted, state.first_uncut, encoded)
        except CutConflict as conflict:
            log.info("uplink.cut_again", reason=str(conflict))
        self._input(lambda now_ms: self._window.cut_failed(now_ms, wanted.stream))

    async def _write_cut(self, wanted: CutWanted, read_from: Any, encoded: EncodedCut) -> None:
        batches = await self._log.change(
            CutRows(
                stream=wanted.stream,
                read_from=read_from,
                first_sequence=encoded.first_sequence,
                last_sequence=encoded.last_sequence,
                device_partitions=wanted.partitions if wanted.by_device else 0,
                producer_id=wanted.producer_id,
                producer_epoch=wanted.producer_epoch,
                batches=encoded.batches,
            )
        )
        for batch, made in zip(batches, encoded.batches, strict=True):
            self._batches[batch.number] = batch
            self._encoded[batch.number] = made.record_batch
        self._input(lambda now_ms: self._window.cut_made(now_ms, wanted.stream, batches, encoded.encoded_bytes))

    async def _refuse_event(self, wanted: CutWanted, read_from: Any, event: TooLarge) -> None:
        reason = f"an event of {len(event.record_batch)} bytes where a batch has at most {event.batch_bytes_max}"
        log.warning("uplink.event_too_large", stream=wanted.stream, sequence=event.sequence, reason=reason)
        await self._log.change(
            RefuseEvent(
                stream=wanted.stream,
                read_from=read_from,
                sequence=event.sequence,
                partition=event.partition,
                refusal=Refusal(reason=f"too large: {reason}", record_batch=event.record_batch),
            )
        )

    async def _settle(self, settle: Settle) -> None:
        refused = {}
        for number, reason in settle.refused.items():
            record_batch = self._encoded.get(number) or await self._encode_again(self._batches[number])
            refused[number] = Refusal(reason=reason, record_batch=record_batch)
        numbers = [number for number, batch in self._batches.items() if batch.cut == settle.cut]
        await self._log.change(SettleCut(cut=settle.cut, returned=settle.returned, refused=refused))
        self._progress += 1
        for number in numbers:
            del self._batches[number]
            self._encoded.pop(number, None)
        self._input(lambda now_ms: self._window.settled(now_ms, settle.cut))

    async def _take_producer(self, take: TakeProducer) -> None:
        await self._log.change(RememberProducer(producer_id=take.producer_id, producer_epoch=take.producer_epoch))
        log.info("uplink.producer_taken", producer_id=take.producer_id, producer_epoch=take.producer_epoch)
        self._input(self._window.producer_taken)

    # What comes in ---------------------------------------------------------------------------------------------------

    def _committed(self, stats: LogStats) -> None:
        if any(self._uncut.get(name) != state.uncut for name, state in stats.streams.items()):
            self._wake.set()

    def _confirmed(self, mid: int) -> None:
        number = self._publishing.pop(mid, None)
        if number is not None:
            self._input(lambda now_ms: self._window.confirmed(now_ms, number))

    def _lost(self, reason: str) -> None:
        if self._connection_lost is None:
            self._connection_lost = reason
        self._wake.set()

    def _received(self, name: str, payload: bytes) -> None:
        parsed = parse_topic(name)
        if parsed is None or parsed[0] != self._options.edge:
            return
        if len(self._inbox) >= INBOX_MAX:
            self._lost_messages += 1
            if self._lost_messages == 1:
                log.warning("uplink.inbox_full", limit=INBOX_MAX)
            return
        kind = parsed[1]
        try:
            if kind is UplinkKind.ACK:
                ack = Ack.decode(payload)
                self._input(lambda now_ms: self._window.ack(now_ms, ack))
            elif kind is UplinkKind.WELCOME:
                welcome = Welcome.decode(payload)
                self._input(lambda now_ms: self._window.welcome(now_ms, welcome))
            else:
                log.warning("uplink.unknown_request", kind=kind.value, size_bytes=len(payload))
        except UplinkMessageError as error:
            log.warning("uplink.malformed_message", kind=kind.value, reason=str(error))

    # Presence --------------------------------------------------------------------------------------------------------

    async def _refresh_presence(self) -> None:
        while self._client is not None:
            oldest = await self._log.oldest_event_time_ms()
            if self._client is not None:
                self._client.publish(
                    topic(self._options.edge, UplinkKind.PRESENCE),
                    self._presence(online=True, oldest=oldest),
                    retain=True,
                )
            await asyncio.sleep(self._options.presence_interval_s)

    def _presence(self, *, online: bool, oldest: int | None) -> bytes:
        stats = self._log.stats
        return Presence(
            edge=self._options.edge,
            online=online,
            session=self._session,
            time_ms=time.time_ns() // 1_000_000,
            backlog_events=stats.events,
            backlog_bytes=stats.used_bytes,
            oldest_event_time_ms=oldest,
            lost_events=stats.lost_events,
        ).encode()


def _now_ms() -> float:
    return time.monotonic() * 1000


def _raise(error: BaseException, _now_ms: float) -> None:
    raise error
