"""Runs transactions on the writer's connection. Everything here happens on its thread, one call at a time.

After a failed transaction nothing of it is left, in the file or in memory. What the failure means is told apart here:
a full disk (`DiskFull`) and somebody else's lock (`Locked`) pass; anything else ends the log (`EventLogFailed`),
because after a failed fsync the kernel may report success for pages that it has dropped.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tidegate_edge.errors import CutConflict, EventLogFailed
from tidegate_edge.event_log.changes import Change
from tidegate_edge.event_log.cuts import CutBatch, load_batches
from tidegate_edge.event_log.event import Event
from tidegate_edge.event_log.repeats import JOURNAL_ENTRIES_MAX, RepeatWindows, entries_from_bytes
from tidegate_edge.event_log.schema import PAGE_BYTES, table_of
from tidegate_edge.event_log.space import Reserve, free_bytes
from tidegate_edge.event_log.state import LogLimits, LogStats, StreamState
from tidegate_edge.event_log.transaction import Transaction, used_bytes
from tidegate_wire.identifiers import EventSequence, ProducerEpoch, ProducerId

CHECKPOINT_BYTES: Final = 8 * 1024 * 1024
"""Bytes written, about, after which the write-ahead log is copied into the database: seldom enough that the two fsyncs
do not show. The file keeps about this size, which SQLite writes over from the start, so that it need not grow again."""

VACUUM_SLACK_BYTES: Final = 4 * 1024 * 1024
"""Free pages kept in the file for the next events; what is above goes back to the file system."""

VACUUM_PAGES: Final = 512
"""Pages given back in one go (2 MiB): appends wait for it some ten milliseconds."""

_TRUNCATE_WAL: Final = "PRAGMA wal_checkpoint(TRUNCATE)"

Blocked = Literal["", "backlog_full", "disk_full"]


class DiskFull(Exception):  # noqa: N818  # a state
    """The file system had no room for the transaction; nothing of it was written."""


class Locked(Exception):  # noqa: N818  # a state
    """Another process holds a lock on the database, such as a person in the sqlite3 shell; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """The outcome of one transaction."""

    groups: int
    """How many groups, from the first on, are stored."""
    results: Sequence[Any]
    """For each change what it gave, or the `CutConflict` that it met."""
    blocked: Blocked
    """Why the other groups have to wait."""
    stats: LogStats
    needs_maintenance: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintained:
    """What `maintain` left."""

    wal_bytes: int | None
    """Size of the write-ahead log, where a checkpoint looked at it."""
    needs_more: bool


class Committer:
    """The writer's side of the log; owns the connection's transactions and what they leave behind in memory."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, edge: str, streams: Sequence[str], limits: LogLimits
    ) -> None:
        self._connection = connection
        self._directory = path.parent
        self._edge = edge
        self.limits = limits
        self._reserve = Reserve(path, limits.reserve_bytes)
        self._meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        self.batches = tuple(load_batches(connection))
        self._cuts: dict[int, tuple[CutBatch, ...]] = {}
        for batch in self.batches:
            self._cuts[batch.cut] = (*self._cuts.get(batch.cut, ()), batch)
        self._next_batch = self.batches[-1].number + 1 if self.batches else 1
        self._streams = {name: self._load_stream(name) for name in streams}
        self._lost_events = int(self._meta["lost_events"])
        self._producer: tuple[ProducerId, ProducerEpoch] | None = None
        if "producer_id" in self._meta:
            self._producer = (ProducerId(self._meta["producer_id"]), ProducerEpoch(self._meta["producer_epoch"]))
        self._window_counter, self._repeats = self._load_repeats()
        self._written_bytes = 0
        self._has_vacuumed = False
        self._reserve.hold()

    def stats(self) -> LogStats:
        """The log as of the last commit."""
        return LogStats(
            streams=dict(self._streams),
            used_bytes=used_bytes(self._connection),
            lost_events=self._lost_events,
            producer=self._producer,
        )

    def commit(self, groups: Sequence[Sequence[Event]], changes: Sequence[Change[Any]]) -> Committed:
        """One transaction: every change, and as many groups as there is room for.

        Raises:
            DiskFull: nothing was written, for want of space.
            Locked: nothing was written; another process holds a lock.
            EventLogFailed: the log can't be used any more.
        """
        blocked: Blocked = ""
        if groups and not (free_bytes(self._directory) >= self.limits.disk_free_bytes_min and self._reserve.hold()):
            blocked, groups = "disk_full", ()
        transaction = self._begin()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            results = [_apply(change, transaction) for change in changes]
            appended = 0
            for group in groups:
                if not transaction.has_room():
                    blocked = "backlog_full"
                    break
                transaction.append(group)
                appended += 1
            transaction.finish()
            folded = self._fold_repeats(transaction)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._roll_back(error) from error
        if folded:
            self._repeats.saved()
        self._take_over(transaction)
        return Committed(
            groups=appended,
            results=results,
            blocked=blocked,
            stats=self.stats(),
            needs_maintenance=self._has_vacuumed
            or self._written_bytes >= CHECKPOINT_BYTES
            or self._excess_pages()[0] >= VACUUM_PAGES,
        )

    def maintain(self, *, is_idle: bool) -> Maintained:
        """Give free pages back and copy the write-ahead log into the database, as much as is due.

        Both make appends wait: giving back moves pages in use to the front, and the file itself only shrinks with a
        copy and its fsyncs. So while the log is busy, only what costs little is done: pages go back when most of the
        file is free, and the copy is made when enough was written for one anyway.

        Raises:
            EventLogFailed: the log can't be used any more.
        """
        wal_bytes = None
        excess, in_use = self._excess_pages()
        is_excessive = excess >= VACUUM_PAGES
        try:
            if is_excessive and (is_idle or excess > in_use):
                # It gives a row without columns for each page, at which `execute` would stop after the first.
                self._connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
                self._has_vacuumed = True
                self._written_bytes += VACUUM_PAGES * PAGE_BYTES
            if self._written_bytes >= CHECKPOINT_BYTES or (self._has_vacuumed and is_idle and not is_excessive):
                wal_bytes, _ = self._checkpoint()
        except sqlite3.Error as error:
            outcome = self._roll_back(error)
            if isinstance(outcome, EventLogFailed):
                raise outcome from error  # otherwise a full disk or a reader: it is tried again
        self._reserve.hold()
        return Maintained(wal_bytes=wal_bytes, needs_more=is_excessive or self._has_vacuumed)

    def shrink(self) -> None:
        """Give back what the log's own files hold and do not use: the slack, and the write-ahead log's file.

        For a disk so small, or so full, that this is what is missing; on others it would only be written again.

        Raises:
            EventLogFailed: the log can't be used any more.
        """
        try:
            for statement in (_TRUNCATE_WAL, "PRAGMA incremental_vacuum", _TRUNCATE_WAL):
                self._connection.executescript(statement)
        except sqlite3.Error as error:
            outcome = self._roll_back(error)
            if isinstance(outcome, EventLogFailed):
                raise outcome from error
        self._written_bytes = 0

    def make_space(self) -> bool:
        """After `DiskFull`: give the reserve up, and empty the write-ahead log with it; whether there was a reserve.

        The log's pages need room in the database before the log's own file can be given back; this is why the reserve
        is larger than the log usually becomes.

        Raises:
            EventLogFailed: the log can't be used any more.
        """
        was_held = self._reserve.release()
        try:
            self._connection.execute(_TRUNCATE_WAL).fetchall()
        except sqlite3.Error as error:
            outcome = self._roll_back(error)
            if isinstance(outcome, EventLogFailed):
                raise outcome from error
        return was_held

    def _begin(self) -> Transaction:
        return Transaction(
            self._connection,
            edge=self._edge,
            streams=self._streams,
            cuts=self._cuts,
            next_batch=self._next_batch,
            lost_events=self._lost_events,
            producer=self._producer,
            repeats=self._repeats,
            limits=self.limits,
            now_ms=time.time_ns() // 1_000_000,
        )

    def _take_over(self, transaction: Transaction) -> None:
        self._streams.update(transaction.staged)
        self._cuts.update(transaction.made_cuts)
        for cut in transaction.settled_cuts:
            del self._cuts[cut]
        self._next_batch = transaction.next_batch
        self._lost_events = transaction.lost_events
        self._producer = transaction.producer
        self._written_bytes += transaction.written_bytes
        if transaction.entries:
            self._repeats.add(transaction.devices, transaction.entries)

    def _roll_back(self, error: sqlite3.Error) -> Exception:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as second:
            error = second
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return DiskFull(str(error))
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return Locked(str(error))
        return failure(error, self._directory)

    def _fold_repeats(self, transaction: Transaction) -> bool:
        """Once the journal is long enough, write the windows as they were before this transaction, and empty it."""
        repeats = self._repeats
        if repeats.journal_entries < JOURNAL_ENTRIES_MAX:
            return False
        execute = self._connection.execute
        forgotten, changed = repeats.unsaved()
        for device in forgotten:
            execute("DELETE FROM repeat_windows WHERE device = ?", (device,))
        for device, entries in changed:
            self._window_counter += 1
            execute(
                "INSERT INTO repeat_windows VALUES (?, ?, ?) ON CONFLICT (device) DO UPDATE"
                " SET used = excluded.used, entries = excluded.entries",
                (device, self._window_counter, entries),
            )
        if transaction.entries:  # this transaction's own line, written by finish(), stays
            execute("DELETE FROM repeat_journal WHERE number < (SELECT max(number) FROM repeat_journal)")
        else:
            execute("DELETE FROM repeat_journal")
        return True

    def _load_stream(self, name: str) -> StreamState:
        table = table_of(name)
        next_sequence, events = self._connection.execute(
            "SELECT next_sequence, events FROM streams WHERE name = ?", (name,)
        ).fetchone()
        (last,) = self._connection.execute(f"SELECT max(sequence) FROM {table}").fetchone()
        if last is not None and last >= next_sequence:  # what was appended since; sequences have no gaps
            events += last + 1 - next_sequence
            next_sequence = last + 1
        batches = [batch for batch in self.batches if batch.stream == name]
        last_cut = max((batch.last_sequence for batch in batches), default=0)
        (first_uncut,) = self._connection.execute(
            f"SELECT min(sequence) FROM {table} WHERE sequence > ?", (last_cut,)
        ).fetchone()
        return StreamState(
            name=name,
            table=table,
            next_sequence=EventSequence(next_sequence),
            first_uncut=EventSequence(first_uncut or next_sequence),
            events=events,
            uncut=events - sum(batch.record_count for batch in batches),
        )

    def _load_repeats(self) -> tuple[int, RepeatWindows]:
        repeats = RepeatWindows()
        counter = 0
        rows = self._connection.execute("SELECT device, used, entries FROM repeat_windows ORDER BY used")
        for device, counter, entries in rows.fetchall():  # noqa: B007  # the last one counts
            repeats.load(device, entries)
        for devices, entries in self._connection.execute("SELECT devices, entries FROM repeat_journal ORDER BY number"):
            repeats.add(devices.split("\0"), entries_from_bytes(entries))
        return counter, repeats

    def _excess_pages(self) -> tuple[int, int]:
        """Free pages beyond the slack (below 0 if there are fewer), and pages in use."""
        (free_pages,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        return free_pages - VACUUM_SLACK_BYTES // PAGE_BYTES, pages - free_pages

    def _checkpoint(self) -> tuple[int, bool]:
        """Copy the write-ahead log into the database; its size in bytes, and whether all of it was copied."""
        self._written_bytes = 0
        _, frames, copied = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if frames * PAGE_BYTES > self.limits.wal_bytes_max:
            # Readers come so thick that SQLite finds no moment to begin again at the start: wait for one.
            _, frames, copied = self._connection.execute(_TRUNCATE_WAL).fetchone()
        if frames == copied:
            self._has_vacuumed = False
        return frames * PAGE_BYTES, frames == copied


def failure(error: sqlite3.Error, directory: Path) -> EventLogFailed:
    """What a person is told when the log can't go on."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    damaged = name in {"SQLITE_CORRUPT", "SQLITE_NOTADB"} or name.startswith("SQLITE_CORRUPT")
    hint = (
        f"copy {directory} to another disk first; then `sqlite3 event-log.db .recover` shows what can be read"
        if damaged
        else f"look at the disk of {directory} (dmesg, df); nothing acknowledged is lost, start again once it works"
    )
    return EventLogFailed(f"the event log in {directory} can't be used: {error} ({name})", hint=hint)


def _apply(change: Change[Any], transaction: Transaction) -> Any:
    try:
        return change.apply(transaction)
    except CutConflict as conflict:
        return conflict
