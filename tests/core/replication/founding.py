"""Nodes that look for their cluster: real `Greeter`s and `find_cluster`s, disks and a network in memory.

Every message goes through the codec. A process that dies takes its answers with it, as its connections would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from random import Random
from typing import Self
from uuid import UUID

from tidegate_core.data_dir import Founders
from tidegate_core.replication.bootstrap import Greeter, find_cluster
from tidegate_core.replication.codec import PeerMessage, decode, encode
from tidegate_core.replication.messages import Hello, Lane, PeerRequest, PeerResponse, Refused, Welcome
from tidegate_core.replication.peers import PeerRefused, PeerTimeout, PeerUnreachable
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId

VOTERS = (1, 2, 3)
ANNOUNCED_S = 1.0


class Crashed(BaseException):
    """The process is gone in the middle of what it did."""


class Disk:
    """A data directory (`Identity`)."""

    def __init__(self, node_id: int, directory_id: UUID) -> None:
        self.node_id = NodeId(node_id)
        self.directory_id = directory_id
        self.cluster_id: str | None = None
        self.founders: Founders = ()
        self.is_replacement = False
        self.crash_at_founding: str = ""
        """`before` or `after` it is on the disk."""

    def found(self, cluster_id: str, founders: Founders, *, is_replacement: bool) -> None:
        assert self.cluster_id is None
        crash, self.crash_at_founding = self.crash_at_founding, ""
        if crash == "before":
            raise Crashed
        self.cluster_id, self.founders, self.is_replacement = cluster_id, founders, is_replacement
        if crash == "after":
            raise Crashed

    @property
    def is_founder(self) -> bool:
        return (self.node_id, self.directory_id) in self.founders


class Process:
    """A node from its start to its death."""

    def __init__(self, net: Net, disk: Disk, voters: tuple[int, ...]) -> None:
        self.disk = disk
        self.voters = tuple(map(NodeId, voters))
        self.incarnation = net.new_id()
        self.heard: dict[NodeId, tuple[UUID, float]] = {}
        self.greeter = Greeter(
            disk,
            voters=self.voters,
            incarnation=self.incarnation,
            heard=self.heard,
            clock_s=asyncio.get_running_loop().time,
        )
        self.is_dead = False
        self.task = asyncio.create_task(self._run(net))
        self._announcing = asyncio.create_task(self._announce(net))

    async def _announce(self, net: Net) -> None:
        """A node that has its cluster is heard by the others all the time, as by `PeerServer`."""
        await asyncio.wait([self.task])
        while not self.is_dead:
            for node, other in net.processes.items():
                is_one = other is not self and other.disk.cluster_id == self.disk.cluster_id
                if is_one and not other.is_dead and net.is_open(self.disk.node_id, node):
                    other.heard[self.disk.node_id] = self.disk.directory_id, asyncio.get_running_loop().time()
            await asyncio.sleep(ANNOUNCED_S)

    async def _run(self, net: Net) -> None:
        try:
            await find_cluster(
                self.disk,
                PeersOf(net, self),
                voters=self.voters,
                incarnation=self.incarnation,
                new_cluster_id=lambda: f"cluster {net.new_id()}",
            )
        except Crashed:
            self.is_dead = True
        except BaseException:
            self.is_dead = True  # it ends, saying why
            raise

    def has_died(self) -> bool:
        return self.is_dead

    async def die(self) -> None:
        self.is_dead = True
        for task in (self.task, self._announcing):
            task.cancel()
        await asyncio.gather(self.task, self._announcing, return_exceptions=True)


class Net:
    """Which process is reached at which voter's address, and over which links."""

    def __init__(self, seed: int = 0) -> None:
        self.random = Random(seed)
        self.disks: dict[int, Disk] = {}
        self.processes: dict[int, Process] = {}
        self.everybody: list[Process] = []
        self.cut: set[tuple[int, int]] = set()
        self.loss = 0.0
        self.delay_s_max = 0.001

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.everybody:
            await process.die()

    def new_id(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    def disk(self, node: int) -> Disk:
        """The one in the node, an empty one at first."""
        if node not in self.disks:
            self.wipe(node)
        return self.disks[node]

    def wipe(self, node: int) -> None:
        self.disks[node] = Disk(node, self.new_id())

    def start(self, node: int, *, voters: tuple[int, ...] = VOTERS, disk: Disk | None = None) -> Process:
        """Start a node at its address; with a `disk` of its own, somewhere else under the same id."""
        process = Process(self, disk or self.disk(node), voters)
        if disk is None:
            assert node not in self.processes or self.processes[node].is_dead
            self.processes[node] = process
        self.everybody.append(process)
        return process

    def is_up(self, node: int) -> bool:
        return node in self.processes and not self.processes[node].is_dead

    async def crash(self, node: int) -> None:
        await self.processes[node].die()

    async def all_found(self, *nodes: int, within_s: float = 60.0) -> None:
        """Wait until these nodes belong to a cluster; raises what they ended with."""
        async with asyncio.timeout(within_s):
            await asyncio.gather(*(self.processes[node].task for node in nodes))

    def cluster_ids(self) -> set[str]:
        """On all disks."""
        return {disk.cluster_id for disk in self.disks.values() if disk.cluster_id is not None}

    async def carry(self, sender: Process, to: int, message: PeerRequest, timeout_s: float) -> PeerResponse:
        here = sender.disk.node_id
        try:
            async with asyncio.timeout(timeout_s):
                await self._hop(here, to)
                target = self.processes.get(to)
                if target is None or target.has_died():
                    raise PeerUnreachable(f"node {to} refuses", is_down=True)
                hello = _through_codec(message)
                assert isinstance(hello, Hello)
                answer = _through_codec(target.greeter.hello(hello))
                await self._hop(to, here)
        except TimeoutError:
            raise PeerTimeout(f"node {to} did not answer") from None
        if target.has_died():
            raise PeerUnreachable(f"the connection to node {to} broke", is_down=True)
        if isinstance(answer, Refused):
            raise PeerRefused(answer.error, answer.reason)
        assert isinstance(answer, Welcome)
        return answer

    async def _hop(self, here: int, there: int) -> None:
        await asyncio.sleep(self.random.uniform(0, self.delay_s_max))
        if not self.is_open(here, there):
            await asyncio.sleep(3600)

    def is_open(self, here: int, there: int) -> bool:
        """Whether a message gets through, this time."""
        return (here, there) not in self.cut and self.random.random() >= self.loss


class PeersOf:
    """The network as one process sees it (`PeerNetwork`)."""

    def __init__(self, net: Net, process: Process) -> None:
        self._net = net
        self._process = process

    async def request(self, node: NodeId, lane: Lane, message: PeerRequest, timeout_s: float) -> PeerResponse:
        return await self._net.carry(self._process, node, message, timeout_s)

    def set_addresses(self, addresses: Mapping[NodeId, Address]) -> None:
        raise AssertionError("the addresses are known")

    async def close(self) -> None:
        raise AssertionError("there is nothing to close")


def _through_codec(message: PeerMessage) -> PeerMessage:
    return decode(memoryview(b"".join(encode(message))))


async def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  # what it looks at are disks and tasks, which set no event
            await asyncio.sleep(0.01)
