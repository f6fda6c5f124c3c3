"""How long to wait before the next try: exponential with full jitter, so that all who fail at once return apart."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The wait before try n + 1 is anything from 0 to `first_ms * 2**(n - 1)`, at most `longest_ms`."""

    first_ms: int
    longest_ms: int

    def delay_ms(self, failures: int, chance: Random) -> int:
        """The wait after `failures` failures in a row; at least 1 ms."""
        ceiling_ms = min(self.longest_ms, self.first_ms << min(max(failures - 1, 0), 30))
        return max(1, chance.randint(0, ceiling_ms))
