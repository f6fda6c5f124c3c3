"""Who waits for a partition to get somewhere."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from heapq import heappop, heappush

from tidegate_core.errors import PartitionError
from tidegate_wire.identifiers import Offset


class OffsetWaits:
    """Futures that wait for an offset to be reached, the lowest first."""

    __slots__ = ("_heap", "_numbers")

    def __init__(self) -> None:
        self._heap: list[tuple[Offset, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def add(self, offset: Offset) -> asyncio.Future[None]:
        """A future that is done when `offset` is reached."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._heap, (offset, next(self._numbers), future))
        return future

    def reached(self, offset: Offset) -> None:
        """Everything up to `offset` is."""
        heap = self._heap
        while heap and heap[0][0] <= offset:
            future = heappop(heap)[2]
            if not future.done():
                future.set_result(None)

    def cut(self, reached: Offset, end: Offset) -> None:
        """Nothing after `end` is there to be waited for any more, and everything up to `reached` is reached."""
        waits, self._heap = self._heap, []
        for offset, number, future in waits:
            if reached < offset <= end:
                heappush(self._heap, (offset, number, future))
            elif not future.done():
                future.set_result(None)

    def reject(self, error: PartitionError) -> None:
        """Nothing that is waited for will be reached."""
        heap, self._heap = self._heap, []
        for _, _, future in heap:
            if not future.done():
                future.set_exception(error)


class ReadWait:
    """A callback that waits for records; see `Partition.when_readable`."""

    __slots__ = ("_waits", "callback", "offset")

    def __init__(self, offset: Offset, callback: Callable[[], None], waits: dict[ReadWait, None]) -> None:
        self.offset = offset
        self.callback = callback
        self._waits = waits

    def cancel(self) -> None:
        """Forget the callback; nothing happens if it was called already."""
        self._waits.pop(self, None)


class ReadWaits:
    """The callbacks that wait for records of one partition."""

    __slots__ = ("_waits",)

    def __init__(self) -> None:
        self._waits: dict[ReadWait, None] = {}

    def new(self, offset: Offset, callback: Callable[[], None], *, is_due: bool) -> ReadWait:
        """Call `callback` once, at once if it `is_due`, else when something at `offset` can be read."""
        wait = ReadWait(offset, callback, self._waits)
        if is_due:
            callback()
        else:
            self._waits[wait] = None
        return wait

    def reached(self, offset: Offset) -> None:
        """What is before `offset` can be read."""
        for wait in [wait for wait in self._waits if wait.offset < offset]:
            if wait in self._waits:  # another callback may have cancelled it
                del self._waits[wait]
                wait.callback()

    def call_all(self) -> None:
        """Nothing will be readable here: let all see for themselves."""
        for wait in list(self._waits):
            if wait in self._waits:
                del self._waits[wait]
                wait.callback()

    def __bool__(self) -> bool:
        return bool(self._waits)
