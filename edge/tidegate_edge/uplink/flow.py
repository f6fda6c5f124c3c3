"""How many bytes may be on the way at once, so that a slow link is neither flooded nor cut by its own keep-alive.

The time that a broker takes to confirm a batch (PUBACK) tells how fast the link is. As long as it is short, the limit
doubles with what comes back, up to a maximum; when it is long, or a connection ends with batches unconfirmed, it is
halved. An alarm waits behind no more than that.
"""

from __future__ import annotations

from typing import Final

FLIGHT_BYTES_MAX: Final = 8 * 1024 * 1024
"""Bytes of batches on the way: 100 ms of round trip on a 600 Mbit/s link, and memory that a Raspberry Pi can spare."""
FLIGHT_BYTES_START: Final = 256 * 1024
"""Two seconds of a 1 Mbit/s link."""
FLIGHT_BYTES_MIN: Final = 16 * 1024
"""Eight seconds of a 16 kbit/s link; smaller batches would be mostly headers."""

CONFIRM_FAST_MS: Final = 1_000.0
CONFIRM_SLOW_MS: Final = 4_000.0
"""Confirmations within the first let the limit grow; over the second it shrinks. Keep-alives are 15 s and more."""


class FlowLimit:
    """The current limit on bytes on the way."""

    __slots__ = ("bytes_max",)

    def __init__(self) -> None:
        self.bytes_max = FLIGHT_BYTES_START

    @property
    def batch_bytes(self) -> int:
        """How large a batch to cut: at least two fit into the limit, so that the link does not idle between them."""
        return max(FLIGHT_BYTES_MIN, self.bytes_max // 2)

    def confirmed(self, size_bytes: int, after_ms: float) -> None:
        """The broker has a batch, so long after it was handed to the socket."""
        if after_ms <= CONFIRM_FAST_MS:
            self.bytes_max = min(FLIGHT_BYTES_MAX, self.bytes_max + size_bytes)
        elif after_ms > CONFIRM_SLOW_MS:
            self.bytes_max = max(FLIGHT_BYTES_MIN, self.bytes_max // 2)

    def failed(self) -> None:
        """The connection ended while batches were on their way to the broker."""
        self.bytes_max = max(FLIGHT_BYTES_MIN, self.bytes_max // 2)
