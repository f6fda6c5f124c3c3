"""How long to wait before the next try: exponential with full jitter, so that all who fail at once return apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Chance = Callable[[], float]
"""A random number from 0 to less than 1, as `random.random` gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The wait before try n + 1 is anything from 0 to `first_ms * 2**(n - 1)`, at most `longest_ms`."""

    first_ms: int
    longest_ms: int

    def delay_ms(self, failures: int, chance: Chance) -> int:
        """The wait after `failures` failures in a row; at least 1 ms."""
        ceiling_ms = min(self.longest_ms, self.first_ms << min(max(failures - 1, 0), 30))
        return 1 + int(chance() * ceiling_ms)
