"""The event log's tables, and how a connection to it is set up.

A person finds their way with the sqlite3 shell: `stream_NAME` has the events of a stream that are not yet known to be
in the core, the view `all_events` has those of all streams, `batches` what is on its way, `refused_batches` what the
core would not take.
"""

from __future__ import annotations

import sqlite3
from typing import Final

APPLICATION_ID: Final = 0x54474C31
"""`TGL1` in the file's header: how an event log is told from any other SQLite file."""

SCHEMA_VERSION: Final = 1

PAGE_BYTES: Final = 4096
"""SQLite's default, and the block of every file system and SD card in use; larger pages measured no faster."""

STREAMS_MAX: Final = 64
"""Streams of one edge. Far below SQLite's 500 terms of the view over all, and what a person can keep apart."""

EVENT_COLUMNS: Final = 8

_TABLES: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE streams (
  name          TEXT PRIMARY KEY,
  next_sequence INTEGER NOT NULL,  -- as of the last time rows left the table; later rows count from here
  events        INTEGER NOT NULL   -- rows in the table at that time
) WITHOUT ROWID;

CREATE TABLE batches (             -- record batches that are cut, and not yet known to be in the core
  number            INTEGER PRIMARY KEY,  -- in the order of cutting
  cut               INTEGER NOT NULL,     -- batches cut from the same rows have the same: the first one's number
  stream            TEXT NOT NULL,
  partition         INTEGER NOT NULL,
  device_partitions INTEGER NOT NULL,     -- 0: has all rows of the range; n: those of devices in this partition of n
  first_sequence    INTEGER NOT NULL,
  last_sequence     INTEGER NOT NULL,
  producer_id       INTEGER NOT NULL,
  producer_epoch    INTEGER NOT NULL,
  base_sequence     INTEGER NOT NULL,
  record_count      INTEGER NOT NULL,
  size_bytes        INTEGER NOT NULL,
  crc               INTEGER NOT NULL      -- CRC-32C of the batch as it was first encoded
);

CREATE TABLE refused_batches (     -- what the core would not take, kept for the operator; the oldest goes first
  number         INTEGER PRIMARY KEY AUTOINCREMENT,
  time_ms        INTEGER NOT NULL,
  stream         TEXT NOT NULL,
  partition      INTEGER NOT NULL,
  first_sequence INTEGER NOT NULL,
  last_sequence  INTEGER NOT NULL,
  record_count   INTEGER NOT NULL,
  reason         TEXT NOT NULL,
  record_batch   BLOB NOT NULL
);

CREATE TABLE repeat_windows (      -- what each device sent last, to recognise what it sends again (repeats.py)
  device  TEXT PRIMARY KEY,
  used    INTEGER NOT NULL,        -- rises; the least is the device that was heard longest ago
  entries BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE repeat_journal (      -- the same, for what came since the windows were last written
  number  INTEGER PRIMARY KEY,
  devices TEXT NOT NULL,
  entries BLOB NOT NULL
);
"""


def table_of(stream: str) -> str:
    """The quoted name of a stream's table."""
    assert '"' not in stream, stream
    return f'"stream_{stream}"'


def configure(connection: sqlite3.Connection) -> None:
    """Set up the writer's connection. `auto_vacuum` and `page_size` only take effect on a file without tables."""
    for pragma in (
        f"page_size = {PAGE_BYTES}",
        "auto_vacuum = INCREMENTAL",  # freed pages can be given back to the file system a few at a time
        "journal_mode = WAL",
        "synchronous = FULL",  # NORMAL lost acknowledged rows in 20 of 20 power cuts, FULL in none of 80
        "wal_autocheckpoint = 0",  # SQLite ignores errors of automatic checkpoints; committer.py makes its own
        "cache_size = -8192",
        "temp_store = MEMORY",
        "secure_delete = OFF",  # some builds zero what is freed, which would write every event a third time
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def create(connection: sqlite3.Connection, edge: str) -> None:
    """Make the tables of a new log, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";\n"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("INSERT INTO meta VALUES ('edge', ?), ('lost_events', 0)", (edge,))
    connection.execute("COMMIT")


def create_streams(connection: sqlite3.Connection, names: tuple[str, ...]) -> tuple[str, ...]:
    """Make the tables of streams that have none, and the view over all. Returns the names of all streams.

    A stream that is no longer configured keeps its table, and its events still run to the core.
    """
    known = [name for (name,) in connection.execute("SELECT name FROM streams ORDER BY name")]
    every = (*known, *(name for name in names if name not in known))
    connection.execute("BEGIN IMMEDIATE")
    for name in every[len(known) :]:
        connection.execute(
            f"CREATE TABLE {table_of(name)} ("
            "sequence INTEGER PRIMARY KEY, device TEXT NOT NULL, topic TEXT NOT NULL, event_time_ms INTEGER NOT NULL,"
            " receive_time_ms INTEGER NOT NULL, payload BLOB NOT NULL, packet_id INTEGER NOT NULL, headers TEXT)"
        )
        connection.execute("INSERT INTO streams VALUES (?, 1, 0)", (name,))
    if len(every) > len(known):
        connection.execute("DROP VIEW IF EXISTS all_events")
        selects = " UNION ALL ".join(f"SELECT '{name}' AS stream, * FROM {table_of(name)}" for name in every)
        connection.execute(f"CREATE VIEW all_events AS {selects}")
    connection.execute("COMMIT")
    return every
