"""What is done to a partition now and then: roll, let go what is old, forget producers, compact."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from tidegate_core.errors import PartitionDamaged
from tidegate_core.log.compaction import CleanedSegment, CompactionStopped, Compactor, plan_compaction
from tidegate_core.log.compaction_state import load_state, save_state
from tidegate_core.log.files import OpenFiles
from tidegate_core.log.retention import retention_start
from tidegate_core.log.segment import Segment, segment_path
from tidegate_core.partition import Partition

_logger = structlog.get_logger()


def keep_in_bounds(partition: Partition, now_ms: int, producer_expiration_ms: int) -> None:
    """Apply `segment.ms`, `retention.ms`, `retention.bytes` and the producers' expiration.

    Raises:
        StorageError: the disk refused; the next time may do.
    """
    log = partition.log
    log.roll_if_old(now_ms)
    start = retention_start(log, partition.high_watermark, now_ms) if partition.is_leader else None  # followers follow
    if start is not None:
        partition.delete_before(start)
        _logger.info("retention_applied", topic=partition.topic, partition=partition.index, log_start_offset=start)
    partition.remove_deleted()
    partition.producers.expire(now_ms - producer_expiration_ms)


async def compact_partition(partition: Partition, files: OpenFiles, now_ms: int) -> None:
    """Do one round of compaction in a thread, if the topic asks for it and enough is dirty.

    Raises:
        PartitionDamaged: a segment is not what was written; the round is given up.
        OSError: a file can't be read or written; the round is given up.
    """
    log = partition.log
    if not log.config.compacts or partition.failure is not None:
        return
    last_offsets = {
        producer_id: producer.batches[-1].last_offset for producer_id, producer in partition.producers.items()
    }
    plan = plan_compaction(log, last_offsets, partition.safe_snapshot_offset, now_ms)
    if plan is None:
        return
    compactor = Compactor(plan)
    generation = log.generation
    try:
        cleaned = await _run(compactor)
    except CompactionStopped:
        return
    except (PartitionDamaged, OSError) as error:
        if not partition.is_closed and log.generation == generation:
            if isinstance(error, PartitionDamaged):
                log.damage = log.damage or error
            raise
        cleaned = []
    if partition.is_closed or log.generation != generation:  # what stands under these names now is something else
        return
    # From here on the log may have gaps, and lack tombstones, and says so.
    state = replace(load_state(log.directory), tombstones_removed_to=compactor.tombstones_removed_to)
    save_state(log.directory, state)
    for new in cleaned:
        try:
            is_swapped = partition.swap_in(_as_segment(partition, files, new), new.bases)
        except OSError:
            partition.close()  # which files stand where is not known; the next start finishes the swap
            raise
        if not is_swapped:
            return
    save_state(log.directory, state.after_round(compactor.cleaned_to, log.config.delete_retention_ms, now_ms))
    _logger.info(
        "compacted",
        topic=partition.topic,
        partition=partition.index,
        cleaned_to=compactor.cleaned_to,
        removed_records=sum(new.removed_records for new in cleaned),
    )


async def _run(compactor: Compactor) -> list[CleanedSegment]:
    """In a thread; whoever cancels this waits until the thread stopped."""
    round_task = asyncio.create_task(asyncio.to_thread(compactor.run))
    try:
        return await asyncio.shield(round_task)
    except asyncio.CancelledError:
        compactor.stop()
        await asyncio.wait([round_task])
        if not round_task.cancelled():
            round_task.exception()  # CompactionStopped, or whatever: the round is given up
        raise


def _as_segment(partition: Partition, files: OpenFiles, new: CleanedSegment) -> Segment:
    return Segment(
        segment_path(partition.log.directory, new.bases[0]),
        files,
        base_offset=new.bases[0],
        end_offset=new.end_offset,
        size_bytes=new.size_bytes,
        index=new.index,
        last_append_ms=new.last_append_ms,
        trusted_from=0,
        is_dense=False,
    )
