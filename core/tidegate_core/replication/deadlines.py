"""One timer of the event loop for the deadlines of many replicas."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

from tidegate_core.replication.hosted import HostedReplica


class Deadlines:
    """Calls `due` for each replica whose deadline came; one that was set anew meanwhile is called for nothing."""

    def __init__(self, due: Callable[[HostedReplica], None]) -> None:
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[int, int, HostedReplica]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def add(self, deadline_ms: int, hosted: HostedReplica) -> None:
        """Call for `hosted` at `deadline_ms` of the loop's clock."""
        if hosted.scheduled_ms == deadline_ms:
            return
        hosted.scheduled_ms = deadline_ms
        heapq.heappush(self._heap, (deadline_ms, next(self._numbers), hosted))
        if self._heap[0][0] == deadline_ms:
            self._set_timer()

    def close(self) -> None:
        """Call no more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap and not self._is_closed:
            self._timer = self._loop.call_at(self._heap[0][0] / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now_ms = self._loop.time() * 1000
        while self._heap and self._heap[0][0] <= now_ms:
            deadline_ms, _, hosted = heapq.heappop(self._heap)
            if hosted.scheduled_ms == deadline_ms:
                hosted.scheduled_ms = -1
                self._due(hosted)
        self._set_timer()
