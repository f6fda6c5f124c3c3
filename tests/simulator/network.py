"""The network between nodes, and between clients and nodes: frames of the real protocols, over links that lose, delay,
double and re-order them, or are cut, in one direction or in both.

`SimulatedPeerNetwork` and `SimulatedServer` stand where `TcpPeerNetwork` and `KafkaServer` do; what they pass on was
encoded, and is decoded, by the real codecs.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final, cast

from tests.simulator.virtual_loop import Life, VirtualLoop, current_life, living
from tidegate_core.dispatch import Dispatcher
from tidegate_core.handlers.peer import PeerServer
from tidegate_core.handlers.produce import begin_produce
from tidegate_core.node import Node
from tidegate_core.protocol.produce import is_produce
from tidegate_core.replication.codec import decode, encode
from tidegate_core.replication.messages import PEER_API, Lane, PeerRequest, PeerResponse, Refused
from tidegate_core.replication.peers import PeerName, PeerRefused, PeerTimeout, PeerUnreachable
from tidegate_core.settings import CoreSettings
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import MessageError, decode_request_header

CLIENT: Final = "client"
"""The name of all clients' end of a link."""

DOUBLED_LATER_S: Final = 3.0
"""A frame's double comes up to so much later: after retries, and after other leaders."""

_LENGTH_BYTES: Final = 4
_PEER_HEADER: Final = struct.Struct(">hhih")
_CORRELATION: Final = struct.Struct(">ii")

Answerer = Callable[[memoryview], Awaitable[bytes]]


@dataclass(slots=True)
class Weather:
    """How the network behaves just now."""

    loss: float = 0.0
    """Share of frames, requests and answers alike, that get lost; who asked hears nothing."""
    doubling: float = 0.0
    delay_ms: float = 0.5
    """On average, one way; each frame for itself, so that they overtake each other."""
    cut: set[tuple[str, str]] = field(default_factory=set)
    """From, to, by the nodes' names: what is sent this way does not arrive."""


class LinkBroken(ConnectionError):  # noqa: N818  # named for what happened
    """Nobody is there, or the process died before it answered; `was_sent` tells which."""

    def __init__(self, what: str, *, was_sent: bool) -> None:
        super().__init__(what)
        self.was_sent = was_sent


class Network:
    """All links."""

    def __init__(self, loop: VirtualLoop, random: Random) -> None:
        self.weather = Weather()
        self.frames = 0
        self._loop = loop
        self._random = random
        self._servers: dict[Address, tuple[str, Life, Answerer, Answerer]] = {}

    def listen(self, address: Address, name: str, life: Life, *, peers: Answerer, clients: Answerer) -> None:
        """Answer what is sent to `address` from now on."""
        self._servers[address] = name, life, peers, clients

    def stop_listening(self, address: Address, life: Life) -> None:
        """Refuse it."""
        if address in self._servers and self._servers[address][1] is life:
            del self._servers[address]

    async def ask(self, sender: str, address: Address, frame: bytes, *, may_double: bool = True) -> bytes:
        """Send a frame, and return its answer, which may never come.

        `may_double`: requests that may come twice, and after who asked has given up; nodes pass a client's request on
        once, over a connection that ends with it.

        Raises:
            LinkBroken: it will never come, and that is known.
        """
        life = current_life()
        answer: asyncio.Future[bytes] = self._loop.create_future()

        def arrive() -> None:
            if answer.done() and not may_double:
                return  # who asked has given up, and closed the connection
            listening = self._servers.get(address)
            if listening is None:
                self._back(sender, str(address.host), answer, LinkBroken("nobody is there", was_sent=False))
                return
            name, server_life, peers, clients = listening
            if (sender, name) in self.weather.cut:
                return
            with living(server_life):
                task = self._loop.create_task(self._answer(peers if sender != CLIENT else clients, frame))
            task.add_done_callback(lambda done: self._answered(sender, name, server_life, answer, done))

        if life is None or not life.is_dead:
            delays_s = [self._delay_s()]
            if may_double and self._random.random() < self.weather.doubling:
                delays_s.append(self._random.uniform(0, DOUBLED_LATER_S))
            for delay_s in delays_s:
                if self._random.random() >= self.weather.loss:
                    self.frames += 1
                    self._loop.call_later(delay_s, arrive)
        return await answer

    @staticmethod
    async def _answer(answerer: Answerer, frame: bytes) -> bytes | LinkBroken:
        try:
            return await answerer(memoryview(bytearray(frame)))
        except MessageError as error:
            return LinkBroken(f"the server closes the connection: {error}", was_sent=True)

    def _answered(
        self, sender: str, name: str, life: Life, answer: asyncio.Future[bytes], task: asyncio.Task[bytes | LinkBroken]
    ) -> None:
        if life.is_dead or task.cancelled():
            self._back(sender, name, answer, LinkBroken("the process died", was_sent=True))
            return
        error = task.exception()
        if error is not None:
            self._loop.fail(error)
            return
        if self._random.random() >= self.weather.loss:
            self._back(sender, name, answer, task.result())

    def _back(self, sender: str, name: str, answer: asyncio.Future[bytes], result: bytes | LinkBroken) -> None:
        def arrive() -> None:
            if answer.done() or (name, sender) in self.weather.cut:
                return
            if isinstance(result, LinkBroken):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        self._loop.call_later(self._delay_s(), arrive)

    def _delay_s(self) -> float:
        return self._random.expovariate(1) * self.weather.delay_ms / 1000


class SimulatedPeerNetwork:
    """In place of `TcpPeerNetwork`."""

    def __init__(self, network: Network, own_name: str, name: PeerName) -> None:
        self._network = network
        self._own_name = own_name
        self._name = name
        self._addresses: dict[NodeId, Address] = {}

    def set_name(self, name: PeerName) -> None:
        self._name = name

    def set_addresses(self, addresses: Mapping[NodeId, Address]) -> None:
        self._addresses = dict(addresses)

    async def request(self, node: NodeId, lane: Lane, message: PeerRequest, timeout_s: float) -> PeerResponse:
        address = self._addresses.get(node)
        if address is None:
            raise PeerUnreachable(f"the address of node {node} is not known", is_down=False)
        name = self._name.asking(node).encode()
        frame = _PEER_HEADER.pack(PEER_API, 0, 1, len(name)) + name + b"".join(encode(message))
        try:
            async with asyncio.timeout(timeout_s):
                raw = await self._network.ask(self._own_name, address, frame, may_double=lane is not Lane.FORWARD)
        except TimeoutError:
            raise PeerTimeout(f"node {node} did not answer within {timeout_s} s") from None
        except LinkBroken as error:
            raise PeerUnreachable(f"node {node}: {error}", is_down=True, was_sent=error.was_sent) from None
        answer = decode(memoryview(raw)[_CORRELATION.size :])
        if isinstance(answer, Refused):
            raise PeerRefused(answer.error, f"node {node}: {answer.reason}")
        return cast("PeerResponse", answer)

    async def close(self) -> None:
        await asyncio.sleep(0)


class SimulatedServer:
    """In place of `KafkaServer`, without its connections and their limits."""

    def __init__(
        self,
        network: Network,
        own_name: str,
        settings: CoreSettings,
        peers: PeerServer,
        on_serve: Callable[[Node], None],
    ) -> None:
        self.node: Node | None = None
        self._on_serve = on_serve
        self._network = network
        self._own_name = own_name
        self._settings = settings
        self._peers = peers
        self._dispatcher: asyncio.Future[Dispatcher] = asyncio.get_running_loop().create_future()
        self._address = Address.parse(settings.listen)
        life = current_life()
        assert life is not None
        self._life = life

    async def bind(self, address: Address) -> Address:
        await asyncio.sleep(0)
        return address

    async def start(self) -> None:
        await asyncio.sleep(0)
        self._network.listen(
            self._address, self._own_name, self._life, peers=self._answer_peer, clients=self._answer_client
        )

    def serve(self, node: Node) -> None:
        self.node = node
        self._on_serve(node)
        self._dispatcher.set_result(Dispatcher(node))

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._network.stop_listening(self._address, self._life)

    async def _answer_peer(self, frame: memoryview) -> bytes:
        return b"".join(await self._peers.answer(decode_request_header(frame), frame))

    async def _answer_client(self, frame: memoryview) -> bytes:
        dispatcher = await asyncio.shield(self._dispatcher)
        if is_produce(frame):
            assert self.node is not None
            produce = begin_produce(self.node, frame)
            await produce.committed()
            answer = produce.encode()
        else:
            answer = b"".join(await dispatcher.answer(decode_request_header(frame), frame, "10.0.0.100"))
        return answer[_LENGTH_BYTES:]
