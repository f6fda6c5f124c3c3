"""One partition on this node: its log, high watermark, producers, and everyone who waits for it.

It stores, and is told what to do: who leads, what is committed and what must be cut is decided by `raft.replica`, whose
owner (`replication.replicas`) calls `lead`, `follow`, `set_high_watermark`, `truncate` and `reset`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import structlog

from tidegate_core.errors import (
    CorruptBatchRefused,
    NotLeader,
    OffsetOutOfRange,
    PartitionClosed,
    PartitionDamaged,
    PartitionError,
    StorageError,
    StorageFailed,
)
from tidegate_core.high_watermark import HighWatermark
from tidegate_core.log.admission import check_new_batch, check_replicated_batches
from tidegate_core.log.config import LogConfig
from tidegate_core.log.control import ControlRecord, read_voters
from tidegate_core.log.files import storage_error
from tidegate_core.log.flusher import Flusher
from tidegate_core.log.history import rebuild_producers, take_snapshot
from tidegate_core.log.identity import PartitionIdentity, write_identity
from tidegate_core.log.log import Log
from tidegate_core.log.partition_snapshot import PartitionSnapshot
from tidegate_core.log.reset import decide_reset
from tidegate_core.log.segment import Segment
from tidegate_core.log.snapshots import snapshot_offset, write_snapshot
from tidegate_core.log.times import offset_for_time, offset_of_latest_time
from tidegate_core.producers import ProducerStates
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.results import AppendResult, ReadResult, duplicate_of
from tidegate_core.syncing import Syncing
from tidegate_core.waits import OffsetWaits, ReadWait, ReadWaits
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.records import BatchHeader, stamp, stamp_log_append_time

_logger = structlog.get_logger()


class Partition:
    """Owned by the event loop's thread: every method is called there."""

    __slots__ = (
        "_committed_waits",
        "_high_watermark",
        "_now_ms",
        "_read_waits",
        "_syncing",
        "failure",
        "identity",
        "index",
        "is_closed",
        "is_draining",
        "is_leader",
        "key",
        "leader_epoch",
        "log",
        "on_appended",
        "on_failed",
        "on_synced",
        "producers",
        "topic",
    )

    def __init__(  # noqa: PLR0917  # its parts, each of its own type
        self,
        topic: str,
        index: int,
        identity: PartitionIdentity,
        log: Log,
        producers: ProducerStates,
        flusher: Flusher,
        now_ms: int,
    ) -> None:
        self.topic = topic
        self.index = index
        self.identity = identity
        self.key = ReplicaKey(identity.topic_id, index)
        self.leader_epoch = log.epochs.latest or LeaderEpoch(0)
        """The epoch in which this node leads or follows."""
        self.is_leader = False
        self.is_draining = False
        """About to lead no more: appends are refused, so that those before are committed and answered."""
        self.log = log
        self.producers = producers
        self.failure: PartitionError | None = log.failure
        """Why appends are refused, if they are."""
        self.on_appended: Callable[[Partition], None] = _ignore
        """Called when this node, as the leader, wrote records."""
        self.on_synced: Callable[[Partition], None] = _ignore
        """Called when `synced_offset` moved."""
        self.on_failed: Callable[[Partition], None] = _ignore
        """Called when `failure` is set, and when a shared partition can't be read."""
        self._now_ms = now_ms
        self._high_watermark = HighWatermark(log)
        self._syncing = Syncing(
            log, flusher, take_snapshot=self._take_snapshot, on_synced=self._synced, on_failed=self._fail
        )
        self._committed_waits = OffsetWaits()
        self._read_waits = ReadWaits()
        self.is_closed = False
        """Deleted, or shutting down."""

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
    def synced_offset(self) -> Offset:
        """One after the last record that is on this disk."""
        return self._syncing.synced_offset

    @property
    def last_epoch(self) -> LeaderEpoch:
        """Of the last batch; -1 if there never was one."""
        latest = self.log.epochs.latest
        return LeaderEpoch(-1) if latest is None else latest

    @property
    def voters(self) -> tuple[NodeId, ...]:
        """The newest voters in the log, committed or not; the first is the preferred leader."""
        return self.log.voter_sets.latest[1]

    @property
    def voters_offset(self) -> Offset:
        """Where those voters stand in the log; -1 for those that the partition was made with."""
        return Offset(self.log.voter_sets.latest[0])

    @property
    def had_one_voter_only(self) -> bool:
        """Whether it never had another voter than the one it was made with."""
        return len(self.voters) == 1 and not self.identity.is_shared

    @property
    def is_damaged(self) -> bool:
        """Whether bytes that were on disk are gone or changed."""
        return self.log.damage is not None

    @property
    def tombstones_removed_to(self) -> Offset:
        """See `Log.tombstones_removed_to`: who has not read so far may keep what was deleted."""
        return self.log.tombstones_removed_to()

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
        if not self.is_leader or self.is_draining:
            raise self._not_leader()
        log = self.log
        header = check_new_batch(batch, log.config, now_ms)
        if header.producer_id >= 0:
            written = self.producers.check(header)
            if written is not None:
                return duplicate_of(written, self.leader_epoch, log)
        base_offset = log.log_end_offset
        if batch.readonly:
            batch = memoryview(bytearray(batch))
        stamp(batch, base_offset, self.leader_epoch)
        append_time_ms = -1
        if log.config.message_timestamp_type == "LogAppendTime":
            stamp_log_append_time(batch, now_ms)
            append_time_ms = now_ms
        header = BatchHeader.parse(batch)
        self._write(batch, (header,), now_ms)
        if header.producer_id >= 0:
            self.producers.record(header, now_ms)
        self.on_appended(self)
        return AppendResult(
            base_offset, log.log_end_offset, self.leader_epoch, append_time_ms, log.log_start_offset, False
        )

    def append_control(self, record: ControlRecord, now_ms: int) -> Offset:
        """Write a control record in the epoch that this node leads; returns the offset after it.

        Raises:
            DiskFull, StorageFailed, PartitionDamaged, PartitionClosed: as `append_as_leader`.
        """
        assert self.is_leader
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        base_offset = self.log.log_end_offset
        batch = memoryview(record.to_batch(now_ms))
        voters = read_voters(batch)
        if voters is not None:
            self._share()
        stamp(batch, base_offset, self.leader_epoch)
        self._write(batch, (BatchHeader.parse(batch),), now_ms)
        if voters is not None:
            self.log.voter_sets.note(base_offset, voters)
        self.on_appended(self)
        return self.log.log_end_offset

    def append_as_follower(self, batches: memoryview, now_ms: int) -> None:
        """Write what the leader has next: whole batches with their offsets and epochs; synced in the background.

        Raises:
            CorruptBatchRefused: a CRC is wrong, or a batch does not follow the log; nothing was written.
            DiskFull: some whole batches may have been written, and a later append may work.
            StorageFailed, PartitionDamaged, PartitionClosed: as `append_as_leader`.
        """
        assert not self.is_leader
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        log = self.log
        try:
            checked = check_replicated_batches(batches, log.log_end_offset, self.last_epoch, self.leader_epoch)
        except CorruptBatchRefused as error:
            raise CorruptBatchRefused(f"{self.topic}-{self.index}: from the leader: {error}") from error
        if not checked.headers:
            return
        if checked.compacted_to is not None:
            log.allow_gaps()
            log.compacted_to = checked.compacted_to
        if checked.voter_sets:
            self._share()
        at = 0
        for headers in log.runs(checked.headers):
            end = at + sum(header.size_bytes for header in headers)
            self._write(batches[at:end], headers, now_ms)
            at = end
            for header in headers:
                if header.producer_id >= 0:
                    self.producers.record(header, now_ms)
            for offset, voters in checked.voter_sets:
                if offset < log.log_end_offset:
                    log.voter_sets.note(offset, voters)

    def _share(self) -> None:
        """Other nodes have a say from here on: written down before, since the records that say so may be deleted."""
        if not self.identity.is_shared:
            identity = replace(self.identity, was_shared=True)
            try:
                write_identity(self.log.directory, identity)
            except OSError as error:
                raise storage_error(error, f"{self.log.directory} can't be written") from error
            self.identity = identity

    def _write(self, batches: memoryview, headers: Sequence[BatchHeader], now_ms: int) -> None:
        log = self.log
        self._now_ms = now_ms
        before = log.end if len(headers) > 1 else None
        try:
            log.append(batches, headers, now_ms)
        except StorageFailed as error:
            self._fail(error)
            raise
        if before is None:
            self._high_watermark.ends.append(log.end)
        else:
            self._high_watermark.wrote(before, headers)
        self._syncing.flusher.request(self._syncing)

    def has_committed(self, offset: Offset, in_epoch: LeaderEpoch) -> bool:
        """Whether what this node wrote before `offset`, leading in `in_epoch`, is committed, as far as it knows."""
        return self.is_leader and self.leader_epoch == in_epoch and self._high_watermark.offset >= offset

    async def committed(self, offset: Offset, in_epoch: LeaderEpoch | None = None) -> None:
        """Return when `high_watermark >= offset`.

        Raises:
            NotLeader: this node does not lead (any more), or not in `in_epoch` if that is given, so it can't know.
            StorageFailed: it can't, because the disk failed.
            PartitionClosed: the partition was deleted or closed before.
        """
        if self.failure is not None and self._high_watermark.offset < offset:
            raise self.failure.with_traceback(None)
        if not self.is_leader or (in_epoch is not None and in_epoch != self.leader_epoch):
            raise self._not_leader()
        if self._high_watermark.offset >= offset:
            return
        await self._committed_waits.add(offset)

    async def synced(self, offset: Offset) -> None:
        """Return when everything before `offset`, which was written, is on this disk, or was cut.

        Raises:
            StorageFailed: it can't, because the disk failed.
            PartitionClosed: the partition was deleted or closed before.
        """
        if self.synced_offset >= offset:
            return
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        assert offset <= self.log.log_end_offset
        await self._syncing.waits.add(offset)

    # --- what replication decides

    def lead(self, epoch: LeaderEpoch) -> None:
        """This node leads from now on: appends are taken, and get `epoch`."""
        self.leader_epoch = epoch
        self.is_leader = True
        self.is_draining = False

    def follow(self, epoch: LeaderEpoch) -> None:
        """This node does not lead, or no more: who waits for a commit or for records is told."""
        self.leader_epoch = epoch
        if not self.is_leader:
            return
        self.is_leader = False
        self._tell_all(self._not_leader())

    def set_high_watermark(self, offset: Offset) -> None:
        """Everything before `offset` is committed: answer who waits for it. Never falls."""
        if offset <= self._high_watermark.offset:
            return
        self._high_watermark.advance(offset)
        self._committed_waits.reached(offset)
        if self._read_waits:
            self._read_waits.reached(offset)

    def truncate(self, offset: Offset) -> None:
        """Remove the batches that end after `offset`, which are not committed; they are gone for good on return.

        Raises:
            DiskFull, StorageError: nothing was done, and a later time may work.
            StorageFailed, PartitionDamaged: it could not be done; the partition takes nothing more.
        """
        assert not self.is_leader
        assert offset >= self._high_watermark.offset, "what is committed is never cut"
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        log = self.log
        if offset >= log.log_end_offset:
            return
        try:
            log.truncate_to(offset)
        except (StorageFailed, PartitionDamaged) as error:
            raise self._failed(error) from error
        try:
            self.producers = rebuild_producers(log, log.log_end_offset, self._now_ms)
        except (OSError, StorageError) as error:
            raise self._failed(StorageFailed(f"{log.directory} can't be read after it was cut: {error}")) from error
        self._high_watermark.truncated()
        self._syncing.cut(min(self.synced_offset, log.log_end_offset))

    def reset(self, snapshot: PartitionSnapshot) -> None:
        """Remove every record and begin where the leader's log does; on disk when this returns.

        A crash leaves all as it was, or as the snapshot says.

        Raises:
            DiskFull: nothing was done, and a later time may work.
            StorageFailed, StorageError: it could not be done; the partition takes nothing more.
        """
        assert not self.is_leader
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        log = self.log
        self._share()
        try:
            decide_reset(log.directory, snapshot)
        except OSError as error:
            refused = storage_error(error, f"{log.directory} can't begin anew")
            raise (self._failed(refused) if isinstance(refused, StorageFailed) else refused) from error
        try:
            log.reset(snapshot, self._now_ms)
        except StorageError as error:
            raise self._failed(error) from error
        self.producers = snapshot.producers
        self._high_watermark.begin_anew()
        self._syncing.cut(snapshot.offset)

    def snapshot(self) -> bytes:
        """What a follower needs that is behind the log's start: who wrote, who votes, what the app made of it.

        Raises:
            PartitionDamaged, StorageFailed, StorageError: the log can't be read.
            OSError: a state beside it can't be.
        """
        with self._watched():
            return take_snapshot(self.log, self.producers, self.high_watermark, self._now_ms)

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
        with self._watched():
            buffers = tuple(self.log.read(offset, bytes_max, self._high_watermark.position))
        return ReadResult(buffers, sum(map(len, buffers)), self.high_watermark, self.log.log_start_offset)

    def read_for_replica(self, offset: Offset, bytes_max: int) -> tuple[bytes, ...]:
        """As `read`, but up to the log's end: a follower may have what is not committed yet.

        Raises:
            OffsetOutOfRange, PartitionDamaged, StorageFailed, PartitionClosed: as `read`.
        """
        self._check_open()
        with self._watched():
            return tuple(self.log.read(offset, bytes_max, self.log.end))

    def when_readable(self, offset: Offset, callback: Callable[[], None]) -> ReadWait:
        """Call `callback` once when `high_watermark > offset`, or when the partition failed or was closed.

        If that is so already, it is called before this returns. It must not block and must not raise.
        """
        is_due = self.high_watermark > offset or self.failure is not None or not self.is_leader
        return self._read_waits.new(offset, callback, is_due=is_due)

    def offset_for_time(self, time_ms: int) -> tuple[Offset, int] | None:
        """The first record with a timestamp at or after `time_ms`, below the high watermark: its offset and time.

        Raises:
            PartitionDamaged: a batch on the way can't be read.
            StorageFailed: the disk can't be read there.
            PartitionClosed: deleted, or shutting down.
        """
        self._check_open()
        with self._watched():
            return offset_for_time(self.log, time_ms, self._high_watermark.position)

    def offset_of_latest_time(self) -> tuple[Offset, int] | None:
        """The record with the largest timestamp (ListOffsets -3, KIP-734): its offset and time.

        Raises:
            PartitionDamaged: a batch on the way can't be read.
            StorageFailed: the disk can't be read there.
            PartitionClosed: deleted, or shutting down.
        """
        self._check_open()
        with self._watched():
            return offset_of_latest_time(self.log, self._high_watermark.position)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """What can't be read here can be fetched from another node: tell the owner, who will see to that."""
        try:
            yield
        except (PartitionDamaged, StorageFailed) as error:
            if self.identity.is_shared:
                if isinstance(error, StorageFailed):
                    self.log.damage = self.log.damage or PartitionDamaged(str(error), hint=error.hint)
                self.on_failed(self)
            raise

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
        if offset > self.high_watermark:
            raise OffsetOutOfRange(f"offset {offset} is above the high watermark, {self.high_watermark}")
        if offset > self.synced_offset:  # committed by others: a start that is behind the log's end is no log
            try:
                self.log.sync_from(self.synced_offset)
            except StorageFailed as error:
                raise self._failed(error) from error
        self.log.delete_before(offset)
        self.remove_deleted()
        return self.log.log_start_offset

    def remove_deleted(self) -> None:
        """Free what lies before the log's start, as far as no cut of the log can need it to know its producers.

        Raises:
            DiskFull, StorageFailed, StorageError: a file can't be renamed.
        """
        if self.log.has_deleted:
            self.log.remove_deleted(self.safe_snapshot_offset)

    @property
    def safe_snapshot_offset(self) -> Offset:
        """Of the newest snapshot of the producers that no cut removes."""
        return snapshot_offset(self.log.directory, self.high_watermark)

    def close(self) -> None:
        """Answer everyone who waits, and close the files; what was not synced stays unacknowledged."""
        self.is_closed = True
        self._fail(PartitionClosed(f"{self.topic}-{self.index} is closed", hint="ask for the partition's leader again"))
        self.log.close()

    def swap_in(self, new: Segment, bases: Sequence[Offset]) -> bool:
        """Let a compacted segment take the place of others; see `Log.swap_in`."""
        self._high_watermark.forget_position()
        return self.log.swap_in(new, bases)

    def _check_open(self) -> None:
        if self.is_closed:
            assert self.failure is not None
            raise self.failure.with_traceback(None)

    # --- syncing

    def request_checkpoint(self) -> None:
        """Write a checkpoint soon, so that the next start has nothing to scan."""
        self._syncing.request_checkpoint()

    def _take_snapshot(self) -> Callable[[], None]:
        directory, end = self.log.directory, self.log.log_end_offset
        return partial(write_snapshot, directory, end, self.producers.copy(), committed=self.high_watermark)

    def _synced(self) -> None:
        self.on_synced(self)

    def _fail(self, error: PartitionError) -> None:
        """Refuse appends from now on and tell everyone who waits; never undone, not even by a sync that works."""
        if self.failure is not None and not isinstance(error, PartitionClosed):
            return
        self.failure = error
        self._syncing.is_stopped = True
        if isinstance(error, StorageFailed):
            _logger.error("partition_failed", topic=self.topic, partition=self.index, error=str(error))
        self._tell_all(error)
        self._syncing.waits.reject(error)
        self.on_failed(self)

    def _failed(self, error: StorageError) -> StorageError:
        """`error`, to be raised, after which nothing is taken."""
        self._fail(error)
        return error

    def _tell_all(self, error: PartitionError) -> None:
        self._committed_waits.reject(error)
        self._read_waits.call_all()

    def _not_leader(self) -> NotLeader:
        return NotLeader(
            f"{self.topic}-{self.index} is led by another node, or by nobody just now", hint="ask who leads it"
        )


def _ignore(_partition: Partition) -> None:
    """What a partition without an owner does."""
