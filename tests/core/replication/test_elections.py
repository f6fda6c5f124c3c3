"""Votes on their way to the disk and to candidates: real replicas and a real vote store, no network."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import cast
from uuid import UUID

import pytest

from tests.core.raft.group import TIMING, MemoryLog
from tidegate_core.partition import Partition
from tidegate_core.raft.messages import ReplicaKey, VoteRequest, VoteState
from tidegate_core.raft.replica import Replica
from tidegate_core.replication.elections import Elections
from tidegate_core.replication.hosted import HostedReplica
from tidegate_core.replication.messages import Votes
from tidegate_core.replication.peers import PeerName, TcpPeerNetwork
from tidegate_core.replication.vote_store import VoteStore
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset

KEY = ReplicaKey(UUID(int=5), 0)
CANDIDATE = NodeId(2)
EPOCH = LeaderEpoch(4)
STANDS = VoteRequest(CANDIDATE, EPOCH, LeaderEpoch(-1), Offset(0), is_pre_vote=False)
DEADLINE_S = 20.0


class Voter:
    """Node 1, with one replica whose voters are 1, 2 and 3."""

    def __init__(self, votes: VoteStore, network: TcpPeerNetwork) -> None:
        replica = Replica(
            NodeId(1),
            MemoryLog((1, 2, 3)),
            VoteState(LeaderEpoch(0)),
            random=Random(1),
            timing=TIMING,
            high_watermark=Offset(0),
        )
        replica.start(0, is_new=False)
        self.hosted = HostedReplica(KEY, cast("Partition", None), replica)  # no vote looks at the records
        self.failures: list[Exception] = []
        self.elections = Elections(
            {KEY: self.hosted},
            votes,
            network,
            settle=self._settle,
            votes_failed=self.failures.append,
            begin_heard=lambda _node: None,
            now_ms=lambda: 0,
            timeout_ms=1000,
        )

    def is_saving(self) -> bool:
        return self.hosted.replica.unsaved is not None or self.hosted.saving is not None

    def _settle(self, hosted: HostedReplica) -> None:
        self.elections.attend(hosted)


@asynccontextmanager
async def voting(directory: Path) -> AsyncIterator[tuple[Voter, VoteStore]]:
    network = TcpPeerNetwork(PeerName(NodeId(1), UUID(int=1), "c"))
    votes = VoteStore.open(directory / "votes", must_exist=False)
    voter = Voter(votes, network)
    try:
        yield voter, votes
    finally:
        await voter.elections.close()
        await votes.close()
        await network.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # what it looks at sets no event
            await asyncio.sleep(0)


async def test_a_vote_is_on_the_disk_before_the_candidate_hears_of_it(tmp_path: Path) -> None:
    async with voting(tmp_path) as (voter, votes):
        answers = await voter.elections.on_votes(Votes([(KEY, STANDS)]), lambda _hosted: False)
        assert votes.get(KEY) == VoteState(EPOCH, CANDIDATE)
    ((key, answer),) = answers.answers
    assert key == KEY
    assert answer is not None
    assert answer.is_granted


async def test_a_vote_takes_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with voting(tmp_path) as (voter, votes):
        await votes.save({KEY: VoteState(LeaderEpoch(0))})
        syncs: list[int] = []
        fdatasync = os.fdatasync

        def count(file: int) -> None:
            syncs.append(file)
            fdatasync(file)

        monkeypatch.setattr(os, "fdatasync", count)
        await voter.elections.on_votes(Votes([(KEY, STANDS)]), lambda _hosted: False)
        await votes.close()  # nothing else is on its way
        assert len(syncs) == 1


async def test_a_replica_that_is_not_here_has_no_vote(tmp_path: Path) -> None:
    other = ReplicaKey(UUID(int=6), 0)
    async with voting(tmp_path) as (voter, votes):
        answers = await voter.elections.on_votes(Votes([(other, STANDS)]), lambda _hosted: False)
        assert answers.answers == [(other, None)]
        assert votes.get(other) is None


async def test_a_candidate_that_is_gone_before_its_answer_leaves_the_voter_able_to_vote(tmp_path: Path) -> None:
    async with voting(tmp_path) as (voter, votes):
        asked = asyncio.create_task(voter.elections.on_votes(Votes([(KEY, STANDS)]), lambda _hosted: False))
        await until(voter.is_saving)
        asked.cancel()  # as a connection does that breaks
        await asyncio.gather(asked, return_exceptions=True)
        assert asked.cancelled()
        await until(lambda: not voter.is_saving())
        assert votes.get(KEY) == VoteState(EPOCH, CANDIDATE)
