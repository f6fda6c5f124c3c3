"""What can go wrong at an edge.

TidegateError
+-- EventLogFailed        exit code 1: the disk failed while the log was in use; nothing more is acknowledged
+-- EventLogClosed        an append or a change that came too late
+-- ConfigError
|   +-- EventLogInUse     exit code 2: another edge runs on the same data directory
|   +-- EventLogTooNew    exit code 2: a later version of Tidegate wrote the log
|   +-- WrongEdge         exit code 2: the log belongs to an edge of another name
+-- IntegrityError
    +-- EventLogDamaged   exit code 5: the file is not a healthy event log

Exception
+-- CutConflict           the rows of a cut were dropped before it was written down: read again
"""

from __future__ import annotations

from tidegate_wire.errors import ConfigError, IntegrityError, TidegateError


class EventLogFailed(TidegateError):  # noqa: N818  # says what happened
    """Reading or writing the event log failed; what was acknowledged before is on disk, nothing is after."""


class EventLogInUse(ConfigError):  # noqa: N818  # says what happened
    """Another process has the event log open for writing."""


class EventLogTooNew(ConfigError):  # noqa: N818  # says what happened
    """The event log has a schema that this version does not know."""


class WrongEdge(ConfigError):  # noqa: N818  # says what happened
    """The event log was made for an edge with another id."""


class EventLogDamaged(IntegrityError):  # noqa: N818  # says what happened
    """The file is damaged, or is no event log. Nothing of it was changed."""


class EventLogClosed(TidegateError):  # noqa: N818  # a state, as the other names here
    """The event log is closed or closing."""


class CutConflict(Exception):  # noqa: N818  # a state, as the other names here
    """The rows that a cut names are not the oldest uncut ones any more."""
