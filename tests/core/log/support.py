"""Batches and partitions for the tests of the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from tidegate_core.log.config import LogConfig
from tidegate_core.log.files import OpenFiles
from tidegate_core.log.flusher import Flusher
from tidegate_core.log.identity import PartitionIdentity
from tidegate_core.log_manager import lead_alone
from tidegate_core.opening import create_partition, open_partition
from tidegate_core.partition import Partition
from tidegate_wire.identifiers import BatchSequence, NodeId, Offset, ProducerEpoch, ProducerId
from tidegate_wire.records import (
    BatchHeader,
    Compression,
    Record,
    RecordBatchBuilder,
    check_batch,
    iter_batches,
    read_records,
)

NOW_MS = 1_700_000_000_000
NODE = NodeId(1)
ALONE = (NODE,)
TOPIC_ID = UUID(int=7)

KeyValue = tuple[bytes | None, bytes | None]


def make_batch(
    records: Sequence[KeyValue],
    *,
    time_ms: int = NOW_MS,
    producer: tuple[int, int, int] = (-1, -1, -1),
    compression: Compression = Compression.NONE,
) -> bytes:
    """A batch of keys and values; `producer` is id, epoch, base sequence; each record is 1 ms after the last."""
    producer_id, epoch, sequence = producer
    builder = RecordBatchBuilder(
        ProducerId(producer_id), ProducerEpoch(epoch), BatchSequence(sequence), compression=compression
    )
    for number, (key, value) in enumerate(records):
        builder.append(time_ms + number, key, value)
    return builder.build()


def values(count: int, size: int = 10, start: int = 0) -> list[KeyValue]:
    """Records without keys whose values begin with their number."""
    return [(None, b"%d" % number + b"." * size) for number in range(start, start + count)]


def append(partition: Partition, batch: bytes, now_ms: int = NOW_MS) -> Offset:
    """Append, not committed yet; returns the base offset."""
    return partition.append_as_leader(memoryview(bytearray(batch)), now_ms).base_offset


async def commit(partition: Partition, batch: bytes, now_ms: int = NOW_MS) -> Offset:
    """Append and wait until it is safe; returns the base offset."""
    result = partition.append_as_leader(memoryview(bytearray(batch)), now_ms)
    async with asyncio.timeout(20):
        await partition.committed(result.end_offset)
    return result.base_offset


def records_in(buffers: Iterable[bytes]) -> list[Record]:
    """The records of batches as a consumer sees them, every batch checked."""
    found: list[Record] = []
    for buffer in buffers:
        for batch in iter_batches(buffer):
            check_batch(batch)
            found.extend(read_records(batch))
    return found


def read_all(partition: Partition, start: int | None = None, bytes_max: int = 1 << 20) -> list[Record]:
    """What a consumer reads from `start` (the log's start) to the high watermark."""
    offset = partition.log_start_offset if start is None else Offset(start)
    first = offset
    found: list[Record] = []
    while offset < partition.high_watermark:
        result = partition.read(offset, bytes_max)
        if not result.buffers:
            break
        found.extend(record for record in records_in(result.buffers) if record.offset >= first)
        last = list(iter_batches(result.buffers[-1]))[-1]
        after = BatchHeader.parse(last).last_offset + 1
        assert after > offset, "a read makes progress"
        offset = Offset(after)
    return found


def open_or_create(
    directory: Path,
    config: LogConfig,
    files: OpenFiles,
    flusher: Flusher,
    *,
    now_ms: int = NOW_MS,
    voters: tuple[NodeId, ...] = ALONE,
) -> Partition:
    """The partition in `directory`, made for `voters` if it is not there; nobody leads it yet."""

    def discard(path: Path) -> None:
        path.unlink(missing_ok=True)

    if directory.exists():
        return open_partition(
            "events",
            0,
            directory,
            config,
            files=files,
            flusher=flusher,
            discard=discard,
            now_ms=now_ms,
        )
    directory.mkdir()
    return create_partition(
        "events",
        0,
        directory,
        config,
        files=files,
        flusher=flusher,
        discard=discard,
        now_ms=now_ms,
        identity=PartitionIdentity(TOPIC_ID, voters),
    )


@asynccontextmanager
async def opened(
    directory: Path, config: LogConfig | None = None, *, files_max: int = 64, now_ms: int = NOW_MS
) -> AsyncIterator[Partition]:
    """The partition in `directory`, which this node alone has and leads, made if it is not there.

    Closed at the end as a crash leaves it: no checkpoint.
    """
    flusher = Flusher()
    partition = open_or_create(directory, config or LogConfig(), OpenFiles(files_max), flusher, now_ms=now_ms)
    lead_alone(partition)
    try:
        yield partition
    finally:
        await flusher.close()
        partition.close()


async def checkpoint(partition: Partition) -> None:
    """Write a checkpoint, and return when it is on disk."""
    partition.request_checkpoint()
    async with asyncio.timeout(20):
        await partition._syncing.flusher.drain()
