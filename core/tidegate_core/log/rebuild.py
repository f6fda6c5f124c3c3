"""The producers of a log, from its newest snapshot and the batches after it."""

from __future__ import annotations

from tidegate_core.log.log import Log
from tidegate_core.log.snapshots import load_snapshot
from tidegate_core.producers import ProducerStates
from tidegate_wire.identifiers import Offset


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
