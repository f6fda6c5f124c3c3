"""What a bridge holds at most: batches and bytes in all, and a share of each for one edge."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

EDGE_SHARE: Final = 4
"""One edge may hold a quarter of the bytes, so that it can't shut out the others; one batch always fits."""

WINDOWS_PER_EDGE: Final = 2
"""An edge is told how many batches to have in flight. One that reconnects starts a second window before it can know
what became of the first; more than both is not an edge of ours."""


@dataclass(slots=True)
class _Held:
    batches: int = 0
    size_bytes: int = 0


class InFlightWindow:
    """Counts what was taken and not yet answered. `room` waits where all edges together have taken too much."""

    def __init__(self, *, batches_max: int, bytes_max: int, edge_batches_max: int) -> None:
        self._batches_max = batches_max
        self._bytes_max = bytes_max
        self._edge_batches_max = edge_batches_max * WINDOWS_PER_EDGE
        self._edge_bytes_max = bytes_max // EDGE_SHARE
        self._all = _Held()
        self._edges: dict[str, _Held] = {}
        self._freed = asyncio.Event()

    @property
    def batches(self) -> int:
        """Batches taken and not yet answered."""
        return self._all.batches

    @property
    def has_room(self) -> bool:
        """Whether one more batch may be taken."""
        return self._all.batches < self._batches_max and self._all.size_bytes < self._bytes_max

    async def room(self) -> None:
        """Return when one more batch may be taken. The limit on bytes may be passed by that batch."""
        while not self.has_room:
            self._freed.clear()
            await self._freed.wait()

    async def empty(self) -> None:
        """Return when every batch was answered."""
        while self._all.batches:
            self._freed.clear()
            await self._freed.wait()

    def take(self, edge: str, size_bytes: int) -> bool:
        """Count a batch of `edge`; False, and not counted, if the edge holds its share already."""
        held = self._edges.setdefault(edge, _Held())
        too_many = held.batches >= self._edge_batches_max
        too_large = held.batches > 0 and held.size_bytes + size_bytes > self._edge_bytes_max
        if too_many or too_large:
            return False
        for count in (held, self._all):
            count.batches += 1
            count.size_bytes += size_bytes
        return True

    def release(self, edge: str, size_bytes: int) -> None:
        """The batch was answered."""
        held = self._edges[edge]
        for count in (held, self._all):
            count.batches -= 1
            count.size_bytes -= size_bytes
            assert count.batches >= 0, edge
        if held.batches == 0:
            del self._edges[edge]
        self._freed.set()
