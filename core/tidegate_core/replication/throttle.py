"""How much a recovering follower may be sent: a token bucket, so that recovery leaves room for what is new."""

from __future__ import annotations

from typing import Final

BURST_S: Final = 0.1
"""What may be sent at once after a pause, in seconds of the rate."""


class Throttle:
    """All recovering followers of a node share one."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._burst_bytes = max(int(bytes_per_s * BURST_S), 1)
        self._room = float(self._burst_bytes)
        self._at_ms = 0
        self.pause_s = BURST_S / 2
        """After how long it is worth asking again."""

    def allowed(self, now_ms: int) -> int:
        """Bytes that may be sent now; not positive if nothing may."""
        elapsed_ms = max(now_ms - self._at_ms, 0)
        self._at_ms = now_ms
        self._room = min(self._room + elapsed_ms * self._bytes_per_s / 1000, self._burst_bytes)
        return int(self._room)

    def take(self, size_bytes: int) -> None:
        """Sent; one batch may exceed what was allowed, which is then paid back."""
        self._room -= size_bytes
