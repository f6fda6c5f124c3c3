"""Opening a log after a crash: torn tails, flipped bits, missing and damaged files. Nothing committed is dropped."""

# ruff: noqa: ASYNC240  # a test looks at its own files, and nothing else runs meanwhile
from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.core.log.support import NOW_MS, append, checkpoint, commit, make_batch, opened, read_all, records_in, values
from tidegate_core.errors import PartitionDamaged
from tidegate_core.log.config import LogConfig
from tidegate_core.log.snapshots import write_snapshot
from tidegate_wire.identifiers import Offset, ProducerId
from tidegate_wire.records import BatchHeader

SMALL = LogConfig(segment_bytes=1500)
BATCHES = 12


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 0x10
    path.write_bytes(data)


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    """Three segments or more, 12 batches of two records, everything before batch 10 behind the recovery point."""
    directory = tmp_path / "p"
    async with opened(directory, SMALL) as partition:
        for number in range(BATCHES):
            if number == BATCHES - 2:
                await checkpoint(partition)
            await commit(partition, make_batch(values(2, 150, start=2 * number), producer=(5, 1, 2 * number)))
    assert len(segments(directory)) >= 3
    return directory


async def test_torn_tail_is_cut_wherever_it_was_torn(tmp_path: Path) -> None:
    directory = tmp_path / "p"
    async with opened(directory) as partition:
        for number in range(3):
            await commit(partition, make_batch(values(2, start=2 * number), producer=(5, 1, 2 * number)))
        ends = [0]
        for number in range(3):
            ends.append(ends[-1] + len(make_batch(values(2, start=2 * number))))
    (path,) = segments(directory)
    whole = path.read_bytes()
    assert ends[-1] == len(whole)
    for size in range(ends[2], ends[3]):
        copy = tmp_path / f"copy-{size}"
        shutil.copytree(directory, copy)
        os.truncate(copy / path.name, size)
        with capture_logs() as logs:
            async with opened(copy) as partition:
                assert partition.failure is None
                assert (partition.log_end_offset, partition.high_watermark) == (4, 4)
                assert (copy / path.name).stat().st_size == ends[2]
                producer = partition.producers.get(ProducerId(5))
                assert producer is not None
                assert producer.batches[-1].last_sequence == 3
                assert await commit(partition, make_batch(values(2, start=4), producer=(5, 1, 4))) == 4
                assert len(read_all(partition)) == 6
        cuts = [entry for entry in logs if entry["event"] == "torn_tail_cut"]
        assert [cut["cut_bytes"] for cut in cuts] == ([size - ends[2]] if size > ends[2] else [])


@pytest.mark.parametrize("garbage", [b"\0" * 5000, b"\xff" * 300, bytes(range(256)) * 20])
async def test_garbage_after_the_last_batch_is_cut(filled: Path, garbage: bytes) -> None:
    with segments(filled)[-1].open("ab") as file:
        file.write(garbage)
    async with opened(filled, SMALL) as partition:
        assert partition.failure is None
        assert partition.log_end_offset == 2 * BATCHES
        assert len(read_all(partition)) == 2 * BATCHES


async def test_flipped_bit_in_the_last_batch_is_a_torn_tail(filled: Path) -> None:
    """It can't be told from a write that the crash cut: no batch follows it, and the recovery point is before it."""
    path = segments(filled)[-1]
    flip(path, path.stat().st_size - 1)
    async with opened(filled, SMALL) as partition:
        assert partition.failure is None
        assert partition.log_end_offset == 2 * BATCHES - 2


async def test_flipped_bit_with_batches_behind_it_is_damage_and_nothing_is_cut(tmp_path: Path) -> None:
    directory = tmp_path / "p"
    batch = make_batch(values(2, 50))
    async with opened(directory) as partition:
        for _ in range(5):
            await commit(partition, batch)
    (path,) = segments(directory)
    flip(path, 2 * len(batch) + len(batch) // 2)
    before = path.read_bytes()
    async with opened(directory) as partition:
        assert isinstance(partition.failure, PartitionDamaged)
        with pytest.raises(PartitionDamaged):
            append(partition, batch)
        assert [record.offset for record in read_all(partition)] == [0, 1, 2, 3]
        assert (partition.log_end_offset, partition.high_watermark) == (4, 4)
    assert path.read_bytes() == before


async def test_flipped_bit_before_the_recovery_point_is_found_by_the_reader(filled: Path) -> None:
    path = segments(filled)[0]
    size = len(make_batch(values(2, 150)))
    flip(path, size + size // 2)
    before = path.read_bytes()
    async with opened(filled, SMALL) as partition:
        assert partition.failure is None
        assert [record.offset for record in records_in(partition.read(Offset(0), size * 3).buffers)] == [0, 1]
        with pytest.raises(PartitionDamaged, match="CRC"):
            partition.read(Offset(2), 1000)
        assert partition.log.damage is not None
        assert records_in(partition.read(Offset(4), 1000).buffers)[0].offset == 4
        assert await commit(partition, make_batch(values(1))) == 2 * BATCHES
    assert path.read_bytes() == before


@pytest.mark.parametrize("byte", [0, 5, 7, 8, 11, 16, 17, 23, 60, 61])
async def test_no_flipped_bit_of_a_header_reaches_a_reader_unseen(filled: Path, byte: int) -> None:
    path = segments(filled)[0]
    flip(path, len(make_batch(values(2, 150))) + byte)
    async with opened(filled, SMALL) as partition:
        assert [record.offset for record in records_in(partition.read(Offset(0), 1).buffers)] == [0, 1]
        for offset in (2, 3):
            with pytest.raises(PartitionDamaged):
                partition.read(Offset(offset), 1)


@pytest.mark.parametrize("what", ["missing", "empty", "cut", "flipped"])
@pytest.mark.parametrize("suffix", ["*.index", "checkpoint", "*.snapshot"])
async def test_derived_files_are_built_again(filled: Path, suffix: str, what: str) -> None:
    async with opened(filled, SMALL) as partition:
        before = (read_all(partition), partition.producers.get(ProducerId(5)))
    for path in filled.glob(suffix):
        if what == "missing":
            path.unlink()
        elif what == "empty":
            path.write_bytes(b"")
        elif what == "cut":
            os.truncate(path, path.stat().st_size - 1)
        else:
            flip(path, path.stat().st_size - 3)
    async with opened(filled, SMALL) as partition:
        assert partition.failure is None
        assert partition.log.damage is None
        assert (read_all(partition), partition.producers.get(ProducerId(5))) == before
        assert partition.offset_for_time(0) == (0, NOW_MS)
        assert await commit(partition, make_batch(values(1), producer=(5, 1, 2 * BATCHES))) == 2 * BATCHES


async def test_shortened_sealed_segment_is_damage(filled: Path) -> None:
    path = segments(filled)[0]
    size = len(make_batch(values(2, 150)))
    os.truncate(path, path.stat().st_size - size)
    async with opened(filled, SMALL) as partition:
        assert partition.log.damage is not None
        assert partition.failure is None
        lost = BatchHeader.parse(segments(filled)[1].read_bytes()).base_offset - 1
        with pytest.raises(PartitionDamaged):
            partition.read(Offset(lost), 1000)
        assert records_in(partition.read(Offset(lost + 1), 1).buffers)


@pytest.mark.parametrize("at", [0, 1])
async def test_missing_segment_before_the_recovery_point_is_damage(filled: Path, at: int) -> None:
    path = segments(filled)[at]
    first_after = int(segments(filled)[at + 1].stem)
    path.unlink()
    async with opened(filled, SMALL) as partition:
        assert partition.log.damage is not None
        if at:
            with pytest.raises(PartitionDamaged):
                partition.read(Offset(int(path.stem)), 1000)
        assert records_in(partition.read(Offset(first_after), 1).buffers)[0].offset == first_after


async def test_missing_active_segment_is_damage_and_its_offsets_are_not_given_again(filled: Path) -> None:
    async with opened(filled, SMALL) as partition:
        await checkpoint(partition)
    segments(filled)[-1].unlink()
    async with opened(filled, SMALL) as partition:
        assert isinstance(partition.failure, PartitionDamaged)
        with pytest.raises(PartitionDamaged):
            append(partition, make_batch(values(1)))


async def test_all_segments_missing_is_damage(filled: Path) -> None:
    for path in segments(filled):
        path.unlink()
    async with opened(filled, SMALL) as partition:
        assert isinstance(partition.failure, PartitionDamaged)


async def test_roll_whose_old_segment_never_reached_the_disk(tmp_path: Path) -> None:
    """A power cut took the end of a closed segment, and all of the new one but its name."""
    directory = tmp_path / "p"
    async with opened(directory, SMALL) as partition:
        for number in range(8):
            append(partition, make_batch(values(2, 150, start=2 * number)))
        await partition.committed(Offset(16))
    first, *others = segments(directory)
    for path in directory.glob("checkpoint"):
        path.unlink()
    for path in directory.glob("*.index"):
        path.unlink()
    os.truncate(first, first.stat().st_size - 10)
    for path in others:
        os.truncate(path, 0)
    async with opened(directory, SMALL) as partition:
        assert partition.failure is None
        offsets = [record.offset for record in read_all(partition)]
        assert offsets == list(range(len(offsets)))
        assert partition.log_end_offset == len(offsets) > 0
        assert await commit(partition, make_batch(values(1))) == len(offsets)


async def test_after_a_checkpoint_nothing_is_scanned(tmp_path: Path) -> None:
    directory = tmp_path / "p"
    async with opened(directory) as partition:
        for number in range(200):
            append(partition, make_batch(values(10, 500, start=number)))
        await checkpoint(partition)
    with capture_logs() as logs:
        async with opened(directory) as partition:
            assert partition.log_end_offset == 2000
    assert [entry for entry in logs if entry["event"] == "log_recovered"] == []


async def test_after_a_crash_only_what_follows_the_recovery_point_is_scanned(tmp_path: Path) -> None:
    directory = tmp_path / "p"
    async with opened(directory) as partition:
        for number in range(200):
            append(partition, make_batch(values(10, 500, start=number)))
        await checkpoint(partition)
        checkpointed = partition.size_bytes
        await commit(partition, make_batch(values(10, 500)))
        total = partition.size_bytes
    with capture_logs() as logs:
        async with opened(directory) as partition:
            assert partition.log_end_offset == 2010
    (entry,) = (entry for entry in logs if entry["event"] == "log_recovered")
    assert total - checkpointed <= entry["scanned_bytes"] <= total - checkpointed + 40_000


async def test_checkpoint_that_comes_after_the_close_writes_nothing(tmp_path: Path) -> None:
    """The directory's name may be another partition's by then."""
    directory = tmp_path / "p"
    async with opened(directory) as partition:
        await commit(partition, make_batch(values(3)))
        late = partition.log.begin_sync(
            lambda: write_snapshot(directory, Offset(3), partition.producers, committed=Offset(3))
        )
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    late.run()
    late.write_checkpoint()
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


async def test_first_snapshot_damaged_falls_back_to_the_one_before(tmp_path: Path) -> None:
    directory = tmp_path / "p"
    async with opened(directory) as partition:
        for number in range(6):
            await commit(partition, make_batch(values(1), producer=(number % 2, 0, number // 2)))
            await checkpoint(partition)
    snapshots = sorted(directory.glob("*.snapshot"))
    assert len(snapshots) == 2
    flip(snapshots[-1], 30)
    async with opened(directory) as partition:
        for producer in (0, 1):
            known = partition.producers.get(ProducerId(producer))
            assert known is not None
            assert [batch.base_sequence for batch in known.batches] == [0, 1, 2]
