"""Two ends of the nodes' network over TCP: a real `KafkaServer` that answers nodes only, and servers of bare bytes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from tidegate_core.data_dir import DataDir
from tidegate_core.handlers.peer import PeerServer
from tidegate_core.replication.bootstrap import Greeter
from tidegate_core.replication.messages import PeerRequest, PeerResponse
from tidegate_core.replication.peers import PeerName, TcpPeerNetwork
from tidegate_core.server import KafkaServer
from tidegate_core.settings import CoreSettings
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId

CLUSTER = "the cluster"
FREE = Address("127.0.0.1", 0)

Answer = Callable[[NodeId, PeerRequest], Awaitable[PeerResponse]]


class Answers:
    """A `PeerHandler` that does what the test says."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.cancelled = 0

    async def handle(self, sender: NodeId, message: PeerRequest) -> PeerResponse:
        try:
            return await self._answer(sender, message)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Served:
    """A node's port."""

    def __init__(self, server: KafkaServer, peers: PeerServer, address: Address, handler: Answers) -> None:
        self.server = server
        self.peers = peers
        self.address = address
        self.handler = handler


@asynccontextmanager
async def serving(
    directory: Path, answer: Answer, *, node_id: int = 2, cluster_id: str | None = CLUSTER, port: int = 0
) -> AsyncIterator[Served]:
    """Answer nodes at a port."""
    data_dir = DataDir.claim(directory / f"node {node_id}", node_id=NodeId(node_id))
    peers = PeerServer(cluster_id)
    peers.handler = handler = Answers(answer)
    peers.greeter = Greeter(
        data_dir,
        voters=(NodeId(1), NodeId(2)),
        incarnation=UUID(int=node_id),
        heard=peers.heard,
        clock_s=asyncio.get_running_loop().time,
    )
    server = KafkaServer(CoreSettings(data_dir=data_dir.path, node_id=node_id), peers)
    address = await server.bind(Address("127.0.0.1", port))
    await server.start()
    try:
        yield Served(server, peers, address, handler)
    finally:
        await server.close()
        data_dir.release()


@asynccontextmanager
async def asking(
    *addresses: tuple[int, Address], node_id: int = 1, cluster_id: str = CLUSTER
) -> AsyncIterator[TcpPeerNetwork]:
    """The network of a node that knows these others."""
    network = TcpPeerNetwork(PeerName(NodeId(node_id), UUID(int=1000 + node_id), cluster_id))
    network.set_addresses({NodeId(node): address for node, address in addresses})
    try:
        yield network
    finally:
        await network.close()


Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def bare_server(connected: Connected) -> AsyncIterator[Address]:
    """A port behind which the test itself answers."""
    tasks: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await connected(reader, writer)
        except (asyncio.CancelledError, OSError, EOFError):
            pass  # the test is over, or the other side went
        finally:
            tasks.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(run, FREE.host, FREE.port)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield Address(host, port)
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


async def read_request(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The next request's correlation id, and its whole frame."""
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    frame = await reader.readexactly(size)
    (correlation_id,) = struct.unpack_from(">i", frame, 4)
    return correlation_id, frame


def answer_frame(correlation_id: int, body: bytes) -> bytes:
    return struct.pack(">ii", len(body) + 4, correlation_id) + body
