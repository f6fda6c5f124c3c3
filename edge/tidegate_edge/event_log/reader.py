"""Reads rows for the uplink, thousands at a time, in two steps of a statement.

sqlite3 gives up the interpreter lock at every step and has to get it back, so that fetching row by row competes with
the event loop for each row: 2,300 rows/s at worst (20,000 with a switch interval of 0.5 ms). Here SQLite joins a column
of all rows into one value, without the lock, and Python takes the values apart: 500,000 rows/s idle, 200,000 and more
against a busy loop. U+0000 separates devices and topics because MQTT forbids it in them (MQTT-1.5.4-2).
"""

from __future__ import annotations

import sqlite3
from itertools import accumulate
from typing import Final, NamedTuple

from tidegate_wire.identifiers import EventSequence

_ROW_OVERHEAD_BYTES: Final = 64
"""What a row takes besides its texts and its payload, about."""

_HEADERS_SEPARATOR: Final = b"\x1e"
"""JSON has no control characters, so this can't stand in a row's headers."""


class Rows(NamedTuple):
    """Rows of a stream by column, the oldest first. Numbers that only become record headers stay decimal ASCII."""

    sequences: list[bytes]
    devices: list[bytes]
    topics: list[bytes]
    event_times_ms: list[int]
    receive_times_ms: list[bytes]
    payloads: list[bytes]
    headers: list[bytes | None]
    """MQTT 5 user properties as JSON."""


_SIZES: Final = (
    "SELECT group_concat(sequence), group_concat(size) FROM (SELECT sequence, length(payload) + length(topic) +"
    " length(device) + coalesce(length(headers), 0) AS size FROM {table}"
    " WHERE sequence BETWEEN ? AND ? ORDER BY sequence LIMIT ?)"
)
_COLUMNS: Final = (
    "SELECT group_concat(device, char(0)), group_concat(topic, char(0)), group_concat(event_time_ms),"
    " group_concat(receive_time_ms), group_concat(length(payload)), CAST(group_concat(payload, '') AS BLOB),"
    " group_concat(headers IS NOT NULL, ''), group_concat(headers, char(30))"
    " FROM (SELECT * FROM {table} WHERE sequence BETWEEN ? AND ? ORDER BY sequence)"
)


def read_rows(
    connection: sqlite3.Connection, table: str, first: int, last: int, *, rows_max: int, bytes_max: int
) -> Rows | None:
    """The oldest rows from `first` to `last`, about `bytes_max` bytes of them but at least one; None if there is none.

    Raises:
        sqlite3.Error: the database can't be read.
    """
    connection.execute("BEGIN")  # both statements see the same rows
    try:
        texts, sizes = connection.execute(_SIZES.format(table=table), (first, last, rows_max)).fetchone()
        if texts is None:
            return None
        sequences: list[bytes] = texts.split(b",")
        count = total_bytes = 0
        for size in sizes.split(b","):
            total_bytes += int(size) + _ROW_OVERHEAD_BYTES
            if total_bytes > bytes_max and count > 0:
                break
            count += 1
        del sequences[count:]
        columns = connection.execute(_COLUMNS.format(table=table), (int(sequences[0]), int(sequences[-1]))).fetchone()
    finally:
        connection.execute("COMMIT")
    devices, topics, event_times, receive_times, lengths, payload, has_headers, headers = columns
    ends = list(accumulate(map(int, lengths.split(b","))))
    rows = Rows(
        sequences=sequences,
        devices=devices.split(b"\0"),
        topics=topics.split(b"\0"),
        event_times_ms=list(map(int, event_times.split(b","))),
        receive_times_ms=receive_times.split(b","),
        payloads=[payload[start:end] for start, end in zip([0, *ends], ends, strict=False)],
        headers=_spread(has_headers, headers),
    )
    assert len({len(column) for column in rows}) == 1, "a separator stands in a device or topic"
    return rows


def oldest_event_time_ms(connection: sqlite3.Connection, tables: list[str]) -> int | None:
    """The event time of the row that is oldest by sequence, of the streams' oldest the least; None without rows."""
    times = []
    for table in tables:
        row = connection.execute(f"SELECT event_time_ms FROM {table} ORDER BY sequence LIMIT 1").fetchone()
        if row is not None:
            times.append(int(row[0]))
    return min(times, default=None)


def last_sequence(rows: Rows) -> EventSequence:
    """The newest row's sequence."""
    return EventSequence(int(rows.sequences[-1]))


def _spread(has_headers: bytes, headers: bytes | None) -> list[bytes | None]:
    """Put None where a row has no headers."""
    if headers is None:
        return [None] * len(has_headers)
    texts = iter(headers.split(_HEADERS_SEPARATOR))
    return [next(texts) if flag == ord("1") else None for flag in has_headers]
