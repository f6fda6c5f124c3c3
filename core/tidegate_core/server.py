"""Listens for Kafka clients, and keeps their connections within bounds."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from tidegate_core.connection import Connection
from tidegate_core.dispatch import Dispatcher
from tidegate_core.handlers.peer import PeerServer
from tidegate_core.memory import HalfRead, InFlight
from tidegate_core.node import Node
from tidegate_core.settings import CoreSettings
from tidegate_wire.address import Address
from tidegate_wire.errors import ConfigError

LANDING_BYTES: Final = 256 * 1024
"""What one read takes at most: the size of asyncio's own reads, and larger ones measure no faster."""

BACKLOG: Final = 1024
"""Connections that wait to be accepted: a fleet that reconnects at once."""

REFUSALS_LOGGED_MAX: Final = 20
"""Refused connections that are logged between two sweeps; more are only counted, or a scan would fill the log."""

SWEEP_S: Final = 5.0
"""How often connections are looked at for stalled peers, at most; the timeouts are tens of seconds."""

_log = structlog.get_logger()


class KafkaServer:
    """The connections of a node. Clients wait until it is known what they are served with (`serve`); nodes don't."""

    def __init__(self, settings: CoreSettings, peers: PeerServer) -> None:
        self.node: Node | None = None
        self.dispatcher: asyncio.Future[Dispatcher] = asyncio.get_running_loop().create_future()
        self.peers = peers
        self.settings = settings
        self.half_read = HalfRead(settings.memory_bytes_max // 4)
        self.requests = InFlight(settings.memory_bytes_max // 4)
        self.answers = InFlight(settings.memory_bytes_max // 2)
        self.landing = memoryview(bytearray(LANDING_BYTES))
        """Where reads land; the loop reads one socket at a time and hands the bytes over before the next."""
        self._connections: set[Connection] = set()
        self._too_many = 0
        self._refused = 0
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def bind(self, address: Address) -> Address:
        """Take the address, so that it is known; returns the real one. Nobody is served before `start`.

        Raises:
            ConfigError: the address can't be had.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self), address.host, address.port, backlog=BACKLOG, start_serving=False
            )
        except OSError as error:
            raise ConfigError(f"can't listen on {address}: {error.strerror}", hint="choose another --listen") from error
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port)

    def serve(self, node: Node) -> None:
        """Answer clients from now on."""
        self.node = node
        self.dispatcher.set_result(Dispatcher(node))

    async def start(self) -> None:
        """Accept connections."""
        assert self._server is not None
        await self._server.start_serving()
        self._sweeper = asyncio.create_task(self._sweep(), name="kafka-sweep")

    async def close(self) -> None:
        """Stop listening, close all connections, and wait for what they were doing."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        workers = [connection.worker for connection in self._connections if connection.worker is not None]
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)  # lets the loop tell the connections
        await asyncio.gather(*workers, return_exceptions=True)

    def admit(self, connection: Connection) -> bool:
        """Whether a new connection may stay."""
        if len(self._connections) >= self.settings.connections_max:
            self._too_many += 1
            return False
        self._connections.add(connection)
        return True

    def dismiss(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)

    def refused(self, host: str, reason: str) -> None:
        """A connection was closed for what it sent."""
        self._refused += 1
        if self._refused <= REFUSALS_LOGGED_MAX:
            _log.warning("connection_refused", host=host, reason=reason)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = min(SWEEP_S, self.settings.connection_stall_s / 2, self.settings.connection_idle_s / 2)
        while True:
            await asyncio.sleep(pause_s)
            now = loop.time()
            for connection in [one for one in self._connections if one.is_stalled(now)]:
                _log.info("connection_timed_out", host=connection.host)
                connection.close()
            if self._too_many:
                _log.warning("too_many_connections", count=self._too_many, limit=self.settings.connections_max)
            if self._refused > REFUSALS_LOGGED_MAX:
                _log.warning("more_connections_refused", count=self._refused - REFUSALS_LOGGED_MAX)
            self._too_many = self._refused = 0
