"""The metadata log on a disk: what is committed is applied, once and in order, over restarts, snapshots and damage."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from tests.core.metadata.support import ONE, THREE, TWO, Majority, metadata_of
from tidegate_core.errors import PartitionDamaged
from tidegate_core.log.app_state import load_app_state
from tidegate_core.log.control import leader_change
from tidegate_core.log.identity import METADATA_TOPIC
from tidegate_core.log.partition_snapshot import PartitionSnapshot
from tidegate_core.metadata.image import Changes, MetadataRecord, Topic, topic_deleted
from tidegate_wire.identifiers import Offset
from tidegate_wire.records import RecordBatchBuilder


def topic(number: int) -> Topic:
    return Topic(name=f"t{number}", topic_id=UUID(int=100 + number), replicas=((ONE, TWO, THREE),))


async def write(majority: Majority, *records: MetadataRecord) -> Offset:
    """One batch; returns when it is on this disk."""
    builder = RecordBatchBuilder()
    for record in records:
        builder.append(1, *record)
    end = majority.partition.append_as_leader(memoryview(bytearray(builder.build())), 1).end_offset
    await majority.partition.synced(end)
    return end


async def test_nothing_is_applied_before_a_majority_has_it(tmp_path: Path) -> None:
    async with metadata_of(tmp_path) as majority:
        majority.elect(1)
        majority.answers = False
        end = await write(majority, topic(1).to_record(), topic(2).to_record())
        majority.metadata.on_high_watermark()
        assert not majority.metadata.image.topics
        applied = asyncio.create_task(majority.metadata.applied(end))
        await asyncio.sleep(0)
        assert not applied.done()
        majority.commit()
        await applied
        assert list(majority.metadata.image.topics) == ["t1", "t2"]
        await majority.metadata.applied(end)


async def test_listeners_are_told_what_changed(tmp_path: Path) -> None:
    async with metadata_of(tmp_path) as majority:
        told: list[Changes] = []
        majority.metadata.on_change.append(told.append)
        majority.elect(1)
        await write(majority, topic(1).to_record())
        await write(majority, topic(2).to_record(), topic_deleted("t1"))
        assert [list(changes.topics) for changes in told] == [["t1"], ["t2", "t1"]]
        assert told[1].deleted == {topic(1).topic_id: "t1"}
        majority.metadata.on_high_watermark()
        assert len(told) == 2


async def test_a_restarted_node_applies_its_log_again_as_it_learns_that_it_is_committed(tmp_path: Path) -> None:
    async with metadata_of(tmp_path) as majority:
        majority.elect(1)
        for number in range(5):
            await write(majority, topic(number).to_record())
    async with metadata_of(tmp_path) as majority:
        assert not majority.metadata.image.topics
        majority.partition.set_high_watermark(Offset(3))
        majority.metadata.on_high_watermark()
        assert len(majority.metadata.image.topics) == 3
        majority.elect(2)
        assert len(majority.metadata.image.topics) == 5


async def test_a_node_alone_knows_everything_at_its_start(tmp_path: Path) -> None:
    async with metadata_of(tmp_path, voters=(ONE,)) as majority:
        majority.elect(0)
        for number in range(5):
            await write(majority, topic(number).to_record())
    async with metadata_of(tmp_path, voters=(ONE,)) as majority:
        assert len(majority.metadata.image.topics) == 5


async def test_a_snapshot_takes_the_place_of_the_logs_beginning(tmp_path: Path) -> None:
    async with metadata_of(tmp_path, snapshot_interval_records=10) as majority:
        majority.elect(1)
        for number in range(25):
            await write(majority, topic(number % 7).to_record())
        assert majority.partition.log_start_offset == 20
        state = load_app_state(majority.partition.log.directory)
        assert state is not None
        assert state[0] == 20
        topics = dict(majority.metadata.image.topics)
    async with metadata_of(tmp_path, snapshot_interval_records=10) as majority:
        assert majority.metadata.applied_offset == 20
        majority.elect(2)
        assert majority.metadata.image.topics == topics


async def test_a_follower_that_is_behind_the_log_begins_with_the_leaders_snapshot(tmp_path: Path) -> None:
    async with (
        metadata_of(tmp_path / "leader", snapshot_interval_records=10) as leader,
        metadata_of(tmp_path / "follower") as follower,
    ):
        told: list[Changes] = []
        follower.metadata.on_change.append(told.append)
        follower.elect(1)
        await write(follower, topic(99).to_record())
        follower.depose(2)
        leader.elect(2)
        for number in range(12):
            await write(leader, topic(number).to_record())
        follower.partition.reset(PartitionSnapshot.decode(leader.partition.snapshot()))
        follower.metadata.on_high_watermark()
        assert follower.metadata.applied_offset == 10
        follower.partition.append_as_follower(
            memoryview(b"".join(leader.partition.read_for_replica(Offset(10), 2**20))), 1
        )
        await follower.partition.synced(Offset(12))
        follower.commit()
        assert follower.metadata.image.topics == leader.metadata.image.topics
        assert told[1].deleted == {topic(99).topic_id: "t99"}
    async with metadata_of(tmp_path / "follower") as follower:
        assert follower.metadata.applied_offset == 10


async def test_a_crash_between_a_snapshot_and_the_end_of_the_logs_beginning_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with metadata_of(tmp_path, snapshot_interval_records=10) as majority:
        majority.elect(1)
        monkeypatch.setattr(type(majority.partition), "delete_before", lambda _partition, offset: offset)
        for number in range(12):
            await write(majority, topic(number).to_record())
        assert majority.partition.log_start_offset == 0
        monkeypatch.undo()
    async with metadata_of(tmp_path, snapshot_interval_records=10) as majority:
        assert majority.metadata.applied_offset == 10
        majority.elect(2)
        assert len(majority.metadata.image.topics) == 12
        assert majority.partition.log_start_offset == 10


async def test_a_full_disk_only_delays_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with metadata_of(tmp_path, snapshot_interval_records=4) as majority:
        majority.elect(1)

        def full(*_arguments: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("tidegate_core.metadata.metadata_log.write_app_state", full)
            for number in range(5):
                await write(majority, topic(number).to_record())
        assert majority.partition.log_start_offset == 0
        assert len(majority.metadata.image.topics) == 5
        for number in range(5, 9):
            await write(majority, topic(number).to_record())
        assert majority.partition.log_start_offset == 8


async def test_a_log_without_the_snapshot_it_needs_is_damage(tmp_path: Path) -> None:
    for voters, is_alone in (((ONE,), True), ((ONE, TWO, THREE), False)):
        path = tmp_path / str(len(voters))
        async with metadata_of(path, voters=voters, snapshot_interval_records=2) as majority:
            majority.elect(1)
            for number in range(4):
                await write(majority, topic(number).to_record())
            for state in majority.partition.log.directory.glob("*.state"):
                state.unlink()
        if is_alone:
            with pytest.raises(PartitionDamaged, match="no snapshot"):
                async with metadata_of(path):
                    pass
        else:
            async with metadata_of(path) as majority:  # others have it: the log is fetched anew
                assert majority.partition.is_damaged
                assert majority.partition.failure is not None


async def test_a_flipped_bit_is_found_by_a_node_alone_before_it_serves(tmp_path: Path) -> None:
    async with metadata_of(tmp_path, voters=(ONE,)) as majority:
        majority.elect(0)
        for number in range(3):
            await write(majority, topic(number).to_record())
    (segment,) = (tmp_path / f"{METADATA_TOPIC}-0").glob("*.log")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    with pytest.raises(PartitionDamaged):
        async with metadata_of(tmp_path, voters=(ONE,)):
            pass


async def test_what_can_not_be_applied_is_reported_and_tried_again(tmp_path: Path) -> None:
    async with metadata_of(tmp_path) as majority:
        majority.elect(1)
        await write(majority, (b"topic:t", b"not json"))
        assert majority.metadata.applied_offset == 0
        await write(majority, topic(1).to_record())
        assert not majority.metadata.image.topics


async def test_control_records_are_passed_over(tmp_path: Path) -> None:
    async with metadata_of(tmp_path) as majority:
        majority.elect(1)
        await write(majority, topic(1).to_record())
        end = majority.partition.append_control(leader_change(ONE, (ONE, TWO, THREE)), 1)
        await majority.partition.synced(end)
        await write(majority, topic(2).to_record())
        assert list(majority.metadata.image.topics) == ["t1", "t2"]
        assert majority.metadata.applied_offset == 3
