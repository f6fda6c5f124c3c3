"""What is done to a partition now and then: roll, let go what is old, forget producers, compact."""

from __future__ import annotations

from tidegate_core.log.retention import retention_start
from tidegate_core.partition import Partition


def keep_in_bounds(partition: Partition, now_ms: int, producer_expiration_ms: int) -> None:
    """Apply `segment.ms`, `retention.ms`, `retention.bytes` and the producers' expiration.

    Raises:
        StorageError: the disk refused; the next time may do.
    """
    log = partition.log
    log.roll_if_old(now_ms)
    start = retention_start(log, partition.high_watermark, now_ms)
    if start is not None:
        partition.delete_before(start)
    log.remove_deleted()
    partition.producers.expire(now_ms - producer_expiration_ms)


async def compact_partition(partition: Partition, now_ms: int) -> None:
    return None
