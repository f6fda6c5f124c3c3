"""Tells every node which partitions this one leads: at once what changed, everything after a node was out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.messages import Lane, Leadership, Leaderships
from tidegate_core.replication.peers import PeerError, PeerNetwork
from tidegate_wire.identifiers import NodeId

IDLE_S: Final = 1.0
"""Between two words to a node when there is no news: a node that started again meanwhile, or thought this one gone, is
found by it, since it refuses them."""

RETRY_S: Final = 0.1
"""Before the next try to reach a node."""

LEADERSHIPS_MAX: Final = 5000
"""In one message; the rest follows in the next."""


class Announcer:
    """One task a node. `leaderships` gives those of the keys that this node leads; all of them for None."""

    def __init__(
        self,
        network: PeerNetwork,
        leaderships: Callable[[Iterable[ReplicaKey] | None], list[Leadership]],
        timeout_ms: int,
    ) -> None:
        self._network = network
        self._leaderships = leaderships
        self._timeout_s = timeout_ms / 1000
        self._news: dict[NodeId, dict[ReplicaKey, None]] = {}
        self._has_news: dict[NodeId, asyncio.Event] = {}
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}

    def set_nodes(self, nodes: Iterable[NodeId]) -> None:
        """Whom to tell."""
        wanted = set(nodes)
        for node in sorted(wanted - self._tasks.keys()):
            self._news[node] = {}
            self._has_news[node] = asyncio.Event()
            self._tasks[node] = asyncio.create_task(self._run(node), name=f"announce to {node}")
        for node in sorted(self._tasks.keys() - wanted):
            self._tasks.pop(node).cancel()
            del self._news[node], self._has_news[node]

    def changed(self, key: ReplicaKey) -> None:
        """There is something new to say of a partition that this node leads."""
        for node, news in self._news.items():
            news[key] = None
            self._has_news[node].set()

    async def close(self) -> None:
        """Stop."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, node: NodeId) -> None:
        news, has_news = self._news[node], self._has_news[node]
        knows_nothing = True
        while True:
            has_news.clear()
            said = dict(news)
            news.clear()
            leaderships = self._leaderships(None if knows_nothing else said)
            try:
                for first in range(0, max(len(leaderships), 1), LEADERSHIPS_MAX):
                    begins = knows_nothing and first == 0
                    part = Leaderships(leaderships[first : first + LEADERSHIPS_MAX], begins)
                    await self._network.request(node, Lane.CONTROL, part, self._timeout_s)
            except PeerError:
                knows_nothing = True
                await asyncio.sleep(RETRY_S)
                continue
            knows_nothing = False
            try:
                async with asyncio.timeout(IDLE_S):
                    await has_news.wait()
            except TimeoutError:
                pass
