"""The event log: what the agent appends to and the uplink reads from."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tidegate_edge.errors import EventLogFailed
from tidegate_edge.event_log.changes import Change
from tidegate_edge.event_log.committer import Committer, failure
from tidegate_edge.event_log.cuts import CutBatch
from tidegate_edge.event_log.database import Database
from tidegate_edge.event_log.event import Event
from tidegate_edge.event_log.opening import FILE_NAME, DirectoryLock, open_log
from tidegate_edge.event_log.reader import Rows, oldest_event_time_ms, read_rows
from tidegate_edge.event_log.schema import table_of
from tidegate_edge.event_log.state import LogLimits, LogStats
from tidegate_edge.event_log.writer import Writer
from tidegate_wire.uplink.event import LOSS_STREAM

T = TypeVar("T")


class EventLog:
    """Events on disk, in a table a stream, from when they are acknowledged to a device until the core has them.

    One connection writes, another reads for the uplink. Close it: its threads would keep the process alive.
    """

    def __init__(self, directory: Path, lock: DirectoryLock, database: Database, committer: Committer) -> None:
        self.batches: tuple[CutBatch, ...] = committer.batches
        """What was on its way when the log was opened, in the order of cutting."""
        self.stats: LogStats
        """As of the last commit."""
        self._directory = directory
        self._lock = lock
        self._database = database
        self._reader: Database
        self._writer: Writer
        self._committer = committer
        self._listeners: list[Callable[[LogStats], None]] = []
        self._failed: asyncio.Future[EventLogFailed] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(
        cls, directory: Path, *, edge: str, streams: Sequence[str], limits: LogLimits | None = None
    ) -> EventLog:
        """Open the log in `directory`, or make a new one. `streams` are those that may be appended to.

        Raises:
            EventLogInUse, EventLogTooNew, WrongEdge, EventLogDamaged: see `errors`.
            EventLogFailed: the file can't be read or written.
            OSError: the directory can't be made.
        """
        limits = limits or LogLimits()
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        path = directory / FILE_NAME
        lock = DirectoryLock(directory)
        database: Database | None = None
        try:
            database = await Database.open(path, read_only=False)
            names = (*streams, LOSS_STREAM) if LOSS_STREAM not in streams else tuple(streams)
            committer = await database.run(lambda connection: open_log(connection, path, edge, names, limits))
            self = cls(directory, lock, database, committer)
            self.stats = await database.run(lambda _: committer.stats())
            self._reader = await Database.open(path, read_only=True)
            await self._reader.run(_configure_reader)
        except BaseException as error:
            if database is not None:
                await database.close()
            lock.release()
            if isinstance(error, sqlite3.Error):
                raise failure(error, directory) from error
            raise
        self._writer = Writer(database, committer, on_commit=self._committed, on_failure=self._failed.set_result)
        return self

    async def append(self, events: Sequence[Event]) -> None:
        """Return once the events are on disk, in the order given; a PUBLISH sent again is not stored again.

        Waits while the log or the disk is full. If the caller is cancelled they may be stored all the same.

        Raises:
            EventLogFailed: the log can't be written.
            EventLogClosed: it is closed, or was closed before there was room.
        """
        await self._writer.append(events)

    async def change(self, change: Change[T]) -> T:
        """Apply a change (see `changes`) in the writer's next transaction.

        Raises:
            CutConflict: as the change says.
            EventLogFailed: the log can't be written.
            EventLogClosed: it is closed.
        """
        return await self._writer.change(change)

    async def read(
        self, stream: str, first: int, last: int, convert: Callable[[Rows], T], *, rows_max: int, bytes_max: int
    ) -> T | None:
        """Read a stream's oldest rows from `first` to `last` and convert them, both on the reader's thread.

        Raises:
            EventLogFailed: the log can't be read.
        """

        def work(connection: sqlite3.Connection) -> T | None:
            rows = read_rows(connection, table_of(stream), first, last, rows_max=rows_max, bytes_max=bytes_max)
            return None if rows is None else convert(rows)

        return await self._read(work)

    async def oldest_event_time_ms(self) -> int | None:
        """The event time of the oldest event in the log; None if it is empty.

        Raises:
            EventLogFailed: the log can't be read.
        """
        tables = [state.table for state in self.stats.streams.values() if state.events > 0]
        return await self._read(lambda connection: oldest_event_time_ms(connection, tables))

    def on_commit(self, listener: Callable[[LogStats], None]) -> None:
        """Call `listener` after every commit."""
        self._listeners.append(listener)

    async def failed(self) -> EventLogFailed:
        """Wait until the log fails; gives what happened."""
        return await asyncio.shield(self._failed)

    async def close(self) -> None:
        """Commit what waits, as far as there is room, and end both connections."""
        await self._writer.close()
        if self._failed.done():
            # The writer first, and the reader can't write: whoever is last would copy the write-ahead log into the
            # database. After a failed fsync nobody may; the next start reads the log again, and checks it.
            await self._database.close()
            await self._reader.close()
        else:
            await self._reader.close()
            await self._database.close()
        self._lock.release()

    def _committed(self, stats: LogStats) -> None:
        self.stats = stats
        for listener in self._listeners:
            listener(stats)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._reader.run(work)
        except sqlite3.Error as error:
            failed = failure(error, self._directory)
            if not self._failed.done():
                self._failed.set_result(failed)
            raise failed from error


def _configure_reader(connection: sqlite3.Connection) -> None:
    connection.text_factory = bytes
    connection.execute("PRAGMA cache_size = -4096")
