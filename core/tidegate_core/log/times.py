"""Offsets of records by their timestamps (ListOffsets)."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate_core.log.files import storage_error
from tidegate_core.log.log import Log
from tidegate_core.log.segment import LogPosition, Segment
from tidegate_wire.identifiers import Offset
from tidegate_wire.records import BatchError, BatchHeader, read_records


def offset_for_time(log: Log, time_ms: int, end: LogPosition) -> tuple[Offset, int] | None:
    """The first record before `end` with a timestamp of at least `time_ms`: its offset and timestamp.

    Raises:
        PartitionDamaged: a batch on the way is not what was written.
        StorageFailed, StorageError: a file can't be read.
    """
    for segment in log.segments:
        if segment.largest_timestamp_ms < time_ms:
            continue
        if segment.base_offset > end.segment_base:
            break
        found = _first_at_or_after(log, segment, time_ms, end)
        if found is not None:
            return found
    return None


def _first_at_or_after(log: Log, segment: Segment, time_ms: int, end: LogPosition) -> tuple[Offset, int] | None:
    for batch in _batches_at_or_after(log, segment, time_ms, end):
        try:
            for record in read_records(batch):
                if record.timestamp_ms >= time_ms and record.offset >= log.log_start_offset:
                    return record.offset, record.timestamp_ms
        except BatchError:  # the CRC fits, so a client sent it so: what the header says has to do
            header = BatchHeader.parse(batch)
            return max(header.base_offset, log.log_start_offset), header.max_timestamp_ms
    return None


def _batches_at_or_after(log: Log, segment: Segment, time_ms: int, end: LogPosition) -> Iterator[bytes]:
    """The batches of the segment before `end` that hold a record at or after `time_ms`."""
    end_byte = end.byte if segment.base_offset == end.segment_base else segment.size_bytes
    try:
        for position, header in segment.walk(segment.load_index().place_for_time(time_ms), end_byte):
            if header.max_timestamp_ms >= time_ms and header.last_offset >= log.log_start_offset:
                yield segment.read_batch(position, header)
    except OSError as error:
        raise storage_error(error, f"{segment.path} can't be read") from error


def offset_of_latest_time(log: Log, end: LogPosition) -> tuple[Offset, int] | None:
    """The first record before `end` that has the largest timestamp: its offset and timestamp.

    Raises:
        PartitionDamaged: a batch on the way is not what was written.
        StorageFailed, StorageError: a file can't be read.
    """
    latest: tuple[Offset, int] | None = None
    for segment in log.segments:
        largest_ms = segment.largest_timestamp_ms
        if segment.base_offset > end.segment_base or largest_ms < 0 or (latest and largest_ms <= latest[1]):
            continue
        found = _first_at_or_after(log, segment, largest_ms, end)
        if found is None and segment.base_offset == end.segment_base:  # its latest record is not before `end`
            found = _latest_by_walking(log, segment, end)
        if found is not None and (latest is None or found[1] > latest[1]):
            latest = found
    return latest


def _latest_by_walking(log: Log, segment: Segment, end: LogPosition) -> tuple[Offset, int] | None:
    try:
        largest_ms = max((header.max_timestamp_ms for _, header in segment.walk(None, end.byte)), default=-1)
    except OSError as error:
        raise storage_error(error, f"{segment.path} can't be read") from error
    return _first_at_or_after(log, segment, largest_ms, end) if largest_ms >= 0 else None
