"""How long to wait for an acknowledgement: RFC 6298 in milliseconds, with Karn's rule left to the caller."""

from __future__ import annotations

from typing import Final

START_MS: Final = 5_000.0
"""Before the first measurement. Generous, because a batch sent again for nothing costs a slow link dearly."""
MIN_MS: Final = 1_000.0
"""A core that syncs its disks may take half a second without being ill."""
MAX_MS: Final = 60_000.0
"""Also the bound of what doubling makes of it."""


class RetransmissionTimeout:
    """The timeout, from round trips measured so far."""

    __slots__ = ("_smoothed_ms", "_variation_ms")

    def __init__(self) -> None:
        self._smoothed_ms: float | None = None
        self._variation_ms = 0.0

    def measured(self, round_trip_ms: float) -> None:
        """Take the round trip of something that was sent only once."""
        if self._smoothed_ms is None:
            self._smoothed_ms = round_trip_ms
            self._variation_ms = round_trip_ms / 2
            return
        self._variation_ms += (abs(self._smoothed_ms - round_trip_ms) - self._variation_ms) / 4
        self._smoothed_ms += (round_trip_ms - self._smoothed_ms) / 8

    def timeout_ms(self, retries: int = 0) -> float:
        """How long to wait for the answer to the transmission number `retries` + 1."""
        timeout_ms = START_MS
        if self._smoothed_ms is not None:
            timeout_ms = max(MIN_MS, self._smoothed_ms + 4 * self._variation_ms)
        return float(min(MAX_MS, timeout_ms * 2 ** min(retries, 16)))
