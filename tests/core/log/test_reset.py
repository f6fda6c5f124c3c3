"""A log that begins anew from a leader's snapshot, wherever the process dies on the way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.log.support import NOW_MS, checkpoint, make_batch, open_or_create, values
from tidegate_core.log.app_state import load_app_state, write_app_state
from tidegate_core.log.config import LogConfig
from tidegate_core.log.control import leader_change, voters_record
from tidegate_core.log.files import OpenFiles
from tidegate_core.log.flusher import Flusher
from tidegate_core.log.partition_snapshot import PartitionSnapshot
from tidegate_core.partition import Partition
from tidegate_core.producers import ProducerStates
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset, ProducerId
from tidegate_wire.records import BatchHeader, stamp

SMALL = LogConfig(segment_bytes=400)
VOTERS = (NodeId(1), NodeId(2), NodeId(3))
OTHERS = (NodeId(4), NodeId(1))


class Died(BaseException):
    """The process is gone."""


def header(offset: int, sequence: int) -> BatchHeader:
    batch = bytearray(make_batch(values(1), producer=(9, 0, sequence)))
    stamp(batch, Offset(offset), LeaderEpoch(2))
    return BatchHeader.parse(batch)


def snapshot_at(offset: int) -> PartitionSnapshot:
    producers = ProducerStates()
    producers.record(header(offset - 2, 0), NOW_MS)
    return PartitionSnapshot(
        offset=Offset(offset),
        leader_epochs=((LeaderEpoch(0), Offset(0)), (LeaderEpoch(2), Offset(offset - 2))),
        voters=OTHERS,
        producers=producers,
        app_state=b"what they add up to",
        compacted_to=Offset(offset - 1),
    )


def replicated(partition: Partition, count: int, epoch: int = 1) -> None:
    """Append what a leader would send."""
    if epoch > partition.last_epoch >= 0:
        begin = leader_change(VOTERS[1], VOTERS).to_batch(NOW_MS)
        stamp(begin, partition.log_end_offset, LeaderEpoch(epoch))
        partition.append_as_follower(memoryview(begin), NOW_MS)
    for number in range(count):
        batch = bytearray(make_batch(values(1, 100), producer=(1, 0, number)))
        stamp(batch, partition.log_end_offset, LeaderEpoch(epoch))
        partition.append_as_follower(memoryview(batch), NOW_MS)


def facts(partition: Partition) -> dict[str, Any]:
    """All that is known of a partition after a start."""
    return {
        "start": partition.log_start_offset,
        "end": partition.log_end_offset,
        "synced": partition.synced_offset,
        "epochs": partition.log.epochs.entries,
        "voters": (partition.voters_offset, partition.voters),
        "producers": {key: (known.epoch, known.batches) for key, known in partition.producers.items()},
        "app state": load_app_state(partition.log.directory),
        "compacted to": partition.log.compacted_to,
        "problems": (partition.failure, partition.log.damage),
    }


def die_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let that many changes of the disk happen, and then no more."""
    left = calls

    def limited(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Died
            left -= 1
            return real(*arguments, **keywords)

        return call

    for name in ("pwrite", "fdatasync", "fsync", "replace", "rename", "unlink", "ftruncate"):
        monkeypatch.setattr(os, name, limited(getattr(os, name)))


@pytest.mark.parametrize("offset", [3, 20, 50])
async def test_a_crash_at_any_step_leaves_the_old_log_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    """Back into what the log had, to its end, and beyond it."""
    flusher = Flusher()

    def opened(directory: Path) -> Partition:
        partition = open_or_create(directory, SMALL, OpenFiles(3), flusher, voters=VOTERS)
        partition.follow(LeaderEpoch(2))
        return partition

    partition = opened(tmp_path / "p")
    replicated(partition, 20)
    write_app_state(tmp_path / "p", Offset(7), b"older")
    await checkpoint(partition)
    partition.close()
    template = tmp_path / "template"
    (tmp_path / "p").rename(template)
    directory = tmp_path / "p"

    async def run(calls: int) -> tuple[bool, dict[str, Any]]:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(template, directory)
        partition = opened(directory)
        is_done = True
        with monkeypatch.context() as dying:
            die_after(dying, calls)
            try:
                partition.reset(snapshot_at(offset))
            except Died:
                is_done = False
        partition.close()
        await flusher.drain()
        again = opened(directory)
        found = facts(again)
        replicated(again, 3, epoch=2)
        await again.synced(again.log_end_offset)
        again.close()
        assert not list(directory.glob("reset*"))
        return is_done, found

    (_, old), (is_done, new) = await run(0), await run(1000)
    assert is_done
    assert (old["end"], new["start"], new["end"]) == (20, offset, offset)
    assert new["app state"] == (offset, b"what they add up to")
    assert new["voters"] == (-1, OTHERS)
    assert old["problems"] == new["problems"] == (None, None)
    turned = []
    for calls in range(1000):
        is_done, found = await run(calls)
        assert found in (old, new), calls
        turned.append(found == new)
        if is_done:
            break
    assert turned == sorted(turned), "once it is decided, it is done"
    await flusher.close()


async def test_who_waits_for_what_is_cut_waits_no_more(tmp_path: Path) -> None:
    flusher = Flusher()
    partition = open_or_create(tmp_path / "p", SMALL, OpenFiles(3), flusher, voters=VOTERS)
    partition.follow(LeaderEpoch(2))
    replicated(partition, 5)
    waits = [partition._syncing.waits.add(Offset(offset)) for offset in (2, 5)]
    partition.truncate(Offset(3))
    assert [wait.done() for wait in waits] == [False, True]
    await waits[0]
    replicated(partition, 5)
    wait = partition._syncing.waits.add(Offset(8))
    partition.reset(snapshot_at(2))
    assert wait.done()
    await flusher.close()
    partition.close()


async def test_a_sync_that_runs_while_the_log_is_cut_says_nothing_of_what_comes_after(tmp_path: Path) -> None:
    flusher = Flusher()
    partition = open_or_create(tmp_path / "p", SMALL, OpenFiles(3), flusher, voters=VOTERS)
    partition.follow(LeaderEpoch(2))
    replicated(partition, 5)
    running = partition._syncing.begin_sync()
    assert running is not None
    partition.truncate(Offset(2))
    replicated(partition, 5)
    assert partition.synced_offset < 7
    running.run()
    partition._syncing.end_sync(running, None)
    assert partition.synced_offset < 7
    await partition.synced(Offset(7))
    await flusher.close()
    partition.close()


async def test_a_follower_goes_on_from_its_leaders_snapshot_as_if_it_had_read_all(tmp_path: Path) -> None:
    flusher = Flusher()
    leader = open_or_create(tmp_path / "leader", SMALL, OpenFiles(9), flusher, voters=VOTERS)
    leader.lead(LeaderEpoch(1))
    for number in range(30):
        leader.append_as_leader(memoryview(make_batch(values(1, 60), producer=(number % 4, 0, number // 4))), NOW_MS)
        if number == 4:
            leader.append_control(voters_record(OTHERS), NOW_MS)
    await leader.synced(leader.log_end_offset)
    leader.set_high_watermark(Offset(28))
    leader.delete_before(Offset(25))
    follower = open_or_create(tmp_path / "follower", SMALL, OpenFiles(9), flusher, voters=VOTERS)
    follower.follow(LeaderEpoch(1))
    follower.reset(PartitionSnapshot.decode(leader.snapshot()))
    assert (follower.log_end_offset, follower.last_epoch, follower.voters) == (25, 1, OTHERS)
    while follower.log_end_offset < leader.log_end_offset:
        for data in leader.read_for_replica(follower.log_end_offset, 300):
            follower.append_as_follower(memoryview(data), NOW_MS)
    follower.set_high_watermark(Offset(28))
    for producer in range(4):
        known, expected = (one.producers.get(ProducerId(producer)) for one in (follower, leader))
        assert known is not None
        assert expected is not None
        assert known == expected
    await follower.synced(follower.log_end_offset)
    await flusher.close()
    for partition in (leader, follower):
        partition.close()


_OFFSETS = st.integers(0, 2**62).map(Offset)
_SNAPSHOTS = st.builds(
    PartitionSnapshot,
    offset=_OFFSETS,
    leader_epochs=st.lists(st.tuples(st.integers(0, 2**31 - 1).map(LeaderEpoch), _OFFSETS)).map(tuple),
    voters=st.lists(st.integers(0, 2**31 - 1).map(NodeId)).map(tuple),
    producers=st.sampled_from([ProducerStates(), snapshot_at(7).producers]),
    app_state=st.none() | st.binary(),
    compacted_to=_OFFSETS,
)


@given(_SNAPSHOTS)
def test_a_snapshot_comes_out_of_its_bytes_as_it_was(snapshot: PartitionSnapshot) -> None:
    data = snapshot.encode()
    again = PartitionSnapshot.decode(data)
    assert again.encode() == data
    assert (again.offset, again.leader_epochs, again.voters) == (
        snapshot.offset,
        snapshot.leader_epochs,
        snapshot.voters,
    )
    assert (again.app_state, again.compacted_to) == (snapshot.app_state, snapshot.compacted_to)
    assert list(again.producers.items()) == list(snapshot.producers.items())
