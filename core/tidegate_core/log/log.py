"""A log: segments in a row, of which the last is appended to.

Invariants: segments are ordered and never overlap; a sealed segment ends where the next one begins; nothing is appended
while the end of the log is not known (`failure`).
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tidegate_core.errors import OffsetOutOfRange, PartitionDamaged, StorageFailed
from tidegate_core.log.checkpoint import Checkpoint, CheckpointWriter
from tidegate_core.log.compaction_state import load_state, save_state
from tidegate_core.log.config import LogConfig
from tidegate_core.log.control import VoterSets
from tidegate_core.log.epochs import LeaderEpochs
from tidegate_core.log.files import DELETED_SUFFIX, OpenFiles, replace_file, storage_error, sync_directory
from tidegate_core.log.partition_snapshot import PartitionSnapshot
from tidegate_core.log.reset import carry_out_reset
from tidegate_core.log.segment import OFFSET_DELTA_MAX, LogPosition, Segment, segment_path
from tidegate_core.log.snapshots import remove_snapshots
from tidegate_core.log.swap import carry_out_swap, decide_swap
from tidegate_core.log.sync_job import SyncJob
from tidegate_wire.identifiers import LeaderEpoch, Offset
from tidegate_wire.records import BatchHeader

CHECKPOINT_INTERVAL_BYTES: Final = 64 * 1024 * 1024
"""Appended between two checkpoints: about a tenth of a second of scanning after a crash, for two small syncs."""

CHECKPOINT_INTERVAL_BYTES_MIN: Final = 2 * 1024 * 1024
"""Not less where there are many partitions: syncs are not free."""

BATCH_CHECK_BYTES: Final = 2048
"""To check a batch takes as long as so many bytes of a large one, however small it is; they count for the interval."""


class Log:
    """Owned by one thread, but for `SyncJob.run`. `open_log` in `recovery` makes one."""

    def __init__(
        self,
        directory: Path,
        config: LogConfig,
        files: OpenFiles,
        *,
        segments: list[Segment],
        epochs: LeaderEpochs,
        voter_sets: VoterSets,
        checkpoint: Checkpoint,
        discard: Callable[[Path], None],
        is_dense: bool = True,
        damage: PartitionDamaged | None = None,
        failure: PartitionDamaged | None = None,
    ) -> None:
        self.directory = directory
        self.config = config
        self.epochs = epochs
        self.voter_sets = voter_sets
        self.damage = damage
        """The first bytes found to be gone or changed; the rest can still be read."""
        self.failure = failure
        """Why nothing may be appended: the end of the log is not known."""
        self.is_dense = is_dense
        """Whether each offset has its record: neither compaction nor a leader's took any."""
        self.compacted_to = checkpoint.compacted_to
        """Batches before this offset lack records, because the leader they are from had compacted."""
        self.log_start_offset = max(checkpoint.log_start_offset, segments[0].base_offset)
        self.segments = segments
        self._active = segments[-1]
        self._active_created_ms = checkpoint.segment_created_ms or self._active.last_append_ms
        self._bases = [segment.base_offset for segment in segments]
        self._files = files
        self._discard = discard
        self._checkpoint = CheckpointWriter(directory, checkpoint)
        self._unindexed: list[Segment] = []
        """Sealed since the last checkpoint."""
        self._directory_dirty = False
        self._appended_since_checkpoint = 0
        self.checkpoint_interval_bytes = CHECKPOINT_INTERVAL_BYTES
        """Appended between two checkpoints."""

    @property
    def generation(self) -> int:
        """Grows whenever the log is cut or begins anew."""
        return self._checkpoint.generation

    @property
    def log_end_offset(self) -> Offset:
        """One after the last record."""
        return self._active.end_offset

    @property
    def end(self) -> LogPosition:
        """Where the next batch goes."""
        return self._active.end

    @property
    def size_bytes(self) -> int:
        """Of all segments."""
        return sum(segment.size_bytes for segment in self.segments)

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether enough was appended since the last checkpoint, or a segment was closed."""
        return self._appended_since_checkpoint >= self.checkpoint_interval_bytes or bool(self._unindexed)

    @property
    def is_synced(self) -> bool:
        """Whether there is nothing to hand to a sync."""
        return not self._active.is_dirty and not self._directory_dirty and not self._unindexed

    @property
    def is_checkpointed(self) -> bool:
        """Whether the next start has nothing to scan."""
        return self._checkpoint.recovery_point == self.end

    @property
    def recovery_offset(self) -> Offset:
        """Everything before is on disk, in the checkpoint, and its producers are in a snapshot."""
        point = self._checkpoint.recovery_point
        return point.offset if point is not None else Offset(0)

    def use_files(self, files: OpenFiles) -> None:
        """Have files opened by `files` from now on: another thread owns the log."""
        for segment in self.segments:
            segment.use_files(files)
        self._files = files

    # --- appending

    def append(self, batches: memoryview, headers: Sequence[BatchHeader], now_ms: int) -> None:
        """Write batches that have their offsets and epochs, and follow the last one; all of them or none.

        They go into one segment; see `runs`.

        Raises:
            DiskFull: nothing was written, and a later append may work.
            StorageFailed: the disk refused, and what it holds is not known.
            StorageError: too many files are open.
        """
        active = self._active
        try:
            if active.size_bytes and self._must_roll(active, len(batches), headers[-1].last_offset, now_ms):
                active = self._roll(headers[0].base_offset, now_ms)
            elif not active.size_bytes:
                self._active_created_ms = now_ms
            active.append(batches, headers, now_ms)
        except OSError as error:
            raise storage_error(error, f"{active.path} can't be written") from error
        self._appended_since_checkpoint += len(batches) + len(headers) * BATCH_CHECK_BYTES
        for header in headers:
            self.epochs.note(header.leader_epoch, header.base_offset)

    def runs(self, headers: Sequence[BatchHeader]) -> Iterator[Sequence[BatchHeader]]:
        """Batches to be appended, divided by the segments that they go into."""
        first, base, size_bytes = 0, self._active.base_offset, self._active.size_bytes
        for number, header in enumerate(headers):
            is_full = size_bytes + header.size_bytes > self.config.segment_bytes
            if size_bytes and (is_full or header.last_offset - base > OFFSET_DELTA_MAX):
                if number > first:
                    yield headers[first:number]
                first, base, size_bytes = number, header.base_offset, 0
            size_bytes += header.size_bytes
        yield headers[first:]

    def allow_gaps(self) -> None:
        """From here on offsets may have no record; that is written down when this returns.

        Raises:
            DiskFull, StorageFailed, StorageError: it is not.
        """
        if self.is_dense:
            try:
                save_state(self.directory, load_state(self.directory))
            except OSError as error:
                raise storage_error(error, f"{self.directory} can't be written") from error
            self.is_dense = self._active.is_dense = False

    def tombstones_removed_to(self) -> Offset:
        """The last tombstone that compaction removed, or may have where batches were copied from; -1 if none.

        Raises:
            OSError: what compaction did can't be read.
        """
        return max(load_state(self.directory).tombstones_removed_to, Offset(self.compacted_to - 1))

    def _must_roll(self, active: Segment, append_bytes: int, last_offset: int, now_ms: int) -> bool:
        return (
            active.size_bytes + append_bytes > self.config.segment_bytes
            or now_ms - self._active_created_ms >= self.config.segment_ms
            or last_offset - active.base_offset > OFFSET_DELTA_MAX
        )

    def roll(self, now_ms: int) -> None:
        """Close the active segment, if it holds anything, and begin a new one.

        Raises:
            DiskFull, StorageFailed, StorageError: as in `append`.
        """
        if self._active.size_bytes:
            try:
                self._roll(self.log_end_offset, now_ms)
            except OSError as error:
                raise storage_error(error, f"{self.directory}: no new segment") from error

    def roll_if_old(self, now_ms: int) -> None:
        """Close the active segment if `segment.ms` says so.

        Raises:
            DiskFull, StorageFailed, StorageError: as in `append`.
        """
        if now_ms - self._active_created_ms >= self.config.segment_ms:
            self.roll(now_ms)

    def _roll(self, base_offset: Offset, now_ms: int) -> Segment:
        path = segment_path(self.directory, base_offset)
        segment = Segment.create(path, base_offset, self._files, now_ms, is_dense=self.is_dense)
        sealed = self._active
        sealed.is_sealed = True
        sealed.end_offset = base_offset
        self._unindexed.append(sealed)
        self._directory_dirty = True
        self.segments.append(segment)
        self._bases.append(base_offset)
        self._active = segment
        self._active_created_ms = now_ms
        return segment

    # --- syncing

    def begin_sync(self, write_snapshot: Callable[[], None] | None) -> SyncJob:
        """What makes everything appended so far safe.

        The job comes with a checkpoint if `write_snapshot` is given, which is called, in the job's thread, before it.

        Raises:
            OSError: no descriptor is free.
        """
        active = self._active
        dirty = [segment for segment in (*self._unindexed, active) if segment.is_dirty]
        directory = self.directory if self._directory_dirty else None
        job = SyncJob(active.end, [], directory, None, self.generation)
        try:
            for segment in dirty:
                job.descriptors.append(os.dup(self._files.get(segment)))
        except OSError:
            job.abandon()
            raise
        if write_snapshot is not None:
            job.checkpoint = self._checkpoint_at(job.end, write_snapshot)
        for segment in dirty:
            segment.is_dirty = False
        self._directory_dirty = False
        return job

    def sync_from(self, offset: Offset) -> None:
        """Put everything at and after `offset` on disk now.

        Raises:
            StorageFailed, StorageError: it may not be.
        """
        try:
            for segment in self.segments:
                if segment.end_offset > offset:
                    os.fdatasync(self._files.get(segment))
            sync_directory(self.directory)
        except OSError as error:
            raise storage_error(error, f"{self.directory} can't be synced") from error

    def _checkpoint_at(self, end: LogPosition, write_snapshot: Callable[[], None]) -> Callable[[], None]:
        indexes = [(segment.index_path, self._encode_index(segment)) for segment in (*self._unindexed, self._active)]
        generation = self._checkpoint.generation
        content = Checkpoint(
            recovery_point=end,
            leader_epochs=tuple(self.epochs.entries),
            segment_created_ms=self._active_created_ms,
            voter_sets=self.voter_sets.entries,
            compacted_to=self.compacted_to,
        )
        self._unindexed.clear()
        self._appended_since_checkpoint = 0

        def prepare() -> None:
            write_snapshot()
            for path, data in indexes:
                replace_file(path, data, durable=False)

        return partial(self._checkpoint.advance, generation, content, prepare)

    @staticmethod
    def _encode_index(segment: Segment) -> bytes:
        return segment.load_index().encode(
            segment.base_offset, segment.end_offset, segment.size_bytes, is_final=segment.is_sealed
        )

    # --- reading

    def read(self, offset: Offset, bytes_max: int, end: LogPosition) -> list[bytes]:
        """Whole batches from the one that holds `offset` on, before `end`: at most `bytes_max` bytes, at least one.

        Raises:
            OffsetOutOfRange: `offset` is below the log's start or above its end.
            PartitionDamaged: the first batch is not what was written.
            StorageFailed, StorageError: the file can't be read.
        """
        if not self.log_start_offset <= offset <= self.log_end_offset:
            raise OffsetOutOfRange(
                f"offset {offset} is not in {self.directory.name}: {self.log_start_offset} to {self.log_end_offset}"
            )
        if offset >= end.offset:
            return []
        buffers: list[bytes] = []
        room = bytes_max
        for segment in self.segments[bisect_right(self._bases, offset) - 1 :]:
            if segment.base_offset > end.segment_base:
                break
            is_last = segment.base_offset == end.segment_base
            try:
                first = max(offset, segment.base_offset)
                data, is_whole = segment.read(first, room, end if is_last else segment.end, at_least_one=not buffers)
                if not data and not buffers and offset >= segment.end_offset:
                    raise segment.damaged(segment.size_bytes, f"offset {offset} is missing: a file is gone")
            except PartitionDamaged as error:
                self.damage = self.damage or error
                if buffers:
                    break
                raise
            except OSError as error:
                raise storage_error(error, f"{segment.path} can't be read") from error
            if data:
                buffers.append(data)
                room -= len(data)
            if is_last or not is_whole or (buffers and room <= 0):
                break
        return buffers

    def position_at(self, offset: Offset) -> LogPosition:
        """The place of `offset`, which is in the log: behind all batches that end at or before it.

        Raises:
            PartitionDamaged: the batches on the way are not what was written.
            StorageFailed, StorageError: the file can't be read.
        """
        if offset >= self.log_end_offset:
            return self.end
        segment = self.segments[bisect_right(self._bases, offset) - 1]
        try:
            return LogPosition(offset, segment.base_offset, segment.position_after(offset).byte)
        except OSError as error:
            raise storage_error(error, f"{segment.path} can't be read") from error

    def headers_from(self, offset: Offset) -> Iterator[BatchHeader]:
        """The headers of the batches that begin at or after `offset`, which a batch of the log begins at.

        Raises:
            PartitionDamaged: what stands on the way can't be a batch.
            StorageFailed, StorageError: a file can't be read.
        """
        for segment in self.segments[max(bisect_right(self._bases, offset) - 1, 0) :]:
            try:
                place = segment.load_index().place_for_offset(offset)
                for _, header in segment.walk(place, segment.size_bytes):
                    if header.base_offset >= offset:
                        yield header
            except OSError as error:
                raise storage_error(error, f"{segment.path} can't be read") from error

    def end_offset_for_epoch(self, epoch: LeaderEpoch) -> tuple[LeaderEpoch, Offset]:
        """The largest epoch at or below `epoch` in this log, and where it ends; (-1, -1) if there is none."""
        found, end = self.epochs.end_offset(epoch, self.log_end_offset)
        return found, max(end, self.log_start_offset) if end >= 0 else end

    # --- removing

    def delete_before(self, offset: Offset) -> None:
        """Raise the log's start to `offset`, on disk when this returns; only for what is synced.

        Raises:
            OffsetOutOfRange: above the log's end.
            DiskFull, StorageFailed, StorageError: the new start can't be written; the log is as it was.
        """
        if offset > self.log_end_offset:
            raise OffsetOutOfRange(f"offset {offset} is above the end of {self.directory.name}, {self.log_end_offset}")
        if offset <= self.log_start_offset:
            return
        if offset == self.log_end_offset:
            self.roll(self._active.last_append_ms)
        try:
            self._checkpoint.raise_log_start(offset)
        except OSError as error:
            raise storage_error(error, f"{self.directory}: the log's start can't be raised") from error
        self.log_start_offset = offset
        self.epochs.cut_start(offset)
        self.voter_sets.cut_start(offset)

    @property
    def has_deleted(self) -> bool:
        """Whether a whole segment lies below the log's start."""
        return len(self.segments) > 1 and self.segments[0].end_offset <= self.log_start_offset

    def remove_deleted(self, limit: Offset) -> None:
        """Remove the segments that lie wholly below the log's start, and below `limit`.

        Only up to the recovery point: the producers that wrote what goes are then in a snapshot.

        Raises:
            DiskFull, StorageFailed, StorageError: a file can't be renamed.
        """
        limit = min(self.log_start_offset, self.recovery_offset, limit)
        try:
            self._remove([segment for segment in self.segments[:-1] if segment.end_offset <= limit])
        except OSError as error:
            raise storage_error(error, f"{self.directory}: a segment can't be removed") from error

    def truncate_to(self, offset: Offset) -> None:
        """Remove every batch that ends after `offset`, and the snapshots of their producers; gone for good on return.

        Raises:
            OffsetOutOfRange: below the log's start.
            PartitionDamaged: the place to cut can't be found.
            DiskFull, StorageError: nothing was done.
            StorageFailed: the disk may hold more than wanted.
        """
        if offset >= self.log_end_offset:
            return
        if offset < self.log_start_offset:
            raise OffsetOutOfRange(f"{self.directory.name} can't be cut at {offset}, before {self.log_start_offset}")
        at = bisect_right(self._bases, offset) - 1
        segment = self.segments[at]
        self._checkpoint.void()  # else one that is on its way might write a snapshot, or an index, of what is cut
        try:
            end = segment.position_after(offset)
            remove_snapshots(self.directory, end.offset)
            segment.index_path.unlink(missing_ok=True)  # it may say that the segment is complete
            content = Checkpoint(
                recovery_point=end,
                leader_epochs=tuple(self.epochs.before(end.offset).entries),
                segment_created_ms=segment.last_append_ms,
                voter_sets=self.voter_sets.before(end.offset).entries,
                compacted_to=min(self.compacted_to, end.offset),
            )
            self._checkpoint.truncate(content)
        except OSError as error:
            raise storage_error(error, f"{self.directory} can't be truncated") from error
        self.compacted_to = content.compacted_to
        self.epochs, self.voter_sets = LeaderEpochs(content.leader_epochs), VoterSets(content.voter_sets)
        try:
            self._remove(self.segments[:at:-1])
            segment.cut(end)
            segment.is_dense = self.is_dense
            if segment.epochs is not None:
                segment.epochs = self.epochs
            self._active = segment
            self._active_created_ms = segment.last_append_ms
            # a checkpoint on its way, which would have written the indexes of these, is void now
            self._unindexed = [sealed for sealed in self.segments[:-1] if sealed.end_offset > self.recovery_offset]
            os.fdatasync(self._files.get(segment))
            sync_directory(self.directory)
        except OSError as error:
            raise StorageFailed(
                f"{self.directory} can't be truncated: {error.strerror}",
                hint="look at the kernel's log for disk errors, then start the core again",
            ) from error

    def reset(self, snapshot: PartitionSnapshot, now_ms: int) -> None:
        """Remove every record and begin as the snapshot says, which was decided before; on disk when this returns.

        Raises:
            DiskFull, StorageFailed, StorageError: the next start will finish; the log takes nothing until then.
        """
        gone: list[Path] = []

        def carry_out() -> Checkpoint:
            for segment in self.segments:
                self._files.close(segment)
            checkpoint, segments = carry_out_reset(self.directory, snapshot)
            gone.extend(segments)
            return checkpoint

        try:
            self._checkpoint.begin_anew(carry_out)
        except OSError as error:
            raise storage_error(error, f"{self.directory} can't begin anew") from error
        for path in gone:
            self._discard(path)
        base = snapshot.offset
        segment = Segment.empty(segment_path(self.directory, base), base, self._files, now_ms, is_dense=True)
        self.epochs, self.voter_sets = LeaderEpochs(snapshot.leader_epochs), VoterSets([(-1, snapshot.voters)])
        self.segments, self._bases, self._active = [segment], [base], segment
        self.log_start_offset = base
        self.compacted_to = snapshot.compacted_to
        self.is_dense = True
        self._active_created_ms = now_ms
        self._unindexed.clear()
        self._appended_since_checkpoint = 0
        self._directory_dirty = False
        self.damage = None

    def swap_in(self, new: Segment, bases: Sequence[Offset]) -> bool:
        """Let `new`, written as a cleaned file, take the place of the segments that begin at `bases`; see `swap`.

        False if one of those is gone meanwhile: then nothing is changed.

        Raises:
            OSError: the next start will finish, or has nothing to finish; nothing may be appended until then.
        """
        at = bisect_left(self._bases, bases[0])
        if self._bases[at : at + len(bases)] != list(bases) or at + len(bases) >= len(self._bases):
            return False
        decide_swap(self.directory, bases)
        for segment in self.segments[at : at + len(bases)]:
            self._files.close(segment)
        for path in carry_out_swap(self.directory, bases):
            self._discard(path)
        new.is_sealed = True
        self.segments[at : at + len(bases)] = [new]
        self._bases[at : at + len(bases)] = [new.base_offset]
        replace_file(new.index_path, self._encode_index(new), durable=False)
        return True

    def _remove(self, segments: Sequence[Segment]) -> None:
        """Take segments off the list and out of sight; their bytes are freed later, in the background."""
        for segment in segments:
            self._files.close(segment)
            at = self.segments.index(segment)
            del self.segments[at], self._bases[at]
            if segment in self._unindexed:
                self._unindexed.remove(segment)
            gone = segment.path.with_name(segment.path.name + DELETED_SUFFIX)
            segment.path.rename(gone)
            segment.index_path.unlink(missing_ok=True)
            self._discard(gone)

    def close(self) -> None:
        """Close the files, without a sync; nothing is written to the directory after this."""
        self._checkpoint.void()  # the directory may soon be another partition's
        for segment in self.segments:
            self._files.close(segment)
