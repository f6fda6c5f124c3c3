"""Speaks to other nodes: one connection for each node and kind of request, opened when it is needed.

Every request says in its header's client id who sends it (`PeerName`) and whom it asks, so that nothing depends on what
was said before on the same connection, and no node votes for another one whose address it has.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections import Counter
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

UNACKNOWLEDGED_MS_MAX: Final = 2_000
"""How long the other kernel may leave what was sent unacknowledged before the connection counts as broken. Without it
TCP would wait ever longer between its attempts, and a cluster would stay cut for as long again as its links were."""

FORWARD_CONNECTIONS: Final = 4
"""To one node: an answer of the controller may take seconds, and a connection's requests are answered in turn."""

NODE_ID_MAX: Final = 2**31 - 1

_NODE: Final = "tidegate-node"
_LENGTH: Final = struct.Struct(">i")
_REQUEST_HEADER: Final = struct.Struct(">ihhih")
_FIRST: Final = struct.Struct(">ii")
_CORRELATION_MAX: Final = 2**31


class PeerError(TidegateError):
    """Another node did not answer."""


class PeerUnreachable(PeerError):  # noqa: N818  # named for what happened
    """There is no connection to the node. `is_down`: its address refuses, so no process is there. `was_sent`: the
    connection broke after the request was written to it, so it may have been carried out.
    """

    def __init__(self, message: str, *, is_down: bool, was_sent: bool = False) -> None:
        super().__init__(message)
        self.is_down = is_down
        self.was_sent = was_sent

    def again(self, *, was_sent: bool) -> PeerUnreachable:
        """For another one who waits: an exception that is raised keeps what raised it."""
        return PeerUnreachable(str(self), is_down=self.is_down, was_sent=was_sent)


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
    """Who sends a request."""

    node_id: NodeId
    directory_id: UUID
    cluster_id: str
    """Empty while the node has none."""

    def asking(self, node: NodeId) -> str:
        """The client id of a request to `node`."""
        return f"{_NODE}/{self.node_id}/{node}/{self.directory_id}/{self.cluster_id}"

    @classmethod
    def parse(cls, client_id: str) -> tuple[PeerName, NodeId]:
        """Read a client id: who sends the request, and whom it asks.

        Raises:
            MessageError: it is not one of a node.
        """
        kind, _, rest = client_id.partition("/")
        try:
            sender, asked, directory_id, cluster_id = rest.split("/", 3) if kind == _NODE else [""]
            return cls(_node_id(sender), UUID(directory_id), cluster_id), _node_id(asked)
        except ValueError as error:
            raise MessageError(f"client {client_id[:100]!r} is not a node of a cluster") from error


def _node_id(text: str) -> NodeId:
    number = int(text)
    if not 0 <= number <= NODE_ID_MAX:
        raise ValueError(number)
    return NodeId(number)


_Key = tuple[NodeId, Lane, int]
"""The node, what it is asked, and which of the connections for that."""


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
        self._ended = ""
        """Why this side ended it."""
        self._lost: PeerUnreachable | None = None
        self._heard_at = self._loop.time()

    @property
    def is_lost(self) -> bool:
        """Nothing can be asked here any more."""
        return self._lost is not None or bool(self._ended)

    @property
    def silent_s(self) -> float:
        """Since bytes came, or the connection was made."""
        return self._loop.time() - self._heard_at

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        connected: socket.socket = transport.get_extra_info("socket")
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS_MAX)

    def connection_lost(self, error: Exception | None) -> None:
        is_down = not self._ended and (error is None or isinstance(error, ConnectionError))
        self._lost = PeerUnreachable(self._ended or f"the connection broke: {error or 'closed'}", is_down=is_down)
        self._can_write.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._lost.again(was_sent=True))
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
        self._heard_at = self._loop.time()
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
                self.end(f"an answer of {length} bytes")
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
            if self._lost is not None:
                raise self._lost.again(was_sent=False)
            self._transport.writelines([header, name, *buffers])
            frame: memoryview = await answer
        finally:
            self._answers.pop(number, None)
        return frame

    def end(self, reason: str) -> None:
        self._ended = reason
        self._transport.abort()


class TcpPeerNetwork:
    """The real network. `name` may be set anew when the node learns of its cluster."""

    def __init__(self, name: PeerName) -> None:
        self._name = name
        self._addresses: dict[NodeId, Address] = {}
        self._connections: dict[_Key, _Connection] = {}
        self._opening: dict[_Key, asyncio.Task[_Connection]] = {}
        self._asking: Counter[_Key] = Counter()
        """How many requests wait for an answer, or for their connection."""

    def set_name(self, name: PeerName) -> None:
        """Who this node is, in every request from now on."""
        self._name = name

    def set_addresses(self, addresses: Mapping[NodeId, Address]) -> None:
        """Where the nodes are; connections to another address than before are closed."""
        moved = {node for node, address in self._addresses.items() if addresses.get(node) != address}
        self._addresses = dict(addresses)
        for key in [key for key in self._connections if key[0] in moved]:
            self._connections.pop(key).end(f"node {key[0]} is at another address now")
        for key in [key for key in self._opening if key[0] in moved]:
            self._opening.pop(key).cancel()

    async def request(self, node: NodeId, lane: Lane, message: PeerRequest, timeout_s: float) -> PeerResponse:
        """Ask `node`, and return its answer.

        Raises:
            PeerUnreachable, PeerTimeout, PeerRefused: there is none.
        """
        keys = [(node, lane, number) for number in range(FORWARD_CONNECTIONS if lane is Lane.FORWARD else 1)]
        key = min(keys, key=self._asking.__getitem__)
        self._asking[key] += 1
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._ask(key, message)
        except TimeoutError:
            self._give_up(key, timeout_s)
            raise PeerTimeout(f"node {node} did not answer within {timeout_s} s") from None
        finally:
            self._asking[key] -= 1
        if isinstance(answer, Refused):
            raise PeerRefused(answer.error, f"node {node}: {answer.reason}")
        return answer

    async def _ask(self, key: _Key, message: PeerRequest) -> PeerResponse:
        connection = self._connections.get(key)
        if connection is None or connection.is_lost:
            connection = await self._open(key)
        frame = await connection.request(self._name.asking(key[0]).encode(), message)
        try:
            return _decode_answer(frame)
        except MessageError as error:
            reason = f"node {key[0]} answers what is no answer: {error}"
            connection.end(reason)
            raise PeerUnreachable(reason, is_down=False, was_sent=True) from error

    def _give_up(self, key: _Key, timeout_s: float) -> None:
        """End a connection on which nothing came either: what was asked on it would be answered one day, in turn."""
        connection = self._connections.get(key)
        if connection is not None and connection.silent_s >= timeout_s / 2:  # a part of it may have gone in connecting
            connection.end(f"node {key[0]} was silent for {timeout_s} s")

    async def _open(self, key: _Key) -> _Connection:
        opening = self._opening.get(key)
        if opening is None:
            opening = self._opening[key] = asyncio.create_task(self._connect(key))
            opening.add_done_callback(lambda done: self._opened(key, done))
        await asyncio.wait([opening])
        if opening.cancelled():
            raise PeerUnreachable(f"the connection to node {key[0]} was given up", is_down=False)
        return opening.result()

    def _opened(self, key: _Key, opening: asyncio.Task[_Connection]) -> None:
        if self._opening.get(key) is opening:
            del self._opening[key]
        if not opening.cancelled():
            opening.exception()  # nobody may be left to see it

    async def _connect(self, key: _Key) -> _Connection:
        node = key[0]
        address = self._addresses.get(node)
        if address is None:
            raise PeerUnreachable(f"the address of node {node} is not known", is_down=False)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await _connect(address)
        except TimeoutError:
            raise PeerUnreachable(f"node {node} at {address} does not take connections", is_down=False) from None
        except OSError as error:
            is_down = isinstance(error, ConnectionError)
            raise PeerUnreachable(f"node {node} at {address}: {error.strerror or error}", is_down=is_down) from error
        self._connections[key] = connection
        return connection

    async def close(self) -> None:
        """Close all connections, and open no more."""
        opening = list(self._opening.values())
        self.set_addresses({})
        await asyncio.gather(*opening, return_exceptions=True)
        await asyncio.sleep(0)  # lets the loop tell the connections


def _decode_answer(frame: memoryview) -> PeerResponse:
    answer = decode(frame)
    if not isinstance(answer, PeerResponse):
        raise MessageError(f"a {type(answer).__name__}")
    return answer


async def _connect(address: Address) -> _Connection:
    """Connect to the first address of the host that takes it; the last one's error if none does."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for number, (family, _, _, _, where) in enumerate(found, 1):
        try:
            _, connection = await loop.create_connection(_Connection, str(where[0]), int(where[1]), family=family)
        except OSError:
            if number == len(found):
                raise
        else:
            return connection
    raise OSError(f"{address.host} has no address")
