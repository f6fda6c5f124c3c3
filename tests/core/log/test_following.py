"""A replica that follows: what it takes and refuses, how it is cut and begins anew, and what a crash leaves of that."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.log.support import NOW_MS, checkpoint, make_batch, open_or_create, values
from tidegate_core.errors import (
    CorruptBatchRefused,
    DiskFull,
    NotLeader,
    PartitionDamaged,
    PartitionError,
    StorageFailed,
    UnknownProducer,
)
from tidegate_core.log import files
from tidegate_core.log.app_state import write_app_state
from tidegate_core.log.config import LogConfig
from tidegate_core.log.control import leader_change, voters_record
from tidegate_core.log.files import OpenFiles
from tidegate_core.log.flusher import Flusher
from tidegate_core.log.partition_snapshot import PartitionSnapshot
from tidegate_core.partition import Partition
from tidegate_core.upkeep import compact_partition, keep_in_bounds
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset, ProducerId
from tidegate_wire.records import BatchHeader, iter_batches, stamp

VOTERS = (NodeId(1), NodeId(2), NodeId(3))
SMALL = LogConfig(segment_bytes=1000)


@asynccontextmanager
async def replica(
    directory: Path, config: LogConfig = SMALL, *, epoch: int = 1, voters: tuple[NodeId, ...] = VOTERS
) -> AsyncIterator[Partition]:
    """A replica of three that follows in `epoch`; closed at the end as a crash leaves it."""
    files._unsafe_directories.clear()  # as in a new process
    flusher = Flusher()
    partition = open_or_create(directory, config, OpenFiles(8), flusher, voters=voters)
    partition.follow(LeaderEpoch(epoch))
    try:
        yield partition
    finally:
        await flusher.close()
        partition.close()


def stamped(batch: bytes | bytearray, offset: int, epoch: int = 1) -> bytes:
    data = bytearray(batch)
    stamp(data, Offset(offset), LeaderEpoch(epoch))
    return bytes(data)


def take(partition: Partition, *batches: bytes) -> None:
    partition.append_as_follower(memoryview(b"".join(batches)), NOW_MS)


def begun(offset: int, epoch: int) -> bytes:
    """The record with which a leader begins its epoch."""
    return stamped(leader_change(NodeId(2), VOTERS).to_batch(NOW_MS), offset, epoch)


async def sync(partition: Partition) -> None:
    async with asyncio.timeout(20):
        await partition.synced(partition.log_end_offset)


def batches_of(partition: Partition) -> list[bytes]:
    """All from the log's start to its end."""
    found: list[bytes] = []
    offset = partition.log_start_offset
    while offset < partition.log_end_offset:
        for buffer in partition.read_for_replica(offset, 1 << 20):
            found += [bytes(batch) for batch in iter_batches(buffer)]
        offset = Offset(BatchHeader.parse(found[-1]).last_offset + 1)
    return found


# Taking what the leader sends.


async def test_follower_keeps_the_leaders_bytes_and_can_lead_with_its_producers(tmp_path: Path) -> None:
    async with replica(tmp_path / "leader") as leader, replica(tmp_path / "follower") as follower:
        leader.lead(LeaderEpoch(1))
        for sequence in range(6):
            leader.append_as_leader(memoryview(make_batch(values(1, 300), producer=(7, 0, sequence))), NOW_MS)
        leader.append_control(voters_record((NodeId(1), NodeId(4))), NOW_MS)
        sent = leader.read_for_replica(Offset(0), 1 << 20)
        follower.append_as_follower(memoryview(b"".join(sent)), NOW_MS)
        assert batches_of(follower) == batches_of(leader)
        assert (follower.voters, follower.voters_offset) == ((NodeId(1), NodeId(4)), 6)
        follower.lead(LeaderEpoch(2))
        again = follower.append_as_leader(memoryview(make_batch(values(1, 300), producer=(7, 0, 5))), NOW_MS)
        assert again.is_duplicate
        assert again.base_offset == 5


async def test_what_is_not_committed_is_not_read_by_consumers_after_a_restart(tmp_path: Path) -> None:
    async with replica(tmp_path / "p") as partition:
        take(partition, stamped(make_batch(values(3)), 0))
        await sync(partition)
        partition.set_high_watermark(Offset(3))
    async with replica(tmp_path / "p") as partition:
        assert (partition.log_end_offset, partition.synced_offset, partition.high_watermark) == (3, 3, 0)
        assert partition.read(Offset(0), 1000).buffers == ()
        assert not partition.is_leader


async def test_who_waits_is_told_when_another_leads(tmp_path: Path) -> None:
    calls: list[str] = []
    async with replica(tmp_path / "p") as partition:
        partition.lead(LeaderEpoch(2))
        end = partition.append_as_leader(memoryview(make_batch(values(1))), NOW_MS).end_offset
        partition.when_readable(Offset(0), lambda: calls.append("reader"))
        waiting = asyncio.create_task(partition.committed(end))
        await asyncio.sleep(0)
        partition.follow(LeaderEpoch(3))
        with pytest.raises(NotLeader):
            await waiting
        assert calls == ["reader"]
        with pytest.raises(NotLeader):
            partition.append_as_leader(memoryview(make_batch(values(1))), NOW_MS)
        with pytest.raises(NotLeader):
            await partition.committed(end)


async def test_leader_that_is_to_hand_over_takes_no_more(tmp_path: Path) -> None:
    async with replica(tmp_path / "p") as partition:
        partition.lead(LeaderEpoch(2))
        partition.is_draining = True
        with pytest.raises(NotLeader):
            partition.append_as_leader(memoryview(make_batch(values(1))), NOW_MS)
        partition.lead(LeaderEpoch(3))
        assert partition.append_as_leader(memoryview(make_batch(values(1))), NOW_MS).base_offset == 0


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_bytes_are_refused_as_a_whole_or_were_whole_batches(tmp_path: Path, data: st.DataObject) -> None:
    """No other error, nothing half taken: a leader's memory and wires may flip bits."""
    good = [
        stamped(make_batch(values(2), producer=(3, 0, 0)), 3),
        stamped(voters_record(VOTERS[:2]).to_batch(NOW_MS), 5),
        stamped(make_batch(values(1, 50)), 6),
    ]
    sent = bytearray(b"".join(good))
    kind = data.draw(st.sampled_from(["flip", "cut", "noise", "splice", "header"]))
    if kind == "flip":
        for _ in range(data.draw(st.integers(1, 3))):
            sent[data.draw(st.integers(0, len(sent) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        sent = sent[: data.draw(st.integers(0, len(sent)))]
    elif kind == "noise":
        sent = bytearray(data.draw(st.binary(max_size=300)))
    elif kind == "splice":
        at = data.draw(st.integers(0, len(sent)))
        sent[at:at] = data.draw(st.binary(min_size=1, max_size=80))
    else:
        at = data.draw(st.integers(0, 60))
        sent[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))

    async def run() -> None:
        directory = Path(tempfile.mkdtemp(dir=tmp_path)) / "p"
        async with replica(directory) as partition:
            take(partition, stamped(make_batch(values(3)), 0))
            before = partition.log_end_offset, batches_of(partition), partition.voters, len(partition.producers)
            try:
                partition.append_as_follower(memoryview(bytes(sent)), NOW_MS)
            except CorruptBatchRefused:
                after = partition.log_end_offset, batches_of(partition), partition.voters, len(partition.producers)
                assert after == before
            else:
                assert b"".join(batches_of(partition)[1:]) == sent
            assert partition.failure is None
        async with replica(directory) as partition:
            assert partition.failure is None
            assert not partition.is_damaged

    asyncio.run(run())


async def test_records_of_an_older_epoch_or_of_one_that_no_leader_began_are_refused(tmp_path: Path) -> None:
    async with replica(tmp_path / "p", epoch=5) as partition:
        take(partition, stamped(make_batch(values(1)), 0, 4))
        for epoch in (3, 5, 6):
            with pytest.raises(CorruptBatchRefused):
                take(partition, stamped(make_batch(values(1)), 1, epoch))
        for batches in ((begun(1, 6),), (begun(1, 3),), (begun(1, 5), stamped(make_batch(values(1)), 2, 4))):
            with pytest.raises(CorruptBatchRefused):
                take(partition, *batches)
        assert partition.log_end_offset == 1
        assert partition.last_epoch == 4


async def test_gaps_of_a_compacted_leader_are_taken_and_known_after_a_restart(tmp_path: Path) -> None:
    batches = [stamped(make_batch(values(2, 300)), offset) for offset in (0, 5, 10, 11, 14)]
    batches[3:4] = []
    async with replica(tmp_path / "p") as partition:
        take(partition, batches[0])
        assert partition.tombstones_removed_to == -1
        take(partition, *batches[1:3])
        assert partition.tombstones_removed_to >= 9
        take(partition, batches[3])
        removed_to = partition.tombstones_removed_to
        assert removed_to >= 13
        await sync(partition)
    for _ in range(2):
        async with replica(tmp_path / "p") as partition:
            assert partition.failure is None
            assert not partition.is_damaged
            assert batches_of(partition) == batches
            assert partition.tombstones_removed_to >= 13
            assert partition.read_for_replica(Offset(3), 1)[0][:8] == batches[1][:8]
            await checkpoint(partition)


async def test_full_disk_leaves_whole_batches_and_the_rest_is_taken_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [stamped(make_batch(values(1, 700), producer=(1, 0, number)), number) for number in range(5)]
    real = os.pwrite
    written = 0

    def full(descriptor: int, data: bytes, position: int) -> int:
        nonlocal written
        written += 1
        if written > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, position)

    async with replica(tmp_path / "p") as partition:
        take(partition, batches[0])
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(DiskFull):
            take(partition, *batches[1:])
        monkeypatch.setattr(os, "pwrite", real)
        assert partition.failure is None
        end = partition.log_end_offset
        assert end == 3
        assert batches_of(partition) == batches[:end]
        take(partition, *batches[end:])
        assert batches_of(partition) == batches
        producer = partition.producers.get(ProducerId(1))
        assert producer is not None
        assert [batch.base_offset for batch in producer.batches] == [0, 1, 2, 3, 4]


# Cutting.


async def test_cut_log_ends_with_the_epoch_and_voters_before_it(tmp_path: Path) -> None:
    async with replica(tmp_path / "p", epoch=9) as partition:
        take(partition, stamped(make_batch(values(2), producer=(1, 0, 0)), 0, 2))
        take(partition, begun(2, 3), stamped(voters_record(VOTERS[:2]).to_batch(NOW_MS), 3, 3))
        take(partition, begun(4, 5), stamped(make_batch(values(2), producer=(1, 0, 2)), 5, 5))
        partition.truncate(Offset(6))
        assert (partition.log_end_offset, partition.last_epoch) == (5, 5)
        assert partition.voters == VOTERS[:2]
        partition.truncate(Offset(4))
        assert (partition.log_end_offset, partition.last_epoch) == (4, 3)
        partition.truncate(Offset(2))
        assert (partition.log_end_offset, partition.last_epoch) == (2, 2)
        assert tuple(partition.voters) == VOTERS
        assert partition.voters_offset == -1
        producer = partition.producers.get(ProducerId(1))
        assert producer is not None
        assert producer.batches[-1].last_sequence == 1
        partition.lead(LeaderEpoch(10))
        with pytest.raises(PartitionError):
            partition.append_as_leader(memoryview(make_batch(values(1), producer=(1, 0, 4))), NOW_MS)
        assert (
            partition.append_as_leader(memoryview(make_batch(values(2), producer=(1, 0, 2))), NOW_MS).base_offset == 2
        )


async def test_log_cut_to_its_start_still_has_the_epoch_before(tmp_path: Path) -> None:
    async with replica(tmp_path / "p", epoch=9) as partition:
        take(partition, stamped(make_batch(values(2)), 0, 4))
        await sync(partition)
        partition.set_high_watermark(Offset(2))
        partition.delete_before(Offset(2))
        take(partition, begun(2, 5), stamped(make_batch(values(2)), 3, 5))
        partition.truncate(Offset(2))
        assert (partition.log_start_offset, partition.log_end_offset, partition.last_epoch) == (2, 2, 4)
    async with replica(tmp_path / "p", epoch=9) as partition:
        assert (partition.log_start_offset, partition.log_end_offset, partition.last_epoch) == (2, 2, 4)


async def test_what_was_cut_does_not_come_back(tmp_path: Path) -> None:
    """Whatever checkpoints, indexes and snapshots of it had been written, or were about to be."""
    for pause in (0.0, 0.0005, 0.002, 0.01):
        directory = tmp_path / f"p{pause}"
        async with replica(directory, epoch=9) as partition:
            for number in range(6):
                take(partition, stamped(make_batch(values(1, 400), producer=(1, 0, number)), number, 1))
            partition.request_checkpoint()
            await asyncio.sleep(pause)
            partition.truncate(Offset(3))
            kept = [stamped(make_batch(values(1, 400), producer=(1, 0, number)), number, 1) for number in range(3)]
            new = [stamped(make_batch(values(2, 300), producer=(1, 1, 2 * at)), 4 + 2 * at, 2) for at in range(4)]
            new.insert(0, begun(3, 2))
            take(partition, *new)
            await sync(partition)
        for _ in range(2):
            async with replica(directory, epoch=9) as partition:
                assert partition.failure is None
                assert not partition.is_damaged
                assert batches_of(partition) == kept + new
                assert partition.last_epoch == 2
                producer = partition.producers.get(ProducerId(1))
                assert producer is not None
                assert (producer.epoch, producer.batches[-1].last_offset) == (1, 11)
                await checkpoint(partition)


async def test_full_disk_delays_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(tmp_path / "p") as partition:
        batches = [stamped(make_batch(values(1, 400), producer=(1, 0, number)), number) for number in range(4)]
        take(partition, *batches)
        await sync(partition)
        await checkpoint(partition)
        with failing(monkeypatch, errno.ENOSPC, first=1), pytest.raises(DiskFull):
            partition.truncate(Offset(2))
        assert partition.failure is None
        assert batches_of(partition) == batches
        partition.truncate(Offset(2))
        assert batches_of(partition) == batches[:2]
        assert partition.synced_offset == 2
        take(partition, *batches[2:])
        await sync(partition)
        assert batches_of(partition) == batches


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, number: int, *, first: int, last: int = 10**9) -> Iterator[list[str]]:
    """From its `first` on, each call that changes the disk fails; yields the names of the calls made."""
    calls: list[str] = []

    def wrap(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*arguments: object, **keywords: object) -> object:
            is_reading = name == "open" and isinstance(arguments[1], int) and not arguments[1] & os.O_CREAT
            if is_reading or str(arguments[0]).endswith(".deleted"):  # a file that is gone already
                return real(*arguments, **keywords)
            calls.append(name)
            if first <= len(calls) <= last:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "pwrite", "fdatasync", "fsync", "ftruncate", "rename", "replace", "unlink"):
            patch.setattr(os, name, wrap(name))
        yield calls


async def prepared(directory: Path) -> list[bytes]:
    """A replica with two segments and a checkpoint in between; everything before offset 3 is committed."""
    batches = [stamped(make_batch(values(1, 400), producer=(1, 0, number)), number, 1) for number in range(6)]
    async with replica(directory, epoch=9) as partition:
        take(partition, *batches[:3])
        await sync(partition)
        partition.set_high_watermark(Offset(3))
        await checkpoint(partition)
        take(partition, *batches[3:])
        await sync(partition)
        await checkpoint(partition)
    return batches


async def test_cut_that_fails_at_any_call_leaves_the_old_log_or_a_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk dies at each of its calls in turn, and with it the process."""
    calls = 1
    first = 1
    while first <= calls:
        directory = tmp_path / f"p{first}"
        batches = await prepared(directory)
        async with replica(directory, epoch=9) as partition:
            with failing(monkeypatch, errno.EIO, first=first) as made, suppress(StorageFailed):
                partition.truncate(Offset(3))
            calls += isinstance(partition.failure, StorageFailed)
        async with replica(directory, epoch=9) as partition:
            assert partition.failure is None, f"call {first}, {made[-1:]}"
            assert not partition.is_damaged
            found = batches_of(partition)
            assert len(found) >= 3
            assert found == batches[: len(found)]
            producer = partition.producers.get(ProducerId(1))
            assert producer is not None
            assert producer.batches[-1].last_offset == len(found) - 1
        first += 1
    assert first > 5


# Beginning anew.


def snapshot_at(offset: int, partition: Partition, app_state: bytes | None = None) -> PartitionSnapshot:
    """What `partition` would say if its log began at `offset`."""
    whole = PartitionSnapshot.decode(partition.snapshot())
    fields = {name: getattr(whole, name) for name in PartitionSnapshot.__slots__}
    epochs = ((LeaderEpoch(3), Offset(offset - 1)),) if offset else ()
    return PartitionSnapshot(**fields | {"offset": Offset(offset), "leader_epochs": epochs, "app_state": app_state})


async def test_replica_that_begins_anew_has_what_the_snapshot_says(tmp_path: Path) -> None:
    async with replica(tmp_path / "leader") as leader, replica(tmp_path / "p", epoch=4) as partition:
        leader.lead(LeaderEpoch(3))
        for number in range(10):
            leader.append_as_leader(memoryview(make_batch(values(1, 400), producer=(7, 0, number))), NOW_MS)
        leader.append_control(voters_record(VOTERS[1:]), NOW_MS)
        await sync(leader)
        leader.set_high_watermark(Offset(11))
        await checkpoint(leader)
        leader.delete_before(Offset(11))
        snapshot = PartitionSnapshot.decode(leader.snapshot())
        assert (snapshot.offset, snapshot.voters) == (11, VOTERS[1:])
        await prepared_in(partition)
        partition.reset(snapshot)
        for restarted in (False, True):
            if restarted:
                break
            check_anew(partition)
    async with replica(tmp_path / "p", epoch=4) as partition:
        assert partition.failure is None
        check_anew(partition)
        partition.lead(LeaderEpoch(5))
        again = partition.append_as_leader(memoryview(make_batch(values(1, 400), producer=(7, 0, 9))), NOW_MS)
        assert again.is_duplicate
        assert again.base_offset == 9
        with pytest.raises(UnknownProducer):
            partition.append_as_leader(memoryview(make_batch(values(1), producer=(1, 0, 6))), NOW_MS)


async def prepared_in(partition: Partition) -> None:
    for number in range(6):
        take(partition, stamped(make_batch(values(1, 400), producer=(1, 0, number)), number, 1))
    await sync(partition)
    await checkpoint(partition)


def check_anew(partition: Partition) -> None:
    assert (partition.log_start_offset, partition.log_end_offset) == (11, 11)
    assert (partition.high_watermark, partition.synced_offset, partition.last_epoch) == (11, 11, 3)
    assert partition.voters == VOTERS[1:]
    assert {producer_id for producer_id, _ in partition.producers.items()} == {7}
    assert batches_of(partition) == []


async def test_reset_that_fails_at_any_call_leaves_the_old_log_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replica(tmp_path / "leader") as leader:
        leader.lead(LeaderEpoch(3))
        leader.append_as_leader(memoryview(make_batch(values(1), producer=(7, 0, 0))), NOW_MS)
        await sync(leader)
        leader.set_high_watermark(Offset(1))
        snapshot = snapshot_at(40, leader, b"state")
    calls, first, old, new = 1, 1, 0, 0
    while first <= calls:
        directory = tmp_path / f"p{first}"
        batches = await prepared(directory)
        async with replica(directory, epoch=9) as partition:
            with failing(monkeypatch, errno.EIO, first=first) as made, suppress(StorageFailed):
                partition.reset(snapshot)
            calls += isinstance(partition.failure, StorageFailed)
        for _ in range(2):
            async with replica(directory, epoch=9) as partition:
                assert partition.failure is None, f"call {first}, {made[-1:]}"
                assert not partition.is_damaged
                if partition.log_start_offset == 40:
                    new += 1
                    assert (partition.log_end_offset, partition.last_epoch) == (40, 3)
                    assert {producer_id for producer_id, _ in partition.producers.items()} == {7}
                    assert (directory / f"{40:020d}.state").exists()
                    assert batches_of(partition) == []
                else:
                    old += 1
                    assert batches_of(partition) == batches
                    assert {producer_id for producer_id, _ in partition.producers.items()} == {1}
        first += 1
    assert old >= 4
    assert new >= 6


async def test_full_disk_delays_a_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(tmp_path / "p", epoch=9) as partition:
        await prepared_in(partition)
        snapshot = snapshot_at(40, partition)
        with failing(monkeypatch, errno.ENOSPC, first=1), pytest.raises(DiskFull):
            partition.reset(snapshot)
        assert partition.failure is None
        assert partition.log_end_offset == 6
        partition.reset(snapshot)
        assert (partition.log_start_offset, partition.log_end_offset) == (40, 40)
        take(partition, begun(40, 9))
        await sync(partition)
        assert partition.synced_offset == 41


async def test_snapshot_holds_no_producer_that_may_be_cut_away(tmp_path: Path) -> None:
    async with replica(tmp_path / "p") as partition:
        partition.lead(LeaderEpoch(2))
        for sequence in range(3):
            partition.append_as_leader(memoryview(make_batch(values(1), producer=(7, 0, sequence))), NOW_MS)
        partition.append_as_leader(memoryview(make_batch(values(1), producer=(8, 0, 0))), NOW_MS)
        partition.set_high_watermark(Offset(2))
        producers = PartitionSnapshot.decode(partition.snapshot()).producers
        known = producers.get(ProducerId(7))
        assert known is not None
        assert [batch.last_offset for batch in known.batches] == [0, 1]
        assert producers.get(ProducerId(8)) is None


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_hostile_snapshots_are_refused(data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from(SAMPLES))
    changed = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    changed = changed[: data.draw(st.integers(0, len(changed)))]
    try:
        snapshot = PartitionSnapshot.decode(bytes(changed))
    except ValueError:
        return
    assert snapshot.offset >= 0
    assert snapshot.voters


def _samples() -> list[bytes]:
    async def run() -> list[bytes]:
        with tempfile.TemporaryDirectory() as directory:
            async with replica(Path(directory) / "p") as partition:
                empty = partition.snapshot()
                await prepared_in(partition)
                partition.set_high_watermark(Offset(6))
                return [empty, partition.snapshot(), snapshot_at(3, partition, b"state").encode()]

    return asyncio.run(run())


SAMPLES = _samples()


# Who votes, after restarts.


async def test_voters_are_known_although_their_record_was_deleted(tmp_path: Path) -> None:
    async with replica(tmp_path / "p") as partition:
        take(partition, stamped(voters_record(VOTERS[:2]).to_batch(NOW_MS), 0))
        take(partition, *(stamped(make_batch(values(1, 900)), number) for number in range(1, 5)))
        await sync(partition)
        partition.set_high_watermark(Offset(5))
        await checkpoint(partition)
        partition.delete_before(Offset(4))
        await checkpoint(partition)
        assert partition.log.segments[0].base_offset > 0
    async with replica(tmp_path / "p") as partition:
        assert partition.failure is None
        assert partition.voters == VOTERS[:2]
        assert not partition.had_one_voter_only


async def test_partition_that_another_node_once_shared_is_not_led_alone_by_itself(tmp_path: Path) -> None:
    """It was moved from node 1 to node 2; all records of that are deleted, and node 2 starts again."""
    directory = tmp_path / "p"
    async with replica(directory, voters=(NodeId(1),)) as partition:
        assert partition.voters == (1,)
        take(partition, stamped(make_batch(values(1)), 0))
        take(partition, stamped(voters_record((NodeId(1), NodeId(2))).to_batch(NOW_MS), 1))
        take(partition, stamped(voters_record((NodeId(2),)).to_batch(NOW_MS), 2))
        take(partition, *(stamped(make_batch(values(1, 900)), number) for number in range(3, 6)))
        await sync(partition)
        partition.set_high_watermark(Offset(6))
        await checkpoint(partition)
        partition.delete_before(Offset(5))
        await checkpoint(partition)
    async with replica(directory) as partition:
        assert partition.voters == (2,)
        assert not partition.had_one_voter_only


# What only replicas may do by themselves.


async def test_retention_is_the_leaders(tmp_path: Path) -> None:
    config = LogConfig(segment_bytes=500, retention_bytes=600)
    async with replica(tmp_path / "p", config) as partition:
        take(partition, *(stamped(make_batch(values(1, 400)), number) for number in range(6)))
        await sync(partition)
        partition.set_high_watermark(Offset(6))
        await checkpoint(partition)
        keep_in_bounds(partition, NOW_MS, 10**15)
        assert partition.log_start_offset == 0
        partition.lead(LeaderEpoch(2))
        keep_in_bounds(partition, NOW_MS, 10**15)
        assert partition.log_start_offset == 4


async def test_compaction_leaves_what_is_not_committed_and_says_which_tombstones_it_took(tmp_path: Path) -> None:
    config = LogConfig(
        cleanup_policy=frozenset({"compact"}),
        segment_bytes=300,
        min_cleanable_dirty_ratio=0.0,
        delete_retention_ms=1000,
    )

    async def compact(partition: Partition, now_ms: int) -> None:
        await sync(partition)
        partition.log.roll(now_ms)
        await checkpoint(partition)
        await compact_partition(partition, partition.log._files, now_ms)

    async with replica(tmp_path / "p", config) as partition:
        partition.lead(LeaderEpoch(1))
        for record in ((b"gone", b"v" * 150), (b"stays", b"v" * 150), (b"gone", None), (b"stays", b"w" * 150)):
            partition.append_as_leader(memoryview(make_batch([record])), NOW_MS)
        await compact(partition, NOW_MS)
        assert len(batches_of(partition)) == 4, "nothing is committed"
        partition.set_high_watermark(Offset(4))
        await compact(partition, NOW_MS)
        assert len(batches_of(partition)) < 4
        assert partition.tombstones_removed_to == -1
        partition.append_as_leader(memoryview(make_batch([(b"other", b"v" * 150)])), NOW_MS)
        await sync(partition)
        partition.set_high_watermark(Offset(5))
        await compact(partition, NOW_MS + 5000)
        assert [BatchHeader.parse(batch).base_offset for batch in batches_of(partition)] == [3, 4]
        assert partition.tombstones_removed_to == 2
    async with replica(tmp_path / "p", config) as partition:
        assert partition.tombstones_removed_to == 2


async def test_flipped_bit_that_any_reader_finds_is_told_where_other_nodes_have_the_records(tmp_path: Path) -> None:
    directory = tmp_path / "p"
    await prepared(directory)
    path = min(directory.glob("*.log"))
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    async with replica(directory) as partition:
        told: list[Partition] = []
        partition.on_failed = told.append
        if partition.failure is None:
            with pytest.raises(PartitionDamaged):
                partition.read_for_replica(Offset(0), 1000)
            assert told == [partition]
        assert partition.is_damaged


async def test_lost_file_of_a_shared_log_is_a_failure_at_opening(tmp_path: Path) -> None:
    directory = tmp_path / "p"
    await prepared(directory)
    min(directory.glob("*.log")).unlink()
    async with replica(directory) as partition:
        assert isinstance(partition.failure, PartitionDamaged)
        assert partition.is_damaged


async def test_changed_byte_of_the_last_batch_is_no_torn_tail_where_other_nodes_may_count_on_it(tmp_path: Path) -> None:
    """Cutting it would take back what this node had acknowledged, and it would go on to vote as if it never had."""
    batch = stamped(make_batch(values(3, 250)), 3)
    async with replica(tmp_path / "p") as partition:
        take(partition, stamped(make_batch(values(3)), 0), batch)
        await sync(partition)
    (path,) = (tmp_path / "p").glob("*.log")
    whole = path.read_bytes()
    start = len(whole) - len(batch)
    for byte in [*range(start, start + 80), *range(start + 80, len(whole), 37), len(whole) - 1]:
        changed = bytearray(whole)
        changed[byte] ^= 1
        path.write_bytes(changed)
        async with replica(tmp_path / "p") as partition:
            assert isinstance(partition.failure, PartitionDamaged), f"byte {byte - start} of the batch"
            assert partition.is_damaged
        assert path.read_bytes() == changed
    for size in range(start + 1, len(whole), 29):
        path.write_bytes(whole[:size])
        async with replica(tmp_path / "p") as partition:
            assert partition.failure is None
            assert partition.log_end_offset == 3


async def test_damaged_producer_snapshot_is_damage_where_the_log_does_not_make_up_for_it(tmp_path: Path) -> None:
    directory = tmp_path / "p"
    await prepared(directory)
    for path in directory.glob("*.snapshot"):
        path.write_bytes(path.read_bytes()[:-1])
    async with replica(directory, epoch=9) as partition:
        assert partition.failure is None
        producer = partition.producers.get(ProducerId(1))
        assert producer is not None
        assert producer.batches[-1].last_offset == 5
        await sync(partition)
        partition.set_high_watermark(Offset(6))
        await checkpoint(partition)
        partition.request_checkpoint()
        take(partition, stamped(make_batch(values(1, 900)), 6))
        await sync(partition)
        await checkpoint(partition)
        partition.set_high_watermark(Offset(7))
        partition.delete_before(Offset(6))
        assert partition.log.segments[0].base_offset > 0
    for path in directory.glob("*.snapshot"):
        path.write_bytes(path.read_bytes()[:-1])
    async with replica(directory, epoch=9) as partition:
        assert isinstance(partition.failure, PartitionDamaged)


async def test_state_of_the_app_that_is_damaged_is_not_left_out_of_a_snapshot(tmp_path: Path) -> None:
    directory = tmp_path / "p"
    async with replica(directory) as partition:
        take(partition, *(stamped(make_batch(values(1)), number) for number in range(4)))
        await sync(partition)
        partition.set_high_watermark(Offset(4))
        write_app_state(directory, Offset(3), b"what 0 to 2 add up to")
        partition.delete_before(Offset(3))
        assert PartitionSnapshot.decode(partition.snapshot()).app_state == b"what 0 to 2 add up to"
        path = directory / f"{3:020d}.state"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        told: list[Partition] = []
        partition.on_failed = told.append
        with pytest.raises(PartitionDamaged):
            partition.snapshot()
        assert told == [partition]


async def test_changed_epoch_is_damage_wherever_it_stands_although_no_crc_covers_it(tmp_path: Path) -> None:
    """Other nodes would believe it: a follower would be told to cut what is committed, a candidate would win."""
    directory = tmp_path / "p"
    batches = [stamped(make_batch(values(1, 400), producer=(1, 0, number)), number, 1) for number in range(4)]
    batches += [begun(4, 3), *(stamped(make_batch(values(1, 400)), number, 3) for number in range(5, 9))]
    async with replica(directory, epoch=3) as partition:
        take(partition, *batches[:6])
        await sync(partition)
        await checkpoint(partition)
        take(partition, *batches[6:])
        await sync(partition)
    for path in sorted(directory.glob("*.log")):
        whole = path.read_bytes()
        at = 0
        for batch in iter_batches(whole):
            for bit in (0, 1, 2, 6, 28, 31):
                changed = bytearray(whole)
                changed[at + 15 - bit // 8] ^= 1 << bit % 8
                path.write_bytes(changed)
                async with replica(directory, epoch=3) as partition:
                    assert partition.last_epoch == 3
                    if partition.failure is None:
                        with pytest.raises(PartitionDamaged):
                            batches_of(partition)
                    assert partition.is_damaged
            at += len(batch)
        path.write_bytes(whole)
    async with replica(directory, epoch=3) as partition:
        assert batches_of(partition) == batches
