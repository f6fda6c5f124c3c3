"""What the SDK raises. Each error says what happened and why; `hint` says what to do next.

TidegateError                 from tidegate_wire.errors, as are the four below it
+-- ConfigError               a setting is wrong
+-- UnreachableError          the core does not answer
+-- RefusedError              the core answered, and said no
|   +-- UnknownStreamError    it has no such stream
|   +-- CommitRefusedError    it does not take this consumer's commit
+-- IntegrityError            data is lost, doubled, out of order or damaged
|   +-- StreamTruncatedError  a stream is shorter than what was already read of it
+-- PayloadError              an event's payload is not what it was read as (also a ValueError)
"""

from __future__ import annotations

from tidegate_wire.errors import ConfigError, IntegrityError, RefusedError, TidegateError, UnreachableError


class UnknownStreamError(RefusedError):
    """The core has no such stream; the hint names those it has."""


class CommitRefusedError(RefusedError):
    """The partition went to another member of the group; that one will deliver the events again."""


class StreamTruncatedError(IntegrityError):
    """A partition ends before the position that this consumer, or its group, has read to."""


class PayloadError(TidegateError, ValueError):
    """An event's payload is not what it was read as; the message names its stream, partition and offset."""


__all__ = [
    "CommitRefusedError",
    "ConfigError",
    "IntegrityError",
    "PayloadError",
    "RefusedError",
    "StreamTruncatedError",
    "TidegateError",
    "UnknownStreamError",
    "UnreachableError",
]
