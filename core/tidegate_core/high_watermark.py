"""Up to where a partition's log is committed, and where in its segments that is."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from tidegate_core.log.log import Log
from tidegate_core.log.segment import LogPosition
from tidegate_wire.identifiers import Offset
from tidegate_wire.records import BatchHeader

ENDS_KEPT: Final = 4096
"""Ends of batches that are not committed yet and whose places are remembered: more are looked up in the index."""


class HighWatermark:
    """Its place is taken from the batches this process wrote, or looked up when somebody reads."""

    __slots__ = ("_log", "_position", "ends", "offset")

    def __init__(self, log: Log) -> None:
        self._log = log
        self.offset = log.log_start_offset
        self._position: LogPosition | None = None
        self.ends: deque[LogPosition] = deque(maxlen=ENDS_KEPT)
        """Where the batches end that are not committed, as far as this process wrote them."""

    @property
    def position(self) -> LogPosition:
        """Its place in the log.

        Raises:
            PartitionDamaged, StorageFailed, StorageError: it can't be found.
        """
        position = self._position
        if position is None:
            position = self._position = self._log.position_at(self.offset)
        return position

    def wrote(self, before: LogPosition, headers: Sequence[BatchHeader]) -> None:
        """Batches were written at `before`, or at the start of the segment after it."""
        end = self._log.end
        byte = before.byte if before.segment_base == end.segment_base else 0
        for header in headers[:-1]:
            byte += header.size_bytes
            self.ends.append(LogPosition(Offset(header.last_offset + 1), end.segment_base, byte))
        self.ends.append(end)

    def advance(self, offset: Offset) -> None:
        """It is at `offset` now, which is in the log."""
        log, ends = self._log, self.ends
        assert self.offset <= offset <= log.log_end_offset
        self.offset = offset
        if offset == log.log_end_offset:
            ends.clear()
            self._position = log.end
            return
        position = None
        while ends and ends[0].offset <= offset:
            position = ends.popleft()
        self._position = position if position is not None and position.offset == offset else None

    def truncated(self) -> None:
        """The log is shorter, but not shorter than this."""
        end = self._log.log_end_offset
        while self.ends and self.ends[-1].offset > end:
            self.ends.pop()

    def begin_anew(self) -> None:
        """The log is another one."""
        self.offset = self._log.log_start_offset
        self.ends.clear()
        self._position = None

    def forget_position(self) -> None:
        """Segments were replaced."""
        self._position = None
