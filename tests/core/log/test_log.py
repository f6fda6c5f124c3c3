"""A log against a simple model: a list of records, whatever is appended, cut, deleted, crashed and read."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.core.log.support import (
    ALONE,
    NOW_MS,
    TOPIC_ID,
    append,
    checkpoint,
    commit,
    make_batch,
    opened,
    read_all,
    records_in,
    values,
)
from tidegate_core.errors import OffsetOutOfRange
from tidegate_core.log.config import LogConfig
from tidegate_core.log.files import OpenFiles
from tidegate_core.log.identity import PartitionIdentity
from tidegate_core.log.index import INDEX_INTERVAL_BYTES
from tidegate_core.log.log import Log
from tidegate_core.log.recovery import create_log, open_log
from tidegate_core.log.times import offset_for_time
from tidegate_core.upkeep import keep_in_bounds
from tidegate_wire.identifiers import LeaderEpoch, Offset
from tidegate_wire.records import BatchHeader, Compression, iter_batches, read_records, stamp

FOREVER_MS = 10**15


def written(log: Log, batch: bytes, epoch: int, now_ms: int = NOW_MS) -> None:
    data = bytearray(batch)
    stamp(data, log.log_end_offset, LeaderEpoch(epoch))
    log.append(memoryview(data), (BatchHeader.parse(data),), now_ms)


def sync(log: Log) -> None:
    job = log.begin_sync(lambda: None)
    job.run()
    job.write_checkpoint()


class LogMachine(RuleBasedStateMachine):
    """`model` holds (offset, timestamp, value, epoch) of each record that was not cut or deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="log-"))
        self.config = LogConfig(segment_bytes=3000)
        self.model: list[tuple[int, int, bytes, int]] = []
        self.start = 0
        self.end = 0
        self.epoch = 0
        self.batch_starts: list[int] = []
        self.log: Log

    @initialize()
    def create(self) -> None:
        self.files = OpenFiles(2)
        self.log = create_log(self.directory, self.config, self.files, discard=Path.unlink, now_ms=NOW_MS, voters=ALONE)

    @rule(
        count=st.integers(1, 12),
        size=st.sampled_from([0, 10, 200, 1500]),
        time_ms=st.integers(NOW_MS - 50, NOW_MS + 50),
        compression=st.sampled_from([Compression.NONE, Compression.ZSTD]),
        new_epoch=st.booleans(),
    )
    def append(self, count: int, size: int, time_ms: int, compression: Compression, new_epoch: bool) -> None:
        self.epoch += new_epoch
        records = values(count, size, start=self.end)
        written(self.log, make_batch(records, time_ms=time_ms, compression=compression), self.epoch)
        self.batch_starts.append(self.end)
        for number, (_, value) in enumerate(records):
            assert value is not None
            self.model.append((self.end + number, time_ms + number, value, self.epoch))
        self.end += count

    @rule()
    def roll(self) -> None:
        self.log.roll(NOW_MS)

    @rule()
    def sync(self) -> None:
        sync(self.log)

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(self.start, self.end))
        kept_end = max((start for start in [*self.batch_starts, self.end] if start <= offset), default=self.start)
        if kept_end < self.start:
            return  # a batch that the log's start is within; replication never cuts there
        self.log.truncate_to(Offset(offset))
        self.end = kept_end
        self.model = [record for record in self.model if record[0] < self.end]
        self.batch_starts = [start for start in self.batch_starts if start < self.end]
        self.epoch += 1

    @rule(data=st.data())
    def delete_before(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(self.start, self.end))
        sync(self.log)
        self.log.delete_before(Offset(offset))
        self.start = max(self.start, offset)
        self.model = [record for record in self.model if record[0] >= self.start]

    @rule(synced=st.booleans(), lose_indexes=st.booleans(), lose_checkpoint=st.booleans())
    def reopen(self, synced: bool, lose_indexes: bool, lose_checkpoint: bool) -> None:
        if synced:
            sync(self.log)
        self.log.close()
        if lose_indexes:
            for path in self.directory.glob("*.index"):
                path.unlink()
        if lose_checkpoint and self.start == 0:
            (self.directory / "checkpoint").unlink(missing_ok=True)
        self.files = OpenFiles(2)
        self.log = open_log(
            self.directory,
            self.config,
            self.files,
            discard=Path.unlink,
            now_ms=NOW_MS,
            identity=PartitionIdentity(TOPIC_ID, ALONE),
            replay_from=Offset(self.end),
            batch_found=lambda header: None,
        )
        assert self.log.failure is None
        assert self.log.damage is None

    @rule(data=st.data(), bytes_max=st.sampled_from([0, 1, 100, 500, 5000, 1 << 20]))
    def read(self, data: st.DataObject, bytes_max: int) -> None:
        offset = data.draw(st.integers(self.start, self.end))
        buffers = self.log.read(Offset(offset), bytes_max, self.log.end)
        found = [
            (record.offset, record.timestamp_ms, record.value, BatchHeader.parse(batch).leader_epoch)
            for buffer in buffers
            for batch in iter_batches(buffer)
            for record in read_records(batch)
            if record.offset >= offset
        ]
        expected = [record for record in self.model if record[0] >= offset]
        assert found == expected[: len(found)]
        batches = [batch for buffer in buffers for batch in iter_batches(buffer)]
        if expected:
            assert found
            assert len(batches) == 1 or sum(map(len, batches)) <= bytes_max
        for bad in (self.start - 1, self.end + 1):
            with pytest.raises(OffsetOutOfRange):
                self.log.read(Offset(bad), bytes_max, self.log.end)

    @rule(time_ms=st.integers(NOW_MS - 60, NOW_MS + 70))
    def look_up_time(self, time_ms: int) -> None:
        expected = next(((offset, time) for offset, time, _, _ in self.model if time >= time_ms), None)
        assert offset_for_time(self.log, time_ms, self.log.end) == expected

    @rule(epoch=st.integers(0, 12))
    def look_up_epoch(self, epoch: int) -> None:
        known = sorted({record[3] for record in self.model})
        if not known or epoch < known[0]:
            return
        if epoch > known[-1]:
            assert self.log.end_offset_for_epoch(LeaderEpoch(epoch)) == (-1, -1)
            return
        floor = max(item for item in known if item <= epoch)
        end = next((record[0] for record in self.model if record[3] > floor), self.end)
        assert self.log.end_offset_for_epoch(LeaderEpoch(epoch)) == (floor, end)

    @precondition(lambda self: hasattr(self, "log"))
    @invariant()
    def extent(self) -> None:
        assert (self.log.log_start_offset, self.log.log_end_offset) == (self.start, self.end)
        bases = [segment.base_offset for segment in self.log.segments]
        assert bases == sorted(set(bases))

    def teardown(self) -> None:
        self.log.close()
        shutil.rmtree(self.directory)


LogMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLogAgainstModel = LogMachine.TestCase


async def test_read_across_segments_fills_the_limit(tmp_path: Path) -> None:
    async with opened(tmp_path / "p", LogConfig(segment_bytes=2000)) as partition:
        for number in range(20):
            await commit(partition, make_batch(values(1, 400, start=number)))
        assert len(partition.log.segments) > 3
        result = partition.read(Offset(0), 5000)
        assert len(result.buffers) > 1
        assert 4500 < result.size_bytes <= 5000
        assert len(read_all(partition)) == 20


async def test_read_stops_at_a_segment_that_it_did_not_read_to_its_end(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        await commit(partition, make_batch(values(1, 200)))
        await commit(partition, make_batch(values(1, 200)))
        partition.log.roll(NOW_MS)
        await commit(partition, make_batch(values(1, 1)))
        assert [record.offset for record in records_in(partition.read(Offset(0), 400).buffers)] == [0]
        assert [record.offset for record in records_in(partition.read(Offset(0), 1000).buffers)] == [0, 1, 2]


async def test_index_finds_any_offset_in_a_long_segment(tmp_path: Path) -> None:
    async with opened(tmp_path / "p") as partition:
        end = 0
        while partition.size_bytes < 6 * INDEX_INTERVAL_BYTES:
            end = append(partition, make_batch(values(3, 500))) + 3
        await partition.committed(Offset(end))
        for offset in range(0, end, 7):
            found = records_in(partition.read(Offset(offset), 1).buffers)
            assert offset in [record.offset for record in found]
            assert len(found) == 3
        assert [record.offset for record in read_all(partition, bytes_max=50_000)] == list(range(end))


async def test_segment_rolls_by_age(tmp_path: Path) -> None:
    async with opened(tmp_path / "p", LogConfig(segment_ms=1000)) as partition:
        await commit(partition, make_batch(values(1)), NOW_MS)
        await commit(partition, make_batch(values(1)), NOW_MS + 999)
        assert len(partition.log.segments) == 1
        await commit(partition, make_batch(values(1)), NOW_MS + 1000)
        assert len(partition.log.segments) == 2


async def test_age_of_a_segment_survives_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "p", LogConfig(segment_ms=1000)) as partition:
        await commit(partition, make_batch(values(1)), NOW_MS)
        await checkpoint(partition)
    async with opened(tmp_path / "p", LogConfig(segment_ms=1000)) as partition:
        await commit(partition, make_batch(values(1)), NOW_MS + 1000)
        assert len(partition.log.segments) == 2


async def test_latest_time_is_found_wherever_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path / "p", LogConfig(segment_bytes=1000)) as partition:
        assert partition.offset_of_latest_time() is None
        for time_ms in (10, 500, 40, 900, 30):
            await commit(partition, make_batch(values(3, 200), time_ms=time_ms))
        assert partition.offset_of_latest_time() == (11, 902)
        append(partition, make_batch(values(1), time_ms=5000))
        assert partition.offset_of_latest_time() == (11, 902)
        await partition.committed(partition.log_end_offset)
        assert partition.offset_of_latest_time() == (15, 5000)


async def fill(partition_directory: Path, config: LogConfig, batches: int) -> None:
    async with opened(partition_directory, config) as partition:
        for number in range(batches):
            await commit(partition, make_batch(values(1, 400, start=number), producer=(3, 0, number)))
        await checkpoint(partition)


async def test_retention_by_bytes_keeps_whole_segments_and_the_producers(tmp_path: Path) -> None:
    config = LogConfig(segment_bytes=1000, retention_bytes=2000)
    async with opened(tmp_path / "p", config) as partition:
        for number in range(20):
            await commit(partition, make_batch(values(1, 400, start=number), producer=(number % 5, 0, number // 5)))
        await checkpoint(partition)
        keep_in_bounds(partition, NOW_MS, FOREVER_MS)
        assert partition.log_start_offset > 0
        assert 2000 <= partition.size_bytes <= 3000
        assert [record.offset for record in read_all(partition)] == list(range(partition.log_start_offset, 20))
        partition.delete_before(Offset(20))
        await checkpoint(partition)
    async with opened(tmp_path / "p", config) as partition:
        assert (partition.log_start_offset, partition.log_end_offset) == (20, 20)
        assert partition.log.failure is None
        for producer in range(5):
            again = make_batch(values(1, 400, start=15 + producer), producer=(producer, 0, 3))
            assert partition.append_as_leader(memoryview(again), NOW_MS).base_offset == 15 + producer


async def test_retention_by_time_counts_from_arrival_not_from_the_records(tmp_path: Path) -> None:
    """An edge that was away for a month sends old events: they stay as long as new ones."""
    config = LogConfig(segment_bytes=1000, retention_ms=10_000)
    async with opened(tmp_path / "p", config) as partition:
        for _ in range(6):
            await commit(partition, make_batch(values(1, 400), time_ms=5), NOW_MS)
        await checkpoint(partition)
        keep_in_bounds(partition, NOW_MS + 10_000, FOREVER_MS)
        assert partition.log_start_offset == 0
        keep_in_bounds(partition, NOW_MS + 10_001, FOREVER_MS)
        assert partition.log_start_offset == 6
        await checkpoint(partition)
        keep_in_bounds(partition, NOW_MS + 10_001, FOREVER_MS)
        assert partition.size_bytes == 0
        assert await commit(partition, make_batch(values(1))) == 6


async def test_retention_never_touches_what_is_not_committed(tmp_path: Path) -> None:
    config = LogConfig(segment_bytes=500, retention_bytes=0)
    async with opened(tmp_path / "p", config) as partition:
        for _ in range(5):
            append(partition, make_batch(values(1, 400)))
        keep_in_bounds(partition, NOW_MS, FOREVER_MS)
        assert partition.log_start_offset == 0
        assert len(partition.log.segments) == 5
        await partition.committed(Offset(5))


async def test_open_files_are_bounded_over_many_segments(tmp_path: Path) -> None:
    async with opened(tmp_path / "p", LogConfig(segment_bytes=500), files_max=8) as partition:
        for number in range(40):
            await commit(partition, make_batch(values(1, 400, start=number)))
        assert len(read_all(partition, bytes_max=1)) == 40
        assert len(partition.log._files) <= 8


async def test_truncated_log_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, tmp_path / "p", ignore_errors=True)
    (tmp_path / "p").mkdir()
    files = OpenFiles()
    log = create_log(
        tmp_path / "p", LogConfig(segment_bytes=1000), files, discard=Path.unlink, now_ms=NOW_MS, voters=ALONE
    )
    for epoch in range(10):
        written(log, make_batch(values(2, 300)), epoch)
    sync(log)
    log.truncate_to(Offset(7))
    assert log.log_end_offset == 6
    assert log.end_offset_for_epoch(LeaderEpoch(2)) == (2, 6)
    assert log.end_offset_for_epoch(LeaderEpoch(3)) == (-1, -1)
    written(log, make_batch(values(1)), 20)
    assert log.log_end_offset == 7
    log.close()
    log = open_log(
        tmp_path / "p",
        LogConfig(),
        files,
        discard=Path.unlink,
        now_ms=NOW_MS,
        identity=PartitionIdentity(TOPIC_ID, ALONE),
        replay_from=Offset(0),
        batch_found=lambda header: None,
    )
    assert log.failure is None
    assert log.log_end_offset == 7
    assert log.end_offset_for_epoch(LeaderEpoch(19)) == (2, 6)
    log.close()
