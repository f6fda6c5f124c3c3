"""Edges and bridges meet at a broker (mosquitto, EMQX, a cloud's): a subscriber in front of the uplink service.

A message is acknowledged to the broker when it was dealt with, so that the broker's own limit on unacknowledged
messages holds it back while the core is slow. Bridges share the messages through a shared subscription where the broker
can; some brokers grant `$share/...` and never deliver on it, so one is tried out first, on a topic of this bridge's
own. Where it does not work, every bridge takes every batch, which the core's deduplication makes good.

paho-mqtt runs its own thread; its callbacks only hand over to the event loop. Each connection has a new client, and
everything is published with QoS 0, so that nothing is ever queued in paho.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from tidegate_bridge.backoff import Backoff, Chance
from tidegate_bridge.uplink_service import BridgeStopping, UplinkService
from tidegate_wire.address import Address
from tidegate_wire.errors import UnreachableError
from tidegate_wire.uplink.topics import FROM_EDGE, PREFIX, UplinkKind, filter_for, parse_topic

SHARE_GROUP: Final = "tidegate-bridge"
RECEIVE_MAXIMUM: Final = 64
"""Messages that the broker may send before the first is acknowledged; at a 10 ms commit that is 6,400 batches/s. An
MQTT 3.1.1 broker has its own number (mosquitto: 20)."""

HANDED_OVER_MAX: Final = 1_024
"""Messages from paho's thread that wait for the event loop; only a flood of QoS 0 gets there, and is dropped."""

PACKET_SPARE_BYTES: Final = 64 * 1024
KEEP_ALIVE_S: Final = 30
HANDSHAKE_TIMEOUT_S: Final = 5.0
"""For each of TCP, CONNACK and SUBACK; a broker on a slow link answers in a fraction of it."""
PROBE_TIMEOUT_S: Final = 2.0
"""How long a message of our own may take through the broker and back before shared subscriptions are given up."""

RECONNECT: Final = Backoff(first_ms=200, longest_ms=30_000)

_REFUSED: Final = 0x80
_UNSUPPORTED_PROTOCOL: Final = 0x84
_OTHER_PROTOCOL: Final = {
    MQTTProtocolVersion.MQTTv5: MQTTProtocolVersion.MQTTv311,
    MQTTProtocolVersion.MQTTv311: MQTTProtocolVersion.MQTTv5,
}

_log = structlog.get_logger()
R = TypeVar("R")


class BrokerUnreachable(UnreachableError):  # noqa: N818  # says what happened
    """The broker does not answer, or refuses the bridge."""


class ProtocolRefused(BrokerUnreachable):
    """The broker does not speak MQTT 5."""


class BrokerTransport:
    """Subscribes at a broker for as long as `run` runs, over as many connections as it takes."""

    def __init__(self, broker: Address, *, shared: bool, batch_bytes_max: int, chance: Chance) -> None:
        self._broker = broker
        self._shared = shared
        self._packet_bytes_max = batch_bytes_max + PACKET_SPARE_BYTES
        self._chance = chance
        self._client_id = f"tidegate-bridge-{secrets.token_hex(6)}"
        self._protocol = MQTTProtocolVersion.MQTTv5
        self._connection: _Connection | None = None

    def publish(self, topic: str, payload: bytes) -> None:
        """Send a message if there is a connection; what is lost, the uplink asks for again."""
        if self._connection is not None:
            self._connection.publish(topic, payload)

    async def run(self, service: UplinkService, on_ready: Callable[[], None]) -> None:
        """Take uplinks until cancelled; `on_ready` is called when the first subscriptions stand."""
        failures = 0
        ready = False
        while True:
            connection = _Connection(self._client_id, self._protocol, self._packet_bytes_max)
            try:
                await connection.open(self._broker)
                is_shared = await self._subscribe(connection)
                self._connection = connection
                failures = 0
                _log.info("broker_connected", broker=str(self._broker), protocol=self._protocol.name, shared=is_shared)
                if not ready:
                    ready = True
                    on_ready()
                await connection.hand_over(service)
            except ProtocolRefused:
                self._protocol = MQTTProtocolVersion.MQTTv311
                continue
            except BrokerUnreachable as error:
                failures += 1
                if connection.is_misunderstood:
                    self._protocol = _OTHER_PROTOCOL[self._protocol]
                if failures == 1:
                    _log.warning("broker_unreachable", broker=str(self._broker), reason=str(error))
            finally:
                self._connection = None
                await connection.close()
            await asyncio.sleep(RECONNECT.delay_ms(failures, self._chance) / 1000)

    async def _subscribe(self, connection: _Connection) -> bool:
        """Subscribe to what edges send; returns whether it is shared with other bridges."""
        is_shared = self._shared and await self._can_share(connection)
        if self._shared and not is_shared:
            _log.warning(
                "shared_subscription_unavailable",
                broker=str(self._broker),
                hint="several bridges will each take every batch; shared_subscription = false silences this",
            )
        prefix = f"$share/{SHARE_GROUP}/" if is_shared else ""
        for kind in FROM_EDGE:
            if not await connection.subscribe(prefix + filter_for(kind)):
                raise BrokerUnreachable(f"the broker refuses the subscription to {filter_for(kind)}")
        return is_shared

    async def _can_share(self, connection: _Connection) -> bool:
        """Send a message to ourselves through a shared subscription that nobody else has."""
        own_topic = f"{PREFIX}/{self._client_id}/{UplinkKind.COMMAND}"
        try:
            granted = await connection.subscribe(f"$share/{self._client_id}/{own_topic}")
        except BrokerUnreachable:
            # Some brokers close the connection instead of refusing: without shared subscriptions from now on.
            self._shared = False
            raise
        if not granted:
            return False
        return await connection.comes_back(own_topic)


class _Message(NamedTuple):
    topic: str
    payload: bytes
    message_id: int
    qos: int


class _Connection:
    """One connection to the broker, from its CONNECT to its end."""

    def __init__(self, client_id: str, protocol: MQTTProtocolVersion, packet_bytes_max: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._packet_bytes_max = packet_bytes_max
        self._messages: deque[_Message] = deque()
        self._dropped = 0
        self._is_open = False
        self._has_connack = False
        self._loss: str | None = None
        self._changed = asyncio.Event()
        """Something arrived, or the connection was lost."""
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._granted: dict[int, asyncio.Future[bool]] = {}
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=protocol,
            clean_session=None if protocol is MQTTProtocolVersion.MQTTv5 else True,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = HANDSHAKE_TIMEOUT_S
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        self._client = client

    @property
    def is_misunderstood(self) -> bool:
        """Whether the broker took the connection and then said nothing: perhaps it knows only the other protocol."""
        return self._is_open and not self._has_connack

    async def open(self, broker: Address) -> None:
        """Connect.

        Raises:
            ProtocolRefused: the broker does not speak this version of MQTT.
            BrokerUnreachable: it does not answer, or refuses.
        """
        options: dict[str, Any] = {}
        if self._protocol is MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho types only a part
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = self._packet_bytes_max
            options = {"clean_start": True, "properties": properties}
        try:
            await asyncio.to_thread(self._client.connect, broker.host, broker.port, KEEP_ALIVE_S, **options)
        except OSError as error:
            raise BrokerUnreachable(f"the broker at {broker} can't be reached: {error}") from error
        self._is_open = True
        self._client.loop_start()
        await _answered(self._connected)

    async def subscribe(self, topic_filter: str) -> bool:
        """Subscribe with QoS 1; whether the broker grants it.

        Raises:
            BrokerUnreachable: it does not answer.
        """
        code, message_id = self._client.subscribe(topic_filter, 1)
        if code is not MQTTErrorCode.MQTT_ERR_SUCCESS or message_id is None:
            raise BrokerUnreachable(self._loss or f"the connection was lost: {code.name}")
        granted = self._granted.setdefault(message_id, self._loop.create_future())
        return await _answered(granted)

    async def comes_back(self, topic: str) -> bool:
        """Publish on a topic that was subscribed to; whether it is delivered.

        Raises:
            BrokerUnreachable: the connection was lost.
        """
        self._client.publish(topic, b"")
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                while not any(message.topic == topic for message in self._messages):
                    await self._change()
        except TimeoutError:
            return False
        return True

    def publish(self, topic: str, payload: bytes) -> None:
        """Send with QoS 0; lost if the connection is."""
        self._client.publish(topic, payload)

    async def hand_over(self, service: UplinkService) -> None:
        """Give what arrives to the service, until the connection is lost.

        Raises:
            BrokerUnreachable: the connection was lost.
        """
        while True:
            while self._messages:
                message = self._messages.popleft()
                parsed = parse_topic(message.topic)
                if parsed is None or parsed[1] not in FROM_EDGE:
                    self._acknowledge(message)
                    continue
                if not service.has_room:
                    try:
                        await service.room()
                    except BridgeStopping:
                        await asyncio.Event().wait()  # answers go out for as long as the caller leaves us here
                service.receive(*parsed, message.payload, partial(self._acknowledge, message))
            await self._change()

    async def close(self) -> None:
        """Disconnect, and wait for paho's thread to end."""
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)
        # paho closes its sockets when the client is collected: no circle may keep it for the garbage collector.
        self._client.on_connect = self._client.on_disconnect = None
        self._client.on_subscribe = self._client.on_message = None
        for future in self._handshakes():
            if not future.cancel() and not future.cancelled():
                future.exception()  # nobody waits for it any more

    def _acknowledge(self, message: _Message) -> None:
        self._client.ack(message.message_id, message.qos)

    def _handshakes(self) -> list[asyncio.Future[Any]]:
        return [self._connected, *self._granted.values()]

    async def _change(self) -> None:
        """Return when something arrived.

        Raises:
            BrokerUnreachable: the connection was lost.
        """
        self._changed.clear()
        if self._loss is None:
            await self._changed.wait()
        if self._loss is not None:
            raise BrokerUnreachable(self._loss)

    # In paho's thread: hand over, nothing else

    def _on_connect(
        self, _client: Client, _data: Any, _flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._take_connack, reason)

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._take_loss, f"the connection was lost: {reason}")

    def _on_subscribe(
        self, _client: Client, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._take_suback, mid, reasons[0].value < _REFUSED)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self._loop.call_soon_threadsafe(self._take_message, message)

    # In the event loop

    def _take_connack(self, reason: ReasonCode) -> None:
        self._has_connack = True
        if self._connected.done():
            return
        if reason.value < _REFUSED:
            self._connected.set_result(None)
        elif reason.value == _UNSUPPORTED_PROTOCOL and self._protocol is MQTTProtocolVersion.MQTTv5:
            self._connected.set_exception(ProtocolRefused("the broker does not speak MQTT 5"))
        else:
            self._connected.set_exception(BrokerUnreachable(f"the broker refuses the connection: {reason}"))

    def _take_loss(self, reason: str) -> None:
        self._loss = reason
        self._changed.set()
        for future in self._handshakes():
            if not future.done():
                future.set_exception(BrokerUnreachable(reason))

    def _take_suback(self, message_id: int, granted: bool) -> None:
        future = self._granted.setdefault(message_id, self._loop.create_future())
        if not future.done():
            future.set_result(granted)

    def _take_message(self, message: MQTTMessage) -> None:
        if len(self._messages) >= HANDED_OVER_MAX:
            if self._dropped == 0:
                _log.warning("broker_floods", handed_over_max=HANDED_OVER_MAX)
            self._dropped += 1
            return
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        self._messages.append(_Message(topic, bytes(message.payload), message.mid, message.qos))
        self._changed.set()


async def _answered(future: asyncio.Future[R]) -> R:
    """The broker's answer.

    Raises:
        BrokerUnreachable: it does not come in time, or the connection was lost.
    """
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            return await future
    except TimeoutError as error:
        raise BrokerUnreachable(f"the broker did not answer in {HANDSHAKE_TIMEOUT_S:g} s") from error
