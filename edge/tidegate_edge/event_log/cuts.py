"""Cuts: which rows went into which record batch, written down before the batch is first sent.

A retry after any crash reads the rows of a cut again and encodes the same bytes under the same producer id, epoch and
base sequence, so that the core can tell that it has them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tidegate_wire.identifiers import BatchSequence, EventSequence, ProducerEpoch, ProducerId

_COLUMNS: Final = (
    "number, cut, stream, partition, device_partitions, first_sequence, last_sequence,"
    " producer_id, producer_epoch, base_sequence, record_count, size_bytes, crc"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBatch:
    """A record batch cut from a range of rows, not yet written down."""

    partition: int
    base_sequence: BatchSequence
    record_count: int
    record_batch: bytes
    crc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutBatch:
    """A record batch that is written down: a row of the table `batches`."""

    number: int
    """Rises in the order of cutting."""
    cut: int
    """The number of the first batch cut from the same rows; they are freed together."""
    stream: str
    partition: int
    device_partitions: int
    """0: the batch has all rows of its range. Otherwise those whose device is in `partition` of so many."""
    first_sequence: EventSequence
    last_sequence: EventSequence
    producer_id: ProducerId
    producer_epoch: ProducerEpoch
    base_sequence: BatchSequence
    record_count: int
    size_bytes: int
    crc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a batch will never be taken, and its bytes, for the operator."""

    reason: str
    record_batch: bytes


def load_batches(connection: sqlite3.Connection) -> list[CutBatch]:
    """All batches, in the order of cutting."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM batches ORDER BY number")
    names = _COLUMNS.replace(" ", "").split(",")
    return [CutBatch(**dict(zip(names, row, strict=True))) for row in rows.fetchall()]


def insert_batches(connection: sqlite3.Connection, batches: Sequence[CutBatch]) -> None:
    """Write batches down."""
    names = _COLUMNS.replace(" ", "").split(",")
    row = f"({', '.join('?' * len(names))})"
    for batch in batches:
        connection.execute(f"INSERT INTO batches ({_COLUMNS}) VALUES {row}", [getattr(batch, name) for name in names])
