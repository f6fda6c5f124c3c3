"""Who leads, as far as a node heard."""

from __future__ import annotations

from uuid import UUID

from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.leaders import LeaderDirectory
from tidegate_core.replication.messages import Leadership
from tidegate_wire.identifiers import LeaderEpoch, NodeId

KEY = ReplicaKey(UUID(int=7), 0)


def _led(epoch: int, leader: int) -> Leadership:
    voters = (NodeId(1), NodeId(2), NodeId(3))
    return Leadership(KEY, LeaderEpoch(epoch), NodeId(leader), voters, voters)


def test_the_newest_epoch_wins_whatever_comes_later() -> None:
    leaders = LeaderDirectory()
    assert leaders.heard(_led(5, 2))
    assert not leaders.heard(_led(4, 1))
    assert leaders.get(KEY) == _led(5, 2)
    assert leaders.heard(_led(6, 3))
    assert leaders.get(KEY) == _led(6, 3)


def test_a_lost_leader_is_not_told_until_there_is_a_newer_one() -> None:
    leaders = LeaderDirectory()
    heard: list[ReplicaKey] = []
    leaders.on_change.append(heard.append)
    leaders.heard(_led(5, 2))
    leaders.lost(KEY, LeaderEpoch(5))
    assert leaders.get(KEY) is None
    leaders.heard(_led(6, 3))
    assert leaders.get(KEY) == _led(6, 3)
    assert heard == [KEY] * 3


def test_a_leader_that_was_only_thought_lost_is_told_again() -> None:
    leaders = LeaderDirectory()
    leaders.heard(_led(5, 2))
    leaders.lost(KEY, LeaderEpoch(5))
    leaders.found_again(KEY, LeaderEpoch(5))
    assert leaders.get(KEY) == _led(5, 2)


def test_an_older_leader_that_is_heard_again_brings_no_newer_one_back() -> None:
    leaders = LeaderDirectory()
    leaders.heard(_led(6, 3))
    leaders.lost(KEY, LeaderEpoch(6))
    leaders.found_again(KEY, LeaderEpoch(5))
    assert leaders.get(KEY) is None


def test_an_older_loss_says_nothing_of_a_newer_leader() -> None:
    leaders = LeaderDirectory()
    leaders.heard(_led(5, 2))
    leaders.lost(KEY, LeaderEpoch(4))
    assert leaders.get(KEY) == _led(5, 2)
    assert not leaders.is_being_elected(KEY)


def test_the_next_leader_is_waited_for_once() -> None:
    leaders = LeaderDirectory()
    assert not leaders.is_being_elected(KEY), "nobody ever led"
    leaders.heard(_led(5, 2))
    leaders.lost(KEY, LeaderEpoch(5))
    assert leaders.is_being_elected(KEY)
    leaders.give_up([KEY])
    assert not leaders.is_being_elected(KEY)
    leaders.heard(_led(6, 3))
    leaders.lost(KEY, LeaderEpoch(6))
    assert leaders.is_being_elected(KEY), "another leader, another election"


def test_a_deleted_partition_is_forgotten() -> None:
    leaders = LeaderDirectory()
    leaders.heard(_led(5, 2))
    leaders.lost(KEY, LeaderEpoch(5))
    leaders.forget(KEY)
    assert leaders.get(KEY) is None
    assert not leaders.is_being_elected(KEY)
