"""One partition: its log, high watermark, leader epoch and producers in one place; what replication will replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidegate_core.errors import PartitionError
from tidegate_core.log.config import LogConfig
from tidegate_wire.identifiers import LeaderEpoch, Offset


@dataclass(frozen=True, slots=True)
class AppendResult:
    """Where a batch stands in the log. It is safe once `Partition.committed(end_offset)` returned."""

    base_offset: Offset
    """The first record's."""
    end_offset: Offset
    """One after the last record's: what to pass to `Partition.committed`."""
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


class ReadWait:
    """A callback that waits for records; see `Partition.when_readable`."""

    __slots__ = ("_waits", "callback", "offset")

    def cancel(self) -> None:
        """Forget the callback; nothing happens if it was called already."""
        raise NotImplementedError


class Partition:
    """Owned by the event loop's thread: every method is called there."""

    topic: str
    index: int
    leader_epoch: LeaderEpoch
    config: LogConfig
    """May be replaced at any time; holds from the next append on."""
    failure: PartitionError | None
    """Why appends are refused, if they are."""

    @property
    def log_start_offset(self) -> Offset:
        """The first offset that can be read."""
        raise NotImplementedError

    @property
    def log_end_offset(self) -> Offset:
        """One after the last record written, synced or not."""
        raise NotImplementedError

    @property
    def high_watermark(self) -> Offset:
        """One after the last record that is safe; what a consumer may read is below."""
        raise NotImplementedError

    @property
    def size_bytes(self) -> int:
        """Of all segments (DescribeLogDirs)."""
        raise NotImplementedError

    def append_as_leader(self, batch: memoryview, now_ms: int) -> AppendResult:
        """Check, deduplicate, stamp and write one record batch (Kafka allows one a partition in a Produce request).

        A writable `batch` is stamped in place; a read-only one is copied first. The append is synced in the
        background with all others made meanwhile: await `committed(result.end_offset)`, also for a duplicate, whose
        first copy may still be on its way to the disk. Appends to many partitions may be made first and awaited then.

        Raises:
            AppendRefused: a subclass says why; nothing was written.
            DiskFull: nothing was written, and a later append may work.
            StorageFailed: the disk failed under this partition.
            PartitionDamaged: the end of the log is not known.
            PartitionClosed: deleted, or shutting down.
        """
        raise NotImplementedError

    async def committed(self, offset: Offset) -> None:
        """Return when `high_watermark >= offset`.

        Raises:
            StorageFailed: it can't, because the disk failed.
            PartitionClosed: the partition was deleted or closed before.
        """
        raise NotImplementedError

    def read(self, offset: Offset, bytes_max: int) -> ReadResult:
        """Whole batches from the one that holds `offset` on, up to `bytes_max` bytes but at least one (KIP-74).

        Empty at and above the high watermark.

        Raises:
            OffsetOutOfRange: below the log's start or above its end.
            PartitionDamaged: the bytes there are not what was written.
            StorageFailed: the disk can't be read there.
        """
        raise NotImplementedError

    def when_readable(self, offset: Offset, callback: Callable[[], None]) -> ReadWait:
        """Call `callback` once when `high_watermark > offset`, or when the partition failed or was closed.

        If that is so already, it is called before this returns. It must not block and must not raise.
        """
        raise NotImplementedError

    def offset_for_time(self, time_ms: int) -> tuple[Offset, int] | None:
        """The first record with a timestamp at or after `time_ms`, below the high watermark: its offset and time.

        Raises:
            PartitionDamaged: a batch on the way can't be read.
        """
        raise NotImplementedError

    def offset_of_latest_time(self) -> tuple[Offset, int] | None:
        """The record with the largest timestamp (ListOffsets -3, KIP-734): its offset and time.

        Raises:
            PartitionDamaged: a batch on the way can't be read.
        """
        raise NotImplementedError

    def end_offset_for_epoch(self, epoch: LeaderEpoch) -> tuple[LeaderEpoch, Offset]:
        """The largest epoch at or below `epoch` and where it ends (KIP-101, KIP-279); (-1, -1) if there is none."""
        raise NotImplementedError

    def delete_before(self, offset: Offset) -> Offset:
        """Raise the log's start to `offset` (DeleteRecords); return the new start.

        Raises:
            OffsetOutOfRange: above the high watermark.
        """
        raise NotImplementedError
