"""What a partition answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tidegate_core.log.log import Log
from tidegate_core.producers import WrittenBatch
from tidegate_wire.identifiers import LeaderEpoch, Offset


class AppendResult(NamedTuple):
    """Where a batch stands in the log. It is safe once `Partition.committed(end_offset, leader_epoch)` returned."""

    base_offset: Offset
    """The first record's."""
    end_offset: Offset
    """One after the last record's: what to pass to `Partition.committed`."""
    leader_epoch: LeaderEpoch
    """In which it is there: a later leader may have cut it."""
    log_append_time_ms: int
    """The time given to the records, or -1 where they keep their own."""
    log_start_offset: Offset
    is_duplicate: bool
    """The batch was there already; these are the offsets it has. Answer as for the first one."""


@dataclass(frozen=True, slots=True)
class ReadResult:
    """Whole record batches below the high watermark, back to back; the first may begin before the offset asked for."""

    buffers: tuple[bytes, ...]
    size_bytes: int
    high_watermark: Offset
    log_start_offset: Offset


def duplicate_of(written: WrittenBatch, leader_epoch: LeaderEpoch, log: Log) -> AppendResult:
    """The answer to a batch that `log` has already: that of the first time."""
    return AppendResult(
        written.base_offset,
        Offset(written.last_offset + 1),
        leader_epoch,
        written.max_timestamp_ms if log.config.message_timestamp_type == "LogAppendTime" else -1,
        log.log_start_offset,
        True,
    )
