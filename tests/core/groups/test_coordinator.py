from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.core.groups.driver import SESSION_MS, GroupDriver, join_request, rules, subscription
from tidegate_core.groups.coordinator import Change, Coordinator, CoordinatorLimits, GroupRemoval, OffsetChange
from tidegate_core.groups.group import GroupRules, GroupState
from tidegate_core.groups.messages import JoinReply, JoinResult, LeavingMember, StoreGroup, SyncReply, SyncRequest
from tidegate_core.groups.records import (
    CommittedOffset,
    GroupRecordError,
    OffsetKey,
    encode_group,
    encode_group_key,
    encode_offset,
    encode_offset_key,
)
from tidegate_wire.kafka.messages import ErrorCode

DAY_MS = 24 * 60 * 60 * 1000
NOW_MS = 1_700_000_000_000
PARTITIONS = [("t", 0), ("u", 0)]


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


def coordinator(clock: Callable[[], int] | None = None, **limits: Any) -> Coordinator:
    common = rules()
    shared = GroupRules(
        initial_delay_ms=0,
        members_max=common.members_max,
        new_member_id=common.new_member_id,
        wall_clock_ms=clock or (lambda: NOW_MS),
    )
    bounds = {
        "groups_max": 10,
        "session_timeout_ms_min": 1000,
        "session_timeout_ms_max": 60_000,
        "offsets_retention_ms": 7 * DAY_MS,
    } | limits
    return Coordinator(shared, CoordinatorLimits(**bounds))


def offset(number: int = 5, commit_time_ms: int = NOW_MS) -> CommittedOffset:
    return CommittedOffset(offset=number, leader_epoch=-1, metadata="", commit_time_ms=commit_time_ms)


def commit(subject: Coordinator, group_id: str, topic: str, committed: CommittedOffset) -> None:
    assert subject.check_commit(group_id, -1, "", None, 0) is ErrorCode.none
    apply(subject, [OffsetChange(OffsetKey(group_id, topic, 0), committed)])


def apply(subject: Coordinator, changes: list[Change]) -> None:
    """Write changes and let them be committed."""
    subject.begin_write(changes)
    subject.end_write(changes, is_committed=True)


def join(subject: Coordinator, group_id: str = "g", **fields: Any) -> JoinResult:
    """Join and sync a single member."""
    subject.join(join_request(group_id=group_id, **fields), "join", 0)
    (result,) = settle(subject)
    if result.error is not ErrorCode.none:
        return result
    request = SyncRequest(
        group_id=group_id,
        generation=result.generation,
        member_id=result.member_id,
        instance_id=None,
        protocol_type=None,
        protocol_name=None,
        assignments={},
    )
    subject.sync(request, "sync", 0)
    settle(subject)
    return result


def state_of(subject: Coordinator, group_id: str) -> GroupState:
    return subject.groups[group_id].state


def settle(subject: Coordinator) -> list[JoinResult]:
    """Let all groups be stored; returns the answers to joins."""
    results = []
    while subject.effects:
        group, effect = subject.effects.pop(0)
        if isinstance(effect, StoreGroup):
            assert group is not None
            subject.stored(group, effect.number, ErrorCode.none, 0)
        elif isinstance(effect, JoinReply):
            results.append(effect.result)
    return results


def test_a_session_timeout_out_of_bounds_is_refused() -> None:
    subject = coordinator()
    for timeout_ms in (999, 60_001):
        assert join(subject, session_timeout_ms=timeout_ms).error is ErrorCode.invalid_session_timeout
    assert subject.groups == {}


def test_a_member_of_a_group_that_is_not_there_is_unknown() -> None:
    subject = coordinator()
    assert join(subject, member_id="m").error is ErrorCode.unknown_member_id
    assert subject.heartbeat("g", "m", None, 1, 0) is ErrorCode.unknown_member_id
    assert subject.leave("g", [LeavingMember(member_id="m")], 0) == [ErrorCode.unknown_member_id]
    request = SyncRequest(
        group_id="g", generation=1, member_id="m", instance_id=None, protocol_type=None, protocol_name=None
    )
    subject.sync(request, "token", 0)
    (_, effect) = subject.effects.pop()
    assert isinstance(effect, SyncReply)
    assert effect.result.error is ErrorCode.unknown_member_id


def test_the_number_of_groups_is_limited() -> None:
    subject = coordinator(groups_max=2)
    join(subject, "a")
    commit(subject, "b", "t", offset())
    assert join(subject, "c").error is ErrorCode.policy_violation
    assert subject.check_commit("c", -1, "", None, 0) is ErrorCode.policy_violation
    assert set(subject.groups) == {"a", "b"}


def test_a_group_that_nobody_got_into_is_forgotten() -> None:
    subject = coordinator()
    assert join(subject, knows_member_id=True).error is ErrorCode.member_id_required
    assert "g" in subject.groups
    subject.tick(SESSION_MS)
    assert subject.groups == {}
    assert subject.next_deadline_ms() is None


def test_ticks_reach_the_groups_that_are_due_and_no_others() -> None:
    subject = coordinator()
    early = join(subject, "early", session_timeout_ms=2000)
    late = join(subject, "late", session_timeout_ms=5000)
    assert subject.next_deadline_ms() is not None
    subject.tick(2000)
    settle(subject)
    assert state_of(subject, "early") is GroupState.EMPTY
    assert subject.heartbeat("early", early.member_id, None, early.generation, 2000) is ErrorCode.unknown_member_id
    assert subject.heartbeat("late", late.member_id, None, late.generation, 2000) is ErrorCode.none
    subject.tick(6999)
    assert state_of(subject, "late") is GroupState.STABLE
    subject.tick(7000)
    settle(subject)
    assert state_of(subject, "late") is GroupState.EMPTY


@pytest.mark.parametrize(
    ("generation", "member_id", "instance_id", "error"),
    [
        (-1, "", None, ErrorCode.none),
        (3, "", None, ErrorCode.illegal_generation),
        (-1, "m", None, ErrorCode.unknown_member_id),
        (-1, "", "i", ErrorCode.unknown_member_id),
    ],
)
def test_only_a_commit_without_membership_makes_a_group(
    generation: int, member_id: str, instance_id: str | None, error: ErrorCode
) -> None:
    assert coordinator().check_commit("g", generation, member_id, instance_id, 0) is error


def test_offsets_are_seen_only_when_their_record_is_committed() -> None:
    subject = coordinator()
    assert subject.check_commit("g", -1, "", None, 0) is ErrorCode.none
    assert subject.committed("g") == {}
    apply(subject, [OffsetChange(OffsetKey("g", "t", 0), offset(5))])
    assert subject.committed("g")["t", 0].offset == 5


def test_a_group_with_members_is_not_deleted() -> None:
    subject = coordinator()
    member = join(subject)
    assert subject.delete_group("g") is ErrorCode.non_empty_group
    subject.leave("g", [LeavingMember(member_id=member.member_id)], 0)
    settle(subject)
    changes = subject.delete_group("g")
    assert changes == [GroupRemoval("g")]
    apply(subject, changes)
    assert subject.groups == {}
    assert subject.delete_group("g") is ErrorCode.group_id_not_found


def test_a_group_is_deleted_with_its_offsets() -> None:
    subject = coordinator()
    commit(subject, "g", "t", offset())
    changes = subject.delete_group("g")
    assert isinstance(changes, list)
    assert OffsetChange(OffsetKey("g", "t", 0), None) in changes
    apply(subject, changes)
    assert (subject.groups, subject.offsets) == ({}, {})


def test_a_group_that_somebody_joined_while_its_deletion_was_written_stays() -> None:
    subject = coordinator()
    commit(subject, "g", "t", offset())
    changes = subject.delete_group("g")
    assert isinstance(changes, list)
    join(subject)
    apply(subject, changes)
    assert "g" in subject.groups
    assert subject.committed("g") == {}


def test_offsets_of_topics_that_a_member_reads_are_not_deleted() -> None:
    subject = coordinator()
    commit(subject, "g", "t", offset())
    commit(subject, "g", "u", offset())
    join(subject)
    outcome = subject.delete_offsets("g", [("t", 0), ("u", 0), ("v", 0)])
    assert isinstance(outcome, tuple)
    changes, answers = outcome
    assert changes == [OffsetChange(OffsetKey("g", "u", 0), None)]
    assert answers["t", 0] is ErrorCode.group_subscribed_to_topic
    assert answers["u", 0] is answers["v", 0] is ErrorCode.none
    assert subject.delete_offsets("nobody", []) is ErrorCode.group_id_not_found


def test_a_deleted_topic_is_forgotten_in_every_group() -> None:
    subject = coordinator()
    commit(subject, "a", "t", offset())
    commit(subject, "b", "t", offset())
    commit(subject, "b", "u", offset())
    for group_id in ("a", "b", "nobody"):
        apply(subject, subject.offsets_gone(group_id, PARTITIONS, lambda topic, _: topic == "t"))
    assert subject.offsets == {"b": {("u", 0): offset()}}


def test_a_commit_that_is_being_written_is_not_swept_away_with_the_one_before() -> None:
    clock = Clock()
    subject = coordinator(clock)
    commit(subject, "g", "t", offset(1))
    clock.now_ms = NOW_MS + 8 * DAY_MS
    newer: list[Change] = [OffsetChange(OffsetKey("g", "t", 0), offset(2, clock.now_ms))]
    subject.begin_write(newer)
    assert subject.offsets_expired("g", PARTITIONS) == []
    assert subject.offsets_gone("g", PARTITIONS, lambda _topic, _committed: True) == []
    subject.end_write(newer, is_committed=True)
    assert subject.committed("g")["t", 0].offset == 2
    assert len(subject.offsets_gone("g", PARTITIONS, lambda _topic, _committed: True)) == 1


def test_a_commit_that_was_not_committed_leaves_no_trace() -> None:
    subject = coordinator()
    lost: list[Change] = [OffsetChange(OffsetKey("g", "t", 0), offset())]
    assert subject.check_commit("g", -1, "", None, 0) is ErrorCode.none
    subject.begin_write(lost)
    subject.end_write(lost, is_committed=False)
    assert (subject.groups, subject.offsets) == ({}, {})


def test_a_group_whose_first_join_is_refused_is_not_kept() -> None:
    subject = coordinator()
    assert join(subject, protocols=()).error is ErrorCode.inconsistent_group_protocol
    assert subject.groups == {}


# Expiry (KIP-211).


def apply_expired(subject: Coordinator) -> list[Change]:
    offsets = [change for group_id in subject.offsets for change in subject.offsets_expired(group_id, PARTITIONS)]
    apply(subject, offsets)
    groups = subject.groups_expired([*subject.groups, "nobody"])
    apply(subject, groups)
    return [*offsets, *groups]


def test_offsets_of_a_group_without_members_expire_after_their_commit() -> None:
    clock = Clock()
    subject = coordinator(clock)
    commit(subject, "g", "t", offset(commit_time_ms=NOW_MS))
    clock.now_ms = NOW_MS + 7 * DAY_MS - 1
    assert apply_expired(subject) == []
    clock.now_ms += 1
    apply_expired(subject)
    assert (subject.groups, subject.offsets) == ({}, {})


def test_offsets_of_a_consumer_group_are_kept_until_it_was_empty_for_the_retention_time() -> None:
    clock = Clock()
    subject = coordinator(clock)
    member = join(subject)
    apply(subject, [OffsetChange(OffsetKey("g", "t", 0), offset(commit_time_ms=NOW_MS))])
    clock.now_ms += 30 * DAY_MS
    assert apply_expired(subject) == []
    subject.leave("g", [LeavingMember(member_id=member.member_id)], 0)
    settle(subject)
    clock.now_ms += 7 * DAY_MS - 1
    assert apply_expired(subject) == []
    clock.now_ms += 1
    assert len(apply_expired(subject)) == 2
    assert subject.groups == {}


def test_offsets_of_topics_that_a_living_group_no_longer_reads_expire() -> None:
    clock = Clock()
    subject = coordinator(clock)
    commit(subject, "g", "t", offset())
    commit(subject, "g", "u", offset())
    join(subject, protocols=(("range", subscription("t")),))
    clock.now_ms += 7 * DAY_MS
    assert apply_expired(subject) == [OffsetChange(OffsetKey("g", "u", 0), None)]


# From the log.


def test_a_coordinator_is_what_its_log_says() -> None:
    driver = GroupDriver()
    (member,) = driver.stable_members("a")
    subject = coordinator()
    subject.replay(encode_offset_key(OffsetKey("g", "t", 0)), encode_offset(offset(1)))
    subject.replay(encode_offset_key(OffsetKey("g", "t", 0)), encode_offset(offset(2)))
    subject.replay(encode_offset_key(OffsetKey("simple", "t", 0)), encode_offset(offset(3)))
    subject.replay(encode_offset_key(OffsetKey("gone", "t", 0)), encode_offset(offset(4)))
    subject.replay(encode_offset_key(OffsetKey("gone", "t", 0)), None)
    subject.replay(encode_group_key("g"), encode_group(driver.stored[-1]))
    subject.replay(encode_group_key("gone"), encode_group(driver.stored[-1]))
    subject.replay(encode_group_key("gone"), None)
    assert len(list(subject.end_replay(lambda: 0))) == 2
    assert subject.committed("g")["t", 0].offset == 2
    assert set(subject.groups) == {"g", "simple"}
    assert subject.heartbeat("g", member.member_id, None, member.generation, 0) is ErrorCode.none
    subject.tick(SESSION_MS)
    settle(subject)
    assert state_of(subject, "g") is GroupState.EMPTY


def test_a_record_that_cannot_be_read_is_not_passed_over() -> None:
    with pytest.raises(GroupRecordError):
        coordinator().replay(b"\0\x09", b"")
