"""Groups whose coordinator moves to another node, over real logs."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from uuid import UUID

import pytest

from tests.core.groups.driver import join_request
from tests.core.groups.replicas import DAY_MS, NOW_MS, TOPIC_T, Cluster, cluster_of, turns, until
from tests.core.log.support import opened
from tidegate_core.groups import loader
from tidegate_core.groups.group import GroupState
from tidegate_core.groups.messages import LeavingMember
from tidegate_core.groups.records import CommittedOffset, OffsetKey, encode_offset, encode_offset_key
from tidegate_core.groups.shard import GroupShard, ShardState
from tidegate_core.log.identity import id_of_old_topic
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_wire.kafka.messages import ErrorCode

SESSION_MS = 300
"""Short enough to wait for its end."""


async def test_members_and_offsets_go_on_with_the_next_coordinator(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        members = await old.stable_members("a", "b")
        for number in range(10):
            assert await old.commit_offset(number, partition=number, member=members[0]) is ErrorCode.none
        assert await old.commit_offset(7, group_id="simple") is ErrorCode.none
        await cluster.move(new)
        assert [new.heartbeat(member) for member in members] == [ErrorCode.none, ErrorCode.none]
        assert [new.offset(partition=number) for number in range(10)] == list(range(10))
        assert new.offset("simple") == 7
        synced = await asyncio.gather(*(new.sync(member) for member in members))
        assert [result.assignment for result in synced] == [member.member_id.encode() for member in members]
        assert await new.commit_offset(11, member=members[1]) is ErrorCode.none
        assert await cluster_coordinator(cluster) == new.node_id


async def cluster_coordinator(cluster: Cluster) -> int:
    """Both nodes say the same."""
    answers = {await replica.groups.coordinator_of("g") for replica in cluster.replicas}
    (answer,) = answers
    return answer


async def test_the_node_that_led_before_keeps_no_group(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        assert new.error() is ErrorCode.not_coordinator
        await old.stable_members("a")
        await cluster.move(new)
        assert old.error() is ErrorCode.not_coordinator
        assert await old.commit_offset(1) is ErrorCode.not_coordinator
        assert (old.groups.shards, len(new.groups.shards)) == ([], 1)
        with pytest.raises(KafkaError) as refused:
            old.groups.shard_of("")
        assert refused.value.code is ErrorCode.invalid_group_id


async def test_a_join_that_waits_for_other_members_is_told_that_the_coordinator_moved(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        (leader,) = await old.stable_members("a")
        waiting = asyncio.create_task(old.join(client="b"))
        await turns()
        assert old.heartbeat(leader) is ErrorCode.rebalance_in_progress
        await cluster.move(new)
        assert (await waiting).error is ErrorCode.not_coordinator
        assert new.heartbeat(leader) is ErrorCode.none


async def test_an_assignment_that_is_being_written_is_not_told_by_a_coordinator_that_moved(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        joined = await old.join(client="a")
        old.has_quorum = False
        waiting = asyncio.create_task(old.sync(joined))
        await turns()
        await cluster.move(new, uncommitted=True)
        assert (await waiting).error is ErrorCode.not_coordinator
        assert (await new.sync(joined)).assignment == joined.member_id.encode()


async def test_a_sync_that_waits_for_the_leaders_assignment_is_told_that_the_coordinator_moved(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        (leader,) = await old.stable_members("a")
        joining = asyncio.create_task(old.join(client="b"))
        await turns()
        await old.join(leader.member_id)
        waiting = asyncio.create_task(old.sync(await joining))
        await turns()
        await cluster.move(new)
        assert (await waiting).error is ErrorCode.not_coordinator


async def test_a_commit_that_was_never_committed_is_not_acknowledged_nor_seen_again(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        assert await old.commit_offset(1) is ErrorCode.none
        old.has_quorum = False
        waiting = asyncio.create_task(old.commit_offset(2))
        await turns()
        assert (old.offset(), waiting.done()) == (1, False)
        await cluster.move(new)
        assert await waiting is ErrorCode.not_coordinator
        assert new.offset() == 1
        await cluster.move(old)
        assert old.offset() == 1


async def test_a_commit_that_the_next_coordinator_has_is_seen_although_its_client_was_not_told(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        old.has_quorum = False
        waiting = asyncio.create_task(old.commit_offset(2))
        await turns()
        await cluster.move(new, uncommitted=True)
        assert await waiting is ErrorCode.not_coordinator
        assert new.offset() == 2


async def test_a_node_that_leads_again_begins_with_what_its_log_says(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, nodes=1) as cluster:
        (only,) = cluster.replicas
        (member,) = await only.stable_members("a")
        coordinator = only.shard.coordinator
        only.has_quorum = False
        commit = asyncio.create_task(only.commit_offset(2, member=member))
        join = asyncio.create_task(only.join(client="b"))
        await turns()
        assert only.heartbeat(member) is ErrorCode.rebalance_in_progress
        await cluster.move(only)
        assert (await join).error is await commit is ErrorCode.not_coordinator
        assert only.shard.coordinator is not coordinator
        assert only.heartbeat(member) is ErrorCode.none  # the rebalance had not been written down
        assert only.offset() == 2  # the commit had


async def test_a_leader_without_a_quorum_tells_no_generation_and_no_assignment(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        (member,) = await old.stable_members("a")
        await cluster.elect(new)  # which the old one does not know
        stale = asyncio.create_task(old.join(member.member_id))
        fresh = await new.join(member.member_id)
        await turns()
        assert not stale.done()
        old.step_down()
        assert (await stale).error is ErrorCode.not_coordinator
        assert fresh.generation == member.generation + 1


# Generations.


async def test_a_generation_that_was_told_is_never_given_again(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        first, second = cluster.replicas
        told = (await first.join(client="a")).generation
        for replica in (second, first, second):
            await cluster.move(replica)
            for member in list(replica.shard.coordinator.groups["g"].members):
                replica.shard.leave("g", [LeavingMember(member_id=member.member_id)])
            joined = await replica.join(client="b")
            assert joined.generation > told
            told = joined.generation


async def test_members_told_of_a_generation_without_an_assignment_join_again_under_their_ids(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        joined = await old.join(client="a")
        await cluster.move(new)
        assert new.heartbeat(joined) is ErrorCode.rebalance_in_progress
        assert (await new.sync(joined)).error is ErrorCode.rebalance_in_progress
        again = await new.join(joined.member_id)
        assert (again.member_id, again.generation) == (joined.member_id, joined.generation + 1)
        assert (await new.sync(again)).assignment == joined.member_id.encode()


async def test_a_static_member_starts_again_with_the_next_coordinator_without_a_rebalance(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        joined = await old.join(client="a", instance_id="i")
        assert (await old.sync(joined, "i")).error is ErrorCode.none
        await cluster.move(new)
        assert new.heartbeat(joined, "i") is ErrorCode.none
        again = await new.join(client="a", instance_id="i", may_skip_assignment=True)
        assert (again.generation, again.skip_assignment) == (joined.generation, True)
        assert again.member_id != joined.member_id
        assert new.heartbeat(joined, "i") is ErrorCode.fenced_instance_id
        await cluster.move(old)
        assert old.heartbeat(again, "i") is ErrorCode.none
        assert old.heartbeat(joined, "i") is ErrorCode.fenced_instance_id


async def test_a_member_has_its_whole_session_timeout_with_the_next_coordinator(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        joined = await old.shard.join(join_request(session_timeout_ms=SESSION_MS))
        await old.sync(joined)
        moved_ms = old.shard.now_ms()
        before = old.shard.coordinator.groups["g"]
        await cluster.move(new)
        log_end = old.partition.log_end_offset
        group = new.shard.coordinator.groups["g"]
        assert group.members[joined.member_id].deadline_ms >= moved_ms + SESSION_MS
        await until(lambda: group.state is GroupState.EMPTY)
        assert new.shard.now_ms() >= moved_ms + SESSION_MS
        assert before.state is GroupState.STABLE, "the old coordinator's time stands still"
        assert old.partition.log_end_offset == log_end


# Loading.


def offset_records(count: int) -> list[tuple[bytes, bytes]]:
    return [
        (
            encode_offset_key(OffsetKey(f"group-{number % 1000}", "t", number // 1000)),
            encode_offset(CommittedOffset(offset=number, leader_epoch=-1, metadata="", commit_time_ms=NOW_MS)),
        )
        for number in range(count)
    ]


async def test_groups_whose_records_are_being_read_are_not_served_yet(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        old.append(*offset_records(3000))
        assert await old.commit_offset(5) is ErrorCode.none
        await cluster.begin_epoch(new)
        assert new.error() is ErrorCode.coordinator_load_in_progress
        assert await new.commit_offset(6) is ErrorCode.coordinator_load_in_progress
        assert await new.groups.coordinator_of("g") == new.node_id
        await new.groups.loaded()
        assert new.offset() == 5


async def test_other_things_have_their_turn_while_records_are_read(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, nodes=1) as cluster:
        (only,) = cluster.replicas
        only.append(*offset_records(20_000))
        await cluster.begin_epoch(only)
        counts = [0]
        (shard,) = only.groups.shards
        while shard.state is ShardState.LOADING:
            counts.append(sum(map(len, shard.coordinator.offsets.values())))
            await asyncio.sleep(0)
        assert counts[-1] == 20_000
        steps = [after - before for before, after in itertools.pairwise(counts)]
        assert max(steps) <= loader.STEPS_AT_ONCE


async def test_a_load_that_leadership_left_behind_ends_and_the_next_one_begins_anew(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, nodes=1) as cluster:
        (only,) = cluster.replicas
        only.append(*offset_records(5000))
        shards: list[GroupShard] = []
        for pauses in (0, 1, 2, 5):
            await cluster.begin_epoch(only)
            shards += only.groups.shards
            await turns(pauses)
            only.step_down()
            assert only.error("group-1") is ErrorCode.not_coordinator
        abandoned = [sum(map(len, shard.coordinator.offsets.values())) for shard in shards]
        await cluster.elect(only)
        assert 0 < max(abandoned) < 5000
        assert {shard.state for shard in shards} == {ShardState.UNLOADED}
        assert [sum(map(len, shard.coordinator.offsets.values())) for shard in shards] == abandoned
        assert only.offset("group-999", 4) == 4999


async def test_an_epoch_that_follows_without_a_word_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, nodes=1) as cluster:
        (only,) = cluster.replicas
        only.append(*offset_records(5000))
        await cluster.begin_epoch(only)
        (first,) = only.groups.shards
        only.groups.on_leader(only.partition)
        await only.groups.loaded()
        (second,) = only.groups.shards
        assert (first.state, second.state) == (ShardState.UNLOADED, ShardState.ACTIVE)
        only.groups.on_follower(only.partition)
        only.groups.on_follower(only.partition)
        assert only.groups.shards == []


async def test_groups_whose_records_cannot_be_read_are_not_available(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, nodes=1) as cluster:
        (only,) = cluster.replicas
        only.append((b"\0\x09", b"of a later version"))
        await cluster.elect(only)
        assert only.error() is ErrorCode.coordinator_not_available
        with pytest.raises(KafkaError) as refused:
            await only.groups.coordinator_of("g")
        assert refused.value.code is ErrorCode.coordinator_not_available


async def test_partitions_of_other_topics_are_none_of_the_groups_business(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, nodes=1) as cluster:
        (only,) = cluster.replicas
        async with opened(tmp_path / "other") as other:
            only.groups.on_leader(other)
            (shard,) = only.groups.shards
            assert shard.partition is only.partition
            only.groups.on_follower(other)
            assert only.error() is ErrorCode.none


# What is taken back.


async def test_a_deleted_group_does_not_come_back_with_the_next_coordinator(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        (member,) = await old.stable_members("a")
        assert await old.commit_offset(3, member=member) is ErrorCode.none
        old.shard.leave("g", [LeavingMember(member_id=member.member_id)])
        changes = old.shard.coordinator.delete_group("g")
        assert isinstance(changes, list)
        await old.shard.write(changes)
        await cluster.move(new)
        assert (new.shard.coordinator.groups, new.shard.coordinator.offsets) == ({}, {})
        assert new.heartbeat(member) is ErrorCode.unknown_member_id


async def test_offsets_of_a_deleted_topic_are_taken_back_by_whoever_keeps_the_group(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        assert await old.commit_offset(3) is ErrorCode.none
        assert await old.commit_offset(4, partition=1, topic_id=UUID(int=101)) is ErrorCode.none
        cluster.deleted.add(TOPIC_T)
        log_ends = [replica.partition.log_end_offset for replica in cluster.replicas]
        for replica in cluster.replicas:
            replica.groups.on_topics_deleted()
        await until(lambda: old.offset() is None)
        assert old.partition.log_end_offset == log_ends[0] + 1
        assert new.partition.log_end_offset == log_ends[1]
        await cluster.move(new)
        assert (new.offset(), new.offset(partition=1)) == (None, 4)


async def test_offsets_of_a_topic_that_was_deleted_while_nobody_led_are_taken_back_after_loading(
    tmp_path: Path,
) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        assert await old.commit_offset(3, topic_id=None) is ErrorCode.none
        assert await old.commit_offset(4, partition=1) is ErrorCode.none
        cluster.deleted.add(id_of_old_topic("t"))
        await cluster.move(new)
        await until(lambda: new.offset() is None)
        assert new.offset(partition=1) == 4


async def test_a_commit_on_its_way_is_looked_at_too_when_its_topic_is_deleted(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, nodes=1) as cluster:
        (only,) = cluster.replicas
        only.has_quorum = False
        commit = asyncio.create_task(only.commit_offset(3))
        await turns()
        cluster.deleted.add(TOPIC_T)
        only.groups.on_topics_deleted()
        await turns()
        only.has_quorum = True
        assert await only.commit_offset(4, group_id="h", topic_id=UUID(int=101)) is ErrorCode.none
        assert await commit is ErrorCode.none
        await until(lambda: only.offset() is None)
        assert only.offset("h") == 4


async def test_only_the_node_that_keeps_a_group_lets_it_expire(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old, new = cluster.replicas
        assert await old.commit_offset(3) is ErrorCode.none
        shard = old.shard
        await cluster.move(new)
        cluster.now_ms += 8 * DAY_MS
        with pytest.raises(KafkaError) as refused:
            await shard.expire()
        assert refused.value.code is ErrorCode.not_coordinator
        await new.shard.expire()
        assert (new.shard.coordinator.groups, new.shard.coordinator.offsets) == ({}, {})
        await cluster.move(old)
        assert (old.shard.coordinator.groups, old.shard.coordinator.offsets) == ({}, {})


async def test_a_sweep_over_many_groups_is_written_in_pieces(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, nodes=1) as cluster:
        (only,) = cluster.replicas
        only.append(*offset_records(2000))
        await cluster.elect(only)
        cluster.now_ms += 8 * DAY_MS
        await only.groups.shards[0].expire()
        coordinator = only.groups.shards[0].coordinator
        assert (coordinator.groups, coordinator.offsets) == ({}, {})


# The topic.


class Unmade(Cluster):
    """A cluster that has no `__consumer_offsets` yet."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.partition_count = 0
        self.attempts = 0
        self.error: Exception | None = None
        self.may_go_on = asyncio.Event()

    async def create(self) -> None:
        self.attempts += 1
        await self.may_go_on.wait()
        if self.error is not None:
            raise self.error
        self.partition_count = 1


async def test_the_topic_is_made_once_for_all_who_ask(tmp_path: Path) -> None:
    cluster = Unmade(tmp_path)
    replica = cluster.add()
    try:
        assert replica.error() is ErrorCode.not_coordinator
        cluster.error = KafkaError(ErrorCode.not_controller, "nobody is")
        asking = [asyncio.create_task(replica.groups.coordinator_of(f"g{number}")) for number in range(5)]
        await turns()
        asking.pop().cancel()
        cluster.may_go_on.set()
        for asked in asking:
            with pytest.raises(KafkaError) as refused:
                await asked
            assert refused.value.code is ErrorCode.coordinator_not_available
        cluster.error = None
        with pytest.raises(KafkaError):  # it is there, but nobody leads it
            await replica.groups.coordinator_of("g")
        await cluster.elect(replica)
        assert await replica.groups.coordinator_of("g") == replica.node_id
        assert cluster.attempts == 2
    finally:
        await cluster.close()
