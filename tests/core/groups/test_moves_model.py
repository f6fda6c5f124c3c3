"""Any order of commits, joins, lost majorities and moves of the coordinator, against what must be true after each step.

What is committed is known exactly wherever a step waits for the disk; where a coordinator moves in the middle of a
write, either outcome is allowed, but a write that was acknowledged must be there, for ever.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.core.groups.driver import subscription
from tests.core.groups.replicas import Cluster, Replica, turns
from tidegate_core.groups import loader
from tidegate_core.groups.coordinator import Coordinator
from tidegate_core.groups.messages import JoinResult, Protocols
from tidegate_wire.kafka.messages import ErrorCode

Result = TypeVar("Result")
Key = tuple[str, int]

NODES = st.integers(0, 2)
GROUPS = st.sampled_from(["simple", "other"])
KEYS = st.tuples(GROUPS, st.integers(0, 2))
STEP_S = 10
"""For one step, which waits for a few syncs."""

MOVED = ErrorCode.not_coordinator


@dataclass
class Written:
    """A commit that waits for a majority, or for its coordinator to hear that it is none any more."""

    key: Key
    value: int
    answer: asyncio.Task[ErrorCode]


class Moves(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.small_steps = mock.patch.object(loader, "STEPS_AT_ONCE", 3)
        self.small_steps.start()
        self.directory = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.cluster = self.run(self.begin())
        self.committed: dict[Key, int] = {}
        self.waiting: dict[Replica, list[Written]] = {replica: [] for replica in self.cluster.replicas}
        self.joins: dict[Replica, list[asyncio.Task[JoinResult]]] = {replica: [] for replica in self.cluster.replicas}
        self.seen_by: dict[Coordinator, dict[Key, int | None]] = {}
        self.value = 0
        self.members: list[JoinResult] = []
        self.told = 0
        self.are_members_settled = True

    async def begin(self) -> Cluster:
        cluster = Cluster(self.directory)
        for _ in range(3):
            cluster.add()
        await cluster.elect(cluster.replicas[0])
        return cluster

    def run(self, job: Coroutine[Any, Any, Result]) -> Result:
        async def in_time() -> Result:
            async with asyncio.timeout(STEP_S):
                return await job

        return self.loop.run_until_complete(in_time())

    def teardown(self) -> None:
        self.small_steps.stop()
        self.run(self.end())
        self.loop.close()
        shutil.rmtree(self.directory)

    async def end(self) -> None:
        for replica in self.cluster.replicas:
            await self.depose(replica)
        await self.cluster.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing is left running"

    @property
    def leader(self) -> Replica:
        assert self.cluster.leader is not None
        return self.cluster.leader

    # Commits.

    def next_value(self) -> int:
        self.value += 1
        return self.value

    def write(self, replica: Replica, key: Key) -> Written:
        value = self.next_value()
        group_id, partition = key
        answer = self.loop.create_task(replica.commit_offset(value, group_id=group_id, partition=partition))
        return Written(key, value, answer)

    @rule(key=KEYS)
    def commit(self, key: Key) -> None:
        self.run(self._commit(key))

    async def _commit(self, key: Key) -> None:
        written = self.write(self.leader, key)
        if self.leader.has_quorum:
            assert await written.answer is ErrorCode.none
            self.committed[key] = written.value
        else:
            await self.on_disk(self.leader)
            assert not written.answer.done()
            self.waiting[self.leader].append(written)

    @precondition(lambda self: self.leader.has_quorum)
    @rule(group_id=GROUPS)
    def delete_group(self, group_id: str) -> None:
        self.run(self._delete_group(group_id))

    async def _delete_group(self, group_id: str) -> None:
        coordinator = self.leader.shard.coordinator
        changes = coordinator.delete_group(group_id)
        keys = {key for key in self.committed if key[0] == group_id}
        if isinstance(changes, list):
            await self.leader.shard.write(changes)
        else:
            assert (changes, keys) == (ErrorCode.group_id_not_found, set())
        for key in keys:
            del self.committed[key]
            self.seen_by[coordinator].pop(key, None)

    @rule(node=NODES, key=KEYS)
    def commit_where_another_led_before(self, node: int, key: Key) -> None:
        replica = self.cluster.replicas[node]
        if replica is not self.leader:
            self.run(self._commit_in_vain(replica, key))

    async def _commit_in_vain(self, replica: Replica, key: Key) -> None:
        written = self.write(replica, key)
        await turns()
        if replica.partition.is_leader:
            await self.on_disk(replica)
            assert not written.answer.done()
            self.waiting[replica].append(written)
        else:
            assert await written.answer is MOVED

    @rule(node=NODES, key=KEYS, pauses=st.integers(0, 8), uncommitted=st.booleans())
    def commit_while_the_coordinator_moves(self, node: int, key: Key, pauses: int, uncommitted: bool) -> None:
        self.run(self._commit_and_move(self.cluster.replicas[node], key, pauses, uncommitted=uncommitted))

    async def _commit_and_move(self, to: Replica, key: Key, pauses: int, *, uncommitted: bool) -> None:
        before = self.leader
        if not before.has_quorum:
            return
        written = self.write(before, key)
        await turns(pauses)
        await self.depose(to, may_lead=to is before)
        await self.cluster.elect(to, uncommitted=uncommitted)
        await self.depose(before, may_lead=before is to)
        answer = await written.answer
        assert answer in (ErrorCode.none, MOVED)
        group_id, partition = key
        found = to.offset(group_id, partition)
        allowed = {written.value} if answer is ErrorCode.none else {written.value, self.committed.get(key)}
        assert found in allowed
        if found is not None:
            self.committed[key] = found

    # Who leads.

    @rule()
    def lose_the_majority(self) -> None:
        self.leader.has_quorum = False

    @rule()
    def regain_the_majority(self) -> None:
        self.run(self._regain())

    async def _regain(self) -> None:
        leader = self.leader
        leader.has_quorum = True
        leader.commit()
        for written in self.waiting[leader]:
            assert await written.answer is ErrorCode.none
            self.committed[written.key] = written.value
        self.waiting[leader].clear()
        await turns()
        told = self.told
        for join in self.joins[leader]:
            self.are_members_settled = False
            if not join.cancel():  # else it waits for the other members, and its client gives up
                self.told = join.result().generation
                assert self.told > told
        self.joins[leader].clear()

    @rule(node=NODES, uncommitted=st.booleans(), tells_old=st.booleans())
    def move(self, node: int, uncommitted: bool, tells_old: bool) -> None:
        self.run(self._move(self.cluster.replicas[node], uncommitted=uncommitted, tells_old=tells_old))

    async def _move(self, to: Replica, *, uncommitted: bool, tells_old: bool) -> None:
        before = self.leader
        await self.depose(to, may_lead=to is before)
        self.take_over(to, uncommitted=uncommitted)
        await self.cluster.elect(to, uncommitted=uncommitted)
        if before is to or tells_old:
            await self.depose(before, may_lead=before is to)

    @rule(node=NODES, then=NODES, uncommitted=st.booleans(), pauses=st.integers(0, 10))
    def move_on_before_the_log_is_read(self, node: int, then: int, uncommitted: bool, pauses: int) -> None:
        first, second = self.cluster.replicas[node], self.cluster.replicas[then]
        self.run(self._move_twice(first, second, pauses, uncommitted=uncommitted))

    async def _move_twice(self, first: Replica, second: Replica, pauses: int, *, uncommitted: bool) -> None:
        before = self.leader
        await self.depose(first, may_lead=first is before)
        self.take_over(first, uncommitted=uncommitted)
        await self.cluster.begin_epoch(first, uncommitted=uncommitted)
        await self.depose(before, may_lead=before is first)
        await turns(pauses)
        await self.depose(second, may_lead=second is first)
        await self.cluster.elect(second)
        await self.depose(first, may_lead=first is second)

    def take_over(self, to: Replica, *, uncommitted: bool) -> None:
        """What was written and not committed stays if the new leader has it, and is gone if not."""
        if to is self.leader or uncommitted:
            for written in self.waiting[self.leader]:
                self.committed[written.key] = written.value
            if self.joins[self.leader]:
                self.are_members_settled = False

    async def depose(self, replica: Replica, *, may_lead: bool = False) -> None:
        """A replica hears that it leads no more, and so do all who wait for it; it may lead again by then."""
        if not may_lead:
            replica.step_down()
        if may_lead and self.leader is replica and replica.has_quorum is False:
            return  # it still leads that epoch
        for written in self.waiting[replica]:
            assert await written.answer is MOVED
        self.waiting[replica].clear()
        for join in self.joins[replica]:
            assert (await join).error is MOVED
        self.joins[replica].clear()

    # Members.

    @precondition(lambda self: self.leader.has_quorum)
    @rule(is_new=st.booleans(), syncs=st.booleans())
    def rebalance(self, is_new: bool, syncs: bool) -> None:
        self.run(self._rebalance(is_new=is_new or not self.members, syncs=syncs))

    async def _rebalance(self, *, is_new: bool, syncs: bool) -> None:
        leader = self.leader
        news = self.news()
        asked = [member.member_id for member in self.members] + [""] * is_new
        self.members = await asyncio.gather(*(leader.join(member_id, protocols=news) for member_id in asked))
        (generation,) = {member.generation for member in self.members}
        assert generation > self.told, "a generation is never told twice"
        self.told = generation
        self.are_members_settled = syncs
        if syncs:
            answers = await asyncio.gather(*(leader.sync(member) for member in self.members))
            assert [answer.assignment for answer in answers] == [member.member_id.encode() for member in self.members]

    @precondition(lambda self: not self.leader.has_quorum and self.members and not self.joins[self.leader])
    @rule(all_of_them=st.booleans())
    def rebalance_without_a_majority(self, all_of_them: bool) -> None:
        self.run(self._rebalance_in_vain(self.members if all_of_them else self.members[:1]))

    async def _rebalance_in_vain(self, members: list[JoinResult]) -> None:
        leader = self.leader
        news = self.news()
        joins = [self.loop.create_task(leader.join(member.member_id, protocols=news)) for member in members]
        await self.on_disk(leader)
        assert not any(join.done() for join in joins)
        self.joins[leader] = joins

    def news(self) -> Protocols:
        """A subscription that no member had before: whoever joins with it starts a rebalance."""
        return (("range", subscription(f"t{self.next_value()}")),)

    @precondition(lambda self: self.are_members_settled and not self.joins[self.leader])
    @rule()
    def members_are_known_to_whoever_keeps_their_group(self) -> None:
        for member in self.members:
            assert self.leader.heartbeat(member) is ErrorCode.none

    # What must be true.

    @invariant()
    def what_is_committed_can_be_fetched_and_nothing_else(self) -> None:
        assert self.offsets(self.leader) == self.committed

    @invariant()
    def what_was_fetched_does_not_go_back_with_the_same_coordinator(self) -> None:
        for replica in self.cluster.replicas:
            for shard in replica.groups.shards:
                seen = self.seen_by.setdefault(shard.coordinator, {})
                for key, value in self.offsets(replica).items():
                    before = seen.get(key)
                    assert before is None or value >= before
                    seen[key] = value
                assert seen.keys() == self.offsets(replica).keys()

    @staticmethod
    def offsets(replica: Replica) -> dict[Key, int]:
        (shard,) = replica.groups.shards
        return {
            (group_id, partition): committed.offset
            for group_id, offsets in shard.coordinator.offsets.items()
            for (_, partition), committed in offsets.items()
        }

    async def on_disk(self, replica: Replica) -> None:
        await turns()
        await replica.partition.synced(replica.partition.log_end_offset)
        await turns()


Moves.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestMoves = Moves.TestCase
