"""The producers of a log, from its newest snapshot and the batches after it."""

from __future__ import annotations

from tidegate_core.log.log import Log
from tidegate_core.log.snapshots import load_snapshot
from tidegate_core.producers import ProducerStates
from tidegate_wire.identifiers import Offset


def rebuild_producers(log: Log, now_ms: int) -> ProducerStates:
    """Who wrote what `log` holds, and what it held before; snapshots after its end are those of a longer log.

    Raises:
        PartitionDamaged: what stands in the log can't be batches.
        StorageFailed, StorageError: a file can't be read.
        OSError: a snapshot can't be read.
    """
    offset, producers = load_snapshot(log.directory, log.log_end_offset)
    for header in log.headers_from(Offset(offset)) if offset < log.log_end_offset else ():
        if header.producer_id >= 0:
            producers.record(header, now_ms)
    return producers
