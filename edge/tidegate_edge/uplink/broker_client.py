"""One connection to the broker: a paho-mqtt client that lives and dies with it, driven by the asyncio loop.

A client is never used for a second connection, because paho would send again whatever it had queued, past any window.
paho's own thread is not used: it waits in `select`, which fails for sockets numbered over 1,023, as an edge with a
thousand devices has them; and without it nothing has to be handed from thread to thread.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from tidegate_wire.address import Address

CONNECT_TIMEOUT_S: Final = 5.0
"""For the TCP connection."""
GREETING_TIMEOUT_S: Final = 10.0
"""From there to CONNACK and SUBACK."""
MISC_INTERVAL_S: Final = 1.0
"""How often paho looks at its keep-alive."""
PACKETS_UNSENT_MAX: Final = 4_096
"""Publishes without a PUBACK at which paho refuses more; the window keeps far below."""

log = structlog.get_logger()


class BrokerUnreachable(Exception):  # noqa: N818  # says what happened
    """No connection came about; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """What the broker publishes, retained, when the connection ends without a DISCONNECT."""

    topic: str
    payload: bytes


class BrokerClient:
    """A connection. `on_message(topic, payload)`, `on_confirmed(mid)` and `on_lost(reason)` are called on the loop;
    `on_lost` once, and not after `close`.
    """

    def __init__(
        self,
        *,
        client_id: str,
        keepalive_s: int,
        will: Will,
        on_message: Callable[[str, bytes], None],
        on_confirmed: Callable[[int], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._keepalive_s = keepalive_s
        self._on_message = on_message
        self._on_confirmed = on_confirmed
        self._on_lost = on_lost
        self._is_open = False
        self._socket: socket.socket | None = None
        self._misc: asyncio.TimerHandle | None = None
        self._greeting: asyncio.Future[None] = self._loop.create_future()
        self._filters: tuple[str, ...] = ()
        client = self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(0)  # the window is ours
        client.max_queued_messages_set(PACKETS_UNSENT_MAX)
        client.will_set(will.topic, will.payload, qos=1, retain=True)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._received
        client.on_publish = self._published
        client.on_disconnect = self._disconnected

    async def open(self, address: Address, filters: tuple[str, ...]) -> None:
        """Connect and subscribe, with QoS 1.

        Raises:
            BrokerUnreachable: no connection came about, or the broker refused it or a subscription.
        """
        self._filters = filters
        connecting = self._loop.run_in_executor(
            None, self._client.connect, address.host, address.port, self._keepalive_s
        )
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(self._drop_late)  # the thread can't be stopped, only its socket closed
            raise
        except OSError as error:
            raise BrokerUnreachable(f"{address}: {error}") from error
        try:
            self._drive(address)
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                await self._greeting
        except TimeoutError:
            self._stop()
            raise BrokerUnreachable(f"{address}: no answer to CONNECT or SUBSCRIBE") from None
        except BaseException:
            self._stop()
            raise
        self._is_open = True

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Publish with QoS 1; the message's identifier for `on_confirmed`, or None if the connection is gone."""
        if not self._is_open:
            return None
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        return info.mid if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else None

    async def close(self, timeout_s: float) -> None:
        """Send what waits, then DISCONNECT, for at most so long; then the socket is closed in any case."""
        self._on_lost = _nothing
        if self._is_open:
            self._client.disconnect()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while self._socket is not None and self._client.want_write():  # noqa: ASYNC110  # paho has no event
                        await asyncio.sleep(0.01)
        self._stop()

    def abort(self) -> None:
        """Close the socket; the broker will publish the will."""
        self._on_lost = _nothing
        self._stop()

    # paho's callbacks, all on the loop -------------------------------------------------------------------------------

    def _connected(
        self, client: Client, _data: Any, _flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._refuse(f"the broker refused the connection: {reason}")
            return
        result, _ = client.subscribe([(name, 1) for name in self._filters])
        if result != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._refuse(f"the subscription could not be sent: {result}")

    def _subscribed(
        self, _client: Client, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refuse(f"the broker refused a subscription: {', '.join(map(str, reasons))}")
        elif not self._greeting.done():
            self._greeting.set_result(None)

    def _received(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self._on_message(message.topic, bytes(message.payload))

    def _published(
        self, _client: Client, _data: Any, mid: int, _reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._on_confirmed(mid)

    def _disconnected(
        self, _client: Client, _data: Any, _flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._lost(str(reason))

    # The socket ------------------------------------------------------------------------------------------------------

    def _drive(self, address: Address) -> None:
        """Let the loop call paho whenever the socket is ready."""
        sock = self._client.socket()
        if not isinstance(sock, socket.socket):
            raise BrokerUnreachable(f"{address}: the connection ended at once")
        self._socket = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Bytes that the other side's kernel does not take for so long: the link is cut, however slow it was before.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._keepalive_s * 1000)
        self._client.on_socket_close = self._socket_closing
        self._client.on_socket_register_write = lambda *_: self._loop.add_writer(sock, self._write)
        self._client.on_socket_unregister_write = self._written
        self._loop.add_reader(sock, self._client.loop_read)
        self._tick()

    def _write(self) -> None:
        self._client.loop_write()

    def _written(self, _client: Client, _data: Any, sock: Any) -> None:
        self._loop.remove_writer(sock)

    def _tick(self) -> None:
        self._misc = self._loop.call_later(MISC_INTERVAL_S, self._tick)
        self._client.loop_misc()

    def _socket_closing(self, _client: Client, _data: Any, sock: Any) -> None:
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        self._socket = None

    def _refuse(self, reason: str) -> None:
        if not self._greeting.done():
            self._greeting.set_exception(BrokerUnreachable(reason))
            self._greeting.exception()  # retrieved: a connection that is reset at once fails before anyone waits for it

    def _lost(self, reason: str) -> None:
        was_open = self._is_open
        self._stop()
        self._refuse(f"the connection ended: {reason}")
        if was_open:
            self._on_lost(reason)

    def _stop(self) -> None:
        self._is_open = False
        if self._misc is not None:
            self._misc.cancel()
            self._misc = None
        client = self._client
        client.on_socket_close = client.on_socket_register_write = client.on_socket_unregister_write = None
        if self._socket is not None:
            sock = self._socket
            self._socket_closing(self._client, None, sock)
            sock.close()

    def _drop_late(self, connecting: asyncio.Future[Any]) -> None:
        with suppress(Exception):
            connecting.result()
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            sock.close()


def _nothing(reason: str) -> None:
    pass
