"""What requests and answers in flight take in all, and who waits because it is too much."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class MemoryBudget:
    """Counts bytes. Nobody is refused: whoever would take more asks first, and is called when there is room.

    The limit may be passed by what each connection takes between two questions: one read and one answer.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used_bytes = 0
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether more should wait."""
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
