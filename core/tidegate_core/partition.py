"""One partition: its log, high watermark, leader epoch and producers in one place; what replication will replace."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from pathlib import Path

import structlog

from tidegate_core.errors import OffsetOutOfRange, PartitionClosed, PartitionError, StorageFailed
from tidegate_core.log.admission import check_new_batch
from tidegate_core.log.config import LogConfig
from tidegate_core.log.files import OpenFiles
from tidegate_core.log.flusher import Flusher
from tidegate_core.log.log import Log, SyncJob
from tidegate_core.log.recovery import create_log, open_log
from tidegate_core.log.snapshots import load_snapshot, write_snapshot
from tidegate_core.producers import ProducerStates, WrittenBatch
from tidegate_wire.identifiers import LeaderEpoch, Offset
from tidegate_wire.records import BatchHeader, stamp, stamp_log_append_time

_logger = structlog.get_logger()


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

    def __init__(self, offset: Offset, callback: Callable[[], None], waits: dict[ReadWait, None]) -> None:
        self.offset = offset
        self.callback = callback
        self._waits = waits

    def cancel(self) -> None:
        """Forget the callback; nothing happens if it was called already."""
        self._waits.pop(self, None)


class Partition:
    """Owned by the event loop's thread: every method is called there. `open` and `create` may run in another."""

    __slots__ = (
        "_committed_waits",
        "_flusher",
        "_high_watermark",
        "_is_checkpointing",
        "_read_waits",
        "_wait_numbers",
        "_wants_checkpoint",
        "failure",
        "index",
        "is_closed",
        "leader_epoch",
        "log",
        "producers",
        "topic",
    )

    def __init__(self, topic: str, index: int, log: Log, producers: ProducerStates, flusher: Flusher) -> None:
        self.topic = topic
        self.index = index
        self.leader_epoch = log.epochs.latest or LeaderEpoch(0)
        self.log = log
        self.producers = producers
        self.failure: PartitionError | None = log.failure
        """Why appends are refused, if they are."""
        self._flusher = flusher
        self._high_watermark = log.end
        self._committed_waits: list[tuple[Offset, int, asyncio.Future[None]]] = []
        self._wait_numbers = itertools.count()
        self._read_waits: dict[ReadWait, None] = {}
        self._is_checkpointing = False
        self._wants_checkpoint = False
        self.is_closed = False
        """Deleted, or shutting down."""

    @classmethod
    def open(
        cls,
        topic: str,
        index: int,
        directory: Path,
        config: LogConfig,
        *,
        files: OpenFiles,
        flusher: Flusher,
        discard: Callable[[Path], None],
        now_ms: int,
    ) -> Partition:
        """Recover the partition in `directory`; see `tidegate_core.log.recovery`. May take a while.

        Raises:
            OSError: the directory can't be read, or what it holds not be made safe.
        """
        snapshot_offset, producers = load_snapshot(directory)

        def replay(header: BatchHeader) -> None:
            if header.producer_id >= 0:
                producers.record(header, now_ms)

        log = open_log(
            directory,
            config,
            files,
            discard=discard,
            now_ms=now_ms,
            replay_from=snapshot_offset,
            batch_found=replay,
        )
        return cls(topic, index, log, producers, flusher)

    @classmethod
    def create(
        cls,
        topic: str,
        index: int,
        directory: Path,
        config: LogConfig,
        *,
        files: OpenFiles,
        flusher: Flusher,
        discard: Callable[[Path], None],
        now_ms: int,
    ) -> Partition:
        """Make an empty partition in the existing empty `directory`.

        Raises:
            OSError: the files can't be made.
        """
        log = create_log(directory, config, files, discard=discard, now_ms=now_ms)
        return cls(topic, index, log, ProducerStates(), flusher)

    @property
    def config(self) -> LogConfig:
        """The topic's configuration; may be replaced at any time."""
        return self.log.config

    @config.setter
    def config(self, config: LogConfig) -> None:
        self.log.config = config

    @property
    def log_start_offset(self) -> Offset:
        """The first offset that can be read."""
        return self.log.log_start_offset

    @property
    def log_end_offset(self) -> Offset:
        """One after the last record written, synced or not."""
        return self.log.log_end_offset

    @property
    def high_watermark(self) -> Offset:
        """One after the last record that is safe; what a consumer may read is below."""
        return self._high_watermark.offset

    @property
    def size_bytes(self) -> int:
        """Of all segments (DescribeLogDirs)."""
        return self.log.size_bytes

    # --- appending

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
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        log = self.log
        header = check_new_batch(batch, log.config, now_ms)
        if header.producer_id >= 0:
            written = self.producers.check(header)
            if written is not None:
                return self._duplicate(written)
        base_offset = log.log_end_offset
        if batch.readonly:
            batch = memoryview(bytearray(batch))
        stamp(batch, base_offset, self.leader_epoch)
        append_time_ms = -1
        if log.config.message_timestamp_type == "LogAppendTime":
            stamp_log_append_time(batch, now_ms)
            append_time_ms = now_ms
        header = BatchHeader.parse(batch)
        try:
            log.append(batch, (header,), now_ms)
        except StorageFailed as error:
            self._fail(error)
            raise
        if header.producer_id >= 0:
            self.producers.record(header, now_ms)
        self._flusher.request(self)
        return AppendResult(base_offset, log.log_end_offset, append_time_ms, log.log_start_offset, False)

    def _duplicate(self, written: WrittenBatch) -> AppendResult:
        append_time = self.log.config.message_timestamp_type == "LogAppendTime"
        return AppendResult(
            written.base_offset,
            Offset(written.last_offset + 1),
            written.max_timestamp_ms if append_time else -1,
            self.log.log_start_offset,
            True,
        )

    async def committed(self, offset: Offset) -> None:
        """Return when `high_watermark >= offset`.

        Raises:
            StorageFailed: it can't, because the disk failed.
            PartitionClosed: the partition was deleted or closed before.
        """
        if self._high_watermark.offset >= offset:
            return
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._committed_waits, (offset, next(self._wait_numbers), future))
        await future

    # --- reading

    def read(self, offset: Offset, bytes_max: int) -> ReadResult:
        """Whole batches from the one that holds `offset` on, up to `bytes_max` bytes but at least one (KIP-74).

        Empty at and above the high watermark.

        Raises:
            OffsetOutOfRange: below the log's start or above its end.
            PartitionDamaged: the bytes there are not what was written.
            StorageFailed: the disk can't be read there.
            PartitionClosed: deleted, or shutting down.
        """
        self._check_open()
        buffers = tuple(self.log.read(offset, bytes_max, self._high_watermark))
        return ReadResult(buffers, sum(map(len, buffers)), self._high_watermark.offset, self.log.log_start_offset)

    def when_readable(self, offset: Offset, callback: Callable[[], None]) -> ReadWait:
        """Call `callback` once when `high_watermark > offset`, or when the partition failed or was closed.

        If that is so already, it is called before this returns. It must not block and must not raise.
        """
        wait = ReadWait(offset, callback, self._read_waits)
        if self._high_watermark.offset > offset or self.failure is not None:
            callback()
        else:
            self._read_waits[wait] = None
        return wait

    def offset_for_time(self, time_ms: int) -> tuple[Offset, int] | None:
        """The first record with a timestamp at or after `time_ms`, below the high watermark: its offset and time.

        Raises:
            PartitionDamaged: a batch on the way can't be read.
            StorageFailed: the disk can't be read there.
            PartitionClosed: deleted, or shutting down.
        """
        self._check_open()
        return self.log.offset_for_time(time_ms, self._high_watermark)

    def offset_of_latest_time(self) -> tuple[Offset, int] | None:
        """The record with the largest timestamp (ListOffsets -3, KIP-734): its offset and time.

        Raises:
            PartitionDamaged: a batch on the way can't be read.
            StorageFailed: the disk can't be read there.
            PartitionClosed: deleted, or shutting down.
        """
        self._check_open()
        return self.log.offset_of_latest_time(self._high_watermark)

    def end_offset_for_epoch(self, epoch: LeaderEpoch) -> tuple[LeaderEpoch, Offset]:
        """The largest epoch at or below `epoch` and where it ends (KIP-101, KIP-279); (-1, -1) if there is none."""
        if epoch == self.leader_epoch:
            return epoch, self.log_end_offset
        return self.log.end_offset_for_epoch(epoch)

    # --- removing

    def delete_before(self, offset: Offset) -> Offset:
        """Raise the log's start to `offset` (DeleteRecords), on disk when this returns; returns the new start.

        Raises:
            OffsetOutOfRange: above the high watermark.
            DiskFull, StorageFailed, PartitionClosed: it was not done.
        """
        self._check_open()
        if offset > self._high_watermark.offset:
            raise OffsetOutOfRange(f"offset {offset} is above the high watermark, {self._high_watermark.offset}")
        self.log.delete_before(offset)
        return self.log.log_start_offset

    def close(self) -> None:
        """Answer everyone who waits, and close the files; what was not synced stays unacknowledged."""
        self._fail(PartitionClosed(f"{self.topic}-{self.index} is closed", hint="ask for the partition's leader again"))
        self.is_closed = True
        self.log.close()

    def _check_open(self) -> None:
        if self.is_closed:
            assert self.failure is not None
            raise self.failure.with_traceback(None)

    # --- syncing: called by the flusher

    def request_checkpoint(self) -> None:
        """Write a checkpoint soon, so that the next start has nothing to scan."""
        if self.failure is None and not self.log.is_checkpointed:
            self._wants_checkpoint = True
            self._flusher.request(self)

    def begin_sync(self) -> SyncJob | None:
        """What to sync now; None if there is nothing.

        Raises:
            OSError: no descriptor is free.
        """
        if self.failure is not None or (self.log.is_synced and not self._wants_checkpoint):
            return None
        write = None
        if not self._is_checkpointing and (self._wants_checkpoint or self.log.is_checkpoint_due):
            write = partial(write_snapshot, self.log.directory, self.log.log_end_offset, self.producers.copy())
        job = self.log.begin_sync(write)
        if write is not None:
            self._is_checkpointing = True
            self._wants_checkpoint = False
        return job

    def end_sync(self, job: SyncJob | None, error: Exception | None) -> None:
        """Move the high watermark to where the log was synced, or fail for good."""
        if error is not None or job is None:
            self._fail(
                StorageFailed(
                    f"{self.log.directory} can't be synced: {error}",
                    hint="look at the kernel's log for disk errors, then start the core again",
                )
            )
            return
        if self.failure is not None:
            return
        self._high_watermark = job.end
        offset = job.end.offset
        waits = self._committed_waits
        while waits and waits[0][0] <= offset:
            future = heappop(waits)[2]
            if not future.done():
                future.set_result(None)
        if self._read_waits:
            for wait in [wait for wait in self._read_waits if wait.offset < offset]:
                if wait in self._read_waits:  # a callback may have cancelled it
                    del self._read_waits[wait]
                    wait.callback()

    def end_checkpoint(self) -> None:
        """The next checkpoint may be written."""
        self._is_checkpointing = False
        if self._wants_checkpoint:
            self._flusher.request(self)

    def _fail(self, error: PartitionError) -> None:
        """Refuse appends from now on and tell everyone who waits; never undone, not even by a sync that works."""
        if self.failure is not None and not isinstance(error, PartitionClosed):
            return
        self.failure = error
        if isinstance(error, StorageFailed):
            _logger.error("partition_failed", topic=self.topic, partition=self.index, error=str(error))
        waits, self._committed_waits = self._committed_waits, []
        for _, _, future in waits:
            if not future.done():
                future.set_exception(error)
        readers, self._read_waits = list(self._read_waits), {}
        for wait in readers:
            wait.callback()
