"""What a bridge does with the messages of edges, whatever transport they came through.

hello     -> a producer id if one is wanted, the streams -> welcome
batch     -> checks -> Produce -> ack, with the offset or an error
presence  -> a record in a compacted topic

A transport asks for `room` before it hands a message to `receive`, and is told by `done` when the message was dealt
with: for a batch when the core has committed or refused it. Nothing is kept here that edge or core do not have too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Final, Self

import structlog

from tidegate_bridge.admission import Admission
from tidegate_bridge.backoff import Chance
from tidegate_bridge.batch_checks import CheckedBatch, check_form, make_ack, try_parse_header
from tidegate_bridge.dispatcher import Dispatcher
from tidegate_bridge.hellos import Hellos
from tidegate_bridge.kafka.client import KafkaClient
from tidegate_bridge.presence import PRESENCE_BYTES_MAX, PresenceWriter
from tidegate_bridge.producers import Producers
from tidegate_bridge.settings import BridgeSettings
from tidegate_bridge.streams import StreamPolicy
from tidegate_bridge.window import InFlightWindow
from tidegate_wire.address import Address
from tidegate_wire.errors import TidegateError
from tidegate_wire.uplink.messages import Ack, AckError, Batch, Hello, Presence, UplinkMessageError, Welcome
from tidegate_wire.uplink.topics import UplinkKind, topic

HELLO_BYTES_MAX: Final = 256 * 1024
"""A thousand streams with the longest names Kafka allows."""

WINDOW_EXCEEDED: Final = "window_exceeded"
"""The edge has more in flight than it was told it may; it is to send this batch again later."""

SHUTDOWN_MS: Final = 5_000
"""How long a bridge that stops waits for batches that are with the core."""

LOGGED_REFUSALS_MAX: Final = 10_000
"""Kinds of refusal (edge and code) that were logged once; beyond it the memory of them starts again."""

_log = structlog.get_logger()

Publish = Callable[[str, bytes], None]
"""Sends a payload to a topic's subscribers with QoS 0: an edge that misses an answer asks again."""

Done = Callable[[], None]


def _nothing() -> None:
    """For transports that need not know when a message was dealt with."""


class BridgeStopping(TidegateError):  # noqa: N818  # says what happens
    """The bridge takes nothing more."""


@dataclass(slots=True)
class UplinkStats:
    """What happened since the start."""

    batches: int = 0
    stored: int = 0
    stored_bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """By code; those that the edge is to send again are counted too."""
    unreadable: int = 0
    """Messages that are no uplink message, or of an edge that they do not name."""
    passed_over: int = 0
    """Hellos and presences beyond a limit."""

    def to_log(self) -> dict[str, object]:
        """The counters as fields of a log line."""
        return asdict(self) | {"refused": dict(self.refused)}


class UplinkService:
    """One bridge's work; `async with` starts and stops it."""

    def __init__(self, settings: BridgeSettings, publish: Publish, *, chance: Chance) -> None:
        self.stats = UplinkStats()
        self._publish = publish
        self._batch_bytes_max = settings.batch_bytes_max
        self._window = InFlightWindow(
            batches_max=settings.in_flight_batches_max,
            bytes_max=settings.in_flight_bytes_max,
            edge_batches_max=settings.window_batches_max,
        )
        self._client = KafkaClient(
            [Address.parse(address) for address in settings.core],
            request_timeout_ms=settings.request_timeout_ms,
            chance=chance,
        )
        policy = StreamPolicy(settings.streams, partitions=settings.stream_partitions)
        self._producers = Producers(self._client)
        self._presence = PresenceWriter(self._client, chance=chance)
        self._dispatcher = Dispatcher(
            self._client,
            produce_timeout_ms=settings.request_timeout_ms,
            retry_ms=settings.retry_ms,
            chance=chance,
        )
        self._admission = Admission(
            self._client,
            self._producers,
            policy,
            self._dispatcher.submit,
            retry_ms=settings.retry_ms,
            chance=chance,
        )
        self._hellos = Hellos(
            self._client,
            self._producers,
            policy,
            self._send_welcome,
            bridge=socket.gethostname(),
            batch_bytes_max=settings.batch_bytes_max,
            window_batches_max=settings.window_batches_max,
            chance=chance,
        )
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []
        self._logged_refusals: set[tuple[str, str]] = set()

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._presence.run()),
            asyncio.create_task(self._read_producers()),
        ]
        return self

    async def drain(self) -> None:
        """Take nothing more, and wait for what is with the core, but not for long."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_MS / 1000):
                await self._window.empty()

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._hellos.close()
        await self._admission.close()
        await self._producers.close()
        await self._dispatcher.close()
        await self._client.close()

    @property
    def has_room(self) -> bool:
        """Whether one more batch may be handed to `receive` at once."""
        return not self._draining and self._window.has_room

    async def room(self) -> None:
        """Return when there is room for one more batch.

        Raises:
            BridgeStopping: there never will be.
        """
        if not self._draining:
            await self._window.room()
        if self._draining:
            raise BridgeStopping("the bridge is stopping")

    def receive(self, edge: str, kind: UplinkKind, payload: bytes, done: Done = _nothing) -> None:
        """Take one message of `edge`. `done` is called once it is dealt with, perhaps before this returns."""
        try:
            if kind is UplinkKind.BATCH:
                self._receive_batch(edge, payload, done)
                return
            if kind is UplinkKind.HELLO:
                self._receive_hello(edge, payload)
            elif kind is UplinkKind.PRESENCE:
                self._receive_presence(edge, payload)
        except UplinkMessageError as error:
            self.stats.unreadable += 1
            self._log_once("uplink_message_unreadable", edge, kind.value, str(error))
        done()

    def _receive_hello(self, edge: str, payload: bytes) -> None:
        if len(payload) > HELLO_BYTES_MAX:
            raise UplinkMessageError(f"hello: {len(payload)} bytes; the limit is {HELLO_BYTES_MAX}")
        hello = Hello.decode(payload)
        if hello.edge != edge:
            raise UplinkMessageError("hello: it names another edge than its topic does")
        if not self._hellos.put(hello):
            self.stats.passed_over += 1

    def _receive_presence(self, edge: str, payload: bytes) -> None:
        if len(payload) > PRESENCE_BYTES_MAX:
            raise UplinkMessageError(f"presence: {len(payload)} bytes; the limit is {PRESENCE_BYTES_MAX}")
        presence = Presence.decode(payload)
        if presence.edge != edge:
            raise UplinkMessageError("presence: it names another edge than its topic does")
        if not self._presence.put(edge, payload):
            self.stats.passed_over += 1

    def _receive_batch(self, edge: str, payload: bytes, done: Done) -> None:
        self.stats.batches += 1
        batch = Batch.decode(payload)
        checked = check_form(edge, batch, self._batch_bytes_max)
        if isinstance(checked, AckError):
            ack = make_ack(batch.stream, batch.partition, try_parse_header(batch), error=checked)
            self._send_ack(edge, ack)
            done()
            return
        size_bytes = len(payload)
        if not self._window.take(edge, size_bytes):
            error = AckError(code=WINDOW_EXCEEDED, reason="more in flight than the welcome allowed", retriable=True)
            self._send_ack(edge, checked.ack(error=error))
            done()
            return
        self._admit(checked, size_bytes, done)

    def _admit(self, checked: CheckedBatch, size_bytes: int, done: Done) -> None:
        edge = checked.edge

        def settled(offset: int | None, error: AckError | None) -> None:
            self._window.release(edge, size_bytes)
            if error is None:
                self.stats.stored += 1
                self.stats.stored_bytes += size_bytes
            self._send_ack(edge, checked.ack(offset=offset, error=error))
            done()

        self._admission.admit(checked, settled)

    def _send_ack(self, edge: str, ack: Ack) -> None:
        if ack.error is not None:
            self.stats.refused[ack.error.code] += 1
            if not ack.error.retriable:
                self._log_once("batch_refused", edge, ack.error.code, ack.error.reason)
        self._publish(topic(edge, UplinkKind.ACK), ack.encode())

    def _send_welcome(self, edge: str, welcome: Welcome) -> None:
        self._publish(topic(edge, UplinkKind.WELCOME), welcome.encode())

    async def _read_producers(self) -> None:
        """Be ready before the first batch; where that fails, the first batch asks again."""
        try:
            await self._producers.read_to_end()
        except TidegateError as error:
            _log.warning("producers_not_read", reason=str(error))

    def _log_once(self, event: str, edge: str, kind: str, reason: str) -> None:
        """One line for each edge and kind; the counters have the rest."""
        if (edge, kind) in self._logged_refusals:
            return
        if len(self._logged_refusals) >= LOGGED_REFUSALS_MAX:
            self._logged_refusals.clear()
        self._logged_refusals.add((edge, kind))
        _log.warning(event, edge=edge, kind=kind, reason=reason)
