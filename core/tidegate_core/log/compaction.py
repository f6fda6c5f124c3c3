"""Compaction: of the records with one key, keep the last (`cleanup.policy=compact`).

A round goes over the sealed segments that reached the disk. First it reads what was never compacted and notes the last
offset of each key, up to a number of keys; then it writes all segments anew without the records that an offset in that
map overtakes, joining small ones. Offsets stay; gaps remain. Kept besides: control batches, records without a key
(from before the topic was compacted), and the header of each producer's last batch.

A tombstone (null value) goes once `delete.retention.ms` passed since the round that first kept it: by then its key's
older values are gone, and readers had that long to see it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tidegate_core.log.compaction_state import CompactionState, load_state
from tidegate_core.log.epochs import LeaderEpochs
from tidegate_core.log.files import write_all
from tidegate_core.log.index import SparseIndex
from tidegate_core.log.log import Log
from tidegate_core.log.rewrite import StoredRecord, keep_records, stored_records
from tidegate_core.log.segment import OFFSET_DELTA_MAX, Segment, crc_fits, read_forward
from tidegate_core.log.swap import cleaned_path
from tidegate_wire.identifiers import Offset, ProducerId
from tidegate_wire.records import BatchError, BatchHeader

KEYS_MAX: Final = 500_000
"""Keys noted in one round, some 100 MB; what is behind the last of them waits for the next round."""

KEY_BYTES_MAX: Final = 32
"""Longer keys are noted by their hash."""

WORK_SLICE_S: Final = 0.004
"""After this much work the thread rests as long, so that it never takes more than half a core from the event loop."""


class CompactionStopped(Exception):  # noqa: N818  # nothing went wrong
    """The round was asked to end."""


@dataclass(frozen=True, slots=True)
class CompactionPlan:
    """What a round needs to know; taken on the log's thread, used in another."""

    directory: Path
    segments: tuple[Segment, ...]
    """Read by their path, base, end, size, and whether their epochs are known."""
    epochs: LeaderEpochs
    state: CompactionState
    tombstones_end: Offset
    segment_bytes_max: int
    last_offsets: dict[ProducerId, Offset]
    """Of each producer's last batch."""
    keys_max: int = KEYS_MAX


@dataclass(slots=True)
class CleanedSegment:
    """A new segment, synced, and the ones whose place it takes."""

    bases: list[Offset]
    end_offset: Offset
    last_append_ms: int
    index: SparseIndex = field(default_factory=SparseIndex)
    size_bytes: int = 0
    removed_records: int = 0


def plan_compaction(
    log: Log, last_offsets: dict[ProducerId, Offset], committed: Offset, now_ms: int, *, keys_max: int = KEYS_MAX
) -> CompactionPlan | None:
    """A round, if enough of the log was never compacted; None if not. Only what is `committed`: the rest may be cut.

    Raises:
        OSError: the state can't be read.
    """
    config = log.config
    segments: list[Segment] = []
    lag_ms = config.min_compaction_lag_ms
    for segment in log.segments[:-1]:
        if segment.end_offset > min(log.recovery_offset, committed) or (
            lag_ms and now_ms - segment.last_append_ms < lag_ms
        ):
            break
        segments.append(segment)
    state = load_state(log.directory)
    dirty_bytes = sum(segment.size_bytes for segment in segments if segment.end_offset > state.cleaned_to)
    total_bytes = sum(segment.size_bytes for segment in segments)
    if not dirty_bytes or dirty_bytes < config.min_cleanable_dirty_ratio * total_bytes:
        return None
    return CompactionPlan(
        log.directory,
        tuple(segments),
        LeaderEpochs(log.epochs.entries),
        state,
        state.tombstones_end(config.delete_retention_ms, now_ms),
        config.segment_bytes,
        last_offsets,
        keys_max,
    )


class Compactor:
    """One round; `run` is called in a thread, `stop` from any."""

    def __init__(self, plan: CompactionPlan) -> None:
        self._plan = plan
        self._latest: dict[bytes, Offset] = {}
        self._stop = threading.Event()
        self._slice_ends = 0.0
        self.cleaned_to = plan.state.cleaned_to
        """Up to where keys were noted; records from here on stay."""
        self.tombstones_removed_to = plan.state.tombstones_removed_to
        """The highest offset of a tombstone that the new segments, or those before them, are without."""

    def stop(self) -> None:
        """Make `run` end soon, with `CompactionStopped`."""
        self._stop.set()

    def run(self) -> list[CleanedSegment]:
        """Write the new segments; they count once they are swapped in.

        Raises:
            CompactionStopped: `stop` was called.
            PartitionDamaged: a segment is not what was written.
            OSError: a file can't be read or written; DiskFull is among the reasons.
        """
        self._note_keys()
        cleaned: list[CleanedSegment] = []
        for group in self._groups():
            new = self._clean(group)
            if new is not None:
                cleaned.append(new)
        return cleaned

    def _note_keys(self) -> None:
        latest = self._latest
        for segment in self._plan.segments:
            if segment.end_offset <= self.cleaned_to:
                continue
            for header, batch in self._batches(segment):
                if len(latest) >= self._plan.keys_max:
                    self.cleaned_to = header.base_offset
                    return
                if header.is_control or header.last_offset < self._plan.state.cleaned_to:
                    continue
                for record in _readable_records(batch, header):
                    if record.key is not None:
                        latest[_noted(record.key)] = record.offset
            self.cleaned_to = segment.end_offset

    def _groups(self) -> Iterator[list[Segment]]:
        """Segments in a row that fit into one; nothing to do for those that begin after the keys noted."""
        group: list[Segment] = []
        for segment in self._plan.segments:
            if segment.base_offset >= self.cleaned_to:
                break
            size_bytes = sum(other.size_bytes for other in group) + segment.size_bytes
            if group and (
                size_bytes > self._plan.segment_bytes_max
                or segment.end_offset - group[0].base_offset > OFFSET_DELTA_MAX
            ):
                yield group
                group = []
            group.append(segment)
        if group:
            yield group

    def _clean(self, group: Sequence[Segment]) -> CleanedSegment | None:
        """Write the new segment of a group; None if it would be the same as the only old one."""
        first, last = group[0], group[-1]
        new = CleanedSegment(
            [segment.base_offset for segment in group],
            last.end_offset,
            max(segment.last_append_ms for segment in group),
        )
        path = cleaned_path(self._plan.directory, first.base_offset)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            for segment in group:
                for header, batch in self._batches(segment):
                    kept = self._clean_batch(header, batch, new)
                    if kept is not None:
                        write_all(descriptor, kept, new.size_bytes)
                        new.index.add(BatchHeader.parse(kept), new.size_bytes)
                        new.size_bytes += len(kept)
            if not new.removed_records and len(group) == 1:
                path.unlink()
                return None
            os.utime(descriptor, ns=(time.time_ns(), new.last_append_ms * 1_000_000))
            os.fsync(descriptor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return new

    def _clean_batch(self, header: BatchHeader, batch: memoryview, new: CleanedSegment) -> bytes | memoryview | None:
        if header.is_control or header.base_offset >= self.cleaned_to:
            return batch
        is_producers_last = self._plan.last_offsets.get(header.producer_id) == header.last_offset
        if header.record_count:
            try:
                kept = keep_records(batch, header, self._keeps)
            except BatchError:  # the CRC fits, so a client sent it so; it stays as it is
                return batch
            count = BatchHeader.parse(kept).record_count
            new.removed_records += header.record_count - count
            if count or is_producers_last:
                return kept
        elif is_producers_last:
            return batch
        return None

    def _keeps(self, record: StoredRecord) -> bool:
        if record.key is None or record.offset >= self.cleaned_to:
            return True
        if self._latest.get(_noted(record.key), -1) > record.offset:
            return False
        if record.is_tombstone and record.offset < self._plan.tombstones_end:
            self.tombstones_removed_to = max(self.tombstones_removed_to, record.offset)
            return False
        return True

    def _batches(self, segment: Segment) -> Iterator[tuple[BatchHeader, memoryview]]:
        end, epochs = 0, self._plan.epochs
        descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for position, header, batch in read_forward(descriptor, 0, segment.size_bytes):
                expected = epochs.at(header.base_offset) if segment.epochs is not None else None
                if not crc_fits(header, batch) or expected not in (None, header.leader_epoch):
                    break
                yield header, batch
                end = position + len(batch)
                self._rest()
        finally:
            os.close(descriptor)
        if end < segment.size_bytes:
            raise segment.damaged(end, "the batch there is not whole, or not what was written")

    def _rest(self) -> None:
        now = time.monotonic()
        if now >= self._slice_ends:
            if self._stop.wait(WORK_SLICE_S if self._slice_ends else 0):
                raise CompactionStopped
            self._slice_ends = time.monotonic() + WORK_SLICE_S


def _readable_records(batch: memoryview, header: BatchHeader) -> Sequence[StoredRecord]:
    try:
        return list(stored_records(batch, header))
    except BatchError:
        return ()


def _noted(key: bytes) -> bytes:
    if len(key) <= KEY_BYTES_MAX:
        return key
    return b"#" + hashlib.blake2b(key, digest_size=KEY_BYTES_MAX).digest()
