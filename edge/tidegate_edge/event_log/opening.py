"""Opens the event log's file, or refuses it. Nothing that can't be read is ever deleted or written over."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tidegate_edge.errors import EventLogDamaged, EventLogInUse, EventLogTooNew, WrongEdge
from tidegate_edge.event_log.committer import Committer
from tidegate_edge.event_log.schema import APPLICATION_ID, SCHEMA_VERSION, configure, create, create_streams
from tidegate_edge.event_log.space import Reserve
from tidegate_edge.event_log.state import LogLimits

FILE_NAME: Final = "event-log.db"
_LOCK_NAME: Final = "event-log.lock"

QUICK_CHECK_BYTES_MAX: Final = 64 * 1024 * 1024
"""Files up to this are checked page by page at start (half a second on an SD card). A larger one would keep the edge
from starting for minutes; damage in it is found when the page is read, and stops the edge then."""


class DirectoryLock:
    """Keeps a second edge away from a data directory; the kernel lets go of it when the process ends."""

    def __init__(self, directory: Path) -> None:
        """Take the lock.

        Raises:
            EventLogInUse: another process has it.
        """
        path = directory / _LOCK_NAME
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise EventLogInUse(
                f"another edge runs on {directory}", hint="stop it first, or give this one its own --data-dir"
            ) from None

    def release(self) -> None:
        """Let go."""
        os.close(self._descriptor)


def open_log(
    connection: sqlite3.Connection, path: Path, edge: str, streams: Sequence[str], limits: LogLimits
) -> Committer:
    """Check the file behind `connection`, make what is missing, load what the log must know.

    On a full disk that takes the reserve's place: SQLite needs a few pages before it can read.

    Raises:
        EventLogDamaged: it is not a healthy event log.
        EventLogTooNew: a later version wrote it.
        WrongEdge: it belongs to another edge.
    """
    try:
        return _open(connection, path, edge, streams, limits)
    except sqlite3.OperationalError:
        if not Reserve(path, limits.reserve_bytes).release():
            raise
        return _open(connection, path, edge, streams, limits)


def _open(
    connection: sqlite3.Connection, path: Path, edge: str, streams: Sequence[str], limits: LogLimits
) -> Committer:
    try:
        has_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,)
        if has_tables:
            _check(connection, path, edge)
        configure(connection)
        if not has_tables:
            create(connection, edge)
        names = create_streams(connection, tuple(streams))
        return Committer(connection, path, edge, names, limits)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error


def _check(connection: sqlite3.Connection, path: Path, edge: str) -> None:
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        raise EventLogDamaged(
            f"{path} is an SQLite database of some other program", hint="give the edge a --data-dir of its own"
        )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise EventLogTooNew(
            f"{path} has schema {version}; this Tidegate knows up to {SCHEMA_VERSION}",
            hint="start the version of Tidegate that wrote it, or a later one",
        )
    (owner,) = connection.execute("SELECT value FROM meta WHERE key = 'edge'").fetchone()
    if owner != edge:
        raise WrongEdge(
            f"{path} belongs to the edge {owner!r}, not to {edge!r}",
            hint=f"start it with --id {owner}, or give {edge} a --data-dir of its own",
        )
    if path.stat().st_size <= QUICK_CHECK_BYTES_MAX:
        (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise _damaged(path, finding)


def _damaged(path: Path, finding: str) -> EventLogDamaged:
    return EventLogDamaged(
        f"{path} is damaged: {finding}",
        hint=f"nothing was changed. Copy {path.parent} to another disk; `sqlite3 {path.name} .recover` shows what can"
        " be read. To go on with an empty event log, move the directory away and start again",
    )
