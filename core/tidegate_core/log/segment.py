"""One file of record batches, back to back, named by the offset it begins at: `00000000000000001234.log`.

Only the newest segment of a log is appended to. What this process wrote was checked on its way in; what an earlier one
wrote is checked (CRC-32C) when it is first read, so a bit that flipped on the disk is an error and never an event.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from crc32c import crc32c

from tidegate_core.errors import PartitionDamaged
from tidegate_core.log.epochs import LeaderEpochs
from tidegate_core.log.files import OpenFiles, write_all
from tidegate_core.log.index import IndexPlace, SparseIndex
from tidegate_wire.identifiers import Offset
from tidegate_wire.records import HEADER_BYTES, BatchError, BatchHeader

SEGMENT_SUFFIX: Final = ".log"
INDEX_SUFFIX: Final = ".index"
OFFSET_DELTA_MAX: Final = 2**31 - 1
"""A segment holds offsets up to this far from its base, as in Kafka."""

OFFSET_ZERO: Final = Offset(0)
OFFSET_MAX: Final = Offset(2**63 - 1)

WALK_BYTES: Final = 16 * 1024
"""Read at once when hopping from header to header: a page or four, more than most batches."""

CHUNK_BYTES: Final = 4 * 1024 * 1024
"""Read at once when going through all of a segment: four of the largest usual batches."""

_RESUME_POINTS_MAX: Final = 64
"""Readers of one segment whose next position is remembered; one more and all look it up in the index again."""

_LENGTH: Final = struct.Struct(">i")
_LENGTH_AT: Final = 8
_LENGTH_PREFIX_BYTES: Final = 12
_CRC_START: Final = 21


def segment_path(directory: Path, base_offset: int) -> Path:
    """Where the segment that begins at `base_offset` stands."""
    return directory / f"{base_offset:020d}{SEGMENT_SUFFIX}"


class LogPosition(NamedTuple):
    """A place between two batches: the next offset, and the byte in a segment where it will be written.

    A tuple, because each append makes one.
    """

    offset: Offset
    segment_base: Offset
    byte: int


def read_forward(descriptor: int, start: int, end: int) -> Iterator[tuple[int, BatchHeader, memoryview]]:
    """The batches from byte `start` on, whole and in large reads: position, header, bytes. No CRC is checked.

    Stops before the first that is not whole, or no batch.

    Raises:
        OSError: the file can't be read.
    """
    chunk, chunk_start, position = b"", start, start
    needed = HEADER_BYTES
    while True:
        at = position - chunk_start
        if len(chunk) - at < needed:
            if end - position < needed:
                return
            chunk = os.pread(descriptor, min(max(CHUNK_BYTES, needed), end - position), position)
            chunk_start, at = position, 0
            if len(chunk) < needed:
                return
        try:
            header = BatchHeader.parse(chunk, at)
        except BatchError:
            return
        needed = header.batch_length + _LENGTH_PREFIX_BYTES
        if len(chunk) - at < needed:
            continue
        yield position, header, memoryview(chunk)[at : at + needed]
        position += needed
        needed = HEADER_BYTES


def crc_fits(header: BatchHeader, batch: memoryview | bytes) -> bool:
    """Whether the bytes of `batch` are those its CRC-32C was made of."""
    return crc32c(memoryview(batch)[_CRC_START:]) == header.crc


class Segment:
    """Owned by the log it belongs to; sealed ones change only in being replaced (compaction) or removed."""

    __slots__ = (
        "_files",
        "_index",
        "_resume",
        "base_offset",
        "checked_to",
        "end_offset",
        "epochs",
        "is_dense",
        "is_dirty",
        "is_sealed",
        "largest_timestamp_ms",
        "last_append_ms",
        "path",
        "size_bytes",
        "trusted_from",
    )

    def __init__(
        self,
        path: Path,
        files: OpenFiles,
        *,
        base_offset: Offset,
        end_offset: Offset,
        size_bytes: int,
        index: SparseIndex,
        last_append_ms: int,
        trusted_from: int,
        is_dense: bool,
    ) -> None:
        self.path = path
        self.base_offset = base_offset
        self.end_offset = end_offset
        self.size_bytes = size_bytes
        self.largest_timestamp_ms = index.largest_timestamp_ms
        self.last_append_ms = last_append_ms
        self.is_dirty = False
        self.is_sealed = False
        self.is_dense = is_dense
        """Whether each offset from base to end has its record: compaction took none."""
        self.trusted_from = trusted_from
        """Bytes from here on were written, or checked, since this process opened the log."""
        self.checked_to = 0
        """Bytes before here were checked when they were read."""
        self.epochs: LeaderEpochs | None = None
        """What epochs its batches have, if that is known and matters: other nodes believe what they say."""
        self._files = files
        self._index: SparseIndex | None = index
        self._resume: dict[int, int] = {}

    @classmethod
    def empty(cls, path: Path, base_offset: Offset, files: OpenFiles, now_ms: int, *, is_dense: bool) -> Segment:
        """One without batches, whose file is there already."""
        return cls(
            path,
            files,
            base_offset=base_offset,
            end_offset=base_offset,
            size_bytes=0,
            index=SparseIndex(),
            last_append_ms=now_ms,
            trusted_from=0,
            is_dense=is_dense,
        )

    @classmethod
    def create(cls, path: Path, base_offset: Offset, files: OpenFiles, now_ms: int, *, is_dense: bool) -> Segment:
        """Make an empty segment; the caller syncs the directory.

        Raises:
            OSError: the file can't be made.
        """
        segment = cls.empty(path, base_offset, files, now_ms, is_dense=is_dense)
        files.create(segment)
        return segment

    def use_files(self, files: OpenFiles) -> None:
        """Be opened by `files` from now on."""
        self._files.close(self)
        self._files = files

    @property
    def index_path(self) -> Path:
        """Where the index of this segment is written."""
        return self.path.with_suffix(INDEX_SUFFIX)

    @property
    def end(self) -> LogPosition:
        """Where the next batch is written."""
        return LogPosition(self.end_offset, self.base_offset, self.size_bytes)

    def append(self, batches: memoryview, headers: Sequence[BatchHeader], now_ms: int) -> None:
        """Write `batches`, which are `headers` and their records, at the end; all of them or none.

        Raises:
            OSError: nothing was appended. If even removing the part that was written failed, `errno` is that of the
                failed removal.
        """
        assert not self.is_sealed
        descriptor = self._files.get(self)
        position = self.size_bytes
        self.is_dirty = True
        try:
            write_all(descriptor, batches, position)
        except OSError:
            os.ftruncate(descriptor, position)
            raise
        index = self._index
        assert index is not None
        for header in headers:
            index.add(header, position)
            position += header.batch_length + _LENGTH_PREFIX_BYTES
        assert position == self.size_bytes + len(batches)
        last = headers[-1]
        self.size_bytes = position
        self.end_offset = Offset(last.base_offset + last.last_offset_delta + 1)
        self.largest_timestamp_ms = index.largest_timestamp_ms
        self.last_append_ms = now_ms

    def read(
        self, offset: Offset, bytes_max: int, end: LogPosition, *, at_least_one: bool = True
    ) -> tuple[bytes, bool]:
        """Whole batches from the first that ends after `offset` on, before `end`: at most `bytes_max` bytes.

        The first batch may be larger than that if there must be `at_least_one`. The second value says whether they
        reach to `end`, so that one may read on in the next segment.

        Raises:
            PartitionDamaged: the first batch is not what was written.
            OSError: the file can't be read.
        """
        start = self._position_of(offset, end)
        if start >= end.byte:
            return b"", True
        size = min(max(bytes_max, 0), end.byte - start)
        data = self._pread(min(max(size, HEADER_BYTES), end.byte - start), start)
        next_offset: int = end.offset
        if start < self.trusted_from and start + max(size, 1) > self.checked_to:
            data, next_offset = self._checked_batches(data, start, size, offset, end)
            size = len(data)
        elif start + size < end.byte:
            size, next_offset = self._whole_batches(data, start, size)
            if size > len(data):
                data = self._pread(size, start)
        if size > bytes_max and not at_least_one:
            return b"", False
        if len(self._resume) >= _RESUME_POINTS_MAX:
            self._resume.clear()
        self._resume[next_offset] = start + size
        return data if len(data) == size else data[:size], start + size == end.byte

    def _pread(self, size: int, position: int) -> bytes:
        data = os.pread(self._files.get(self), size, position)
        if len(data) < size:
            raise self.damaged(position + len(data), f"the file ends here, and was {self.size_bytes} bytes long")
        return data

    def _whole_batches(self, data: bytes, start: int, size: int) -> tuple[int, int]:
        """How many of the `size` bytes read from `start` are whole batches (the first always), and the next offset.

        Only for bytes that are known to be good. Begins at the last place that the index knows.
        """
        at, next_offset = 0, -1
        boundary = self.load_index().boundary_at_or_below(start + size)
        if boundary is not None and boundary[0] > start:
            at, next_offset = boundary[0] - start, boundary[1]
        last = -1
        while at == 0 or at + _LENGTH_PREFIX_BYTES <= size:
            (length,) = _LENGTH.unpack_from(data, at + _LENGTH_AT)
            after = at + length + _LENGTH_PREFIX_BYTES
            if after > size and at > 0:
                break
            last, at = at, after
        if last >= 0:
            next_offset = BatchHeader.parse(data, last).last_offset + 1
        return at, next_offset

    def _checked_batches(
        self, data: bytes, start: int, size: int, offset: Offset, end: LogPosition
    ) -> tuple[bytes, int]:
        """The whole batches of `size` bytes read from `start`, up to the first that is damaged, and the next offset."""
        at, next_offset = 0, -1
        while at == 0 or at + HEADER_BYTES <= size:
            try:
                header = BatchHeader.parse(data, at)
                after = at + header.size_bytes
                if at == 0 and size < after <= end.byte - start:
                    data = self._pread(after, start)
                elif after > size and at > 0:
                    break
                problem = self._problem(header, memoryview(data)[at:after], next_offset, offset)
            except BatchError as error:
                problem = str(error)
            if problem:
                if at == 0:
                    raise self.damaged(start, problem)
                break
            at, next_offset = after, header.last_offset + 1
        if start <= self.checked_to:
            self.checked_to = max(self.checked_to, start + at)
        return data[:at], next_offset

    def _problem(self, header: BatchHeader, batch: memoryview, next_offset: int, offset: Offset) -> str:
        """What is wrong with a batch that follows `next_offset`, or, where that is -1, that should hold `offset`."""
        base_offset, last_offset = header.base_offset, header.last_offset
        if next_offset < 0:
            follows = last_offset >= offset and (base_offset <= offset or not self.is_dense)
        else:
            follows = base_offset == next_offset if self.is_dense else base_offset >= next_offset
        if not follows or not self.base_offset <= base_offset <= last_offset < self.end_offset:
            return f"a batch of offsets {base_offset} to {last_offset} does not belong there"
        if len(batch) < header.size_bytes:
            return f"a batch of {header.size_bytes} bytes does not fit there"
        if not crc_fits(header, batch):
            return "the CRC of the batch does not fit"
        expected = self.epochs.at(base_offset) if self.epochs is not None else None
        if expected is None or header.leader_epoch == expected:
            return ""
        return f"a batch of epoch {header.leader_epoch} at offset {base_offset}, which is of epoch {expected}"

    def _position_of(self, offset: Offset, end: LogPosition) -> int:
        """Where the first batch begins that ends after `offset`; `end.byte` if none does."""
        if offset >= end.offset:
            return end.byte
        resume = self._resume.get(offset)
        if resume is not None:
            return resume
        for position, header in self.walk(self.load_index().place_for_offset(offset), end.byte):
            if header.base_offset + header.last_offset_delta >= offset:
                return position
        return end.byte

    def walk(self, place: IndexPlace | None, end_byte: int) -> Iterator[tuple[int, BatchHeader]]:
        """The headers of the batches from `place` (None: the start) on, and where each begins; no CRC is checked.

        Raises:
            PartitionDamaged: what stands there can't be a batch of this segment.
            OSError: the file can't be read.
        """
        position, next_offset = place or (0, self.base_offset)
        chunk, chunk_start = b"", position
        while position < end_byte:
            at = position - chunk_start
            if len(chunk) - at < HEADER_BYTES:
                chunk = os.pread(self._files.get(self), WALK_BYTES, position)
                chunk_start, at = position, 0
            try:
                header = BatchHeader.parse(chunk, at)
            except BatchError as error:
                raise self.damaged(position, str(error)) from error
            after = position + header.batch_length + _LENGTH_PREFIX_BYTES
            base_offset, last_offset = header.base_offset, header.last_offset
            follows = base_offset == next_offset if self.is_dense else base_offset >= next_offset
            if not follows or after > end_byte or not base_offset <= last_offset < self.end_offset:
                raise self.damaged(position, f"a batch of offset {base_offset}, {after - position} bytes long")
            yield position, header
            position, next_offset = after, Offset(last_offset + 1)

    def position_after(self, offset: Offset) -> LogPosition:
        """Where the batches end that end at or before `offset`: what `cut` takes to keep just those.

        Raises:
            PartitionDamaged: the batches on the way are not what was written.
            OSError: the file can't be read.
        """
        end = LogPosition(self.base_offset, self.base_offset, 0)
        for position, header in self.walk(self.load_index().place_for_offset(Offset(offset - 1)), self.size_bytes):
            if header.last_offset >= offset:
                return end if end.byte == position else LogPosition(header.base_offset, self.base_offset, position)
            end = LogPosition(Offset(header.last_offset + 1), self.base_offset, position + header.size_bytes)
        return end

    def read_batch(self, position: int, header: BatchHeader) -> bytes:
        """The whole batch whose header stands at `position`, its CRC checked.

        Raises:
            PartitionDamaged: the CRC does not fit.
            OSError: the file can't be read.
        """
        data = os.pread(self._files.get(self), header.size_bytes, position)
        if len(data) != header.size_bytes or not crc_fits(header, data):
            raise self.damaged(position, "the CRC of the batch there does not fit")
        return data

    def cut(self, end: LogPosition) -> None:
        """Remove the batches from `end` on, and make this the segment that is appended to.

        Raises:
            OSError: the file can't be cut.
        """
        index = self.load_index()
        descriptor = self._files.get(self)
        os.ftruncate(descriptor, end.byte)
        place = index.cut(end.byte)
        self.size_bytes, self.end_offset = end.byte, end.offset
        for position, header in self.walk(place, end.byte):
            index.add(header, position)
        self.largest_timestamp_ms = index.largest_timestamp_ms
        self.checked_to = min(self.checked_to, end.byte)
        self.trusted_from = min(self.trusted_from, end.byte)
        self.is_sealed = False
        self.is_dirty = True
        self._resume.clear()

    def load_index(self) -> SparseIndex:
        """The index, read from its file if it was let go; built again if that file is gone or damaged meanwhile.

        Raises:
            PartitionDamaged: the segment itself can't be walked.
            OSError: the file can't be read.
        """
        index = self._index
        if index is None:
            try:
                summary, index = SparseIndex.decode(self.index_path.read_bytes())
                usable = summary.size_bytes == self.size_bytes
            except (OSError, ValueError):
                usable = False
            if not usable:
                index = SparseIndex()
                for position, header in self.walk(None, self.size_bytes):
                    index.add(header, position)
            assert index is not None
            self._index = index
            self._files.get(self)  # so that the index is let go when the file is closed
        return index

    def released(self) -> None:
        """The file was closed to make room: let the index go as well, if it can be read again."""
        if self.is_sealed:
            self._index = None
        self._resume.clear()

    def damaged(self, position: int, what: str) -> PartitionDamaged:
        """The error for bytes at `position` that are not what was written."""
        return PartitionDamaged(
            f"{self.path}, byte {position}: {what}",
            hint="nothing was deleted; restore the file from a copy, or read on at a later offset",
        )
