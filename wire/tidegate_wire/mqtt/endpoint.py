"""The asyncio shell: sockets in, groups of messages out to `append`, acknowledgements back.

Sessions and retained messages are in memory: after a restart every CONNACK says session present = 0, and clients with
a persistent session subscribe again. What was acknowledged to them is in the log behind `append`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from tidegate_wire.address import Address
from tidegate_wire.errors import TidegateError
from tidegate_wire.mqtt.connection import ServerConnection
from tidegate_wire.mqtt.intake import Group
from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.messages import Append, PublishRefused, ReceivedMessage
from tidegate_wire.mqtt.server import Server
from tidegate_wire.mqtt.stats import EndpointStats

log = structlog.get_logger()

_READ_BYTES_MAX: Final = 65_536
"""Bytes of one read: some 600 messages of 100 bytes, enough that the system call does not count."""
_TICK_S: Final = 0.25
"""How often timeouts are looked at; the shortest that anyone sets is a keep-alive of 1 s, which ends after 1.5 s."""
_BACKLOG: Final = 512
"""Connections the kernel holds until we accept them: a site whose devices all come back at once."""
_CLOSE_TIMEOUT_S: Final = 5.0
"""How long `close` waits for what is being appended, and then for sockets to take what is written."""


class MqttEndpoint:
    """An MQTT 3.1.1 and 5 server whose PUBACK waits for `append`.

    `commit_interval_ms` is how long a group fills before it is appended, unless it is full before: it trades latency
    for fewer commits. `on_connect(client_id)` and `on_disconnect(client_id, reason)` are told of clients as they come
    and go.
    """

    def __init__(
        self,
        append: Append,
        *,
        limits: EndpointLimits | None = None,
        appends_in_flight_max: int = 1,
        commit_interval_ms: int = 0,
        on_connect: Callable[[str], None] | None = None,
        on_disconnect: Callable[[str, str], None] | None = None,
    ) -> None:
        assert appends_in_flight_max >= 1, "nothing would ever be appended"
        limits = limits if limits is not None else EndpointLimits()
        self.stats = EndpointStats()
        self._limits = limits
        self._append = append
        self._appends_in_flight_max = appends_in_flight_max
        self._commit_interval_s = commit_interval_ms / 1000
        self._in_flight: deque[tuple[Group, asyncio.Task[None]]] = deque()
        self._start_handle: asyncio.Handle | None = None
        self._closing = False
        self._all_gone = asyncio.Event()
        self._all_gone.set()
        self._protocols: set[_ClientProtocol] = set()
        self._listener: asyncio.Server | None = None
        self._tick_handle: asyncio.TimerHandle | None = None
        self._read_buffer = bytearray(_READ_BYTES_MAX)
        self._server = Server(
            limits,
            self.stats,
            make_client_id=lambda: f"auto-{secrets.token_hex(8)}",
            on_connect=on_connect,
            on_disconnect=on_disconnect,
        )

    async def start(self, address: Address) -> Address:
        """Listen; returns the address it really listens on (port 0 asks for a free port).

        Raises:
            OSError: the address can't be listened on.
        """
        assert self._listener is None, "an endpoint listens once"
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: _ClientProtocol(self, loop), address.host, address.port, backlog=_BACKLOG
        )
        self._tick_handle = loop.call_later(_TICK_S, self._tick, loop)
        host, port = self._listener.sockets[0].getsockname()[:2]
        return Address(host, port)

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Deliver a message of the host program to subscribers; it is not appended.

        Raises:
            ProtocolViolationError: `topic` is not a topic name.
        """
        assert qos in (0, 1, 2), qos
        now_s = asyncio.get_running_loop().time()
        self._server.publish(ReceivedMessage("", topic, payload, qos, retain), now_s)
        self._server.flush()

    async def close(self) -> None:
        """Stop reading, let what was received be appended and acknowledged, say goodbye (MQTT 5: server shutting
        down), and close the sockets. An `append` that does not come to its end in time is cancelled.
        """
        loop = asyncio.get_running_loop()
        self._closing = True
        if self._listener is not None:
            self._listener.close()
        for protocol in self._protocols:
            protocol.pause_reading()
        deadline_s = loop.time() + _CLOSE_TIMEOUT_S
        await self._drain(deadline_s)
        self._appends_in_flight_max = 0
        for protocol in list(self._protocols):
            protocol.connection.shut_down(loop.time())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline_s):
                await self._all_gone.wait()
        for protocol in list(self._protocols):
            protocol.abort()
        await self._all_gone.wait()
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        if self._listener is not None:
            await self._listener.wait_closed()

    async def _drain(self, deadline_s: float) -> None:
        """Append what waits; at the deadline give up and cancel."""
        loop = asyncio.get_running_loop()
        while self._in_flight or not self._server.intake.is_empty:
            self._start_appends()
            tasks = [task for _, task in self._in_flight]
            await asyncio.wait(tasks, timeout=max(0.0, deadline_s - loop.time()))
            if loop.time() >= deadline_s:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                return
            await asyncio.sleep(0)  # lets the finished tasks' groups be released

    # A turn: something happened, then everyone writes once

    def _end_turn(self) -> None:
        if not self._server.intake.is_empty and len(self._in_flight) < self._appends_in_flight_max:
            self._schedule_appends()
        self._server.flush()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        self._tick_handle = loop.call_later(_TICK_S, self._tick, loop)
        for protocol in list(self._protocols):
            protocol.connection.tick(now_s)
        self._server.broker.tick(now_s)
        self._end_turn()

    # Groups

    def _schedule_appends(self) -> None:
        """Start when all sockets that are readable now were read; or when the commit interval is over, or the group
        is full.
        """
        loop = asyncio.get_running_loop()
        soon = not self._commit_interval_s or self._server.intake.has_full_group
        if self._start_handle is not None:
            if not soon or not isinstance(self._start_handle, asyncio.TimerHandle):
                return
            self._start_handle.cancel()
        self._start_handle = (
            loop.call_soon(self._start_appends)
            if soon
            else loop.call_later(self._commit_interval_s, self._start_appends)
        )

    def _start_appends(self) -> None:
        if self._start_handle is not None:
            self._start_handle.cancel()
            self._start_handle = None
        while len(self._in_flight) < self._appends_in_flight_max:
            group = self._server.intake.take()
            if group is None:
                return
            task = asyncio.get_running_loop().create_task(self._append_group(group))
            self._in_flight.append((group, task))
            task.add_done_callback(self._release_groups)

    async def _append_group(self, group: Group) -> None:
        if group.messages:
            await self._append(group.messages)

    def _release_groups(self, _task: asyncio.Task[None]) -> None:
        """Acknowledge and deliver the groups that are done, in their order."""
        now_s = asyncio.get_running_loop().time()
        while self._in_flight and self._in_flight[0][1].done():
            group, task = self._in_flight.popleft()
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                self._server.appended(group, now_s)
            elif isinstance(error, PublishRefused):
                log.warning("mqtt_publish_refused", client_ids=sorted(error.client_ids), reason=str(error))
                self._server.refused(group, error.client_ids, now_s)
            else:
                trace = None if isinstance(error, TidegateError) else error  # those say themselves what happened
                log.error("mqtt_append_failed", messages=len(group.messages), reason=str(error), exc_info=trace)
                self._server.failed(group, now_s)
        self._end_turn()

    # Connections

    def _connected(self, protocol: _ClientProtocol) -> bool:
        """Take a new connection, unless there are too many."""
        if len(self._protocols) >= self._limits.connections_max:
            self.stats.connections_refused += 1
            return False
        self._protocols.add(protocol)
        self._all_gone.clear()
        self.stats.connections_accepted += 1
        self.stats.connections_now = len(self._protocols)
        return True

    def _disconnected(self, protocol: _ClientProtocol) -> None:
        self._protocols.discard(protocol)
        self.stats.connections_now = len(self._protocols)
        if not self._protocols:
            self._all_gone.set()


class _ClientProtocol(asyncio.BufferedProtocol):
    """One socket. All of them read into one buffer: what was read is handled before anyone reads again."""

    connection: ServerConnection

    def __init__(self, endpoint: MqttEndpoint, loop: asyncio.AbstractEventLoop) -> None:
        self._endpoint = endpoint
        self._loop = loop
        self._view = memoryview(endpoint._read_buffer)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        limits = self._endpoint._limits
        peer = transport.get_extra_info("peername")
        self.connection = self._endpoint._server.accept(
            self, peer=str(peer and Address(*peer[:2])), now_s=self._loop.time()
        )
        if not self._endpoint._connected(self):
            transport.abort()
            return
        transport.set_write_buffer_limits(high=limits.outbound_bytes_max)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - BufferedProtocol's signature
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self.connection.receive(bytes(self._view[:nbytes]), self._loop.time())
        self._endpoint._end_turn()

    def pause_writing(self) -> None:
        self.connection.pause_writing(self._loop.time())

    def resume_writing(self) -> None:
        self.connection.resume_writing(self._loop.time())
        self._endpoint._end_turn()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - Protocol's signature
        self._endpoint._disconnected(self)
        self.connection.connection_lost(self._loop.time())
        self._endpoint._end_turn()

    # What the connection asks for (Link)

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def close_for_writing(self) -> None:
        assert self._transport is not None
        try:
            self._transport.write_eof()
        except OSError:  # the client is gone already, and asyncio has not noticed
            self._transport.abort()
        self._transport.resume_reading()

    def abort(self) -> None:
        assert self._transport is not None
        self._transport.abort()

    def pause_reading(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        assert self._transport is not None
        if not self._endpoint._closing:
            self._transport.resume_reading()
