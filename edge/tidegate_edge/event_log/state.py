"""What the event log knows about itself, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tidegate_wire.identifiers import EventSequence, ProducerEpoch, ProducerId

WhenFull = Literal["refuse", "drop_oldest"]

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """What the log may take. A limit may be passed by one group of events."""

    backlog_bytes_max: int = 8 * 1024 * _MIB
    """Pages in use in the database file: what events take on disk, tables around them included. 8 GiB is weeks of a
    busy site, on the smallest card in use (16 GB)."""
    backlog_events_max: int | None = None
    when_full: WhenFull = "refuse"
    """`refuse`: appends wait, so that devices see no acknowledgement. `drop_oldest`: the oldest events that are not
    on their way go, and a loss record says so."""
    disk_free_bytes_min: int = 128 * _MIB
    """Free space on the file system below which appends wait: room for the write-ahead log, and for others."""
    reserve_bytes: int = 16 * _MIB
    """A file given up when the disk is full all the same, so that what the core acknowledged can still be freed:
    twice the write-ahead log as it usually is (`CHECKPOINT_BYTES`)."""
    refused_bytes_max: int = 16 * _MIB
    """Refused batches kept for the operator; the oldest go first."""
    wal_bytes_max: int = 64 * _MIB
    """The write-ahead log beyond which the writer waits for readers, so that it can begin again at its start."""


@dataclass(slots=True)
class StreamState:
    """One stream's table. Copied by a transaction before it changes, so that a snapshot of it stays as it is."""

    name: str
    table: str
    next_sequence: EventSequence
    first_uncut: EventSequence
    """Rows from here on are in no cut; all cut ones lie below."""
    events: int
    """Rows in the table."""
    uncut: int
    """Rows from `first_uncut` on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStats:
    """A snapshot, after a commit."""

    streams: Mapping[str, StreamState]
    used_bytes: int
    lost_events: int
    """What loss records account for since the log was made."""
    producer: tuple[ProducerId, ProducerEpoch] | None
    """The last one taken."""

    @property
    def events(self) -> int:
        """Events in the log."""
        return sum(stream.events for stream in self.streams.values())
