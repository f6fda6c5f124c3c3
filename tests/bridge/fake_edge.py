"""An edge reduced to its uplink: a paho-mqtt client that says hello, sends batches and collects answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.bridge.waiting import TIMEOUT_S, eventually
from tidegate_wire.uplink.messages import Ack, Batch, Hello, Presence, Welcome
from tidegate_wire.uplink.topics import UplinkKind, parse_topic, topic


class FakeEdge:
    """`async with` connects and disconnects it; what it received is in `welcomes` and `acks`."""

    def __init__(self, edge: str, port: int, *, protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311) -> None:
        self.edge = edge
        self.port = port
        self.welcomes: list[Welcome] = []
        self.acks: list[Ack] = []
        self.connected = False
        self.subscribed = False
        self._hellos = 0
        client = Client(
            CallbackAPIVersion.VERSION2, client_id=f"edge-{edge}", protocol=protocol, reconnect_on_failure=False
        )
        client.max_inflight_messages_set(1000)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        self.client = client

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()

    async def connect(self) -> None:
        # Not in this thread: the bridge may run in this event loop.
        await asyncio.to_thread(self.client.connect, "127.0.0.1", self.port, 30)
        self.client.loop_start()
        await eventually(lambda: self.subscribed, "the edge is subscribed")

    async def disconnect(self) -> None:
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)
        # paho closes its sockets when the client is collected: no circle may keep it for the garbage collector.
        self.client.on_connect = self.client.on_disconnect = None
        self.client.on_subscribe = self.client.on_message = None

    async def say_hello(self, *streams: str, wants_producer_id: bool = True, timeout_s: float = TIMEOUT_S) -> Welcome:
        """Say hello and wait for the welcome of this very hello."""
        self._hellos += 1
        session = f"session-{self._hellos}"
        hello = Hello(edge=self.edge, session=session, streams=streams, wants_producer_id=wants_producer_id)
        self.publish(UplinkKind.HELLO, hello.encode())
        await eventually(lambda: any(w.session == session for w in self.welcomes), "the welcome", timeout_s)
        return next(welcome for welcome in self.welcomes if welcome.session == session)

    def send(self, record_batch: bytes, *, stream: str = "telemetry", partition: int = 0) -> None:
        self.publish(UplinkKind.BATCH, Batch(stream=stream, partition=partition, record_batch=record_batch).encode())

    async def send_and_wait(self, record_batch: bytes, *, stream: str = "telemetry", partition: int = 0) -> Ack:
        """The answer to this batch."""
        count = len(self.acks)
        self.send(record_batch, stream=stream, partition=partition)
        await self.wait_for_acks(count + 1)
        return self.acks[-1]

    def be_present(self, **fields: Any) -> Presence:
        presence = Presence(edge=self.edge, **fields)
        self.client.publish(topic(self.edge, UplinkKind.PRESENCE), presence.encode(), 1, retain=True)
        return presence

    def publish(self, kind: UplinkKind, payload: bytes) -> None:
        self.client.publish(topic(self.edge, kind), payload, 1)

    async def wait_for_acks(self, count: int, timeout_s: float = TIMEOUT_S) -> list[Ack]:
        await eventually(lambda: len(self.acks) >= count, f"{count} acks", timeout_s)
        return self.acks[:count]

    async def wait_for_stored(self, sequences: Iterable[int], timeout_s: float = TIMEOUT_S) -> None:
        """Until each of these base sequences was acknowledged without an error."""
        wanted = set(sequences)
        await eventually(
            lambda: wanted <= {ack.base_sequence for ack in self.acks if ack.error is None},
            f"acks for {len(wanted)} batches",
            timeout_s,
        )

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.connected = not reason.is_failure
        client.subscribe(
            [(topic(self.edge, kind), 1) for kind in (UplinkKind.WELCOME, UplinkKind.ACK)],
        )

    def _on_disconnect(self, _client: Client, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
        self.connected = False

    def _on_subscribe(self, _client: Client, _data: Any, _mid: int, _reasons: Any, _properties: Any) -> None:
        self.subscribed = True

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        parsed = parse_topic(message.topic)
        assert parsed is not None
        if parsed[1] is UplinkKind.WELCOME:
            self.welcomes.append(Welcome.decode(bytes(message.payload)))
        else:
            self.acks.append(Ack.decode(bytes(message.payload)))
