"""What a log's past adds up to: its producers, and what a follower takes over that is behind the log's start."""

from __future__ import annotations

from typing import Final

from tidegate_core.errors import PartitionDamaged
from tidegate_core.log.app_state import app_state_at, load_app_state
from tidegate_core.log.files import DamagedFile
from tidegate_core.log.log import Log
from tidegate_core.log.partition_snapshot import PartitionSnapshot
from tidegate_core.log.snapshots import load_snapshot
from tidegate_core.producers import ProducerStates
from tidegate_wire.identifiers import Offset

_HINT: Final = "another node may have it"


def rebuild_producers(log: Log, end: Offset, now_ms: int) -> ProducerStates:
    """Who wrote what `log` holds before `end`, where a batch ends, and what it held before.

    Raises:
        PartitionDamaged: what stands in the log can't be batches.
        StorageFailed, StorageError: a file can't be read.
        OSError: a snapshot can't be read.
    """
    offset, producers = load_snapshot(log.directory, end)
    if offset < end:
        for header in log.headers_from(offset):
            if header.last_offset >= end:
                break
            if header.producer_id >= 0:
                producers.record(header, now_ms)
    return producers


def committed_producers(log: Log, producers: ProducerStates, high_watermark: Offset, now_ms: int) -> ProducerStates:
    """What `producers`, as of the log's end, are without the batches that may be cut yet.

    Of a producer older batches may be missing that stand in the log; the log is read where none would be left of it.

    Raises:
        PartitionDamaged, StorageFailed, StorageError, OSError: as `rebuild_producers`.
    """
    committed = producers.committed(high_watermark)
    return committed if len(committed) == len(producers) else rebuild_producers(log, high_watermark, now_ms)


def take_snapshot(log: Log, producers: ProducerStates, high_watermark: Offset, now_ms: int) -> bytes:
    """What was before the log's start: who wrote, who votes, what the app made of it; `producers` as of the log's end.

    Raises:
        PartitionDamaged, StorageFailed, StorageError, OSError: as `rebuild_producers`.
    """
    start = log.log_start_offset
    try:
        app_state = app_state_at(log.directory, start)
    except DamagedFile as error:
        raise PartitionDamaged(f"{log.directory}: the state as of offset {start}: {error}", hint=_HINT) from error
    if app_state is None and start and load_app_state(log.directory) is not None:
        raise PartitionDamaged(f"{log.directory}: there is no state as of offset {start}", hint=_HINT)
    return PartitionSnapshot(
        offset=start,
        leader_epochs=tuple(log.epochs.before(start).entries),
        voters=log.voter_sets.at(start),
        producers=committed_producers(log, producers, high_watermark, now_ms),
        app_state=app_state,
        compacted_to=Offset(log.tombstones_removed_to() + 1),
    ).encode()
