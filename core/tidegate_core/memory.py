"""What requests and answers take in all connections together, and who waits because it is too much.

Three counts, so that nobody waits for somebody who waits for them. Answers are held until their peer took them, or is
closed for not doing so. Requests are held until they are answered, and may wait for room for answers. A request that is
half read gives nothing back before its other half came, so when all of those wait for each other, one is let through:
the one that is nearest to its end; clients that send half a request and stop are in the way of nobody else.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable


class InFlight:
    """Bytes of requests that are not answered, or of answers that are not sent."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used_bytes = 0
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether more should wait; each connection may pass the limit by one read and one answer."""
        return self.used_bytes > self.bytes_max

    def take(self, size_bytes: int) -> None:
        """Count bytes that are held from now on."""
        self.used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Bytes are held no longer; those who wait are called, first come first served, while there is room."""
        self.used_bytes -= size_bytes
        assert self.used_bytes >= 0
        while self._waiting and not self.is_full:
            self._waiting.popleft()()

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` once there is room; it may be called when nobody needs it any more."""
        self._waiting.append(callback)

    async def room(self) -> None:
        """Return once there is room."""
        while self.is_full:
            happened = asyncio.Event()
            self.when_room(happened.set)
            await happened.wait()


class HalfRead:
    """Bytes set aside for requests that are not whole yet."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used_bytes = 0
        self._waiting: list[tuple[int, int, Callable[[], bool]]] = []
        """A heap by the bytes that are missing."""
        self._numbers = itertools.count()
        self._is_letting_through = False

    @property
    def is_full(self) -> bool:
        """Whether reading on should wait; one request may pass the limit, and each connection by one read."""
        return self.used_bytes > self.bytes_max

    def take(self, size_bytes: int) -> None:
        """Count bytes that are held from now on."""
        self.used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Bytes are held no longer: the request is whole, or gone."""
        self.used_bytes -= size_bytes
        assert self.used_bytes >= 0
        while self._waiting and not self.is_full:
            heapq.heappop(self._waiting)[2]()

    def when_room(self, missing_bytes: int, callback: Callable[[], bool]) -> None:
        """Call `callback` once reading may go on; it says whether anybody still wants to.

        If it is full even then, that request was let through, and `end_passage` has to be called once it is whole or
        gone, or has to make way for another: then after it asked for room again.
        """
        heapq.heappush(self._waiting, (missing_bytes, next(self._numbers), callback))
        self._let_one_through()

    def end_passage(self) -> None:
        """The request that was let through is whole or gone, or waits again."""
        self._is_letting_through = False
        self._let_one_through()

    def _let_one_through(self) -> None:
        while self.is_full and self._waiting and not self._is_letting_through:
            self._is_letting_through = True
            self._is_letting_through = heapq.heappop(self._waiting)[2]()
