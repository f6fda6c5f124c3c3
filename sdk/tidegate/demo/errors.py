"""What can go wrong with the demo itself, beside what it proves.

TidegateError
+-- UnreachableError
    +-- PartFailedError    a part did not come up, or ended; the message shows the end of its log
"""

from __future__ import annotations

from tidegate_wire.errors import UnreachableError


class PartFailedError(UnreachableError):
    """A part did not come up, or ended before its time."""
