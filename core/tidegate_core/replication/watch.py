"""Which nodes are heard: asked once for all partitions, not for each.

A leader is heard by whoever follows it as long as it answers fetches; a follower by its leader as long as it fetches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.raft.replica import Timing
from tidegate_core.replication.elections import Elections
from tidegate_core.replication.fetcher import LeaderFetcher
from tidegate_core.replication.hosted import HostedReplica
from tidegate_wire.identifiers import NodeId

SWEEP_S: Final = 0.1
"""Between two looks at which nodes are heard: a tenth of the time after which one is not."""

HEARD_FACTOR: Final = 1.5
"""A leader thinks a follower gone after this many election timeouts; others have elected a new leader by then."""


class Watch:
    """Owned by the replica manager."""

    def __init__(
        self,
        node_id: NodeId,
        hosted: Mapping[ReplicaKey, HostedReplica],
        fetchers: Mapping[NodeId, LeaderFetcher],
        last_fetch_ms: Mapping[NodeId, int],
        elections: Elections,
        *,
        settle: Callable[[HostedReplica], None],
        now_ms: Callable[[], int],
        timing: Timing,
    ) -> None:
        self._node_id = node_id
        self._hosted = hosted
        self._fetchers = fetchers
        self._last_fetch_ms = last_fetch_ms
        self._elections = elections
        self._settle = settle
        self._now_ms = now_ms
        self._timing = timing
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from time to time."""
        self._task = asyncio.create_task(self._run(), name="watch")

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def is_heard(self, follower: NodeId) -> bool:
        """Whether a follower's node fetched lately."""
        at_ms = self._last_fetch_ms.get(follower)
        return at_ms is not None and self._now_ms() - at_ms <= self._timing.election_timeout_ms

    def hears_leader(self, hosted: HostedReplica) -> bool:
        """Whether the node that leads a partition, as far as this replica knows, answers."""
        leader = hosted.replica.leader
        if leader is None or leader == self._node_id:
            return leader == self._node_id
        fetcher = self._fetchers.get(leader)
        return fetcher is not None and self._now_ms() - fetcher.last_answer_ms <= self._timing.election_timeout_ms

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now_ms = self._now_ms()
            for fetcher in list(self._fetchers.values()):
                if fetcher.following and now_ms - fetcher.last_answer_ms > self._timing.election_timeout_ms:
                    fetcher.lost()
            self._check_quorums(now_ms)

    def _check_quorums(self, now_ms: int) -> None:
        limit_ms = int(self._timing.election_timeout_ms * HEARD_FACTOR)
        unheard = frozenset(node for node, at_ms in self._last_fetch_ms.items() if now_ms - at_ms > limit_ms)
        for hosted in list(self._hosted.values()):
            if not hosted.replica.is_leader or len(hosted.partition.voters) < 2:
                continue
            if now_ms - hosted.led_since_ms <= limit_ms:
                self._remind(hosted, now_ms)
            else:
                hosted.replica.check_quorum(lambda node: node in self._last_fetch_ms and node not in unheard, now_ms)
                self._settle(hosted)

    def _remind(self, hosted: HostedReplica, now_ms: int) -> None:
        """Tell voters again who leads that have not fetched since."""
        progress = hosted.replica.progress
        if now_ms - hosted.led_since_ms > self._timing.stagger_ms:
            missing = [voter for voter, known in progress.items() if known.end_offset < 0]
            if missing:
                self._elections.begin_epoch(hosted, missing)
