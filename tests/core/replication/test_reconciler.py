"""Replicas on a real disk, brought in line with what the metadata says, or does not say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from tests.core.server.harness import batch_of
from tidegate_core.data_dir import DataDir
from tidegate_core.errors import DiskFull
from tidegate_core.log.config import LogConfig
from tidegate_core.log_manager import LogManager
from tidegate_core.metadata.assignments import UNTIL_CONFIGURED, WantedReplica
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.raft.replica import Role, Timing
from tidegate_core.replication.messages import Lane, Leadership, PeerRequest, PeerResponse
from tidegate_core.replication.peers import PeerUnreachable
from tidegate_core.replication.reconciler import Reconciler
from tidegate_core.replication.replicas import ReplicaManager, ReplicationRules
from tidegate_core.replication.vote_store import VoteStore
from tidegate_wire.address import Address
from tidegate_wire.identifiers import LeaderEpoch, NodeId

ONE, TWO, THREE = (NodeId(number) for number in range(1, 4))
OLD, NEW = UUID(int=50), UUID(int=51)
CONFIG = LogConfig(retention_ms=1000)


class NoNetwork:
    """Nobody is there."""

    async def request(self, node: NodeId, lane: Lane, message: PeerRequest, timeout_s: float) -> PeerResponse:
        await asyncio.sleep(0.01)
        raise PeerUnreachable(f"node {node} is not there", is_down=False)

    def set_addresses(self, addresses: Mapping[NodeId, Address]) -> None:
        """There are none."""

    async def close(self) -> None:
        """Nothing is open."""


class One:
    """Node 1 and its disk."""

    def __init__(self, logs: LogManager, votes: VoteStore) -> None:
        self.logs = logs
        self.replicas = ReplicaManager(
            ONE,
            logs,
            votes,
            NoNetwork(),
            rules=ReplicationRules(
                timing=Timing(), fetch_wait_ms=250, request_timeout_ms=1000, recovery_bytes_per_s=2**20
            ),
            random=Random(1),
            wall_clock_ms=lambda: 1_700_000_000_000,
        )
        self.replicas.start()
        self.reconciler = Reconciler(self.replicas, logs, votes)

    async def reconcile(
        self, *wanted: tuple[str, int, WantedReplica], gone: tuple[UUID, ...] = (), is_complete: bool = True
    ) -> bool:
        return await self.reconciler.reconcile(
            {(topic, index): want for topic, index, want in wanted},
            lambda key: key.topic_id in gone,
            is_complete=is_complete,
        )

    @property
    def on_disk(self) -> set[tuple[str, int, UUID]]:
        return {(topic, index, partition.key.topic_id) for (topic, index), partition in self.logs.partitions.items()}

    @property
    def known(self) -> set[tuple[str, int]]:
        return set(self.replicas.partitions)


@asynccontextmanager
async def node(path: Path) -> AsyncIterator[One]:
    logs = await LogManager.open(DataDir.claim(path, node_id=ONE), config_of=lambda _: UNTIL_CONFIGURED)
    votes = VoteStore.open(path / "votes", must_exist=False)
    one = One(logs, votes)
    try:
        yield one
    finally:
        await one.replicas.close()
        await votes.close()
        await logs.close()


def want(
    topic: str = "t",
    index: int = 0,
    topic_id: UUID = OLD,
    voters: tuple[NodeId, ...] = (ONE,),
    *,
    is_learner: bool = False,
) -> tuple[str, int, WantedReplica]:
    return topic, index, WantedReplica(ReplicaKey(topic_id, index), voters, CONFIG, is_learner)


async def test_replicas_are_made_configured_and_deleted(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        assert await one.reconcile(want(), want(index=1), want("u", topic_id=NEW))
        assert one.known == {("t", 0), ("t", 1), ("u", 0)}
        assert one.replicas.partitions["t", 0].config == CONFIG
        assert one.replicas.is_settled(one.replicas.partitions["t", 0])
        assert await one.reconcile(want(index=1), gone=(OLD, NEW))
        assert one.known == {("t", 1)}
        assert one.on_disk == {("t", 1, OLD)}


async def test_nothing_is_made_or_deleted_on_metadata_that_may_be_old(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        await one.reconcile(want())
        assert not await one.reconcile(want(index=1), gone=(OLD,), is_complete=False)
        assert one.on_disk == {("t", 0, OLD)}
    async with node(tmp_path) as one:
        assert not await one.reconcile(want(), want(index=1), is_complete=False)
        assert one.known == {("t", 0)}  # what is there is served
        assert await one.reconcile(want(), want(index=1))
        assert one.known == {("t", 0), ("t", 1)}


async def test_what_the_metadata_does_not_know_is_left_alone_and_takes_no_part(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        await one.reconcile(want())
    async with node(tmp_path) as one:
        assert await one.reconcile()
        assert one.on_disk == {("t", 0, OLD)}
        assert one.known == set()
        hosted = one.replicas.hosted(ReplicaKey(OLD, 0))
        assert hosted is not None
        assert hosted.replica.role is Role.HALTED


async def test_a_topic_made_again_takes_the_place_of_the_deleted_one_and_of_no_stranger(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        await one.reconcile(want())
        one.replicas.partitions["t", 0].append_as_leader(memoryview(batch_of(b"precious")), 1)
    async with node(tmp_path) as one:
        assert not await one.reconcile(want(topic_id=NEW))
        assert not await one.reconcile(want(topic_id=NEW))
        assert one.on_disk == {("t", 0, OLD)}
        assert one.logs.partitions["t", 0].log_end_offset == 1
        assert await one.reconcile(want(topic_id=NEW), gone=(OLD,))
        assert one.on_disk == {("t", 0, NEW)}
        assert one.replicas.partitions["t", 0].log_end_offset == 0


async def test_a_lone_replica_that_vanished_does_not_begin_anew(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        await one.reconcile(want(), want(index=1))
    (tmp_path / "t-0").rename(tmp_path / "gone")
    async with node(tmp_path) as one:
        assert not await one.reconcile(want(), want(index=1))
        assert one.known == {("t", 1)}
    (tmp_path / "gone").rename(tmp_path / "t-0")
    async with node(tmp_path) as one:
        assert await one.reconcile(want(), want(index=1))


async def test_a_replica_that_may_have_been_there_votes_only_with_everybody(tmp_path: Path) -> None:
    shared = want(voters=(ONE, TWO, THREE))
    later = want("u", topic_id=NEW, voters=(ONE, TWO, THREE))
    async with node(tmp_path) as one:
        await one.reconcile(shared)
        await one.reconcile(shared, later)
        for (_, _, wanted), may_vote in ((shared, False), (later, True)):
            hosted = one.replicas.hosted(wanted.key)
            assert hosted is not None
            assert hosted.replica.may_vote is may_vote


async def test_a_new_replica_follows_the_leader_that_was_heard_of_before(tmp_path: Path) -> None:
    learner = want(voters=(TWO,), is_learner=True)
    async with node(tmp_path) as one:
        await one.reconcile()
        one.replicas.leaders.heard(Leadership(learner[2].key, LeaderEpoch(3), TWO, (TWO,), (TWO,)))
        await one.reconcile(learner)
        hosted = one.replicas.hosted(learner[2].key)
        assert hosted is not None
        assert (hosted.replica.leader, hosted.replica.epoch) == (TWO, 3)


async def test_a_replica_that_can_not_be_made_is_made_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(tmp_path) as one:

        def full(*_arguments: object) -> None:
            raise DiskFull("no room")

        with monkeypatch.context() as patched:
            patched.setattr(one.logs, "create", full)
            assert not await one.reconcile(want())
            assert not await one.reconcile(want())
        assert one.known == set()
        assert await one.reconcile(want())
        assert one.known == {("t", 0)}
