"""A device's MQTT connection: a thin asyncio client that stays connected while the device has power.

It keeps nothing: which event goes out when is the device's matter. What was written to a connection that died is sent
again by the device on the next one. The session is persistent (clean start off, the client id is the device's name).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Final, Protocol, cast

from tidegate_sim.device import Transmission
from tidegate_sim.errors import UnexpectedAcknowledgementError
from tidegate_wire.address import Address
from tidegate_wire.mqtt.decode import Decoder
from tidegate_wire.mqtt.encode import PINGREQ, encode, publish_parts
from tidegate_wire.mqtt.errors import MqttError
from tidegate_wire.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingresp,
    ProtocolVersion,
    Puback,
    Pubcomp,
    Pubrec,
    Pubrel,
)
from tidegate_wire.mqtt.properties import NO_PROPERTIES, Properties

CONNECT_TIMEOUT_S: Final = 10.0
"""From the TCP SYN to the CONNACK."""

CONNECTING_MAX: Final = 200
"""Devices that connect at once; more would overflow a broker's listen queue, and wait for SYN retries of seconds."""

BACKOFF_BASE_S: Final = 0.1
"""The first pause before a new attempt is a random part of this; it doubles with each attempt."""

SESSION_EXPIRY_S: Final = 604_800
"""A week: longer than the outages that are played here."""

PACKET_BYTES_MAX: Final = 65_536
"""Brokers send devices nothing but short answers."""

RECEIVE_MAXIMUM_DEFAULT: Final = 65_535
"""Where CONNACK does not say (MQTT 5, 3.2.2.3.3)."""


class Listener(Protocol):
    """Who is told what arrives, by the device's number in its fleet."""

    def on_connected(self, index: int, receive_maximum: int) -> None:
        """CONNACK came."""

    def on_disconnected(self, index: int) -> None:
        """The connection is gone, after a CONNACK."""

    def on_puback(self, index: int, packet_id: int) -> None:
        """PUBACK came."""

    def on_pubrec(self, index: int, packet_id: int) -> None:
        """PUBREC came."""

    def on_pubcomp(self, index: int, packet_id: int) -> None:
        """PUBCOMP came."""


class Network:
    """What the links of one fleet share.

    Args:
        listener: told of everything that arrives.
        version: of MQTT.
        qos: of every PUBLISH.
        keep_alive_s: of every connection, unless the broker wants another.
        reconnect_s_max: the longest pause between two attempts to connect.
    """

    def __init__(
        self, listener: Listener, *, version: ProtocolVersion, qos: int, keep_alive_s: int, reconnect_s_max: float
    ) -> None:
        self.listener = listener
        self.version = version
        self.qos = qos
        self.keep_alive_s = keep_alive_s
        self.reconnect_s_max = reconnect_s_max
        self.connecting = asyncio.Semaphore(CONNECTING_MAX)
        self.last_failure = ""
        """Why the latest connection or attempt failed, for people."""


class DeviceLink:
    """One device's radio; see `tidegate_sim.fleet.Link`."""

    def __init__(self, network: Network, *, index: int, name: str, topic: str, target: Address, rng: Random) -> None:
        self.network = network
        self.index = index
        self.name = name
        self.target = target
        self._topic = topic
        self._rng = rng
        self._task: asyncio.Task[None] | None = None
        self._connection: _Connection | None = None

    def power_on(self) -> None:
        """Begin to connect, and stay connected."""
        assert self._task is None, "the device has power already"
        self._task = asyncio.get_running_loop().create_task(self._stay_connected())

    def power_off(self) -> None:
        """Drop the connection without DISCONNECT, and stay silent."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self.drop()

    def drop(self) -> None:
        """Lose the connection without DISCONNECT; while there is power, a new one is made."""
        if self._connection is not None:
            self._connection.abort("the radio lost the connection")

    def send(self, transmissions: Sequence[Transmission], *, cut_at: float = 1.0) -> None:
        """Send packets, or (`cut_at` below 1) that part of their bytes; without a connection they are lost."""
        if self._connection is None:
            return
        version, topic, plain = self.network.version, self._topic, 0x30 | self.network.qos << 1
        parts: list[bytes] = []
        for transmission in transmissions:
            if transmission.payload is None:
                parts.append(encode(Pubrel(packet_id=transmission.packet_id), version))
                continue
            head, tail = publish_parts(
                topic,
                transmission.payload,
                first_byte=plain | 0x08 if transmission.dup else plain,
                properties=NO_PROPERTIES,
                version=version,
            )
            parts += (head, transmission.packet_id.to_bytes(2, "big"), tail)
        data = b"".join(parts)
        self._connection.write(data[: int(len(data) * cut_at)])

    async def close(self) -> None:
        """Say DISCONNECT where there is a connection, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._connection is not None:
            await self._connection.close()

    def on_accepted(self, connection: _Connection, receive_maximum: int) -> None:
        """`connection` has its CONNACK."""
        self._connection = connection
        self.network.listener.on_connected(self.index, receive_maximum)

    def on_lost(self, connection: _Connection) -> None:
        """`connection` is gone."""
        if self._connection is connection:
            self._connection = None
            self.network.listener.on_disconnected(self.index)

    async def _stay_connected(self) -> None:
        attempts = 0
        while True:
            connection = await self._connect()
            if connection is not None:
                await connection.lost.wait()
                attempts = 0 if connection.was_acknowledged else attempts
            pause_s = min(self.network.reconnect_s_max, BACKOFF_BASE_S * 2.0 ** min(attempts, 16))
            await asyncio.sleep(self._rng.uniform(0.0, pause_s))
            attempts += 1

    async def _connect(self) -> _Connection | None:
        connection = _Connection(self)
        loop = asyncio.get_running_loop()
        try:
            async with self.network.connecting, asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: connection, self.target.host, self.target.port)
                await connection.accepted
        except (OSError, TimeoutError) as error:
            reason = str(error) or "no answer"
            self.network.last_failure = reason
            connection.abort(reason)
            return None
        except asyncio.CancelledError:
            connection.abort("the power is gone")
            raise
        return connection


class _Connection(asyncio.Protocol):
    """One TCP connection, from CONNECT to its end."""

    def __init__(self, link: DeviceLink) -> None:
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done with the CONNACK; a ConnectionError if there is none."""
        self.lost = asyncio.Event()
        self.was_acknowledged = False
        """Whether the broker acknowledged anything: then it works, and the next attempt need not wait long."""
        self._link = link
        self._network = link.network
        self._decoder = Decoder(version=link.network.version, packet_bytes_max=PACKET_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.Event()
        self._keep_alive_timer: asyncio.TimerHandle | None = None
        self._heard_at_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        network = self._network
        v5 = network.version is ProtocolVersion.V5
        connect = Connect(
            client_id=self._link.name,
            version=network.version,
            clean_start=False,
            keep_alive_s=network.keep_alive_s,
            properties=Properties(session_expiry_interval_s=SESSION_EXPIRY_S) if v5 else NO_PROPERTIES,
        )
        self._transport.write(encode(connect, network.version))

    def data_received(self, data: bytes) -> None:
        self._heard_at_s = asyncio.get_running_loop().time()
        try:
            for packet in self._decoder.feed(data):
                if self._ended():
                    return
                self._on_packet(packet)
        except (MqttError, UnexpectedAcknowledgementError) as error:
            self.abort(f"the broker broke the protocol: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()
        self._end(str(exc) if exc is not None else "the broker closed the connection")

    def write(self, data: bytes) -> None:
        """Send bytes. The transport holds what the socket does not take: at most a window of events."""
        assert self._transport is not None
        self._transport.write(data)

    def abort(self, reason: str) -> None:
        """Close without DISCONNECT; what is not sent yet never is."""
        self._end(reason)
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Close with DISCONNECT."""
        assert self._transport is not None
        self._transport.write(encode(Disconnect(), self._network.version))
        self._transport.close()
        self._end("the fleet ended")
        try:
            async with asyncio.timeout(1.0):
                await self._closed.wait()
        except TimeoutError:
            self._transport.abort()

    def _ended(self) -> bool:
        return self.lost.is_set()

    def _end(self, reason: str) -> None:
        if self._ended():
            return
        self.lost.set()
        if self._keep_alive_timer is not None:
            self._keep_alive_timer.cancel()
        if not self.accepted.done():
            self.accepted.set_exception(ConnectionError(reason))
            self.accepted.exception()  # retrieved: the task that waits for it may be cancelled by now
        self._network.last_failure = reason
        self._link.on_lost(self)

    def _on_packet(self, packet: Packet) -> None:
        match packet:
            case Puback() if not packet.reason_code.is_error:
                self.was_acknowledged = True
                self._network.listener.on_puback(self._link.index, packet.packet_id)
            case Pubrec() if not packet.reason_code.is_error:
                self._network.listener.on_pubrec(self._link.index, packet.packet_id)
            case Pubcomp():
                # It also says Packet Identifier not found: the broker completed it, and the device did not hear of it.
                self.was_acknowledged = True
                self._network.listener.on_pubcomp(self._link.index, packet.packet_id)
            case Puback() | Pubrec():
                # The event stays in flash; it is sent again on a later connection, when the broker may take it.
                self.abort(f"the broker refused an event: {packet.reason_code.name.lower()}")
            case Connack() if not self.accepted.done():
                self._on_connack(packet)
            case Pingresp():
                pass
            case Disconnect():
                self.abort(f"the broker closed the session: {packet.reason_code.name.lower()}")
            case _:
                self.abort(f"the broker sent a {type(packet).__name__}")

    def _on_connack(self, packet: Connack) -> None:
        properties = packet.properties
        if packet.reason_code:
            self.abort(f"the broker refused the connection: {packet.reason_code.name.lower()}")
            return
        if properties.maximum_qos is not None and properties.maximum_qos < self._network.qos:
            self.abort(f"the broker takes no QoS {self._network.qos}")
            return
        self.accepted.set_result(None)
        keep_alive_s = properties.server_keep_alive_s
        self._keep_alive(self._network.keep_alive_s if keep_alive_s is None else keep_alive_s)
        self._link.on_accepted(self, properties.receive_maximum or RECEIVE_MAXIMUM_DEFAULT)

    def _keep_alive(self, keep_alive_s: int) -> None:
        """PINGREQ twice in each keep-alive; a broker silent for one and a half is gone."""
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        if loop.time() - self._heard_at_s > 1.5 * keep_alive_s:
            self.abort("the broker is silent")
            return
        self._transport.write(PINGREQ)
        self._keep_alive_timer = loop.call_later(keep_alive_s / 2, self._keep_alive, keep_alive_s)
