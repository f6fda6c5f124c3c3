"""One transaction of the event log: what it changes in the tables, and in what the log knows of them."""

from __future__ import annotations

import json
import sqlite3
import zlib
from array import array
from collections.abc import Iterable, Sequence
from copy import copy
from functools import cache
from typing import Final

from tidegate_edge.event_log.cuts import CutBatch
from tidegate_edge.event_log.event import Event
from tidegate_edge.event_log.repeats import RepeatWindows
from tidegate_edge.event_log.schema import EVENT_COLUMNS, PAGE_BYTES
from tidegate_edge.event_log.state import LogLimits, StreamState
from tidegate_wire.identifiers import EventSequence, ProducerEpoch, ProducerId
from tidegate_wire.uplink.event import LOSS_STREAM

INSERT_ROWS_MAX: Final = 512
"""Rows of one INSERT. sqlite3 gives up the interpreter lock at each step of a statement, and while the event loop is
busy waits a switch interval or longer to get it back. With `executemany`, a step a row, that was 700 rows/s at worst;
with few large steps, in powers of two so that the statements stay cached, 50,000 to 120,000 (see service.py)."""

LOSS_TOPIC: Final = "tidegate/losses"

_DROPPED_PART: Final = 64
"""A full log drops a 64th of a stream at once, so that loss records stay few."""

_ROW_OVERHEAD_BYTES: Final = 128
"""A row without its payload, about: for an estimate of what a transaction writes."""

_TRANSACTION_OVERHEAD_BYTES: Final = 8 * PAGE_BYTES
"""Pages that every transaction writes, about."""

_STREAM_FIELD: Final = 0
_COLUMNS: Final = slice(1, EVENT_COLUMNS)


class Transaction:
    """Stages changes between BEGIN and COMMIT; the committer takes the staged state over after COMMIT succeeded."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        edge: str,
        streams: dict[str, StreamState],
        cuts: dict[int, tuple[CutBatch, ...]],
        next_batch: int,
        lost_events: int,
        producer: tuple[ProducerId, ProducerEpoch] | None,
        repeats: RepeatWindows,
        limits: LogLimits,
        now_ms: int,
    ) -> None:
        self.connection = connection
        self.now_ms = now_ms
        self.limits = limits
        self.next_batch = next_batch
        self.lost_events = lost_events
        self.producer = producer
        self.made_cuts: dict[int, tuple[CutBatch, ...]] = {}
        self.settled_cuts: set[int] = set()
        self.written_bytes = _TRANSACTION_OVERHEAD_BYTES
        """An estimate of what the transaction adds to the write-ahead log."""
        self.staged: dict[str, StreamState] = {}
        self.devices: list[str] = []
        self.entries: array[int] = array("Q")
        self._edge = edge
        self._streams = streams
        self._cuts = cuts
        self._repeats = repeats
        self._pending: dict[str, dict[int, int]] | None = None
        self._shrunk: set[str] = set()
        self._lost_before = lost_events

    def stream(self, name: str) -> StreamState:
        """The stream's state, to be changed."""
        state = self.staged.get(name)
        if state is None:
            state = self.staged[name] = copy(self._streams[name])
        return state

    def cut(self, number: int) -> tuple[CutBatch, ...]:
        """The batches of a cut that is not settled."""
        return self._cuts[number]

    def append(self, events: Iterable[Event]) -> None:
        """Insert events, but for those that a device sent again and that are stored."""
        by_stream: dict[str, list[Event]] = {}
        devices, entries = self.devices, self.entries
        crc32 = zlib.crc32
        for event in events:
            packet_id = event.packet_id
            if packet_id:
                device = event.device
                entry = packet_id << 32 | crc32(event.payload, crc32(event.topic.encode()))
                if event.dup and self._is_stored(device, packet_id, entry):
                    continue
                devices.append(device)
                entries.append(entry)
                if self._pending is not None:
                    self._pending.setdefault(device, self._repeats.last_sent(device))[packet_id] = entry
            rows = by_stream.get(event[_STREAM_FIELD])
            if rows is None:
                rows = by_stream[event[_STREAM_FIELD]] = []
            rows.append(event)
        for name, rows in by_stream.items():
            self._insert(self.stream(name), rows)

    def add_loss(self, stream: str, first: int, last: int, count: int, reason: str) -> None:
        """Write down that `count` events of a range are gone, as an event of the loss stream."""
        fields = {
            "edge": self._edge,
            "stream": stream,
            "first_sequence": first,
            "last_sequence": last,
            "count": count,
            "reason": reason,
            "time_ms": self.now_ms,
        }
        payload = json.dumps(fields, ensure_ascii=False).encode()
        record = Event(LOSS_STREAM, self._edge, LOSS_TOPIC, self.now_ms, self.now_ms, payload, 0, None)
        self._insert(self.stream(LOSS_STREAM), [record])
        self.lost_events += count

    def delete_range(self, state: StreamState, first: int, last: int) -> int:
        """Delete rows; returns how many there were."""
        cursor = self.connection.execute(
            f"DELETE FROM {state.table} WHERE sequence BETWEEN ? AND ?",
            (first, last),
        )
        return self._deleted(state, cursor.rowcount)

    def delete_rows(self, state: StreamState, sequences: Sequence[int]) -> int:
        """Delete rows by their sequences; returns how many there were."""
        count = 0
        for start in range(0, len(sequences), INSERT_ROWS_MAX):
            chunk = sequences[start : start + INSERT_ROWS_MAX]
            marks = ",".join("?" * len(chunk))
            count += self.connection.execute(f"DELETE FROM {state.table} WHERE sequence IN ({marks})", chunk).rowcount
        return self._deleted(state, count)

    def has_room(self) -> bool:
        """Whether a further group fits into the limits, after dropping the oldest events where that is the policy."""
        if not self._is_full():
            return True
        if self.limits.when_full == "refuse":
            return False
        dropped: dict[str, tuple[int, int, int]] = {}
        while self._is_full():
            victim = max(
                (self.staged.get(name, state) for name, state in self._streams.items() if name != LOSS_STREAM),
                key=lambda state: state.uncut,
            )
            if victim.uncut == 0:  # everything is on its way: acknowledgements will make room
                break
            first, last, count = self._drop_oldest(self.stream(victim.name))
            known_first, _, known_count = dropped.get(victim.name, (first, last, 0))
            dropped[victim.name] = (known_first, last, known_count + count)
        for name, (first, last, count) in dropped.items():
            self.add_loss(name, first, last, count, "backlog full: oldest events dropped")
        return not self._is_full()

    def finish(self) -> None:
        """Write what belongs to the transaction as a whole; the last thing before COMMIT."""
        for name in self._shrunk:
            state = self.staged[name]
            self.connection.execute(
                "UPDATE streams SET next_sequence = ?, events = ? WHERE name = ?",
                (state.next_sequence, state.events, name),
            )
        if self.lost_events != self._lost_before:
            self.connection.execute("UPDATE meta SET value = ? WHERE key = 'lost_events'", (self.lost_events,))
        if self.entries:
            self.connection.execute(
                "INSERT INTO repeat_journal (devices, entries) VALUES (?, ?)",
                ("\0".join(self.devices), self.entries.tobytes()),
            )

    def used_bytes(self) -> int:
        """Pages in use, as of this transaction."""
        return used_bytes(self.connection)

    def _is_stored(self, device: str, packet_id: int, entry: int) -> bool:
        if self._pending is None:
            self._pending = {}
            for earlier_device, earlier in zip(self.devices, self.entries, strict=True):
                known = self._pending.setdefault(earlier_device, self._repeats.last_sent(earlier_device))
                known[earlier >> 32] = earlier
        known = self._pending.setdefault(device, self._repeats.last_sent(device))
        return known.get(packet_id) == entry

    def _insert(self, state: StreamState, rows: list[Event]) -> None:
        execute = self.connection.execute
        sequence = int(state.next_sequence)
        position, left = 0, len(rows)
        while left:
            size = min(INSERT_ROWS_MAX, 1 << (left.bit_length() - 1))
            parameters: list[object] = []
            add, extend = parameters.append, parameters.extend
            for event in rows[position : position + size]:
                add(sequence)
                extend(event[_COLUMNS])  # type: ignore[arg-type]  # a slice of a NamedTuple is a tuple
                sequence += 1
            execute(_insert_statement(state.table, size), parameters)
            position += size
            left -= size
        state.next_sequence = EventSequence(sequence)
        self.written_bytes += sum([len(event.payload) for event in rows]) + len(rows) * _ROW_OVERHEAD_BYTES
        state.events += len(rows)
        state.uncut += len(rows)

    def _deleted(self, state: StreamState, count: int) -> int:
        state.events -= count
        self.written_bytes += count * _ROW_OVERHEAD_BYTES
        self._shrunk.add(state.name)
        return count

    def _is_full(self) -> bool:
        limits = self.limits
        if limits.backlog_events_max is not None:
            events = sum(self.staged.get(name, state).events for name, state in self._streams.items())
            if events >= limits.backlog_events_max:
                return True
        return self.used_bytes() >= limits.backlog_bytes_max

    def _drop_oldest(self, state: StreamState) -> tuple[int, int, int]:
        count = max(1, state.uncut // _DROPPED_PART)
        first, last = self.connection.execute(
            f"SELECT min(sequence), max(sequence) FROM (SELECT sequence FROM {state.table}"
            " WHERE sequence >= ? ORDER BY sequence LIMIT ?)",
            (state.first_uncut, count),
        ).fetchone()
        count = self.delete_range(state, first, last)
        state.uncut -= count
        state.first_uncut = EventSequence(last + 1)
        return first, last, count


def used_bytes(connection: sqlite3.Connection) -> int:
    """Pages in use in the database, in bytes; what deleted rows left behind does not count."""
    (pages,) = connection.execute(
        "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count"
    ).fetchone()
    return int(pages) * PAGE_BYTES


@cache
def _insert_statement(table: str, rows: int) -> str:
    row = f"({','.join('?' * EVENT_COLUMNS)})"
    return f"INSERT INTO {table} VALUES {','.join([row] * rows)}"
