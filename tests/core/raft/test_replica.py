"""Raft for one replica, case by case; the traps are those that other implementations fell into."""

from __future__ import annotations

from random import Random

import pytest

from tests.core.raft.group import TIMING, Group, MemoryLog
from tidegate_core.raft.messages import BeginEpoch, EndEpoch, VoteRequest, VoteState
from tidegate_core.raft.replica import Replica, Role, majority_offset
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.kafka.messages import ErrorCode


def _role(replica: Replica) -> Role:
    """What it does now, whatever mypy remembers of before."""
    return replica.role


def _can_change(replica: Replica) -> bool:
    return replica.can_change_voters


def _vote(
    group: Group, voter: int, candidate: int, epoch: int, *, pre: bool = False, end: int = 0, last: int = -1
) -> bool:
    request = VoteRequest(NodeId(candidate), LeaderEpoch(epoch), LeaderEpoch(last), Offset(end), is_pre_vote=pre)
    return group.replicas[voter].on_vote_request(request, group.now_ms, hears_leader=True).is_granted


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_one_of_them_is_elected(count: int) -> None:
    group = Group.of(count)
    group.start()
    leader = group.elect()
    assert [replica.leader for replica in group.replicas.values()] == [leader] * count


def test_the_first_replica_of_a_new_partition_leads_at_once() -> None:
    group = Group.of(3)
    group.start(is_new=True)
    group.deliver()
    assert group.leaders() == [1]
    assert group.now_ms == 0


def test_a_candidate_counts_its_own_vote_only_once_that_is_on_disk() -> None:
    group = Group(MemoryLog([1]))
    replica = group.replicas[1]
    replica.start(0, is_new=False)
    assert _role(replica) is Role.CANDIDATE
    state = replica.unsaved
    assert state == VoteState(LeaderEpoch(1), NodeId(1))
    replica.saved(state, 0)
    assert _role(replica) is Role.LEADER


def test_votes_are_asked_for_only_when_the_own_vote_is_on_disk() -> None:
    group = Group.of(3)
    one = group.replicas[1]
    one.start(0, is_new=True)
    for request in one.take_requests():
        assert request.message.is_pre_vote
        response = group.replicas[request.voter].on_vote_request(request.message, 0, hears_leader=False)
        one.on_vote_response(request.voter, response, 0)
    assert _role(one) is Role.CANDIDATE
    assert one.take_requests() == []
    assert one.unsaved is not None
    one.saved(one.unsaved, 0)
    assert {request.voter for request in one.take_requests()} == {2, 3}


def test_a_voter_votes_once_in_an_epoch_and_repeats_that_vote() -> None:
    group = Group.of(3)
    assert _vote(group, 3, 1, 5)
    assert group.replicas[3].unsaved == VoteState(LeaderEpoch(5), NodeId(1))
    assert not _vote(group, 3, 2, 5)
    assert _vote(group, 3, 1, 5)


def test_a_vote_outlives_a_restart() -> None:
    log = MemoryLog([1, 2, 3])
    group = Group(log, MemoryLog([1, 2, 3]), log, votes={3: VoteState(LeaderEpoch(5), NodeId(1))})
    assert not _vote(group, 3, 2, 5)
    assert _vote(group, 3, 1, 5)


def test_a_vote_of_an_older_epoch_than_the_log_does_not_count() -> None:
    log = MemoryLog([1, 2, 3], [7])
    group = Group(log, log, log, votes={3: VoteState(LeaderEpoch(5), NodeId(1))})
    assert group.replicas[3].epoch == 7
    assert group.replicas[3].voted_for is None


@pytest.mark.parametrize(
    ("last", "end", "granted"), [(2, 2, False), (1, 9, False), (2, 3, True), (3, 1, True), (2, 4, True)]
)
def test_a_vote_goes_only_to_a_log_that_is_as_complete(last: int, end: int, granted: bool) -> None:
    group = Group(MemoryLog([1, 2, 3], [1, 2, 2]), MemoryLog([1, 2, 3]), MemoryLog([1, 2, 3]))
    assert _vote(group, 1, 2, 9, last=last, end=end) is granted


def test_a_pre_vote_is_refused_while_the_leader_is_heard_and_changes_nothing() -> None:
    group = Group.of(3)
    group.start()
    leader = group.elect()
    follower = next(node for node in group.replicas if node != leader)
    before = group.replicas[follower].vote_state()
    other = next(node for node in group.replicas if node not in (leader, follower))
    assert not _vote(group, follower, other, before.epoch + 1, pre=True, end=99, last=99)
    assert not _vote(group, leader, other, before.epoch + 1, pre=True, end=99, last=99)
    assert group.replicas[follower].vote_state() == before
    assert _role(group.replicas[leader]) is Role.LEADER


def test_the_pre_vote_of_a_voter_that_missed_an_epoch_counts() -> None:
    """It may not know that it is a voter, so it would never stand itself, and not learn of the epoch that way."""
    logs = MemoryLog([1, 2], [1, 5]), MemoryLog([1], [1])
    group = Group(*logs)
    group.start()
    assert group.elect() == 1
    assert group.replicas[2].epoch == group.replicas[1].epoch == 6


def test_a_voter_that_stood_in_vain_in_a_newer_epoch_is_not_left_alone_in_it() -> None:
    group = Group.of(3)
    group.start()
    leader = group.elect()
    lonely = next(node for node in group.replicas if node != leader)
    request = VoteRequest(NodeId(lonely), LeaderEpoch(7), LeaderEpoch(-1), Offset(0), is_pre_vote=False)
    group.replicas[lonely].on_vote_request(request, group.now_ms, hears_leader=False)  # of itself: it is in 7 now
    group.pass_time(5000)
    assert len({(replica.epoch, replica.leader) for replica in group.replicas.values()}) == 1
    assert group.replicas[lonely].epoch > 7


def test_a_node_that_was_cut_off_does_not_depose_the_leader_when_it_is_back() -> None:
    group = Group.of(3)
    group.start()
    leader = group.elect()
    lonely = next(node for node in group.replicas if node != leader)
    group.cut.add(lonely)
    group.replicas[lonely].leader_lost(group.now_ms)
    for _ in range(100):
        group.now_ms += 100
        group.replicas[lonely].tick(group.now_ms)
        group.replicas[lonely].take_requests()
    assert _role(group.replicas[lonely]) is Role.PROSPECTIVE
    epoch = group.replicas[leader].epoch
    group.cut.clear()
    group.pass_time(5000)
    assert _role(group.replicas[leader]) is Role.LEADER
    assert group.replicas[lonely].epoch == epoch
    assert group.replicas[lonely].leader == leader


def test_another_leads_when_the_leader_is_lost_and_the_old_one_follows_later() -> None:
    group = Group.of(3)
    group.start()
    old = group.elect()
    group.lose(old)
    new = group.elect()
    assert new != old
    assert group.replicas[new].epoch > group.replicas[old].epoch
    group.cut.clear()
    group.announce()
    assert _role(group.replicas[old]) is Role.FOLLOWER
    assert group.replicas[old].leader == new


def test_two_survivors_do_not_split_their_votes_for_long() -> None:
    elections = []
    for seed in range(50):
        group = Group.of(3, seed=seed)
        group.start()
        group.lose(group.elect())
        began = group.now_ms
        group.elect()
        elections.append(group.now_ms - began)
    assert sorted(elections)[25] <= 2 * TIMING.stagger_ms
    assert max(elections) <= 2000


def test_without_a_majority_nobody_leads() -> None:
    group = Group.of(5)
    group.start()
    leader = group.elect()
    for node in [node for node in group.replicas if node != leader][:2]:
        group.cut.add(node)
    group.lose(leader)
    group.pass_time(10_000)
    assert group.leaders() == []


def test_a_leader_that_hears_no_majority_resigns_and_does_not_follow_itself() -> None:
    group = Group.of(3)
    group.start()
    leader = group.elect()
    replica = group.replicas[leader]
    replica.check_quorum(lambda node: node == 2 or (leader != 2 and node == 3), group.now_ms)
    assert _role(replica) is Role.LEADER
    replica.check_quorum(lambda _node: False, group.now_ms)
    assert _role(replica) is Role.UNATTACHED
    replica.on_begin_epoch(BeginEpoch(NodeId(leader), replica.epoch), group.now_ms)
    assert _role(replica) is Role.UNATTACHED
    assert not _vote(group, leader, 4, replica.epoch)


def test_a_single_voter_never_resigns() -> None:
    group = Group.of(1)
    group.start()
    group.elect()
    group.replicas[1].check_quorum(lambda _node: False, 0)
    assert group.replicas[1].is_leader


def test_a_leader_counts_its_own_records_only_once_they_are_synced() -> None:
    group = Group.of(3)
    group.start(is_new=True)
    group.deliver()
    group.announce()
    leader = group.replicas[1]
    group.logs[1].append(1, 1, synced=False)
    group.logs[2].append(1, 1)
    group.fetch_once(2, 1)
    assert leader.high_watermark == 0
    group.logs[1].synced = 1
    leader.on_synced()
    assert leader.high_watermark == 1


def test_records_of_an_older_epoch_commit_only_with_one_of_the_own() -> None:
    """Figure 8 of the Raft paper; redpanda issue 5025."""
    group = Group(*[MemoryLog([1, 2, 3], epochs) for epochs in ([1, 2], [1, 2], [1])])
    group.start()
    leader = group.elect()
    follower = 3 - leader
    replica, epoch = group.replicas[leader], group.replicas[leader].epoch
    group.fetch(follower, leader)
    assert replica.high_watermark == 0
    assert not replica.is_settled
    group.logs[leader].append(epoch)
    replica.on_synced()
    assert replica.high_watermark == 0
    group.fetch(follower, leader)
    assert replica.high_watermark == 3
    assert replica.is_settled


def test_the_log_of_a_follower_is_cut_where_it_leaves_the_leaders() -> None:
    group = Group(*[MemoryLog([1, 2, 3], epochs) for epochs in ([1, 1, 3, 3], [1, 1, 2, 2, 2], [1, 1, 3])])
    group.start()
    leader = group.elect()
    assert leader == 1
    group.logs[1].append(group.replicas[1].epoch)
    group.replicas[1].on_synced()
    for follower in (2, 3):
        group.fetch(follower, 1)
        assert group.logs[follower].epochs == group.logs[1].epochs
    assert group.replicas[1].high_watermark == 5


def test_a_follower_with_records_of_an_epoch_the_leader_never_saw_is_cut_to_the_leaders_log() -> None:
    group = Group(MemoryLog([1, 2, 3]), MemoryLog([1, 2, 3]), MemoryLog([1, 2, 3], [1, 1]))
    group.replicas[3].on_begin_epoch(BeginEpoch(NodeId(1), LeaderEpoch(2)), 0)
    group.replicas[1].on_begin_epoch(BeginEpoch(NodeId(2), LeaderEpoch(1)), 0)
    group.replicas[1].tick(0)
    one = group.replicas[1]
    one.leader_lost(0)
    one.tick(10_000)
    group.deliver()
    if one.is_leader:
        group.replicas[3].on_begin_epoch(BeginEpoch(NodeId(1), one.epoch), 0)
        group.fetch(3, 1)
        assert group.logs[3].epochs == []


def test_a_followers_high_watermark_comes_from_the_leader_and_never_exceeds_its_own_disk() -> None:
    group = Group.of(3)
    group.start(is_new=True)
    group.deliver()
    group.announce()
    follower = group.replicas[2]
    follower.on_fetched(NodeId(1), follower.epoch, Offset(7))
    assert follower.high_watermark == 0
    group.logs[2].append(1, 1, 1)
    follower.on_synced()
    assert follower.high_watermark == 3


def test_a_fetch_of_another_epoch_is_told_so() -> None:
    group = Group.of(3)
    group.start(is_new=True)
    group.deliver()
    leader = group.replicas[1]
    stale = leader.on_fetch(NodeId(2), LeaderEpoch(0), Offset(0), LeaderEpoch(-1), 0)
    assert stale.error is ErrorCode.fenced_leader_epoch
    newer = leader.on_fetch(NodeId(2), LeaderEpoch(9), Offset(0), LeaderEpoch(-1), 0)
    assert newer.error is ErrorCode.unknown_leader_epoch
    assert not leader.is_leader
    assert leader.epoch == 9


def test_a_successor_stands_at_once() -> None:
    group = Group.of(3)
    group.start(is_new=True)
    group.deliver()
    group.announce()
    ended = group.replicas[1].resign(group.now_ms)
    assert ended is not None
    message = EndEpoch(ended.leader, ended.epoch, (NodeId(3), NodeId(2)))
    for node in (2, 3):
        group.replicas[node].on_end_epoch(message, group.now_ms)
    group.deliver()
    assert group.leaders() == [3]
    assert group.now_ms == 0


def test_a_replica_that_lost_acknowledged_records_does_not_help_to_elect_one_that_lacks_them() -> None:
    """Voters 1 and 2 had a record that 3 lacks; 1 was wiped. With 1's vote 3 could win without that record."""
    group = Group(MemoryLog([1, 2, 3]), MemoryLog([1, 2, 3], [1]), MemoryLog([1, 2, 3]))
    group.replicas[1].forget_log()
    group.cut.add(2)
    group.start()
    group.pass_time(10_000)
    assert group.leaders() == []
    group.cut = {3}
    group.pass_time(5000)
    assert group.leaders() == []
    group.cut.clear()
    assert group.elect() == 2


def test_a_replica_that_lost_its_log_votes_again_once_it_has_caught_up() -> None:
    group = Group(MemoryLog([1, 2, 3], [1]), MemoryLog([1, 2, 3], [1]), MemoryLog([1, 2, 3]))
    group.replicas[3].forget_log()
    group.start()
    leader = group.elect()
    group.logs[leader].append(group.replicas[leader].epoch)
    group.replicas[leader].on_synced()
    group.fetch_once(3, leader)
    assert not group.replicas[3].vote_state().may_vote, "nobody said yet what is committed"
    group.fetch(3 - leader, leader)
    assert group.replicas[leader].is_settled
    group.fetch_once(3, leader)
    assert group.replicas[3].may_vote
    assert group.replicas[3].unsaved is not None


def test_all_replicas_wiped_may_agree_to_begin_anew() -> None:
    group = Group.of(3)
    for replica in group.replicas.values():
        replica.forget_log()
    group.cut.add(3)
    group.start()
    group.pass_time(5000)
    assert group.leaders() == []
    group.cut.clear()
    group.elect()


def test_voters_change_one_at_a_time_and_count_from_the_append_on() -> None:
    group = Group(*[MemoryLog([1, 2, 3]) for _ in range(4)])
    group.start(is_new=True)
    group.deliver()
    group.announce()
    leader = group.replicas[1]
    group.logs[1].append(1)
    leader.on_synced()
    for node in (2, 3):
        group.fetch(node, 1)
    assert _can_change(leader)
    group.replicas[4].on_begin_epoch(BeginEpoch(NodeId(1), leader.epoch), 0)
    group.fetch(4, 1)
    assert not group.replicas[4].is_voter
    group.logs[1].set_voters([1, 2, 3, 4], leader.epoch)
    leader.on_synced()
    assert not _can_change(leader)
    group.fetch(2, 1)
    assert leader.high_watermark == 1, "two of four are no majority"
    group.fetch(4, 1)
    assert leader.high_watermark == 2
    assert _can_change(leader)
    assert group.replicas[4].is_voter


def test_a_replica_with_a_failed_disk_has_no_say() -> None:
    group = Group.of(3)
    group.start(is_new=True)
    group.deliver()
    group.announce()
    group.replicas[2].halt()
    assert not _vote(group, 2, 3, 9, last=9, end=9)
    group.replicas[2].on_begin_epoch(BeginEpoch(NodeId(3), LeaderEpoch(9)), 0)
    assert _role(group.replicas[2]) is Role.HALTED


def test_a_partition_of_one_replica_keeps_its_epoch_over_restarts() -> None:
    log = MemoryLog([1], [0, 0, 0])
    replica = Replica(
        NodeId(1), log, VoteState(LeaderEpoch(0)), random=Random(1), timing=TIMING, high_watermark=Offset(0)
    )
    replica.lead_alone()
    assert (replica.epoch, replica.high_watermark, replica.is_settled) == (0, 3, True)


@pytest.mark.parametrize(
    ("ends", "offset"), [([5], 5), ([5, 3], 3), ([1, 9, 5], 5), ([1, 2, 3, 4], 2), ([-1, 7, 7], 7), ([9, -1, -1], -1)]
)
def test_what_a_majority_has(ends: list[int], offset: int) -> None:
    assert majority_offset(ends) == offset
