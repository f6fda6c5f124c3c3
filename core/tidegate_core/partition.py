"""One partition on this node: its log, high watermark, producers, and everyone who waits for it.

It stores, and is told what to do: who leads, what is committed and what must be cut is decided by `raft.replica`, whose
owner (`replication.replicas`) calls `lead`, `follow`, `set_high_watermark`, `truncate` and `reset`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from typing import Final

import structlog

from tidegate_core.errors import (
    CorruptBatchRefused,
    NotLeader,
    OffsetOutOfRange,
    PartitionClosed,
    PartitionError,
    StorageError,
    StorageFailed,
)
from tidegate_core.log.admission import check_new_batch
from tidegate_core.log.app_state import load_app_state, remove_app_states, write_app_state
from tidegate_core.log.compaction import load_state
from tidegate_core.log.config import LogConfig
from tidegate_core.log.control import ControlRecord, VoterSets, read_voters
from tidegate_core.log.epochs import LeaderEpochs
from tidegate_core.log.files import OpenFiles, storage_error
from tidegate_core.log.flusher import Flusher
from tidegate_core.log.identity import PartitionIdentity, load_identity, write_identity
from tidegate_core.log.log import Log, SyncJob
from tidegate_core.log.partition_snapshot import PartitionSnapshot
from tidegate_core.log.recovery import create_log, open_log
from tidegate_core.log.segment import LogPosition, Segment
from tidegate_core.log.snapshots import load_snapshot, remove_snapshots, write_snapshot
from tidegate_core.producers import ProducerStates, WrittenBatch
from tidegate_core.raft.messages import ReplicaKey
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.records import BatchError, BatchHeader, check_batch, iter_batches, stamp, stamp_log_append_time

ENDS_KEPT: Final = 4096
"""Ends of batches that are not committed yet and whose places are remembered: more are looked up in the index."""

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
        "_ends",
        "_flusher",
        "_high_watermark",
        "_high_watermark_at",
        "_is_checkpointing",
        "_now_ms",
        "_read_waits",
        "_synced_waits",
        "_wait_numbers",
        "_wants_checkpoint",
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
        "synced_offset",
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
        self.synced_offset = log.log_end_offset
        """One after the last record that is on this disk."""
        self.on_appended: Callable[[Partition], None] = _ignore
        """Called when this node, as the leader, wrote records."""
        self.on_synced: Callable[[Partition], None] = _ignore
        """Called when `synced_offset` moved."""
        self.on_failed: Callable[[Partition], None] = _ignore
        """Called when `failure` is set."""
        self._now_ms = now_ms
        self._flusher = flusher
        self._high_watermark = log.log_start_offset
        self._high_watermark_at: LogPosition | None = None
        """Its place in the log, once that is known."""
        self._ends: deque[LogPosition] = deque(maxlen=ENDS_KEPT)
        """Where the batches end that are not committed, as far as this process wrote them."""
        self._committed_waits: list[tuple[Offset, int, asyncio.Future[None]]] = []
        self._synced_waits: list[tuple[Offset, int, asyncio.Future[None]]] = []
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
        node_id: NodeId,
    ) -> Partition:
        """Recover the partition in `directory`; see `tidegate_core.log.recovery`. May take a while.

        Raises:
            OSError: the directory can't be read, or what it holds not be made safe.
        """
        identity = load_identity(directory, topic, node_id)
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
            voters=identity.voters,
            replay_from=snapshot_offset,
            batch_found=replay,
        )
        return cls(topic, index, identity, log, producers, flusher, now_ms)

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
        identity: PartitionIdentity,
    ) -> Partition:
        """Make an empty partition in the existing empty `directory`.

        Raises:
            OSError: the files can't be made.
        """
        write_identity(directory, identity)
        log = create_log(directory, config, files, discard=discard, now_ms=now_ms, voters=identity.voters)
        return cls(topic, index, identity, log, ProducerStates(), flusher, now_ms)

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
        return self._high_watermark

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
        return len(self.log.voter_sets) == 1 and len(self.voters) == 1 and not self.identity.stands_in

    @property
    def is_damaged(self) -> bool:
        """Whether bytes that were on disk are gone or changed."""
        return self.log.damage is not None

    @property
    def tombstones_removed_to(self) -> Offset:
        """Compaction removed tombstones up to this offset: who has not read so far may keep what was deleted."""
        if not self.log.config.compacts:
            return Offset(-1)
        return load_state(self.log.directory).tombstones_end(self.log.config.delete_retention_ms, self._now_ms)

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
        self._write(batch, (header,), now_ms)
        if header.producer_id >= 0:
            self.producers.record(header, now_ms)
        self.on_appended(self)
        return AppendResult(base_offset, log.log_end_offset, append_time_ms, log.log_start_offset, False)

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
        stamp(batch, base_offset, self.leader_epoch)
        self._write(batch, (BatchHeader.parse(batch),), now_ms)
        voters = read_voters(batch)
        if voters is not None:
            self.log.voter_sets.note(base_offset, voters)
        self.on_appended(self)
        return self.log.log_end_offset

    def append_as_follower(self, batches: memoryview, now_ms: int) -> None:
        """Write what the leader has next: whole batches with their offsets and epochs; synced in the background.

        Raises:
            CorruptBatchRefused: a CRC is wrong, or a batch does not follow the log; nothing was written.
            DiskFull, StorageFailed, PartitionDamaged, PartitionClosed: as `append_as_leader`.
        """
        assert not self.is_leader
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        headers: list[BatchHeader] = []
        voter_sets: list[tuple[Offset, tuple[NodeId, ...]]] = []
        end, epoch = self.log.log_end_offset, self.last_epoch
        try:
            for batch in iter_batches(batches):
                header = check_batch(batch)
                if header.base_offset < end or header.leader_epoch < epoch:
                    raise CorruptBatchRefused(
                        f"{self.topic}-{self.index}: offset {header.base_offset} of epoch {header.leader_epoch} can't "
                        f"follow offset {end} of epoch {epoch}"
                    )
                if header.is_control:
                    voters = read_voters(batch)
                    if voters is not None:
                        voter_sets.append((header.base_offset, voters))
                headers.append(header)
                end, epoch = Offset(header.last_offset + 1), header.leader_epoch
        except BatchError as error:
            raise CorruptBatchRefused(f"{self.topic}-{self.index}: the leader's records: {error}") from error
        if not headers:
            return
        self._write(batches, headers, now_ms)
        for header in headers:
            if header.producer_id >= 0:
                self.producers.record(header, now_ms)
        for offset, voters in voter_sets:
            self.log.voter_sets.note(offset, voters)

    def _write(self, batches: memoryview, headers: Sequence[BatchHeader], now_ms: int) -> None:
        log = self.log
        self._now_ms = now_ms
        before = log.end
        try:
            log.append(batches, headers, now_ms)
        except StorageFailed as error:
            self._fail(error)
            raise
        end = log.end
        if len(headers) > 1:
            byte = before.byte if before.segment_base == end.segment_base else 0
            for header in headers[:-1]:
                byte += header.size_bytes
                self._ends.append(LogPosition(Offset(header.last_offset + 1), end.segment_base, byte))
        self._ends.append(end)
        self._flusher.request(self)

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
            NotLeader: this node does not lead (any more), so it can't know.
            StorageFailed: it can't, because the disk failed.
            PartitionClosed: the partition was deleted or closed before.
        """
        if self.failure is not None and self._high_watermark < offset:
            raise self.failure.with_traceback(None)
        if not self.is_leader:
            raise self._not_leader()
        if self._high_watermark >= offset:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._committed_waits, (offset, next(self._wait_numbers), future))
        await future

    async def synced(self, offset: Offset) -> None:
        """Return when everything before `offset` is on this disk.

        Raises:
            StorageFailed: it can't, because the disk failed.
            PartitionClosed: the partition was deleted or closed before.
        """
        if self.synced_offset >= offset:
            return
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._synced_waits, (offset, next(self._wait_numbers), future))
        await future

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
        if offset <= self._high_watermark:
            return
        assert offset <= self.log.log_end_offset
        ends = self._ends
        position = None
        if offset == self.log.log_end_offset:
            ends.clear()
            position = self.log.end
        else:
            while ends and ends[0].offset <= offset:
                position = ends.popleft()
        self._high_watermark = offset
        self._high_watermark_at = position if position is not None and position.offset == offset else None
        _resolve(self._committed_waits, offset)
        if self._read_waits:
            for wait in [wait for wait in self._read_waits if wait.offset < offset]:
                if wait in self._read_waits:  # a callback may have cancelled it
                    del self._read_waits[wait]
                    wait.callback()

    def truncate(self, offset: Offset) -> None:
        """Remove the batches that end after `offset`, which are not committed; on disk when this returns.

        Raises:
            DiskFull, StorageFailed, StorageError: it could not be done.
        """
        assert not self.is_leader
        assert offset >= self._high_watermark, "what is committed is never cut"
        try:
            self.log.truncate_to(offset)
            end = self.log.log_end_offset
            remove_snapshots(self.log.directory, end)
            snapshot_offset, self.producers = load_snapshot(self.log.directory)
            if snapshot_offset < end:
                for header in self.log.headers_from(snapshot_offset):
                    if header.producer_id >= 0:
                        self.producers.record(header, self._now_ms)
        except OSError as error:
            failed = storage_error(error, f"{self.log.directory} can't be cut")
            self._fail(failed)
            raise failed from error
        except StorageError as error:
            self._fail(error)
            raise
        self.synced_offset = end
        while self._ends and self._ends[-1].offset > end:
            self._ends.pop()

    def reset(self, snapshot: PartitionSnapshot) -> None:
        """Remove every record and begin where the leader's log does; on disk when this returns.

        Raises:
            DiskFull, StorageFailed, StorageError: it could not be done; the partition takes nothing more.
        """
        assert not self.is_leader
        directory, offset = self.log.directory, snapshot.offset
        try:
            remove_snapshots(directory, -1)
            remove_app_states(directory)
            write_snapshot(directory, offset, snapshot.producers, committed=offset)
            if snapshot.app_state is not None:
                write_app_state(directory, offset, snapshot.app_state)
            epochs = LeaderEpochs(snapshot.leader_epochs)
            self.log.reset(offset, epochs, VoterSets([(-1, snapshot.voters)]), self._now_ms)
        except OSError as error:
            failed = storage_error(error, f"{directory} can't begin anew")
            self._fail(failed)
            raise failed from error
        except StorageError as error:
            self._fail(error)
            raise
        self.producers = snapshot.producers
        self.synced_offset = offset
        self._ends.clear()
        self._high_watermark, self._high_watermark_at = offset, None

    def snapshot(self) -> bytes:
        """What a follower needs that is behind the log's start: who wrote, who votes, what the app made of it.

        Raises:
            OSError: the app's state can't be read.
        """
        start = self.log_start_offset
        app_state = load_app_state(self.log.directory)
        return PartitionSnapshot(
            offset=start,
            leader_epochs=tuple(entry for entry in self.log.epochs.entries if entry[1] <= start),
            voters=self.log.voter_sets.at(start),
            producers=self.producers.committed(self._high_watermark),
            app_state=app_state[1] if app_state is not None and app_state[0] == start else None,
        ).encode()

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
        buffers = tuple(self.log.read(offset, bytes_max, self._committed_end()))
        return ReadResult(buffers, sum(map(len, buffers)), self._high_watermark, self.log.log_start_offset)

    def read_for_replica(self, offset: Offset, bytes_max: int) -> tuple[bytes, ...]:
        """As `read`, but up to the log's end: a follower may have what is not committed yet.

        Raises:
            OffsetOutOfRange, PartitionDamaged, StorageFailed, PartitionClosed: as `read`.
        """
        self._check_open()
        return tuple(self.log.read(offset, bytes_max, self.log.end))

    def when_readable(self, offset: Offset, callback: Callable[[], None]) -> ReadWait:
        """Call `callback` once when `high_watermark > offset`, or when the partition failed or was closed.

        If that is so already, it is called before this returns. It must not block and must not raise.
        """
        wait = ReadWait(offset, callback, self._read_waits)
        if self._high_watermark > offset or self.failure is not None or not self.is_leader:
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
        return self.log.offset_for_time(time_ms, self._committed_end())

    def offset_of_latest_time(self) -> tuple[Offset, int] | None:
        """The record with the largest timestamp (ListOffsets -3, KIP-734): its offset and time.

        Raises:
            PartitionDamaged: a batch on the way can't be read.
            StorageFailed: the disk can't be read there.
            PartitionClosed: deleted, or shutting down.
        """
        self._check_open()
        return self.log.offset_of_latest_time(self._committed_end())

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
        if offset > self._high_watermark:
            raise OffsetOutOfRange(f"offset {offset} is above the high watermark, {self._high_watermark}")
        self.log.delete_before(offset)
        return self.log.log_start_offset

    def close(self) -> None:
        """Answer everyone who waits, and close the files; what was not synced stays unacknowledged."""
        self.is_closed = True
        self._fail(PartitionClosed(f"{self.topic}-{self.index} is closed", hint="ask for the partition's leader again"))
        self.log.close()

    def swap_in(self, new: Segment, bases: Sequence[Offset]) -> bool:
        """Let a compacted segment take the place of others; see `Log.swap_in`."""
        self._high_watermark_at = None
        return self.log.swap_in(new, bases)

    def _committed_end(self) -> LogPosition:
        position = self._high_watermark_at
        if position is None:
            position = self._high_watermark_at = self.log.position_at(self._high_watermark)
        return position

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
            write = partial(
                write_snapshot,
                self.log.directory,
                self.log.log_end_offset,
                self.producers.copy(),
                committed=self._high_watermark,
            )
        job = self.log.begin_sync(write)
        if write is not None:
            self._is_checkpointing = True
            self._wants_checkpoint = False
        return job

    def end_sync(self, job: SyncJob | None, error: Exception | None) -> None:
        """Everything up to where the job ended is on disk, or the disk failed for good."""
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
        if job.generation != self.log.generation:  # the log was cut meanwhile: sync what is there now
            self._flusher.request(self)
            return
        if job.end.offset > self.synced_offset:
            self.synced_offset = job.end.offset
            _resolve(self._synced_waits, job.end.offset)
            self.on_synced(self)

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
        self._tell_all(error)
        waits, self._synced_waits = self._synced_waits, []
        _reject(waits, error)
        self.on_failed(self)

    def _tell_all(self, error: PartitionError) -> None:
        waits, self._committed_waits = self._committed_waits, []
        _reject(waits, error)
        readers, self._read_waits = list(self._read_waits), {}
        for wait in readers:
            wait.callback()

    def _not_leader(self) -> NotLeader:
        return NotLeader(
            f"{self.topic}-{self.index} is led by another node, or by nobody just now", hint="ask who leads it"
        )


def _ignore(_partition: Partition) -> None:
    """What a partition without an owner does."""


def _resolve(waits: list[tuple[Offset, int, asyncio.Future[None]]], offset: Offset) -> None:
    while waits and waits[0][0] <= offset:
        future = heappop(waits)[2]
        if not future.done():
            future.set_result(None)


def _reject(waits: list[tuple[Offset, int, asyncio.Future[None]]], error: PartitionError) -> None:
    for _, _, future in waits:
        if not future.done():
            future.set_exception(error)
