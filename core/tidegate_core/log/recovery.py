"""Opens a log: from its checkpoint on, every batch is checked, a torn tail cut, and what is derived built again.

Before the recovery point everything was synced and checked, so only the files' sizes are compared with what their
indexes say. After it, the pages are first written out and dropped from the page cache, so that what is checked is what
the disk holds: after a failed sync the cache may show bytes that will never be there.

A tail is torn if no whole batch follows the first bad byte: then it was never synced, hence never acknowledged, and is
cut. Anything else is damage: bytes that may have been acknowledged are gone or changed, and nothing is cut. Damage
before the recovery point is an error for whoever reads there. Damage after it means that the log's end is not known:
the log takes no appends until a person decides.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import structlog

from tidegate_core.errors import CorruptBatchRefused, PartitionDamaged
from tidegate_core.log.checkpoint import CHECKPOINT_NAME, Checkpoint, load_checkpoint
from tidegate_core.log.compaction_state import COMPACTION_NAME
from tidegate_core.log.config import LogConfig
from tidegate_core.log.control import VoterSets, begins_epoch, read_voters
from tidegate_core.log.epochs import LeaderEpochs
from tidegate_core.log.files import DELETED_SUFFIX, PARTIAL_SUFFIX, DamagedFile, OpenFiles, replace_file, sync_directory
from tidegate_core.log.identity import PartitionIdentity
from tidegate_core.log.index import SegmentSummary, SparseIndex
from tidegate_core.log.log import Log
from tidegate_core.log.segment import (
    CHUNK_BYTES,
    INDEX_SUFFIX,
    OFFSET_MAX,
    SEGMENT_SUFFIX,
    LogPosition,
    Segment,
    crc_fits,
    read_forward,
    segment_path,
)
from tidegate_core.log.swap import finish_swaps
from tidegate_wire.identifiers import NodeId, Offset
from tidegate_wire.records import HEADER_BYTES, BatchHeader
from tidegate_wire.records.header import HEADER

_DAMAGE_HINT: Final = "nothing was deleted; restore the directory from a copy, or delete the topic"

_BATCH_HEAD: Final = rb"(?s)(?=%b.{5}[\x00-\x7f].{7}\x02)"
"""Where a batch may begin: the high bytes of its offset, five more, a length that is not negative, epoch, magic."""
_OFFSET_HIGH_BYTES: Final = 3

SECTOR_BYTES: Final = 512
"""What a disk writes whole or not at all."""

_logger = structlog.get_logger()


@dataclass(slots=True)
class _Scan:
    """What opening finds out on the way."""

    directory: Path
    files: OpenFiles
    checkpoint: Checkpoint
    is_shared: bool
    """Another node can give back what is damaged here, so no damage is taken for a torn tail."""
    replay_from: Offset
    batch_found: Callable[[BatchHeader], None]
    is_dense: bool
    """Whether every offset has its record: no compaction ever took one."""
    epochs: LeaderEpochs
    voter_sets: VoterSets
    compacted_to: Offset
    segments: list[Segment] = field(default_factory=list)
    scanned_bytes: int = 0
    damage: PartitionDamaged | None = None
    failure: PartitionDamaged | None = None

    @property
    def recovery_offset(self) -> Offset:
        point = self.checkpoint.recovery_point
        return point.offset if point is not None else Offset(0)

    def mark_damaged(self, path: Path, what: str) -> None:
        """Bytes before the recovery point are gone or changed."""
        error = PartitionDamaged(f"{path}: {what}", hint=_DAMAGE_HINT)
        _logger.error("log_damaged", path=str(path), problem=what)
        self.damage = self.damage or error

    def mark_failed(self, path: Path, what: str) -> None:
        """The log's end is not known."""
        self.mark_damaged(path, what)
        self.failure = self.failure or self.damage


def create_log(
    directory: Path,
    config: LogConfig,
    files: OpenFiles,
    *,
    discard: Callable[[Path], None],
    now_ms: int,
    voters: tuple[NodeId, ...],
) -> Log:
    """Make an empty log in an existing empty directory, on disk when this returns.

    Raises:
        OSError: the files can't be made.
    """
    segment = Segment.create(segment_path(directory, 0), Offset(0), files, now_ms, is_dense=True)
    voter_sets = VoterSets([(-1, voters)])
    checkpoint = Checkpoint(recovery_point=segment.end, segment_created_ms=now_ms, voter_sets=voter_sets.entries)
    replace_file(directory / CHECKPOINT_NAME, checkpoint.encode(), durable=False)
    sync_directory(directory)
    return Log(
        directory,
        config,
        files,
        segments=[segment],
        epochs=LeaderEpochs(),
        voter_sets=voter_sets,
        checkpoint=checkpoint,
        discard=discard,
    )


def open_log(
    directory: Path,
    config: LogConfig,
    files: OpenFiles,
    *,
    discard: Callable[[Path], None],
    now_ms: int,
    identity: PartitionIdentity,
    replay_from: Offset,
    batch_found: Callable[[BatchHeader], None],
) -> Log:
    """Open the log in `directory`. Everything it holds is on disk when this returns.

    `batch_found` is called in order for each batch that begins at or after `replay_from`.

    Raises:
        OSError: the directory can't be read, or its tail not be made safe.
    """
    leftovers = _clean_directory(directory)
    checkpoint = _read_checkpoint(directory)
    scan = _Scan(
        directory=directory,
        files=files,
        checkpoint=checkpoint,
        is_shared=identity.is_shared,
        replay_from=replay_from,
        batch_found=batch_found,
        is_dense=not config.compacts and not (directory / COMPACTION_NAME).exists(),
        epochs=LeaderEpochs(checkpoint.leader_epochs),
        voter_sets=VoterSets(checkpoint.voter_sets or [(-1, identity.voters)]),
        compacted_to=checkpoint.compacted_to,
    )
    _open_segments(scan)
    _check_extent(scan)
    if not scan.segments:
        base = max(scan.recovery_offset, checkpoint.log_start_offset)
        path = segment_path(directory, base)
        scan.segments.append(Segment.create(path, base, files, now_ms, is_dense=scan.is_dense))
        sync_directory(directory)
    elif scan.scanned_bytes:
        sync_directory(directory)  # their names, too
    active = scan.segments[-1]
    for segment in scan.segments[:-1]:
        segment.is_sealed = True
    if identity.is_shared:
        for segment in scan.segments:
            segment.epochs = scan.epochs
    point = checkpoint.recovery_point
    if point is None or point.segment_base != active.base_offset:
        checkpoint = replace(checkpoint, segment_created_ms=0)
    log = Log(
        directory,
        config,
        files,
        segments=scan.segments,
        epochs=scan.epochs,
        voter_sets=scan.voter_sets,
        checkpoint=replace(checkpoint, compacted_to=scan.compacted_to),
        discard=discard,
        is_dense=scan.is_dense,
        damage=scan.damage,
        failure=scan.failure,
    )
    if scan.scanned_bytes:
        _logger.info(
            "log_recovered", partition=directory.name, end_offset=log.log_end_offset, scanned_bytes=scan.scanned_bytes
        )
    for path in leftovers:
        discard(path)
    return log


def _clean_directory(directory: Path) -> list[Path]:
    """Finish or discard what a crash interrupted; returns files that are gone already but for their bytes."""
    finish_swaps(directory)
    leftovers = []
    for path in list(directory.iterdir()):
        is_orphan = path.suffix == INDEX_SUFFIX and not path.with_suffix(SEGMENT_SUFFIX).exists()
        if is_orphan or path.suffix == PARTIAL_SUFFIX:
            path.unlink()
        elif path.suffix == DELETED_SUFFIX:
            leftovers.append(path)
    return leftovers


def _read_checkpoint(directory: Path) -> Checkpoint:
    try:
        checkpoint = load_checkpoint(directory)
    except DamagedFile as error:
        _logger.warning("checkpoint_damaged", partition=directory.name, problem=str(error))
        checkpoint = None
    return checkpoint or Checkpoint()


def _open_segments(scan: _Scan) -> None:
    bases = sorted(int(path.stem) for path in scan.directory.glob(f"*{SEGMENT_SUFFIX}") if path.stem.isdigit())
    scan_from = min(scan.recovery_offset, scan.replay_from)
    while bases:
        base = Offset(bases.pop(0))
        if bases and bases[0] <= scan_from:
            scan.segments.append(_open_sealed(scan, base, Offset(bases[0])))
            continue
        next_base = Offset(bases[0]) if bases else None
        are_later_empty = not any(segment_path(scan.directory, later).stat().st_size for later in bases)
        segment = _scan_segment(scan, base, scan_from, next_base, may_cut=are_later_empty)
        scan.segments.append(segment)
        if scan.failure is not None:
            return
        if next_base is not None and segment.end_offset != next_base:
            for later in bases:  # made by a roll, but the end of what came before it never reached the disk
                segment_path(scan.directory, later).unlink()
            return


def _check_extent(scan: _Scan) -> None:
    """Compare where the log begins and ends with what the checkpoint knows."""
    start = scan.checkpoint.log_start_offset
    if scan.segments and scan.segments[0].base_offset > start:
        mark = scan.mark_failed if scan.is_shared else scan.mark_damaged  # who votes may have stood there
        mark(
            scan.directory,
            f"the log begins at offset {scan.segments[0].base_offset} instead of {start}: a file is gone",
        )
    end_offset = scan.segments[-1].end_offset if scan.segments else 0
    if end_offset < scan.recovery_offset and scan.failure is None:
        scan.mark_failed(
            scan.directory, f"the log ends at offset {end_offset}, but was on disk up to {scan.recovery_offset}"
        )


def _open_sealed(scan: _Scan, base: Offset, next_base: Offset) -> Segment:
    """A segment that lies wholly before the recovery point: its index tells whether it is whole."""
    path = segment_path(scan.directory, base)
    stat = path.stat()
    size_bytes, end_offset = stat.st_size, next_base
    trusted_from = size_bytes
    summary, index = _read_index(path, base)
    if summary is not None and index is not None and summary.is_final:
        if summary.size_bytes != size_bytes:
            scan.mark_damaged(path, f"has {size_bytes} bytes instead of {summary.size_bytes}")
        if summary.end_offset != next_base:
            scan.mark_damaged(path, f"ends at offset {summary.end_offset}, but the next file begins at {next_base}")
        size_bytes = trusted_from = summary.size_bytes
        end_offset = min(summary.end_offset, next_base)
    else:
        index = SparseIndex()
        end = _check_batches(scan, index, LogPosition(base, base, 0), next_base)
        if end.byte < size_bytes:
            scan.mark_damaged(path, f"byte {end.byte}, offset {end.offset}: not a whole batch")
        elif scan.is_dense and end.offset != next_base:
            scan.mark_damaged(path, f"ends at offset {end.offset}, but the next file begins at {next_base}")
            end_offset = end.offset
        else:
            trusted_from = 0
            replace_file(
                path.with_suffix(INDEX_SUFFIX), index.encode(base, next_base, size_bytes, is_final=True), durable=False
            )
        _logger.warning("index_rebuilt", path=str(path))
    return _make_segment(scan, path, index, LogPosition(end_offset, base, size_bytes), trusted_from)


def _scan_segment(scan: _Scan, base: Offset, scan_from: Offset, next_base: Offset | None, *, may_cut: bool) -> Segment:
    """A segment that reaches past the recovery point: check it from there on, and cut a torn tail if it `may_cut`."""
    path = segment_path(scan.directory, base)
    stat = path.stat()
    _, index = _read_index(path, base)
    start, start_offset, byte = 0, base, 0
    if index is None:
        index = SparseIndex()
    else:
        point = scan.checkpoint.recovery_point
        at_point = point is not None and point.segment_base == base and point.offset == scan_from
        place = index.place_for_offset(scan_from)
        byte = point.byte if point is not None and at_point else place[0] if place is not None else 0
        start, start_offset = index.cut(min(byte, stat.st_size)) or (start, start_offset)
    if stat.st_size > byte:
        _drop_cached_pages(path, start)
    end = _check_batches(scan, index, LogPosition(start_offset, base, start), next_base)
    if stat.st_size > byte:
        scan.scanned_bytes += stat.st_size - start
    if end.byte < stat.st_size:
        _judge_tail(scan, path, end, stat.st_size, may_cut=may_cut)
    elif next_base is not None and scan.is_dense and end.offset != next_base:
        if not may_cut:
            scan.mark_failed(path, f"ends at offset {end.offset}, but the next file begins at {next_base}")
    elif next_base is not None:
        replace_file(
            path.with_suffix(INDEX_SUFFIX), index.encode(base, next_base, end.byte, is_final=True), durable=False
        )
        end = LogPosition(next_base, base, end.byte)
    return _make_segment(scan, path, index, end, start)


def _judge_tail(scan: _Scan, path: Path, end: LogPosition, size_bytes: int, *, may_cut: bool) -> None:
    """What stands behind `end` is no batch: cut it if it was never synced, else say that the log's end is not known."""
    if scan.failure is not None:
        return
    if end.offset < scan.recovery_offset:
        scan.mark_failed(path, f"byte {end.byte}: offset {end.offset} was on disk, and is not a whole batch any more")
    elif not may_cut or _holds_batch_after(path, end, size_bytes):
        scan.mark_failed(path, f"byte {end.byte}: offset {end.offset} is not a whole batch, but more batches follow it")
    elif scan.is_shared and _is_whole_but_changed(path, end, size_bytes):
        scan.mark_failed(path, f"byte {end.byte}: a batch of offset {end.offset} with another CRC")
    else:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, end.byte)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        _logger.warning("torn_tail_cut", path=str(path), end_offset=end.offset, cut_bytes=size_bytes - end.byte)


def _read_index(path: Path, base: Offset) -> tuple[SegmentSummary | None, SparseIndex | None]:
    try:
        summary, index = SparseIndex.decode(path.with_suffix(INDEX_SUFFIX).read_bytes())
    except FileNotFoundError:
        return None, None
    except DamagedFile as error:
        _logger.warning("index_damaged", path=str(path), problem=str(error))
        return None, None
    return (summary, index) if summary.base_offset == base else (None, None)


def _make_segment(scan: _Scan, path: Path, index: SparseIndex, end: LogPosition, trusted_from: int) -> Segment:
    return Segment(
        path,
        scan.files,
        base_offset=end.segment_base,
        end_offset=end.offset,
        size_bytes=end.byte,
        index=index,
        last_append_ms=path.stat().st_mtime_ns // 1_000_000,
        trusted_from=trusted_from,
        is_dense=scan.is_dense,
    )


def _drop_cached_pages(path: Path, start: int) -> None:
    """Write out what is dirty, then let the kernel forget the rest, so that the next read comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, start - start % mmap.PAGESIZE, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _check_batches(scan: _Scan, index: SparseIndex, good: LogPosition, next_base: Offset | None) -> LogPosition:
    """Check each batch from `good` on, and tell index, epochs and producers of it; returns where the good ones end."""
    offset_end = next_base if next_base is not None else OFFSET_MAX
    descriptor = os.open(segment_path(scan.directory, good.segment_base), os.O_RDONLY | os.O_CLOEXEC)
    try:
        for position, header, batch in read_forward(descriptor, good.byte, os.fstat(descriptor).st_size):
            base_offset, last_offset = header.base_offset, header.last_offset
            follows = base_offset == good.offset if scan.is_dense else base_offset >= good.offset
            if not follows or not base_offset <= last_offset < offset_end or not crc_fits(header, batch):
                break
            if not _take_note(scan, good.segment_base, position, header, batch):
                break
            index.add(header, position)
            if base_offset != good.offset or header.has_gaps:
                scan.compacted_to = max(scan.compacted_to, Offset(last_offset + 1))
            if base_offset >= scan.replay_from:
                scan.batch_found(header)
            good = LogPosition(Offset(last_offset + 1), good.segment_base, position + len(batch))
    finally:
        os.close(descriptor)
    return good


def _take_note(scan: _Scan, base: Offset, position: int, header: BatchHeader, batch: memoryview) -> bool:
    """Note epoch and voters of a batch whose CRC fits; False if they are not what was written: that is no torn tail."""
    offset = header.base_offset
    problem = _epoch_problem(scan, header, batch) if scan.is_shared else ""
    if header.is_control and not problem:
        try:
            voters = read_voters(batch)
        except CorruptBatchRefused as error:
            problem = str(error)
        else:
            if voters is not None:
                scan.voter_sets.note(offset, voters)
    if problem:
        scan.mark_failed(segment_path(scan.directory, base), f"byte {position}, offset {offset}: {problem}")
        return False
    scan.epochs.note(header.leader_epoch, offset)
    return True


def _epoch_problem(scan: _Scan, header: BatchHeader, batch: memoryview) -> str:
    """What is wrong with a batch's leader epoch, which no CRC covers and other nodes would believe.

    Before the recovery point the checkpoint knows it; behind, each epoch begins with the record that says so.
    """
    epoch, latest = header.leader_epoch, scan.epochs.latest
    if header.base_offset < scan.recovery_offset:
        expected = scan.epochs.at(header.base_offset)
        return f"epoch {epoch} instead of {expected}" if expected not in (None, epoch) else ""
    if latest is None or epoch == latest:
        return ""
    try:
        is_begun = epoch > latest and header.is_control and begins_epoch(batch)
    except CorruptBatchRefused as error:
        return str(error)
    return "" if is_begun else f"epoch {epoch} was not begun after {latest}"


def _is_whole_but_changed(path: Path, end: LogPosition, size_bytes: int) -> bool:
    """Whether at `end` stands a batch that nothing is missing of, not even a sector that was never written."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        tail = os.pread(descriptor, size_bytes - end.byte, end.byte)
    finally:
        os.close(descriptor)
    if len(tail) < HEADER_BYTES:
        return False
    header = BatchHeader._make(HEADER.unpack_from(tail))
    if crc_fits(header, tail):  # what the CRC does not cover was changed, its length maybe
        return True
    if not HEADER_BYTES <= header.size_bytes <= len(tail):
        return False
    batch = tail[: header.size_bytes]
    first = -end.byte % SECTOR_BYTES
    return all(any(batch[at : at + SECTOR_BYTES]) for at in range(first, len(batch), SECTOR_BYTES))


def _holds_batch_after(path: Path, end: LogPosition, size_bytes: int) -> bool:
    """Whether anywhere behind `end` a whole batch stands that belongs into this log."""
    high = struct.pack(">q", end.offset)[:_OFFSET_HIGH_BYTES]
    batch_head = re.compile(_BATCH_HEAD % re.escape(high))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        position = end.byte + 1
        while position < size_bytes:
            chunk = os.pread(descriptor, CHUNK_BYTES + HEADER_BYTES, position)
            for match in batch_head.finditer(chunk):
                found = next(read_forward(descriptor, position + match.start(), size_bytes), None)
                if found is not None and found[1].base_offset > end.offset and crc_fits(found[1], found[2]):
                    return True
            position += CHUNK_BYTES
    finally:
        os.close(descriptor)
    return False
