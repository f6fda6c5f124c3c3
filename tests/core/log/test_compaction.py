"""Compaction: each key's last value stays, at its offset; nothing else a reader or a producer relies on is lost."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.log.support import NOW_MS, KeyValue, append, checkpoint, commit, make_batch, opened, read_all
from tidegate_core.log import compaction
from tidegate_core.log.compaction import Compactor, plan_compaction
from tidegate_core.log.compaction_state import CompactionState, load_state, save_state
from tidegate_core.log.config import LogConfig
from tidegate_core.log.rewrite import keep_records, stored_records
from tidegate_core.log.swap import carry_out_swap, decide_swap
from tidegate_core.partition import Partition
from tidegate_core.upkeep import compact_partition
from tidegate_wire.identifiers import Offset, ProducerId
from tidegate_wire.records import BatchHeader, Compression, check_batch, read_records

COMPACT = LogConfig(
    cleanup_policy=frozenset({"compact"}), segment_bytes=1200, min_cleanable_dirty_ratio=0.0, delete_retention_ms=1000
)


async def compact(partition: Partition, now_ms: int = NOW_MS) -> None:
    """A round over everything written so far."""
    await partition.committed(partition.log_end_offset)
    partition.log.roll(now_ms)
    await checkpoint(partition)
    await compact_partition(partition, partition.log._files, now_ms)


def table(partition: Partition) -> dict[bytes | None, tuple[int, bytes | None]]:
    """The last record of each key: its offset and value."""
    return {record.key: (record.offset, record.value) for record in read_all(partition)}


async def test_last_value_of_each_key_stays_at_its_offset(tmp_path: Path) -> None:
    async with opened(tmp_path / "p", COMPACT) as partition:
        for number in range(60):
            await commit(partition, make_batch([(b"k%d" % (number % 7), b"v%d" % number + b"." * 100)]))
        before, size = table(partition), partition.size_bytes
        await compact(partition)
        records = read_all(partition)
        assert len(records) == 7
        assert table(partition) == before
        assert partition.size_bytes < size / 4
        assert (partition.log_start_offset, partition.log_end_offset, partition.high_watermark) == (0, 60, 60)
        assert await commit(partition, make_batch([(b"k", b"v")])) == 60
    async with opened(tmp_path / "p", COMPACT) as partition:
        assert partition.log.damage is None
        assert len(read_all(partition)) == 8
        for offset in range(60):
            found = read_all(partition, start=offset)
            assert [record.offset for record in found] == [r.offset for r in records if r.offset >= offset] + [60]


async def test_small_segments_are_joined(tmp_path: Path) -> None:
    async with opened(tmp_path / "p", COMPACT) as partition:
        for number in range(100):
            await commit(partition, make_batch([(b"k", b"v%d" % number + b"." * 100)]))
        many = len(partition.log.segments)
        for _ in range(4):
            await compact(partition)
            await commit(partition, make_batch([(b"k", b"v")]))
        assert len(partition.log.segments) < many / 2
        assert len(sorted((tmp_path / "p").glob("*.log"))) == len(partition.log.segments)


async def test_tombstones_stay_for_delete_retention_ms(tmp_path: Path) -> None:
    async with opened(tmp_path / "p", COMPACT) as partition:
        await commit(partition, make_batch([(b"gone", b"v" * 100)]))
        await commit(partition, make_batch([(b"gone", None), (b"stays", b"v")]))
        await compact(partition)
        assert table(partition) == {b"gone": (1, None), b"stays": (2, b"v")}
        await commit(partition, make_batch([(b"other", b"v")]))
        await compact(partition, NOW_MS + 999)
        assert b"gone" in table(partition)
        await commit(partition, make_batch([(b"other", b"w")]))
        await compact(partition, NOW_MS + 1000)
        assert table(partition) == {b"stays": (2, b"v"), b"other": (4, b"w")}


async def test_producers_last_batch_keeps_its_sequence_when_its_records_go(tmp_path: Path) -> None:
    async with opened(tmp_path / "p", COMPACT) as partition:
        last = make_batch([(b"k", b"v" * 100)] * 3, producer=(5, 1, 0))
        await commit(partition, last)
        for _ in range(20):
            await commit(partition, make_batch([(b"k", b"w" * 100)]))
        await compact(partition)
        assert len(read_all(partition)) == 1
    for path in (tmp_path / "p").glob("*.snapshot"):
        path.unlink()
    (tmp_path / "p" / "checkpoint").unlink()
    async with opened(tmp_path / "p", COMPACT) as partition:
        producer = partition.producers.get(ProducerId(5))
        assert producer is not None
        assert (producer.epoch, producer.batches[-1].last_sequence) == (1, 2)
        again = partition.append_as_leader(memoryview(last), NOW_MS)
        assert again.is_duplicate
        assert (again.base_offset, again.end_offset) == (0, 3)


async def test_more_keys_than_memory_allows_take_several_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "p", COMPACT) as partition:
        for number in range(120):
            await commit(partition, make_batch([(b"k%d" % (number % 40), b"v%d" % number + b"." * 60)]))
        before = table(partition)
        partition.log.roll(NOW_MS)
        await checkpoint(partition)
        cleaned_to = 0
        for _ in range(20):
            plan = plan_compaction(partition.log, {}, partition.high_watermark, NOW_MS, keys_max=15)
            if plan is None:
                break
            monkeypatch.setattr(compaction.plan_compaction, "__kwdefaults__", {"keys_max": 15})
            await compact_partition(partition, partition.log._files, NOW_MS)
            state = load_state(tmp_path / "p")
            assert state.cleaned_to > cleaned_to
            cleaned_to = state.cleaned_to
            assert table(partition) == before
        assert cleaned_to == 120
        assert len(read_all(partition)) < 120


async def test_nothing_is_compacted_before_enough_is_dirty(tmp_path: Path) -> None:
    config = LogConfig(cleanup_policy=frozenset({"compact"}), segment_bytes=1200, min_cleanable_dirty_ratio=0.5)
    async with opened(tmp_path / "p", config) as partition:
        for number in range(40):
            await commit(partition, make_batch([(b"k%d" % number, b"." * 100)]))
        await compact(partition)
        await commit(partition, make_batch([(b"k0", b"." * 100)]))
        await compact(partition)
        assert len(read_all(partition)) == 41
        assert load_state(tmp_path / "p").cleaned_to == 40


async def test_uncommitted_and_active_records_are_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path / "p", COMPACT) as partition:
        for number in range(30):
            append(partition, make_batch([(b"k", b"v%d" % number + b"." * 100)]))
        await compact_partition(partition, partition.log._files, NOW_MS)
        await partition.committed(Offset(30))
        assert len(read_all(partition)) == 30


@pytest.mark.parametrize("crash", ["before the decision", "after the decision", "after the rename", "index written"])
async def test_crash_during_the_swap_leaves_the_old_or_the_new(tmp_path: Path, crash: str) -> None:
    directory = tmp_path / "p"
    async with opened(directory, COMPACT) as partition:
        for number in range(60):
            await commit(partition, make_batch([(b"k%d" % (number % 5), b"v%d" % number + b"." * 60)]))
        before = table(partition)
        partition.log.roll(NOW_MS)
        await checkpoint(partition)
        plan = plan_compaction(partition.log, {}, partition.high_watermark, NOW_MS)
        assert plan is not None
        save_state(directory, CompactionState())
        cleaned = Compactor(plan).run()
        assert len(cleaned[0].bases) > 1 or len(cleaned) > 1
        for new in cleaned:
            if crash == "before the decision":
                break
            decide_swap(directory, new.bases)
            if crash == "after the decision":
                break
            manifest = (directory / f"{new.bases[0]:020d}.swap").read_bytes()
            carry_out_swap(directory, new.bases)
            if crash == "after the rename":
                (directory / f"{new.bases[0]:020d}.swap").write_bytes(manifest)
                break
    async with opened(directory, COMPACT) as partition:
        assert partition.failure is None
        assert partition.log.damage is None
        assert table(partition) == before
        assert partition.log_end_offset == 60
        assert not list(directory.glob("*.cleaned")) + list(directory.glob("*.swap"))
        await compact(partition)
        assert table(partition) == before
        assert len(read_all(partition)) == 5


KEYS = st.sampled_from([b"a", b"b", b"c", b"d" * 40, b"e" * 40, b""])
BATCHES = st.lists(st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=80))), min_size=1, max_size=6))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=BATCHES,
    rounds=st.sets(st.integers(0, 30)),
    producers=st.integers(1, 3),
    compression=st.sampled_from([Compression.NONE, Compression.ZSTD]),
)
async def test_whatever_is_written_the_table_is_the_same_after_any_rounds(
    tmp_path: Path,
    batches: Sequence[Sequence[KeyValue]],
    rounds: set[int],
    producers: int,
    compression: Compression,
) -> None:
    directory = tmp_path / "p"
    shutil.rmtree(directory, ignore_errors=True)
    model: dict[bytes | None, tuple[int, bytes | None]] = {}
    sequences = [0] * producers
    async with opened(directory, COMPACT) as partition:
        for number, batch in enumerate(batches):
            producer = number % producers
            made = make_batch(batch, producer=(producer, 0, sequences[producer]), compression=compression)
            base = await commit(partition, made)
            sequences[producer] += len(batch)
            model.update({key: (base + at, value) for at, (key, value) in enumerate(batch)})
            if number in rounds:
                await compact(partition)
                assert table(partition) == model
        await compact(partition)
        found = read_all(partition)
        assert len(found) == len(model)
        assert table(partition) == model
        last = {producer_id: producer.batches[-1] for producer_id, producer in partition.producers.items()}
    for path in (*directory.glob("*.snapshot"), *directory.glob("checkpoint"), *directory.glob("*.index")):
        path.unlink()
    async with opened(directory, COMPACT) as partition:
        assert partition.log.damage is None
        assert read_all(partition) == found
        rebuilt = {producer_id: producer.batches[-1] for producer_id, producer in partition.producers.items()}
        assert {key: batch[:4] for key, batch in rebuilt.items()} == {key: batch[:4] for key, batch in last.items()}


@pytest.mark.parametrize("compression", list(Compression))
def test_kept_records_are_the_same_bytes_in_every_codec(compression: Compression) -> None:
    builder = DefaultRecordBatchBuilder(2, int(compression), 0, -1, -1, -1, 1 << 20)
    for number in range(10):
        builder.append(number, NOW_MS + number, b"k%d" % number, b"v" * 300, [("h", b"x")])
    batch = bytes(builder.build())
    header = check_batch(batch)
    assert header.compression is compression
    kept = keep_records(memoryview(batch), header, lambda record: record.offset % 3 == 0)
    new = check_batch(kept)
    assert new.compression is compression
    assert (new.last_offset_delta, new.record_count, new.has_gaps) == (9, 4, True)
    assert list(read_records(kept)) == [record for record in read_records(batch) if record.offset % 3 == 0]
    assert new.max_timestamp_ms == NOW_MS + 9
    empty = check_batch(keep_records(memoryview(batch), header, lambda record: False))
    assert (empty.record_count, empty.last_offset_delta, empty.size_bytes) == (0, 9, 61)


def test_batch_that_loses_nothing_is_not_touched() -> None:
    batch = memoryview(make_batch([(b"k", b"v")], compression=Compression.ZSTD))
    assert keep_records(batch, BatchHeader.parse(batch), lambda record: True) is batch
    assert [record.key for record in stored_records(batch, BatchHeader.parse(batch))] == [b"k"]


def test_rounds_remembered_are_bounded_and_never_early() -> None:
    state = CompactionState()
    for number in range(10_000):
        now_ms = number * 10
        state = state.after_round(Offset(number), 100_000, now_ms)
        end = state.tombstones_end(100_000, now_ms)
        assert end <= max(0, number - 10_000)
    assert len(state.rounds) < 200
