from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.groups.driver import REBALANCE_MS, SESSION_MS, GroupDriver, rules, subscription
from tidegate_core.groups.group import NEW_MEMBER_TIMEOUT_MS, Group, GroupState
from tidegate_core.groups.messages import JoinResult, LeavingMember
from tidegate_wire.kafka.messages import ErrorCode


def leaving(result: JoinResult) -> LeavingMember:
    return LeavingMember(member_id=result.member_id)


# Joining and syncing.


def test_a_single_member_joins_syncs_and_is_stable() -> None:
    driver = GroupDriver()
    joined = driver.joins[driver.join("c")]
    assert (joined.error, joined.generation, joined.leader_id) == (ErrorCode.none, 1, joined.member_id)
    assert [member.member_id for member in joined.members] == [joined.member_id]
    assert driver.state() is GroupState.COMPLETING_REBALANCE
    synced = driver.syncs[driver.sync(joined, {joined.member_id: b"all"})]
    assert (synced.error, synced.assignment, synced.protocol_name) == (ErrorCode.none, b"all", "range")
    assert driver.state() is GroupState.STABLE
    assert driver.heartbeat(joined) is ErrorCode.none


def test_a_second_member_waits_until_the_first_has_joined_again() -> None:
    driver = GroupDriver()
    (first,) = driver.stable_members("a")
    second = driver.join("b")
    assert second not in driver.joins
    assert driver.heartbeat(first) is ErrorCode.rebalance_in_progress
    again = driver.join(member_id=first.member_id)
    assert driver.joins[again].generation == driver.joins[second].generation == 2
    assert driver.joins[again].leader_id == driver.joins[second].leader_id == first.member_id
    assert len(driver.joins[again].members) == 2
    assert driver.joins[second].members == ()


def test_a_follower_gets_its_assignment_only_when_the_leader_brought_it() -> None:
    driver = GroupDriver()
    driver.stable_members("a")
    second = driver.join("b")
    leader = driver.joins[driver.join(member_id=next(iter(driver.group.members)).member_id)]
    follower = driver.joins[second]
    token = driver.sync(follower)
    assert token not in driver.syncs
    driver.sync(leader, {leader.member_id: b"1", follower.member_id: b"2"})
    assert driver.syncs[token].assignment == b"2"


def test_a_member_that_the_leader_left_out_gets_an_empty_assignment() -> None:
    driver = GroupDriver()
    joined = driver.joins[driver.join("c")]
    assert driver.syncs[driver.sync(joined, {})].assignment == b""


def test_a_generation_is_told_only_after_its_beginning_was_written_down() -> None:
    driver = GroupDriver(stores_at_once=False)
    token = driver.join("c")
    assert token not in driver.joins
    assert driver.stored[-1].generation == 1
    driver.end_store()
    assert driver.joins[token].generation == 1


def test_a_join_that_is_repeated_before_its_generation_was_written_down_is_answered_with_the_next_one() -> None:
    driver = GroupDriver(stores_at_once=False)
    first = driver.join("c")
    (member,) = driver.group.members
    second = driver.join(member_id=member.member_id)
    assert driver.joins[first].error is ErrorCode.rebalance_in_progress
    driver.end_store()
    assert second not in driver.joins
    driver.end_store()
    assert driver.joins[second].generation == 2


def test_a_member_that_joins_before_the_generation_was_written_down_is_in_the_next_one() -> None:
    driver = GroupDriver(stores_at_once=False)
    first, second = driver.join("a"), driver.join("b")
    driver.end_store()
    assert driver.joins == {}
    driver.end_store()
    assert driver.joins[first].generation == driver.joins[second].generation == 2
    assert len(driver.joins[first].members) == 2


def test_a_generation_that_cannot_be_written_down_is_told_to_nobody_and_new_members_begin_again() -> None:
    driver = GroupDriver(stores_at_once=False)
    old = driver.begun("old")
    new = driver.join("new")
    again = driver.join(member_id=old.member_id)
    driver.end_store(ErrorCode.coordinator_not_available)
    assert {driver.joins[token].error for token in (new, again)} == {ErrorCode.coordinator_not_available}
    assert [member.member_id for member in driver.group.members] == [old.member_id]
    again = driver.join(member_id=old.member_id)
    driver.end_store()
    assert driver.joins[again].generation == 3


def test_the_assignment_is_told_only_after_it_was_written_down() -> None:
    driver = GroupDriver(stores_at_once=False)
    joined = driver.begun("c")
    token = driver.sync(joined, {joined.member_id: b"x"})
    assert token not in driver.syncs
    assert driver.state() is GroupState.COMPLETING_REBALANCE
    driver.end_store()
    assert driver.syncs[token].assignment == b"x"
    assert driver.state() is GroupState.STABLE


def test_an_assignment_that_cannot_be_written_down_starts_a_new_rebalance() -> None:
    driver = GroupDriver(stores_at_once=False)
    joined = driver.begun("c")
    token = driver.sync(joined, {joined.member_id: b"x"})
    driver.end_store(ErrorCode.coordinator_not_available)
    assert driver.syncs[token].error is ErrorCode.coordinator_not_available
    assert driver.state() is GroupState.PREPARING_REBALANCE


def test_a_write_that_ends_after_the_next_generation_began_changes_nothing() -> None:
    driver = GroupDriver(stores_at_once=False)
    first = driver.begun("a")
    token = driver.sync(first, {first.member_id: b"old"})
    second = driver.join("b")
    assert driver.syncs[token].error is ErrorCode.rebalance_in_progress
    rejoin = driver.join(member_id=first.member_id)
    driver.end_store()
    assert driver.state() is GroupState.COMPLETING_REBALANCE
    driver.end_store()
    again = driver.joins[rejoin]
    token = driver.sync(again, {first.member_id: b"new", driver.joins[second].member_id: b""})
    driver.end_store()
    assert driver.syncs[token].assignment == b"new"


def test_the_leaders_second_sync_replaces_its_first_and_both_are_answered() -> None:
    driver = GroupDriver(stores_at_once=False)
    joined = driver.begun("c")
    first = driver.sync(joined, {joined.member_id: b"x"})
    second = driver.sync(joined, {joined.member_id: b"x"})
    assert driver.syncs[first].error is ErrorCode.rebalance_in_progress
    driver.end_store()
    assert driver.syncs[second].assignment == b"x"
    assert driver.unstored == []


def test_a_sync_of_another_generation_or_protocol_is_refused() -> None:
    driver = GroupDriver()
    (member,) = driver.stable_members("a")
    for fields, error in (
        ({"generation": 7}, ErrorCode.illegal_generation),
        ({"member_id": "nobody"}, ErrorCode.unknown_member_id),
        ({"protocol_type": "connect"}, ErrorCode.inconsistent_group_protocol),
        ({"protocol_name": "sticky"}, ErrorCode.inconsistent_group_protocol),
    ):
        assert driver.syncs[driver.sync(member, **fields)].error is error
    assert driver.syncs[driver.sync(member, protocol_type="consumer", protocol_name="range")].error is ErrorCode.none


def test_a_sync_while_members_are_joining_is_told_to_join() -> None:
    driver = GroupDriver()
    (member,) = driver.stable_members("a")
    driver.join("b")
    assert driver.syncs[driver.sync(member)].error is ErrorCode.rebalance_in_progress


def test_a_client_that_knows_member_ids_is_given_one_first() -> None:
    driver = GroupDriver()
    first = driver.joins[driver.join("c", knows_member_id=True)]
    assert first.error is ErrorCode.member_id_required
    assert first.member_id.startswith("c-")
    assert len(driver.group.members) == 0
    joined = driver.joins[driver.join("c", member_id=first.member_id, knows_member_id=True)]
    assert (joined.error, joined.member_id) == (ErrorCode.none, first.member_id)


def test_a_given_member_id_that_is_not_used_in_time_is_forgotten() -> None:
    driver = GroupDriver()
    given_id = driver.joins[driver.join("c", knows_member_id=True)].member_id
    assert driver.group.next_deadline_ms() == driver.now_ms + SESSION_MS
    driver.advance(SESSION_MS)
    assert driver.group.is_idle
    assert driver.joins[driver.join("c", member_id=given_id)].error is ErrorCode.unknown_member_id


def test_a_rebalance_waits_for_a_member_that_was_just_given_its_id() -> None:
    driver = GroupDriver()
    (first,) = driver.stable_members("a")
    given_id = driver.joins[driver.join("b", knows_member_id=True)].member_id
    again = driver.join(member_id=first.member_id)  # the leader joins again: a rebalance begins
    assert again not in driver.joins
    second = driver.join("b", member_id=given_id)
    assert driver.joins[again].generation == driver.joins[second].generation


def test_a_join_whose_answer_was_lost_gets_the_same_answer_again() -> None:
    driver = GroupDriver()
    joined = driver.joins[driver.join("c")]
    again = driver.joins[driver.join(member_id=joined.member_id)]
    assert again == joined


def test_a_follower_that_joins_again_with_nothing_new_does_not_disturb_the_group() -> None:
    driver = GroupDriver()
    leader, follower = driver.stable_members("a", "b")
    again = driver.joins[driver.join(member_id=follower.member_id)]
    assert (again.generation, again.error) == (follower.generation, ErrorCode.none)
    assert driver.state() is GroupState.STABLE
    assert driver.heartbeat(leader) is ErrorCode.none


def test_a_leader_that_joins_again_starts_a_rebalance() -> None:
    driver = GroupDriver()
    leader, _ = driver.stable_members("a", "b")
    driver.join(member_id=leader.member_id)
    assert driver.state() is GroupState.PREPARING_REBALANCE


def test_a_member_with_another_subscription_starts_a_rebalance() -> None:
    driver = GroupDriver()
    _, follower = driver.stable_members("a", "b")
    driver.join(member_id=follower.member_id, protocols=(("range", subscription("t", "u")),))
    assert driver.state() is GroupState.PREPARING_REBALANCE


def test_a_group_that_is_full_refuses_a_member() -> None:
    driver = GroupDriver(members_max=1)
    driver.stable_members("a")
    assert driver.joins[driver.join("b")].error is ErrorCode.group_max_size_reached


# Protocols.


def test_the_protocol_that_most_members_prefer_is_chosen() -> None:
    driver = GroupDriver()
    one, two = (("range", b"r"), ("sticky", b"s")), (("sticky", b"s"), ("range", b"r"))
    first = driver.join("a", protocols=one)
    driver.join("b", protocols=two)
    driver.join("c", protocols=two)
    result = driver.joins[driver.join(member_id=driver.joins[first].member_id, protocols=one)]
    assert result.protocol_name == "sticky"
    assert [member.metadata for member in result.members] == [b"s", b"s", b"s"]


def test_among_equally_preferred_protocols_the_leaders_is_chosen() -> None:
    driver = GroupDriver()
    one, two = (("range", b"r"), ("sticky", b"s")), (("sticky", b"s"), ("range", b"r"))
    first = driver.joins[driver.join("a", protocols=one)]
    driver.join("b", protocols=two)
    assert driver.joins[driver.join(member_id=first.member_id, protocols=one)].protocol_name == "range"


@pytest.mark.parametrize(
    "fields",
    [
        {"protocol_type": "connect"},
        {"protocols": (("sticky", b""),)},
        {"protocols": ()},
        {"protocol_type": ""},
    ],
)
def test_a_member_that_has_no_protocol_in_common_is_refused(fields: dict[str, Any]) -> None:
    driver = GroupDriver()
    driver.stable_members("a")
    assert driver.joins[driver.join("b", **fields)].error is ErrorCode.inconsistent_group_protocol
    assert driver.state() is GroupState.STABLE


def test_an_empty_group_takes_members_of_another_protocol_type() -> None:
    driver = GroupDriver()
    (member,) = driver.stable_members("a")
    driver.leave(leaving(member))
    assert driver.joins[driver.join("b", protocol_type="connect")].protocol_type == "connect"


# Timeouts.


def test_a_member_that_is_not_heard_of_is_removed_and_the_others_rebalance() -> None:
    driver = GroupDriver()
    leader, follower = driver.stable_members("a", "b")
    driver.advance(SESSION_MS - 1)
    assert driver.heartbeat(leader) is ErrorCode.none
    driver.advance(1)
    assert driver.heartbeat(leader) is ErrorCode.rebalance_in_progress
    assert driver.heartbeat(follower) is ErrorCode.unknown_member_id
    result = driver.joins[driver.join(member_id=leader.member_id)]
    assert len(result.members) == 1


def test_a_member_whose_commit_came_in_time_stays() -> None:
    driver = GroupDriver()
    (member,) = driver.stable_members("a")
    driver.advance(SESSION_MS - 1)
    assert driver.group.check_commit(member.generation, member.member_id, None, driver.now_ms) is ErrorCode.none
    driver.advance(SESSION_MS - 1)
    assert driver.heartbeat(member) is ErrorCode.none


def test_a_member_that_does_not_join_again_within_the_rebalance_timeout_is_left_behind() -> None:
    driver = GroupDriver()
    leader, follower = driver.stable_members("a", "b", session_timeout_ms=4 * REBALANCE_MS)
    waiting = driver.join(member_id=leader.member_id, session_timeout_ms=4 * REBALANCE_MS)
    driver.advance(REBALANCE_MS - 1)
    assert waiting not in driver.joins
    driver.advance(1)
    assert [member.member_id for member in driver.joins[waiting].members] == [leader.member_id]
    assert driver.heartbeat(follower) is ErrorCode.unknown_member_id


def test_the_longest_rebalance_timeout_counts() -> None:
    driver = GroupDriver()
    driver.stable_members("a")
    slow = driver.join("slow", rebalance_timeout_ms=3 * REBALANCE_MS)
    driver.advance(SESSION_MS)  # "a" was not heard of; the rest joined
    assert driver.joins[slow].error is ErrorCode.none


def test_a_member_that_never_syncs_is_removed_after_the_rebalance_timeout() -> None:
    driver = GroupDriver()
    driver.join("a", session_timeout_ms=4 * REBALANCE_MS)
    assert driver.state() is GroupState.COMPLETING_REBALANCE
    driver.advance(REBALANCE_MS)
    assert len(driver.group.members) == 0
    assert driver.state() is GroupState.EMPTY


def test_a_member_that_waits_for_its_sync_does_not_expire() -> None:
    driver = GroupDriver()
    driver.stable_members("a", session_timeout_ms=4 * REBALANCE_MS)
    second = driver.join("b")
    leader_id = next(iter(driver.group.members)).member_id
    driver.join(member_id=leader_id, session_timeout_ms=4 * REBALANCE_MS)
    token = driver.sync(driver.joins[second])
    driver.advance(SESSION_MS + 1)
    assert token not in driver.syncs
    driver.advance(REBALANCE_MS)  # the leader did not bring the assignment
    assert driver.syncs[token].error is ErrorCode.rebalance_in_progress


def test_a_new_member_whose_join_waits_for_ever_is_removed_in_the_end() -> None:
    driver = GroupDriver()
    long_ms = 4 * NEW_MEMBER_TIMEOUT_MS
    driver.stable_members("a", session_timeout_ms=long_ms, rebalance_timeout_ms=long_ms)
    waiting = driver.join("b")
    driver.advance(NEW_MEMBER_TIMEOUT_MS)
    assert driver.joins[waiting].error is ErrorCode.unknown_member_id


def test_an_empty_group_waits_for_more_members_before_its_first_generation() -> None:
    driver = GroupDriver(initial_delay_ms=100)
    first = driver.join("a")
    driver.advance(50)
    second = driver.join("b")
    driver.advance(49)
    assert driver.joins == {}
    driver.advance(1)  # somebody joined meanwhile: the delay begins anew
    assert driver.joins == {}
    driver.advance(100)
    assert driver.joins[first].generation == driver.joins[second].generation == 1
    assert len(driver.joins[first].members) == 2


def test_the_initial_delay_ends_with_the_rebalance_timeout_however_many_join() -> None:
    driver = GroupDriver(initial_delay_ms=100)
    first = driver.join("a", rebalance_timeout_ms=250)
    for _ in range(4):
        driver.advance(50)
        driver.join("b", rebalance_timeout_ms=250)
    driver.advance(50)
    assert driver.joins[first].error is ErrorCode.none


def test_a_member_that_leaves_during_the_initial_delay_leaves_an_empty_group() -> None:
    driver = GroupDriver(initial_delay_ms=100)
    waiting = driver.join("a")
    member_id = next(iter(driver.group.members)).member_id
    assert driver.leave(LeavingMember(member_id=member_id)) == [ErrorCode.none]
    assert driver.joins[waiting].error is ErrorCode.unknown_member_id
    assert driver.state() is GroupState.EMPTY


# Leaving.


def test_the_last_member_leaves_an_empty_group_which_is_written_down() -> None:
    driver = GroupDriver()
    (member,) = driver.stable_members("a")
    assert driver.leave(leaving(member)) == [ErrorCode.none]
    assert driver.state() is GroupState.EMPTY
    assert driver.stored[-1].members == ()
    assert driver.stored[-1].generation == 2


def test_when_the_leader_leaves_another_member_leads() -> None:
    driver = GroupDriver()
    leader, follower = driver.stable_members("a", "b")
    driver.leave(leaving(leader))
    assert driver.joins[driver.join(member_id=follower.member_id)].leader_id == follower.member_id


def test_each_of_several_leaving_members_is_answered() -> None:
    driver = GroupDriver()
    first, _ = driver.stable_members("a", "b")
    errors = driver.leave(leaving(first), LeavingMember(member_id="nobody"), leaving(first))
    assert errors == [ErrorCode.none, ErrorCode.unknown_member_id, ErrorCode.unknown_member_id]


def test_a_member_that_leaves_while_the_others_join_lets_them_go_on() -> None:
    driver = GroupDriver()
    leader, follower = driver.stable_members("a", "b")
    waiting = driver.join(member_id=leader.member_id)
    driver.leave(leaving(follower))
    assert driver.joins[waiting].error is ErrorCode.none


# Static members (KIP-345).


def test_a_static_member_that_starts_again_takes_its_place_without_a_rebalance() -> None:
    driver = GroupDriver()
    (old,) = driver.stable_members("a", instance_id="i1")
    new = driver.joins[driver.join("a", instance_id="i1")]
    assert (new.error, new.generation) == (ErrorCode.none, old.generation)
    assert new.member_id != old.member_id
    assert new.leader_id == old.member_id  # so that it does not assign: it is told of no members
    assert new.members == ()
    assert driver.state() is GroupState.STABLE
    assert driver.syncs[driver.sync(new, instance_id="i1")].assignment == old.member_id.encode()
    assert driver.stored[-1].members[0].member_id == new.member_id


def test_a_static_leader_that_may_skip_the_assignment_is_told_to() -> None:
    driver = GroupDriver()
    driver.stable_members("a", instance_id="i1")
    new = driver.joins[driver.join("a", instance_id="i1", may_skip_assignment=True)]
    assert (new.leader_id, new.skip_assignment, len(new.members)) == (new.member_id, True, 1)


def test_the_predecessor_of_a_static_member_is_fenced() -> None:
    driver = GroupDriver()
    (old,) = driver.stable_members("a", instance_id="i1")
    driver.join("a", instance_id="i1")
    assert driver.heartbeat(old, "i1") is ErrorCode.fenced_instance_id
    assert driver.syncs[driver.sync(old, instance_id="i1")].error is ErrorCode.fenced_instance_id
    check = driver.group.check_commit(old.generation, old.member_id, "i1", driver.now_ms)
    assert check is ErrorCode.fenced_instance_id
    rejoined = driver.joins[driver.join("a", member_id=old.member_id, instance_id="i1")]
    assert rejoined.error is ErrorCode.fenced_instance_id
    assert driver.leave(LeavingMember(member_id=old.member_id, instance_id="i1")) == [ErrorCode.fenced_instance_id]


def test_the_waiting_join_of_a_replaced_static_member_is_fenced() -> None:
    driver = GroupDriver()
    driver.stable_members("a")
    old = driver.join("s", instance_id="i1")
    new = driver.join("s", instance_id="i1")
    assert driver.joins[old].error is ErrorCode.fenced_instance_id
    driver.join(member_id=next(iter(driver.group.members)).member_id)
    assert driver.joins[new].error is ErrorCode.none


def test_a_static_member_with_another_subscription_starts_a_rebalance() -> None:
    driver = GroupDriver()
    driver.stable_members("a", instance_id="i1")
    new = driver.joins[driver.join("a", instance_id="i1", protocols=(("range", subscription("u")),))]
    assert new.generation == 2


def test_a_static_member_is_not_given_a_member_id_first() -> None:
    driver = GroupDriver()
    assert driver.joins[driver.join("a", instance_id="i1", knows_member_id=True)].error is ErrorCode.none


def test_a_static_member_can_be_removed_by_its_instance_id_alone() -> None:
    driver = GroupDriver()
    driver.stable_members("a", instance_id="i1")
    assert driver.leave(LeavingMember(member_id="", instance_id="i2")) == [ErrorCode.unknown_member_id]
    assert driver.leave(LeavingMember(member_id="", instance_id="i1")) == [ErrorCode.none]
    assert driver.state() is GroupState.EMPTY


def test_a_static_member_that_is_not_there_for_a_rebalance_keeps_its_place() -> None:
    driver = GroupDriver()
    long_ms = 10 * REBALANCE_MS
    driver.stable_members("s", instance_id="i1", session_timeout_ms=long_ms)
    other = driver.join("b", session_timeout_ms=long_ms)
    driver.advance(REBALANCE_MS)
    assert len(driver.joins[other].members) == 2
    assert driver.joins[other].leader_id == driver.joins[other].member_id


def test_if_only_static_members_are_missing_the_rebalance_waits_for_them() -> None:
    driver = GroupDriver()
    long_ms = 10 * REBALANCE_MS
    driver.stable_members("s", instance_id="i1", session_timeout_ms=long_ms)
    driver.group.leave([LeavingMember(member_id="nobody")], driver.now_ms)
    other = driver.join("b", session_timeout_ms=long_ms)
    member_id = list(driver.group.members)[-1].member_id
    driver.leave(LeavingMember(member_id=member_id))
    assert driver.joins[other].error is ErrorCode.unknown_member_id
    driver.advance(2 * REBALANCE_MS)
    assert driver.state() is GroupState.PREPARING_REBALANCE
    assert driver.joins[driver.join("s", instance_id="i1")].error is ErrorCode.none


def test_a_static_replacement_that_cannot_be_written_down_is_refused() -> None:
    driver = GroupDriver()
    driver.stable_members("s", instance_id="i1")
    driver.stores_at_once = False
    token = driver.join("s", instance_id="i1")
    driver.end_store(ErrorCode.coordinator_not_available)
    assert driver.joins[token].error is ErrorCode.coordinator_not_available


def test_a_static_replacement_replaced_before_it_was_written_down_is_told_so() -> None:
    driver = GroupDriver()
    driver.stable_members("s", instance_id="i1")
    driver.stores_at_once = False
    first = driver.join("s", instance_id="i1")
    second = driver.join("s", instance_id="i1")
    driver.end_store()
    driver.end_store()
    assert driver.joins[first].error is ErrorCode.unknown_member_id
    assert driver.joins[second].error is ErrorCode.none


# Commits.


def test_a_commit_is_taken_from_members_of_this_generation_only() -> None:
    driver = GroupDriver()
    (member,) = driver.stable_members("a")
    check = driver.group.check_commit
    assert check(member.generation, member.member_id, None, driver.now_ms) is ErrorCode.none
    assert check(member.generation + 1, member.member_id, None, driver.now_ms) is ErrorCode.illegal_generation
    assert check(member.generation, "nobody", None, driver.now_ms) is ErrorCode.unknown_member_id
    assert check(-1, "", None, driver.now_ms) is ErrorCode.unknown_member_id


def test_a_commit_during_a_rebalance_is_taken_until_the_next_generation_begins() -> None:
    driver = GroupDriver()
    (member,) = driver.stable_members("a")
    driver.join("b")
    check = driver.group.check_commit
    assert check(member.generation, member.member_id, None, driver.now_ms) is ErrorCode.none
    again = driver.joins[driver.join(member_id=member.member_id)]
    assert check(member.generation, member.member_id, None, driver.now_ms) is ErrorCode.illegal_generation
    assert check(again.generation, member.member_id, None, driver.now_ms) is ErrorCode.rebalance_in_progress


# Written down and restored.


def test_members_join_again_where_a_group_is_restored_that_had_no_assignment_yet() -> None:
    driver = GroupDriver()
    leader, follower = driver.stable_members("a", "b")
    driver.join(member_id=leader.member_id)
    driver.join(member_id=follower.member_id, protocols=(("range", subscription("t", "u")),))
    assert driver.state() is GroupState.COMPLETING_REBALANCE
    told = driver.group.generation
    restored = GroupDriver(Group.restore(driver.stored[-1], rules(), now_ms=1_000_000))
    assert restored.state() is GroupState.PREPARING_REBALANCE
    beat = restored.group.heartbeat(leader.member_id, None, told, restored.now_ms)
    assert beat is ErrorCode.rebalance_in_progress
    tokens = [restored.join(member_id=member.member_id) for member in (leader, follower)]
    assert {restored.joins[token].generation for token in tokens} == {told + 1}


def test_members_that_do_not_join_again_in_a_restored_group_are_removed() -> None:
    driver = GroupDriver()
    driver.join("a", session_timeout_ms=4 * REBALANCE_MS)
    restored = GroupDriver(Group.restore(driver.stored[-1], rules(), now_ms=1_000_000))
    restored.advance(REBALANCE_MS - 1)
    assert len(restored.group.members) == 1
    restored.advance(1)
    assert restored.state() is GroupState.EMPTY


def test_members_go_on_with_a_restored_group() -> None:
    driver = GroupDriver()
    leader, follower = driver.stable_members("a", "b")
    restored = GroupDriver(Group.restore(driver.stored[-1], rules(), now_ms=1_000_000))
    assert restored.state() is GroupState.STABLE
    assert restored.heartbeat(leader) is ErrorCode.none
    assert restored.syncs[restored.sync(follower)].assignment == follower.member_id.encode()
    assert restored.group.to_stored(is_assigned=True) == driver.stored[-1]
    restored.advance(SESSION_MS)
    assert restored.state() is GroupState.EMPTY


def test_a_restored_empty_group_goes_on_counting_generations() -> None:
    driver = GroupDriver()
    (member,) = driver.stable_members("a")
    driver.leave(leaving(member))
    restored = GroupDriver(Group.restore(driver.stored[-1], rules(), now_ms=0))
    assert restored.state() is GroupState.EMPTY
    assert restored.joins[restored.join("b")].generation == 3


# Any order of events.


class Fleet:
    """Clients that join, sync, beat, leave and fall silent at random."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.driver = GroupDriver(
            initial_delay_ms=self.chance.choice([0, 50]), stores_at_once=self.chance.random() < 0.5
        )
        self.known: list[JoinResult] = []
        self.joins: set[int] = set()
        self.syncs: dict[int, JoinResult] = {}

    def step(self) -> None:
        actions = [self.join, self.pass_time, self.end_store]
        if self.known:
            actions += [self.rejoin, self.sync, self.beat, self.beat, self.leave]
        self.chance.choice(actions)()
        self.collect()

    def join(self) -> None:
        instance_id = self.chance.choice([None, "i1", "i2"])
        self.joins.add(self.driver.join(instance_id=instance_id, knows_member_id=self.chance.random() < 0.5))

    def rejoin(self) -> None:
        self.joins.add(self.driver.join(member_id=self.chance.choice(self.known).member_id))

    def sync(self) -> None:
        member = self.chance.choice(self.known)
        plan = {one.member_id: f"{member.generation}".encode() for one in member.members}
        self.syncs[self.driver.sync(member, plan)] = member

    def beat(self) -> None:
        self.driver.heartbeat(self.chance.choice(self.known))

    def leave(self) -> None:
        self.driver.leave(leaving(self.known.pop(self.chance.randrange(len(self.known)))))

    def pass_time(self) -> None:
        self.driver.advance(self.chance.choice([10, 1000, SESSION_MS, REBALANCE_MS]))

    def end_store(self) -> None:
        if self.driver.unstored:
            fails = self.chance.random() < 0.2
            self.driver.end_store(ErrorCode.coordinator_not_available if fails else ErrorCode.none)

    def collect(self) -> None:
        for token in self.joins & set(self.driver.joins):
            self.joins.remove(token)
            result = self.driver.joins[token]
            if result.error in (ErrorCode.none, ErrorCode.member_id_required):
                self.known.append(result)
        for token in set(self.syncs) & set(self.driver.syncs):
            member, answer = self.syncs.pop(token), self.driver.syncs[token]
            if answer.error is ErrorCode.none and answer.assignment:
                assert answer.assignment == f"{member.generation}".encode()

    def fall_silent(self) -> None:
        for _ in range(3):
            while self.driver.unstored:
                self.driver.end_store()
            self.driver.advance(4 * NEW_MEMBER_TIMEOUT_MS)
        self.collect()


@given(st.integers(0, 2**32 - 1))
def test_whatever_happens_every_request_is_answered_and_silent_members_are_removed(seed: int) -> None:
    fleet = Fleet(seed)
    group = fleet.driver.group
    for _ in range(80):
        fleet.step()
        assert (group.state is GroupState.EMPTY) == (len(group.members) == 0)
    fleet.fall_silent()
    assert fleet.joins == set()
    assert fleet.syncs == {}
    assert group.is_idle
