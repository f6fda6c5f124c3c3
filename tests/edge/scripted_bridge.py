"""A bridge and a core in a test's hands: it answers over a real broker, by rules that the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.edge.support import EDGE, until
from tidegate_edge.uplink.broker_client import BrokerClient, Will
from tidegate_wire.address import Address
from tidegate_wire.records import BatchHeader, Record, check_batch, read_records
from tidegate_wire.uplink.messages import Ack, AckError, Batch, Hello, Presence, StreamInfo, Welcome
from tidegate_wire.uplink.topics import FROM_EDGE, UplinkKind, filter_for, parse_topic, topic

Rule = Callable[[Batch, BatchHeader], AckError | None]


@dataclass
class ScriptedBridge:
    """Keeps what it takes, by (stream, partition); batches of a producer must come in order, as in Kafka."""

    port: int
    partitions: int = 1
    batch_bytes_max: int = 1_000_000
    window_batches_max: int = 5
    rule: Rule | None = None
    """May refuse a batch."""
    is_answering: bool = True
    hellos: list[Hello] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    """Every batch message as it came."""
    presences: list[Presence] = field(default_factory=list)
    stored: dict[tuple[str, int], list[Record]] = field(default_factory=dict)
    next_producer_id: int = 1000
    _ends: dict[tuple[str, int, int], int] = field(default_factory=dict)
    _seen: set[tuple[str, int, int, int]] = field(default_factory=set)
    _client: BrokerClient | None = None

    async def __aenter__(self) -> ScriptedBridge:
        self._client = BrokerClient(
            client_id="bridge",
            keepalive_s=30,
            will=Will(topic="bridge/gone", payload=b""),
            on_message=self._received,
            on_confirmed=lambda _: None,
            on_lost=lambda _: None,
        )
        await self._client.open(Address("127.0.0.1", self.port), tuple(filter_for(kind) for kind in FROM_EDGE))
        return self

    async def __aexit__(self, *_: Any) -> None:
        assert self._client is not None
        await self._client.close(1.0)

    def records(self, stream: str = "events") -> list[Record]:
        return [record for (name, _), records in sorted(self.stored.items()) if name == stream for record in records]

    async def until_stored(self, count: int, stream: str = "events", timeout_s: float = 20.0) -> None:
        await until(lambda: len(self.records(stream)) >= count, f"{count} events of {stream} are stored", timeout_s)

    def _send(self, kind: UplinkKind, payload: bytes) -> None:
        assert self._client is not None
        self._client.publish(topic(EDGE, kind), payload)

    def _received(self, name: str, payload: bytes) -> None:
        parsed = parse_topic(name)
        assert parsed is not None
        if parsed[1] is UplinkKind.PRESENCE:
            self.presences.append(Presence.decode(payload))
        elif parsed[1] is UplinkKind.HELLO:
            self._hello(Hello.decode(payload))
        else:
            self._batch(payload)

    def _hello(self, hello: Hello) -> None:
        self.hellos.append(hello)
        if not self.is_answering:
            return
        if hello.wants_producer_id:
            self.next_producer_id += 1
        welcome = Welcome(
            session=hello.session,
            producer_id=self.next_producer_id if hello.wants_producer_id else None,
            producer_epoch=0,
            streams=tuple(StreamInfo(name=name, partitions=self.partitions) for name in hello.streams),
            batch_bytes_max=self.batch_bytes_max,
            window_batches_max=self.window_batches_max,
        )
        self._send(UplinkKind.WELCOME, welcome.encode())

    def _batch(self, payload: bytes) -> None:
        self.received.append(payload)
        batch = Batch.decode(payload)
        header = check_batch(memoryview(batch.record_batch))
        assert len(batch.record_batch) <= self.batch_bytes_max
        error = self.rule(batch, header) if self.rule is not None else None
        if error is None:
            error = self._store(batch, header)
        if self.is_answering:
            ack = Ack(
                stream=batch.stream,
                partition=batch.partition,
                producer_id=header.producer_id,
                producer_epoch=header.producer_epoch,
                base_sequence=header.base_sequence,
                offset=None,
                error=error,
            )
            self._send(UplinkKind.ACK, ack.encode())

    def _store(self, batch: Batch, header: BatchHeader) -> AckError | None:
        chain = (batch.stream, batch.partition, header.producer_id)
        if (*chain, header.base_sequence) in self._seen:
            return None
        if header.base_sequence != self._ends.get(chain, 0):
            return AckError(code="out_of_order_sequence_number", reason="a gap", retriable=True)
        self._seen.add((*chain, header.base_sequence))
        self._ends[chain] = header.base_sequence + header.record_count
        self.stored.setdefault((batch.stream, batch.partition), []).extend(read_records(batch.record_batch))
        return None


async def quiet(seconds: float = 0.2) -> None:
    """Let messages that are under way arrive: what must not happen gets the chance to."""
    await asyncio.sleep(seconds)
