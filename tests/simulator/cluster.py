"""A cluster of real nodes in one process: `tidegate_core.service.run` itself, on a simulated network, disk and clock.

A node is started, killed and started again; each time is a `Life`. Everything that it would have of the operating
system is put in its place while the cluster lives (`Cluster.running`).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest.mock import patch

import structlog

from tests.simulator.disk import Disks, Loss, NodeDisk
from tests.simulator.invariants import NO_EXCEPTIONS, Violation
from tests.simulator.network import Network, SimulatedPeerNetwork, SimulatedServer
from tests.simulator.observer import Observer
from tests.simulator.trace import Trace
from tests.simulator.virtual_loop import WALL_CLOCK_AT_START_MS, Life, VirtualLoop, current_life, living
from tidegate_core import service
from tidegate_core.handlers.peer import PeerServer
from tidegate_core.node import Node
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.peers import PeerName
from tidegate_core.replication.replicas import ReplicaManager
from tidegate_core.settings import CoreSettings
from tidegate_wire.address import Address
from tidegate_wire.errors import TidegateError

MEMORY_DISK: Final = Path("/dev/shm")  # not for secrets
"""The files of simulated disks are in memory: faster, and an inode number is never used again there."""

BURIAL_S: Final = 0.001
"""How long after its end a process can be started again at the earliest."""


class NodeLife(Life):
    """A life of a simulated node."""

    def __init__(self, node: SimulatedNode, number: int) -> None:
        super().__init__(f"{node.name}.{number}")
        self.node = node


def _node() -> SimulatedNode:
    """Whose code runs."""
    life = current_life()
    assert isinstance(life, NodeLife)
    return life.node


class SimulatedNode:
    """One node, in all its lives."""

    def __init__(self, cluster: Cluster, node_id: int, voters: tuple[str, ...], settings: dict[str, Any]) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.name = f"10.0.0.{node_id}"
        self.address = Address(self.name, 9092)
        self.disk: NodeDisk = cluster.disks.disk(str(node_id))
        self.life: NodeLife | None = None
        self.replicas: ReplicaManager | None = None
        self.node: Node | None = None
        """What clients are served from, once they are."""
        self.is_ready = False
        self.safe_at_death: dict[ReplicaKey, int] = {}
        self.lost_disk = False
        self.has_flipped_bits = False
        """Some may not be found yet: nobody reads everything all the time."""
        self.disk_failed = False
        """Had an error that a node may end for, in this life."""
        self.clock_skew_ms = 0
        self.lives = 0
        self._settings = {"voters": voters, **settings}
        self._task: asyncio.Task[None] | None = None
        self._is_starting = False

    @property
    def is_alive(self) -> bool:
        return self.life is not None and not self.life.is_dead

    def clock_ms(self) -> int:
        """Its own idea of Unix time."""
        return WALL_CLOCK_AT_START_MS + int(self.cluster.loop.time() * 1000) + self.clock_skew_ms

    async def start(self) -> None:
        """Begin a life with what the last one left on the disk."""
        if self.is_alive or self._is_starting:
            return
        self._is_starting = True
        if self.life is not None:
            await self.cluster.loop.bury(self.life)
            self.cluster.disks.close_files(self.disk)
            self.disk.next_life()
        self._is_starting = False
        self.lives += 1
        self.disk_failed = False
        life = self.life = NodeLife(self, self.lives)
        self.disk.on_cut = lambda: self._power_is_gone(life)
        settings = CoreSettings(
            node_id=self.node_id, listen=str(self.address), data_dir=self.disk.root, **self._settings
        )
        self.cluster.trace(f"{life}: starts")
        with living(life):
            self._task = asyncio.create_task(service.run(settings), name=f"node {self.node_id}")
        self._task.add_done_callback(lambda task: self._ended(life, task))

    def kill(self, loss: Loss) -> None:
        """The process ends at once; at a power cut, what was not synced may be lost."""
        life = self.life
        if life is None or life.is_dead:
            return
        self.cluster.trace(f"{life}: {'killed' if loss is Loss.NOTHING else f'power cut, loses {loss.name}'}")
        self._note_safe_ends()
        self.disk.crash(loss)
        self._bury(life)

    def _power_is_gone(self, life: NodeLife) -> None:
        """In the middle of whatever it does."""
        self.cluster.trace(f"{life}: power cut in the middle")
        self._note_safe_ends()
        life.is_dead = True
        self.cluster.loop.call_soon(self._bury, life)

    def _note_safe_ends(self) -> None:
        if self.replicas is not None:
            self.safe_at_death = self.cluster.observer.ends_at_death(self.replicas, self.disk)

    def _bury(self, life: NodeLife) -> None:
        self.is_ready = False
        self.replicas = self.node = None
        self.cluster.network.stop_listening(self.address, life)
        self.cluster.loop.kill(life)

    async def stop(self) -> None:
        """As SIGTERM: the node hands over what it leads, and closes."""
        if self._task is None or not self.is_alive:
            return
        self.cluster.trace(f"{self.life}: is told to stop")
        self._task.cancel()
        await asyncio.wait([self._task])

    def _ended(self, life: NodeLife, task: asyncio.Task[None]) -> None:
        """The process ended by itself, or as it was told to."""
        if life.is_dead:
            return
        error = None if task.cancelled() else task.exception()
        self.cluster.trace(f"{life}: ended{'' if error is None else f': {error!r}'}")
        if error is not None and not (self.disk_failed and isinstance(error, TidegateError | OSError)):
            self.cluster.loop.fail(Violation(NO_EXCEPTIONS, f"{life} ended with {error!r}"))
        self._note_safe_ends()
        self.disk.crash(Loss.NOTHING)
        self._bury(life)


class Cluster:
    """`count` nodes, of which the first `voter_count` vote on metadata; made within `running`."""

    def __init__(
        self,
        loop: VirtualLoop,
        base: Path,
        random: Random,
        *,
        count: int,
        voter_count: int,
        settings: dict[str, Any],
        show: Callable[[str], None] | None,
    ) -> None:
        self.loop = loop
        self.random = random
        self.trace = Trace(loop.time, show)
        self.disks = Disks(base, Random(random.random()))
        self.network = Network(loop, Random(random.random()))
        voters = tuple(f"{node}@10.0.0.{node}:9092" for node in range(1, voter_count + 1))
        self.nodes = {node: SimulatedNode(self, node, voters, settings) for node in range(1, count + 1)}
        self.observer = Observer(self.nodes)
        self._base = base

    @property
    def alive(self) -> list[SimulatedNode]:
        return [node for node in self.nodes.values() if node.is_alive]

    @contextmanager
    def running(self) -> Iterator[None]:
        """The operating system is the simulated one meanwhile."""
        with ExitStack() as stack:
            stack.enter_context(self.disks.watched())
            stack.enter_context(self.observer.watching())
            for name, substitute in (
                ("TcpPeerNetwork", self._peer_network),
                ("KafkaServer", self._server),
                ("Random", lambda: Random(self.random.random())),
                ("wall_clock_ms", lambda: _node().clock_ms()),
                ("announce_ready", self._ready),
            ):
                stack.enter_context(patch.object(service, name, substitute))
            stack.enter_context(_logging_to(self._log))
            try:
                yield
            finally:
                for node in self.nodes.values():
                    if node.life is not None:
                        node.life.is_dead = True
                self.loop.end_tasks()
                for node in self.nodes.values():
                    self.disks.close_files(node.disk)

    def _peer_network(self, name: PeerName) -> SimulatedPeerNetwork:
        return SimulatedPeerNetwork(self.network, _node().name, name)

    def _server(self, settings: CoreSettings, peers: PeerServer) -> SimulatedServer:
        node = _node()
        return SimulatedServer(self.network, node.name, settings, peers, lambda served: setattr(node, "node", served))

    def _ready(self, *_path: object, **_facts: object) -> None:
        node = _node()
        node.is_ready = True
        self.trace(f"{node.life}: is ready")

    def _log(self, level: str, event: dict[str, Any]) -> None:
        """What a node says becomes part of the trace; an exception that it did not expect ends the run."""
        life = current_life()
        if life is None or life.is_dead:
            return
        what = event.pop("event")
        error = event.pop("exc_info", None)
        facts = " ".join(f"{name}={value}" for name, value in sorted(event.items()) if name not in _REAL_TIME)
        self.trace(f"{life}: {level} {what} {facts}".replace(str(self._base), ""))
        if error:
            self.loop.fail(Violation(NO_EXCEPTIONS, f"{life} logs {what}: {_exception(error)!r}"))


_REAL_TIME: Final = frozenset({"elapsed_ms"})
"""What a log says that is not the same in two runs of a seed."""


def _exception(info: Any) -> BaseException | None:
    if isinstance(info, BaseException):
        return info
    return info[1] if isinstance(info, tuple) else sys.exc_info()[1]


@contextmanager
def _logging_to(take: Callable[[str, dict[str, Any]], None]) -> Iterator[None]:
    def process(_logger: object, level: str, event: Any) -> Any:
        take(level, dict(event))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[process])
    try:
        yield
    finally:
        structlog.configure(**before)


@contextmanager
def temporary_base() -> Iterator[Path]:
    """A folder for the disks, in memory."""
    assert MEMORY_DISK.is_dir(), "the simulator keeps its disks in /dev/shm, which this machine lacks"
    base = Path(tempfile.mkdtemp(prefix="tidegate-", dir=MEMORY_DISK))
    try:
        yield base
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(base)
