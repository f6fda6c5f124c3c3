"""A segment's sparse index: for every 32 KiB or so, an offset, its position, and the largest timestamp before it.

One index serves both look-ups. By offset: the last entry at or below it. By time: the last entry before which every
timestamp is smaller, since the largest timestamp before a position only grows. From there the batches are walked.

The file `<base offset>.index` is written whole, sealed with a CRC, when a segment is closed and at checkpoints; it is
derived from the segment, so a missing or damaged one is built again.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final

from tidegate_core.log.files import DamagedFile, seal, unseal
from tidegate_wire.identifiers import Offset
from tidegate_wire.records import BatchHeader

INDEX_INTERVAL_BYTES: Final = 32 * 1024
"""Bytes between two entries: a look-up walks at most this, and 1 GiB of log has an index of 768 KiB."""

NO_TIMESTAMP: Final = -1
"""The largest timestamp of nothing."""

_KIND: Final = b"TGINDEX1"
_HEAD: Final = struct.Struct("<qqqqI?")  # base offset, end offset, size, largest timestamp, entries, is final
_ENTRY_BYTES: Final = 24


@dataclass(slots=True)
class SegmentSummary:
    """What an index file says of its whole segment."""

    base_offset: Offset
    end_offset: Offset
    size_bytes: int
    largest_timestamp_ms: int
    is_final: bool
    """The segment was closed: nothing was appended after this."""


IndexPlace = tuple[int, Offset]
"""Where a batch begins in the segment, and its first offset."""


class SparseIndex:
    """Entries in three columns, ordered by position; appended to as the segment grows."""

    __slots__ = ("largest_timestamp_ms", "offsets", "positions", "timestamps_ms")

    def __init__(self) -> None:
        self.offsets = array("q")
        self.positions = array("q")
        self.timestamps_ms = array("q")
        self.largest_timestamp_ms = NO_TIMESTAMP

    def add(self, header: BatchHeader, position: int) -> None:
        """Take note of the batch at `position`, which follows the ones noted before."""
        positions = self.positions
        if not positions or position - positions[-1] >= INDEX_INTERVAL_BYTES:
            self.offsets.append(header.base_offset)
            positions.append(position)
            self.timestamps_ms.append(self.largest_timestamp_ms)
        if header.max_timestamp_ms > self.largest_timestamp_ms:  # noqa: PLR1730  # max() takes three times as long
            self.largest_timestamp_ms = header.max_timestamp_ms

    def place_for_offset(self, offset: Offset) -> IndexPlace | None:
        """Where to begin looking for the batch that holds `offset`; None is the start."""
        return self._place(bisect_right(self.offsets, offset))

    def place_for_time(self, time_ms: int) -> IndexPlace | None:
        """Where to begin looking for the first record at or after `time_ms`; all before it are older."""
        return self._place(bisect_left(self.timestamps_ms, time_ms))

    def boundary_at_or_below(self, position: int) -> IndexPlace | None:
        """The last batch known to begin at or below `position`."""
        return self._place(bisect_right(self.positions, position))

    def _place(self, at: int) -> IndexPlace | None:
        return (self.positions[at - 1], Offset(self.offsets[at - 1])) if at else None

    def cut(self, position: int) -> IndexPlace | None:
        """Forget what is at or after `position`; returns where to walk on from, None for the start.

        That is the last entry before: the timestamps after it are forgotten too, so it is to be added again.
        """
        at = max(bisect_left(self.positions, position) - 1, 0)
        resume = None
        if at < len(self.positions):
            resume = self.positions[at], Offset(self.offsets[at])
            self.largest_timestamp_ms = self.timestamps_ms[at]
        del self.offsets[at:], self.positions[at:], self.timestamps_ms[at:]
        return resume

    def encode(self, base_offset: Offset, end_offset: Offset, size_bytes: int, *, is_final: bool) -> bytes:
        """The index file of a segment that is `size_bytes` long; `is_final` once nothing will be appended to it."""
        columns = [self.offsets, self.positions, self.timestamps_ms]
        if sys.byteorder != "little":
            columns = [_swapped(column) for column in columns]
        count = len(self.offsets)
        head = _HEAD.pack(base_offset, end_offset, size_bytes, self.largest_timestamp_ms, count, is_final)
        return seal(_KIND, head + b"".join(column.tobytes() for column in columns))

    @classmethod
    def decode(cls, data: bytes) -> tuple[SegmentSummary, SparseIndex]:
        """Read an index file.

        Raises:
            DamagedFile: it is not what `encode` wrote.
        """
        body = unseal(_KIND, data)
        if len(body) < _HEAD.size:
            raise DamagedFile("the index has no head")
        base_offset, end_offset, size_bytes, largest_timestamp_ms, count, is_final = _HEAD.unpack_from(body)
        if len(body) != _HEAD.size + count * _ENTRY_BYTES:
            raise DamagedFile(f"{count} entries do not fit {len(body)} bytes")
        index = cls()
        at = _HEAD.size
        for column in (index.offsets, index.positions, index.timestamps_ms):
            column.frombytes(body[at : at + 8 * count])
            at += 8 * count
            if sys.byteorder != "little":
                column.byteswap()
        index.largest_timestamp_ms = largest_timestamp_ms
        summary = SegmentSummary(base_offset, end_offset, size_bytes, largest_timestamp_ms, is_final)
        return summary, index


def _swapped(column: array[int]) -> array[int]:
    swapped = array("q", column)
    swapped.byteswap()
    return swapped
