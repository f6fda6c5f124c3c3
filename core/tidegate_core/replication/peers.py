"""Speaks to other nodes: one connection for each node and kind of request, opened when it is needed.

Every request says in its header's client id who sends it (`PeerName`), so that nothing depends on what was said before
on the same connection.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, cast
from uuid import UUID

from tidegate_core.replication.codec import decode, encode
from tidegate_core.replication.messages import PEER_API, Lane, PeerRequest, PeerResponse, Refused
from tidegate_wire.address import Address
from tidegate_wire.errors import TidegateError
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode, MessageError

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of one answer: far above what a fetch may bring, so that one large batch gets through."""

LANDING_BYTES: Final = 64 * 1024
"""Read at once while it is not known how long an answer is; the rest of a longer one goes into its own buffer."""

REQUESTS_MAX: Final = 1000
"""Waiting for their answers on one connection; more are refused, since the node is not there."""

CONNECT_TIMEOUT_S: Final = 2.0
"""For a connection; a node behind a broken link does not even refuse."""

_NODE: Final = "tidegate-node"
_LENGTH: Final = struct.Struct(">i")
_REQUEST_HEADER: Final = struct.Struct(">ihhih")
_FIRST: Final = struct.Struct(">ii")
_CORRELATION_MAX: Final = 2**31


class PeerError(TidegateError):
    """Another node did not answer."""


class PeerUnreachable(PeerError):  # noqa: N818  # named for what happened
    """There is no connection to the node. `is_down`: its address refuses, so no process is there."""

    def __init__(self, message: str, *, is_down: bool) -> None:
        super().__init__(message)
        self.is_down = is_down


class PeerTimeout(PeerError):  # noqa: N818
    """The node did not answer in time."""


class PeerRefused(PeerError):  # noqa: N818
    """The node answered that it will not."""

    def __init__(self, error: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.error = error


class PeerNetwork(Protocol):
    """How a node speaks to the others."""

    async def request(self, node: NodeId, lane: Lane, message: PeerRequest, timeout_s: float) -> PeerResponse:
        """Ask `node`, and return its answer.

        Raises:
            PeerUnreachable, PeerTimeout, PeerRefused: there is none.
        """

    def set_addresses(self, addresses: Mapping[NodeId, Address]) -> None:
        """Where the nodes are."""

    async def close(self) -> None:
        """Close all connections."""


class PeerHandler(Protocol):
    """How a node answers the others."""

    async def handle(self, sender: NodeId, message: PeerRequest) -> PeerResponse:
        """Answer `sender`, who is a node of the same cluster, unless the message is a Hello."""


@dataclass(frozen=True, slots=True)
class PeerName:
    """Who sends a request; as a text it is the client id."""

    node_id: NodeId
    directory_id: UUID
    cluster_id: str
    """Empty while the node has none."""

    def __str__(self) -> str:
        return f"{_NODE}/{self.node_id}/{self.directory_id}/{self.cluster_id}"

    @classmethod
    def parse(cls, client_id: str) -> PeerName:
        """Read a client id.

        Raises:
            MessageError: it is not one of a node.
        """
        kind, _, rest = client_id.partition("/")
        try:
            node_id, directory_id, cluster_id = rest.split("/", 2) if kind == _NODE else [""]
            return cls(NodeId(int(node_id)), UUID(directory_id), cluster_id)
        except ValueError as error:
            raise MessageError(f"client {client_id[:100]!r} is not a node of a cluster") from error


class _Connection(asyncio.BufferedProtocol):
    """One connection: requests out, answers in, told apart by their correlation ids."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = cast("asyncio.Transport", None)
        self._answers: dict[int, asyncio.Future[memoryview]] = {}
        self._numbers = itertools.count(1)
        self._landing = bytearray(LANDING_BYTES)
        self._rest = b""
        self._frame: bytearray | None = None
        self._filled = 0
        self._can_write = asyncio.Event()
        self._can_write.set()
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self._can_write.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(PeerUnreachable(f"the connection broke: {error or 'closed'}", is_down=True))
        self._answers.clear()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def get_buffer(self, _size_hint: int) -> memoryview:
        if self._frame is not None:
            return memoryview(self._frame)[self._filled :]
        return memoryview(self._landing)

    def buffer_updated(self, size_bytes: int) -> None:
        if self._frame is not None:
            self._filled += size_bytes
            if self._filled == len(self._frame):
                frame, self._frame = self._frame, None
                self._answered(memoryview(frame))
            return
        data = self._rest + bytes(self._landing[:size_bytes])
        at, end = 0, len(data)
        while end - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            if not _LENGTH.size <= length <= ANSWER_BYTES_MAX:
                self._transport.abort()
                return
            at += _LENGTH.size
            if at + length > end:
                self._frame = bytearray(length)
                self._frame[: end - at] = data[at:]
                self._filled = end - at
                at = end
                break
            self._answered(memoryview(data)[at : at + length])
            at += length
        self._rest = data[at:]

    def _answered(self, frame: memoryview) -> None:
        (number,) = _LENGTH.unpack_from(frame)
        answer = self._answers.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_result(frame[_LENGTH.size :])

    async def request(self, name: bytes, message: PeerRequest) -> memoryview:
        if len(self._answers) >= REQUESTS_MAX:
            raise PeerTimeout(f"{REQUESTS_MAX} requests wait for their answers")
        number = next(self._numbers) % _CORRELATION_MAX
        buffers = encode(message)
        size_bytes = sum(map(len, buffers)) + len(name) + _REQUEST_HEADER.size - _LENGTH.size
        header = _REQUEST_HEADER.pack(size_bytes, PEER_API, 0, number, len(name))
        answer = self._answers[number] = self._loop.create_future()
        try:
            await self._can_write.wait()
            if self.is_lost:
                raise PeerUnreachable("the connection broke", is_down=True)
            self._transport.writelines([header, name, *buffers])
            frame: memoryview = await answer
        finally:
            self._answers.pop(number, None)
        return frame

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class TcpPeerNetwork:
    """The real network. `name` may be set anew when the node learns of its cluster."""

    def __init__(self, name: PeerName) -> None:
        self._name = str(name).encode()
        self._addresses: dict[NodeId, Address] = {}
        self._connections: dict[tuple[NodeId, Lane], _Connection] = {}
        self._opening: dict[tuple[NodeId, Lane], asyncio.Task[_Connection]] = {}

    def set_name(self, name: PeerName) -> None:
        """Who this node is, in every request from now on."""
        self._name = str(name).encode()

    def set_addresses(self, addresses: Mapping[NodeId, Address]) -> None:
        """Where the nodes are; connections to another address than before are closed."""
        for (node, lane), connection in list(self._connections.items()):
            if addresses.get(node) != self._addresses.get(node):
                connection.close()
                del self._connections[node, lane]
        self._addresses = dict(addresses)

    async def request(self, node: NodeId, lane: Lane, message: PeerRequest, timeout_s: float) -> PeerResponse:
        """Ask `node`, and return its answer.

        Raises:
            PeerUnreachable, PeerTimeout, PeerRefused: there is none.
        """
        try:
            async with asyncio.timeout(timeout_s):
                connection = self._connections.get((node, lane))
                if connection is None or connection.is_lost:
                    connection = await self._open(node, lane)
                answer = decode(await connection.request(self._name, message))
        except TimeoutError:
            raise PeerTimeout(f"node {node} did not answer within {timeout_s} s") from None
        except MessageError as error:
            raise PeerUnreachable(f"node {node} answers what is no answer: {error}", is_down=False) from error
        if isinstance(answer, Refused):
            raise PeerRefused(answer.error, f"node {node}: {answer.reason}")
        return cast("PeerResponse", answer)

    async def _open(self, node: NodeId, lane: Lane) -> _Connection:
        opening = self._opening.get((node, lane))
        if opening is None:
            opening = self._opening[node, lane] = asyncio.create_task(self._connect(node, lane))
            opening.add_done_callback(lambda _done: self._opening.pop((node, lane), None))
        return await asyncio.shield(opening)

    async def _connect(self, node: NodeId, lane: Lane) -> _Connection:
        address = self._addresses.get(node)
        if address is None:
            raise PeerUnreachable(f"the address of node {node} is not known", is_down=False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(_Connection, address.host, address.port)
        except TimeoutError:
            raise PeerUnreachable(f"node {node} at {address} does not take connections", is_down=False) from None
        except OSError as error:
            is_down = isinstance(error, ConnectionError)
            raise PeerUnreachable(f"node {node} at {address}: {error.strerror or error}", is_down=is_down) from error
        self._connections[node, lane] = connection
        return connection

    async def close(self) -> None:
        """Close all connections."""
        opening = list(self._opening.values())
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        await asyncio.sleep(0)
