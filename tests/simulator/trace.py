"""What happened in a run, in order: a hash to compare two runs by, and lines to read one by."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Final

LINES_KEPT: Final = 400
"""The last lines of a run that is not shown while it runs: enough to see what led to a failure."""


class Trace:
    """`show` gets each line as it comes; without it the last lines are kept."""

    def __init__(self, clock_s: Callable[[], float], show: Callable[[str], None] | None = None) -> None:
        self._clock_s = clock_s
        self._show = show
        self._hash = hashlib.blake2b(digest_size=16)
        self.last_lines: deque[str] = deque(maxlen=LINES_KEPT)
        self.line_count = 0

    def __call__(self, what: str) -> None:
        """Note that something happened."""
        line = f"{self._clock_s():10.4f}  {what}"
        self.line_count += 1
        self._hash.update(line.encode())
        self._hash.update(b"\n")
        if self._show is not None:
            self._show(line)
        else:
            self.last_lines.append(line)

    @property
    def digest(self) -> str:
        """The same for two runs in which the same things happened at the same times."""
        return self._hash.hexdigest()
