"""A partition: what it takes, when it says that it is safe, what consumers see, and what it does when a disk fails."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from tests.core.log.support import NOW_MS, append, commit, make_batch, opened, read_all, records_in, values
from tidegate_core.errors import (
    AppendRefused,
    CorruptBatchRefused,
    DiskFull,
    InvalidRecord,
    InvalidTimestamp,
    MessageTooLarge,
    NotLeader,
    OffsetOutOfRange,
    OutOfOrderSequence,
    PartitionClosed,
    StorageFailed,
    TransactionRefused,
)
from tidegate_core.log.config import LogConfig
from tidegate_wire.identifiers import LeaderEpoch, Offset, ProducerId
from tidegate_wire.records import BatchHeader, RecordBatchBuilder, check_batch


async def test_append_gives_dense_offsets_and_stamps_them(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        partition.lead(LeaderEpoch(4))
        assert await commit(partition, make_batch(values(3))) == 0
        assert await commit(partition, make_batch(values(2))) == 3
        buffers = partition.read(Offset(0), 1 << 20).buffers
        assert len(buffers) == 1
        assert [record.offset for record in records_in(buffers)] == [0, 1, 2, 3, 4]
        assert BatchHeader.parse(buffers[0]).leader_epoch == 4


async def test_read_only_bytes_are_copied_and_not_changed(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        await commit(partition, make_batch(values(2)))
        batch = make_batch(values(1))
        before = bytes(batch)
        result = partition.append_as_leader(memoryview(batch), NOW_MS)
        assert (result.base_offset, result.end_offset) == (2, 3)
        assert batch == before


async def test_consumers_see_nothing_before_it_is_synced(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        append(partition, make_batch(values(3)))
        assert partition.log_end_offset == 3
        assert partition.high_watermark == 0
        result = partition.read(Offset(0), 1 << 20)
        assert result.buffers == ()
        assert partition.read(Offset(2), 1 << 20).buffers == ()
        assert partition.offset_for_time(0) is None
        await partition.committed(Offset(3))
        assert partition.high_watermark == 3
        assert len(records_in(partition.read(Offset(0), 1 << 20).buffers)) == 3


async def test_read_from_within_a_batch_returns_the_whole_batch(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        await commit(partition, make_batch(values(3)))
        await commit(partition, make_batch(values(3)))
        assert [r.offset for r in records_in(partition.read(Offset(4), 1).buffers)] == [3, 4, 5]


async def test_read_outside_the_log_is_out_of_range(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        await commit(partition, make_batch(values(3)))
        assert partition.read(Offset(3), 100).buffers == ()
        for offset in (4, -1):
            with pytest.raises(OffsetOutOfRange):
                partition.read(Offset(offset), 100)


async def test_one_sync_serves_all_appends_made_while_another_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = 0
    real = os.fdatasync

    def counted(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        real(descriptor)

    async with opened(tmp_path / "p") as partition:
        monkeypatch.setattr(os, "fdatasync", counted)
        ends = [partition.append_as_leader(memoryview(make_batch(values(1))), NOW_MS).end_offset for _ in range(100)]
        await asyncio.gather(*(partition.committed(end) for end in ends))
        assert syncs == 1
        assert partition.high_watermark == 100


async def test_duplicate_in_flight_waits_for_the_same_sync(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        batch = make_batch(values(3), producer=(9, 0, 0))
        first = partition.append_as_leader(memoryview(batch), NOW_MS)
        second = partition.append_as_leader(memoryview(batch), NOW_MS)
        assert second.is_duplicate
        assert (second.base_offset, second.end_offset) == (first.base_offset, first.end_offset)
        assert partition.log_end_offset == 3
        assert partition.high_watermark == 0
        await partition.committed(second.end_offset)
        assert partition.high_watermark == 3


async def test_refused_batch_leaves_no_trace(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        await commit(partition, make_batch(values(1), producer=(9, 0, 0)))
        with pytest.raises(OutOfOrderSequence):
            append(partition, make_batch(values(1), producer=(9, 0, 2)))
        assert partition.log_end_offset == 1
        assert await commit(partition, make_batch(values(1), producer=(9, 0, 1))) == 1


def transactional() -> bytes:
    builder = RecordBatchBuilder(is_transactional=True)
    builder.append(NOW_MS, None, b"x")
    return builder.build()


def control() -> bytes:
    builder = RecordBatchBuilder(is_control=True)
    builder.append(NOW_MS, None, b"x")
    return builder.build()


def flipped() -> bytes:
    batch = bytearray(make_batch(values(1)))
    batch[-1] ^= 1
    return bytes(batch)


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        pytest.param(flipped(), CorruptBatchRefused, id="a flipped bit"),
        pytest.param(make_batch(values(1))[:-1], CorruptBatchRefused, id="cut"),
        pytest.param(b"", CorruptBatchRefused, id="empty"),
        pytest.param(make_batch(values(1)) * 2, InvalidRecord, id="two batches"),
        pytest.param(make_batch(values(1), producer=(5, 0, -1)), InvalidRecord, id="no sequence"),
        pytest.param(make_batch(values(1), producer=(5, -1, 0)), InvalidRecord, id="no epoch"),
        pytest.param(control(), InvalidRecord, id="control"),
        pytest.param(transactional(), TransactionRefused, id="transactional"),
        pytest.param(make_batch(values(1, 2000)), MessageTooLarge, id="too large"),
        pytest.param(make_batch(values(1), time_ms=NOW_MS + 5000), InvalidTimestamp, id="from the future"),
    ],
)
async def test_batches_that_are_not_taken(tmp_path: Path, batch: bytes, error: type[AppendRefused]) -> None:
    config = LogConfig(max_message_bytes=1000, message_timestamp_after_max_ms=1000)
    async with opened(tmp_path / "p", config) as partition:
        with pytest.raises(error):
            append(partition, batch)
        assert partition.log_end_offset == 0
        assert partition.size_bytes == 0


async def test_compacted_topic_takes_only_records_with_keys(tmp_path: Path) -> None:
    config = LogConfig(cleanup_policy=frozenset({"compact"}))
    async with opened(tmp_path / "p", config) as partition:
        with pytest.raises(InvalidRecord):
            append(partition, make_batch([(b"k", b"v"), (None, b"v")]))
        assert await commit(partition, make_batch([(b"k", b"v")])) == 0


async def test_log_append_time_replaces_the_records_own(tmp_path: Path) -> None:
    config = LogConfig(message_timestamp_type="LogAppendTime")
    async with opened(tmp_path / "p", config) as partition:
        batch = make_batch(values(2), time_ms=5, producer=(1, 0, 0))
        result = partition.append_as_leader(memoryview(batch), NOW_MS)
        again = partition.append_as_leader(memoryview(batch), NOW_MS + 100)
        assert result.log_append_time_ms == again.log_append_time_ms == NOW_MS
        await partition.committed(result.end_offset)
        (buffer,) = partition.read(Offset(0), 1 << 20).buffers
        assert check_batch(buffer).uses_log_append_time
        assert {record.timestamp_ms for record in records_in([buffer])} == {NOW_MS}


async def test_waiting_fetch_is_called_once_when_records_are_safe(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        calls: list[str] = []
        partition.when_readable(Offset(0), lambda: calls.append("a"))
        partition.when_readable(Offset(0), lambda: calls.append("cancelled")).cancel()
        partition.when_readable(Offset(5), lambda: calls.append("later"))
        append(partition, make_batch(values(3)))
        assert calls == []
        await partition.committed(Offset(3))
        assert calls == ["a"]
        await commit(partition, make_batch(values(3)))
        assert calls == ["a", "later"]
        partition.when_readable(Offset(5), lambda: calls.append("at once"))
        assert calls == ["a", "later", "at once"]


async def test_closing_tells_everyone_who_waits(tmp_path: Path) -> None:
    calls: list[str] = []
    async with opened(tmp_path / "p") as partition:
        partition.when_readable(Offset(0), lambda: calls.append("reader"))
        waiting = asyncio.create_task(partition.committed(Offset(1)))
        await asyncio.sleep(0)
        partition.close()
        with pytest.raises(PartitionClosed):
            await waiting
        assert calls == ["reader"]
        with pytest.raises(PartitionClosed):
            append(partition, make_batch(values(1)))
        with pytest.raises(PartitionClosed):
            partition.read(Offset(0), 100)


async def test_cancelled_wait_does_not_disturb_the_others(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        end = partition.append_as_leader(memoryview(make_batch(values(1))), NOW_MS).end_offset
        gone = asyncio.create_task(partition.committed(end))
        stays = asyncio.create_task(partition.committed(end))
        await asyncio.sleep(0)
        gone.cancel()
        await stays
        assert gone.cancelled() or gone.cancelling()


async def test_failed_sync_fails_the_partition_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that fails once must not be asked again: the kernel drops the pages and says success the second time."""
    real = os.fdatasync

    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with opened(tmp_path / "p") as partition:
        await commit(partition, make_batch(values(3)))
        monkeypatch.setattr(os, "fdatasync", fails)
        lost = partition.append_as_leader(memoryview(make_batch(values(2))), NOW_MS)
        with pytest.raises(StorageFailed):
            await partition.committed(lost.end_offset)
        monkeypatch.setattr(os, "fdatasync", real)
        with pytest.raises(StorageFailed):
            append(partition, make_batch(values(1)))
        with pytest.raises(StorageFailed):
            await partition.committed(lost.end_offset)
        assert partition.high_watermark == 3
        assert [record.offset for record in read_all(partition)] == [0, 1, 2]


async def test_full_disk_refuses_the_append_and_works_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def half(descriptor: int, data: bytes, position: int) -> int:
        if len(data) > 100:
            return real(descriptor, memoryview(data)[:100], position)
        raise OSError(errno.ENOSPC, "No space left on device")

    async with opened(tmp_path / "p") as partition:
        await commit(partition, make_batch(values(3), producer=(1, 0, 0)))
        size = partition.size_bytes
        batch = make_batch(values(3), producer=(1, 0, 3))
        assert 100 < len(batch) < 200
        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(DiskFull):
            append(partition, batch)
        assert (partition.size_bytes, partition.log_end_offset) == (size, 3)
        assert partition.log.segments[-1].path.stat().st_size == size
        assert len(read_all(partition)) == 3
        monkeypatch.setattr(os, "pwrite", real)
        assert await commit(partition, batch) == 3
        assert len(read_all(partition)) == 6


async def test_producers_are_known_after_a_restart(tmp_path: Path) -> None:
    batch = make_batch(values(3), producer=(77, 2, 0))
    async with opened(tmp_path / "p") as partition:
        await commit(partition, batch)
    async with opened(tmp_path / "p") as partition:
        again = partition.append_as_leader(memoryview(batch), NOW_MS)
        assert again.is_duplicate
        assert partition.producers.get(ProducerId(77)) is not None
        assert partition.high_watermark == 3
        assert await commit(partition, make_batch(values(1), producer=(77, 2, 3))) == 3


async def test_end_offset_for_epoch_as_kafka_answers_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        for epoch in (2, 5):
            partition.lead(LeaderEpoch(epoch))
            await commit(partition, make_batch(values(10)))
        assert partition.end_offset_for_epoch(LeaderEpoch(1)) == (1, 0)
        assert partition.end_offset_for_epoch(LeaderEpoch(2)) == (2, 10)
        assert partition.end_offset_for_epoch(LeaderEpoch(4)) == (2, 10)
        assert partition.end_offset_for_epoch(LeaderEpoch(5)) == (5, 20)
        assert partition.end_offset_for_epoch(LeaderEpoch(6)) == (-1, -1)
    async with opened(tmp_path / "p") as partition:
        assert partition.leader_epoch == 5
        assert partition.end_offset_for_epoch(LeaderEpoch(3)) == (2, 10)


async def test_delete_before_moves_the_start_and_stays_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        await commit(partition, make_batch(values(10)))
        with pytest.raises(OffsetOutOfRange):
            partition.delete_before(Offset(11))
        assert partition.delete_before(Offset(4)) == 4
        assert partition.delete_before(Offset(2)) == 4
        with pytest.raises(OffsetOutOfRange):
            partition.read(Offset(3), 100)
        assert [record.offset for record in read_all(partition)] == [4, 5, 6, 7, 8, 9]
    async with opened(tmp_path / "p") as partition:
        assert partition.log_start_offset == 4
        assert partition.delete_before(Offset(10)) == 10
        assert read_all(partition) == []
        assert await commit(partition, make_batch(values(1))) == 10


async def test_append_of_an_epoch_that_is_over_is_not_committed_by_a_later_one(tmp_path: Path) -> None:
    """A client waits for several partitions one by one: leadership may have gone and come back meanwhile."""
    async with opened(tmp_path / "p") as partition:
        partition.on_synced = lambda _: None
        partition.lead(LeaderEpoch(1))
        lost = partition.append_as_leader(memoryview(make_batch(values(1))), NOW_MS)
        partition.follow(LeaderEpoch(2))
        partition.truncate(Offset(0))
        partition.lead(LeaderEpoch(3))
        kept = partition.append_as_leader(memoryview(make_batch(values(1))), NOW_MS)
        assert kept.end_offset == lost.end_offset
        await partition.synced(kept.end_offset)
        partition.set_high_watermark(kept.end_offset)
        await partition.committed(kept.end_offset, kept.leader_epoch)
        with pytest.raises(NotLeader):
            await partition.committed(lost.end_offset, lost.leader_epoch)
        assert partition.has_committed(kept.end_offset, kept.leader_epoch)
        assert not partition.has_committed(lost.end_offset, lost.leader_epoch)
