"""One consumer group: the classic rebalance protocol as a state machine, without I/O.

    EMPTY --join--> PREPARING_REBALANCE --all joined, or time is up--> COMPLETING_REBALANCE --leader's sync--> STABLE
      ^                     |      ^                                            |                               |
      +---- all left -------+      +---- join with news, leave, session over ---+-------------------------------+

A join is answered when the new generation's beginning was written down, a sync when the leader's assignment was: so a
coordinator that takes over knows every generation that any member was told, and never gives its number to another. Both
come with a token, and their answers leave through `effects`. Time is given in (monotonic milliseconds for timeouts).

Sources: Kafka protocol guide, KIP-62 (rebalance timeout), KIP-134 (initial delay), KIP-345 (static
members), KIP-394 (member id required), KIP-559 (protocol in SyncGroup), KIP-814 (skip assignment).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tidegate_core.groups.member import Member, Members
from tidegate_core.groups.messages import (
    NO_MEMBER,
    Effect,
    JoinedMember,
    JoinReply,
    JoinRequest,
    JoinResult,
    LeavingMember,
    Protocols,
    StoredGroup,
    StoreGroup,
    SyncReply,
    SyncRequest,
    SyncResult,
)
from tidegate_core.groups.subscription import subscribed_topics
from tidegate_wire.kafka.messages import ErrorCode

NEW_MEMBER_TIMEOUT_MS: Final = 300_000
"""How long a member that never synced is kept while its join waits: its client may be gone, and only a join that is
answered lets us see that. Five minutes is the usual longest rebalance timeout."""

_GENERATION_MAX: Final = 2**31 - 1


class GroupState(StrEnum):
    """By the names that DescribeGroups uses."""

    EMPTY = "Empty"
    PREPARING_REBALANCE = "PreparingRebalance"
    COMPLETING_REBALANCE = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRules:
    """What all groups of a coordinator have in common."""

    initial_delay_ms: int
    """How long an empty group waits for more members before its first generation (KIP-134)."""
    members_max: int
    new_member_id: Callable[[str], str]
    """Makes a member id that nobody had before; begins with the text given."""
    wall_clock_ms: Callable[[], int]
    """Unix time."""


@dataclass(slots=True)
class _InitialDelay:
    """The first generation of an empty group waits (KIP-134)."""

    remaining_ms: int
    """How much longer it may wait if members keep joining."""
    has_joined: bool = True
    """Somebody joined since the wait was last extended."""


class Group:
    """The members of one group and the state of its rebalance. The owner empties `effects` after each call."""

    __slots__ = (
        "_assigned_generation",
        "_initial",
        "_pending_ids",
        "_rebalance_deadline_ms",
        "_rules",
        "_store_count",
        "_stores",
        "_told_generation",
        "effects",
        "generation",
        "group_id",
        "leader_id",
        "members",
        "protocol_name",
        "protocol_type",
        "state",
        "state_since_ms",
    )

    def __init__(self, group_id: str, rules: GroupRules) -> None:
        self.group_id = group_id
        self.state = GroupState.EMPTY
        self.state_since_ms = rules.wall_clock_ms()
        """Unix time of the last change of state: committed offsets expire some time after the group became empty."""
        self.generation = 0
        self.protocol_type: str | None = None
        self.protocol_name: str | None = None
        self.leader_id: str | None = None
        self.members = Members()
        self.effects: list[Effect] = []
        self._rules = rules
        self._pending_ids: dict[str, int] = {}
        """Member ids given out with MEMBER_ID_REQUIRED, and until when they may be used."""
        self._rebalance_deadline_ms = 0
        """PREPARING_REBALANCE: until when to wait for joins. COMPLETING_REBALANCE: for syncs."""
        self._initial: _InitialDelay | None = None
        self._told_generation = -1
        """The generation whose beginning was written down, so that members know of it."""
        self._assigned_generation = -1
        """The generation whose leader brought its assignment."""
        self._stores: dict[int, Callable[[ErrorCode, int], None]] = {}
        """Writes under way, and the next step of each."""
        self._store_count = 0

    @classmethod
    def restore(cls, stored: StoredGroup, rules: GroupRules, now_ms: int) -> Group:
        """A group as it was written down; without a leader, when a generation began: its members have to join again."""
        group = cls(stored.group_id, rules)
        group.generation = stored.generation
        group.protocol_type = stored.protocol_type or None
        group.protocol_name = stored.protocol_name
        group.leader_id = stored.leader_id
        group.state_since_ms = stored.state_since_ms
        for member in stored.members:
            group.members.add(Member.restore(member, stored.protocol_name, now_ms))
        if stored.members and stored.leader_id is None:
            group.state = GroupState.PREPARING_REBALANCE
            group._rebalance_deadline_ms = now_ms + group._rebalance_timeout_ms()
        elif stored.members:
            group.state = GroupState.STABLE
        return group

    def to_stored(self, *, is_assigned: bool) -> StoredGroup:
        """The group as it is written down; before its assignment came, without a leader."""
        return StoredGroup(
            group_id=self.group_id,
            protocol_type=self.protocol_type or "",
            generation=self.generation,
            protocol_name=self.protocol_name,
            leader_id=self.leader_id if is_assigned else None,
            state_since_ms=self.state_since_ms,
            members=tuple(member.to_stored(self.protocol_name) for member in self.members),
        )

    # What others may ask.

    @property
    def is_idle(self) -> bool:
        """Nobody is in it, or about to be."""
        return self.state is GroupState.EMPTY and not self._pending_ids and not self._stores

    def subscribes_to(self, topic: str) -> bool:
        """Whether a consumer of the group reads `topic`, as far as the subscriptions can be read."""
        return any(topic in subscribed_topics(member.metadata(self.protocol_name)) for member in self.members)

    def next_deadline_ms(self) -> int | None:
        """When `tick` has to be called at the latest; None while nothing runs out."""
        deadlines = list(self._pending_ids.values())
        deadlines += [member.deadline_ms for member in self.members if member.can_expire]
        if self.state is GroupState.PREPARING_REBALANCE or self._awaits_syncs():
            deadlines.append(self._rebalance_deadline_ms)
        return min(deadlines, default=None)

    def check_commit(self, generation: int, member_id: str, instance_id: str | None, now_ms: int) -> ErrorCode:
        """Whether a commit of offsets may be taken. Without a generation only an empty group takes one."""
        if generation < 0 and member_id == NO_MEMBER and instance_id is None:
            return ErrorCode.none if self.state is GroupState.EMPTY else ErrorCode.unknown_member_id
        error = self.members.check(member_id, instance_id)
        if error is not ErrorCode.none:
            return error
        if generation != self.generation:
            return ErrorCode.illegal_generation
        if self.state is GroupState.COMPLETING_REBALANCE:
            return ErrorCode.rebalance_in_progress  # its partitions may be another's by now
        self.members[member_id].hear_of(now_ms)
        return ErrorCode.none

    # JoinGroup.

    def join(self, request: JoinRequest, token: object, now_ms: int) -> None:
        """Take a JoinGroup; answered through `effects`, now or when the next generation begins."""
        if not self._supports(request.protocol_type, request.protocols):
            self._refuse_join(token, ErrorCode.inconsistent_group_protocol, request.member_id)
        elif request.member_id == NO_MEMBER:
            self._join_without_id(request, token, now_ms)
        elif request.member_id in self._pending_ids and request.instance_id is None:
            self._add_and_rebalance(request.member_id, request, token, now_ms)
        else:
            error = self.members.check(request.member_id, request.instance_id)
            if error is not ErrorCode.none:
                self._refuse_join(token, error, request.member_id)
            else:
                self._rejoin(self.members[request.member_id], request, token, now_ms)

    def _supports(self, protocol_type: str, protocols: Protocols) -> bool:
        if not protocol_type or not protocols:
            return False
        if not self.members:
            return True
        names = {name for name, _ in protocols}
        return protocol_type == self.protocol_type and bool(names & self.members.common_protocols())

    def _join_without_id(self, request: JoinRequest, token: object, now_ms: int) -> None:
        predecessor = self.members.with_instance_id(request.instance_id)
        if predecessor is None and len(self.members) + len(self._pending_ids) >= self._rules.members_max:
            self._refuse_join(token, ErrorCode.group_max_size_reached, NO_MEMBER)
            return
        member_id = self._rules.new_member_id(request.instance_id or request.client_id)
        if predecessor is not None:
            self._replace_static(predecessor, member_id, request, token, now_ms)
        elif request.instance_id is None and request.knows_member_id:
            self._pending_ids[member_id] = now_ms + request.session_timeout_ms
            self._refuse_join(token, ErrorCode.member_id_required, member_id)
        else:
            self._add_and_rebalance(member_id, request, token, now_ms)

    def _add_and_rebalance(self, member_id: str, request: JoinRequest, token: object, now_ms: int) -> None:
        self._pending_ids.pop(member_id, None)
        self.protocol_type = request.protocol_type
        self.members.add(
            Member(
                member_id=member_id,
                instance_id=request.instance_id,
                client_id=request.client_id,
                client_host=request.client_host,
                session_timeout_ms=request.session_timeout_ms,
                rebalance_timeout_ms=request.rebalance_timeout_ms,
                protocols=request.protocols,
                deadline_ms=now_ms + NEW_MEMBER_TIMEOUT_MS,
                join_token=token,
            )
        )
        if self._initial is not None:
            self._initial.has_joined = True
        self._rebalance(now_ms)

    def _rejoin(self, member: Member, request: JoinRequest, token: object, now_ms: int) -> None:
        has_news = member.protocols != request.protocols
        is_told = self.state is GroupState.COMPLETING_REBALANCE and self._told_generation == self.generation
        first_answer_was_lost = is_told and not has_news
        is_content = self.state is GroupState.STABLE and not has_news and member.member_id != self.leader_id
        if first_answer_was_lost or is_content:
            member.hear_of(now_ms)
            self._answer_join(member, token)
            return
        waiting = member.take_join_token()
        if waiting is not None:
            self._refuse_join(waiting, ErrorCode.rebalance_in_progress, member.member_id)
        member.update(request)
        member.join_token = token
        self._rebalance(now_ms)

    def _replace_static(self, member: Member, member_id: str, request: JoinRequest, token: object, now_ms: int) -> None:
        """A static member starts again: it takes over its predecessor's place, which is fenced (KIP-345)."""
        self._refuse_waiting(member, ErrorCode.fenced_instance_id)
        leader_before = self.leader_id
        topics_before = subscribed_topics(member.metadata(self.protocol_name))
        if leader_before == member.member_id:
            self.leader_id = member_id
        self.members.rename(member, member_id)
        member.update(request)
        member.hear_of(now_ms)
        if (
            self.state is not GroupState.STABLE
            or self.members.select_protocol(self.leader_id) != self.protocol_name
            or subscribed_topics(member.metadata(self.protocol_name)) != topics_before
        ):
            member.join_token = token
            self._rebalance(now_ms)
            return

        def on_stored(error: ErrorCode, now_ms: int) -> None:
            if error is not ErrorCode.none:
                self._refuse_join(token, error, member_id)
                self._rebalance(now_ms)
            elif self.members.get(member_id) is member:
                self._answer_replacement(member, token, leader_before, may_skip=request.may_skip_assignment)
            else:
                self._refuse_join(token, ErrorCode.unknown_member_id, member_id)

        self._store(on_stored, is_assigned=True)

    # SyncGroup, Heartbeat, LeaveGroup.

    def sync(self, request: SyncRequest, token: object, now_ms: int) -> None:
        """Take a SyncGroup; answered through `effects` when the assignment is there and written down."""
        error = self._check_sync(request)
        if error is not ErrorCode.none:
            self._answer_sync(token, error)
            return
        member = self.members[request.member_id]
        member.hear_of(now_ms)
        if self.state is GroupState.STABLE:
            self._answer_sync(token, ErrorCode.none, member.assignment)
            return
        assert self.state is GroupState.COMPLETING_REBALANCE, self.state
        waiting = member.take_sync_token()
        if waiting is not None:
            self._answer_sync(waiting, ErrorCode.rebalance_in_progress)
        member.sync_token = token
        member.has_synced = True
        if member.member_id == self.leader_id and self._assigned_generation != self.generation:
            self._take_assignments(request.assignments)

    def _check_sync(self, request: SyncRequest) -> ErrorCode:
        error = self.members.check(request.member_id, request.instance_id)
        if error is not ErrorCode.none:
            return error
        if request.generation != self.generation:
            return ErrorCode.illegal_generation
        if request.protocol_type not in (None, self.protocol_type):
            return ErrorCode.inconsistent_group_protocol
        if request.protocol_name not in (None, self.protocol_name):
            return ErrorCode.inconsistent_group_protocol
        if self.state is GroupState.PREPARING_REBALANCE:
            return ErrorCode.rebalance_in_progress
        return ErrorCode.none

    def _take_assignments(self, assignments: dict[str, bytes]) -> None:
        generation = self._assigned_generation = self.generation
        for member in self.members:
            member.assignment = assignments.get(member.member_id, b"")

        def on_stored(error: ErrorCode, now_ms: int) -> None:
            if self.state is not GroupState.COMPLETING_REBALANCE or self.generation != generation:
                return  # another rebalance began meanwhile, and answered the syncs
            if error is not ErrorCode.none:
                self._drop_assignments(error)
                self._rebalance(now_ms)
                return
            self._enter(GroupState.STABLE)
            for member in self.members:
                token = member.take_sync_token()
                if token is not None:
                    self._answer_sync(token, ErrorCode.none, member.assignment)
                    member.hear_of(now_ms)

        self._store(on_stored, is_assigned=True)

    def heartbeat(self, member_id: str, instance_id: str | None, generation: int, now_ms: int) -> ErrorCode:
        """Take a Heartbeat; REBALANCE_IN_PROGRESS asks the member to join again."""
        error = self.members.check(member_id, instance_id)
        if error is not ErrorCode.none:
            return error
        if generation != self.generation:
            return ErrorCode.illegal_generation
        self.members[member_id].hear_of(now_ms)
        if self.state is GroupState.PREPARING_REBALANCE:
            return ErrorCode.rebalance_in_progress
        return ErrorCode.none

    def leave(self, leaving: Iterable[LeavingMember], now_ms: int) -> list[ErrorCode]:
        """Take a LeaveGroup; one answer for each."""
        members_before = len(self.members)
        errors = [self._leave(member) for member in leaving]
        self._after_leaving(now_ms, has_left=len(self.members) < members_before)
        return errors

    def _leave(self, leaving: LeavingMember) -> ErrorCode:
        if leaving.instance_id is not None and leaving.member_id == NO_MEMBER:
            member = self.members.with_instance_id(leaving.instance_id)
            if member is None:
                return ErrorCode.unknown_member_id
            self._remove(member)
            return ErrorCode.none
        if self._pending_ids.pop(leaving.member_id, None) is not None:
            return ErrorCode.none
        error = self.members.check(leaving.member_id, leaving.instance_id)
        if error is ErrorCode.none:
            self._remove(self.members[leaving.member_id])
        return error

    def _after_leaving(self, now_ms: int, *, has_left: bool) -> None:
        if has_left and self.state in (GroupState.STABLE, GroupState.COMPLETING_REBALANCE):
            self._rebalance(now_ms)
        else:
            self._begin_generation_if_all_joined(now_ms)

    def _remove(self, member: Member) -> None:
        self._refuse_waiting(member, ErrorCode.unknown_member_id)
        self.members.remove(member)
        if self.leader_id == member.member_id:
            self.leader_id = next((kept.member_id for kept in self.members), None)

    # Time.

    def tick(self, now_ms: int) -> None:
        """End what ran out: member ids never used, sessions, the waits for joins and syncs."""
        for member_id in [key for key, deadline_ms in self._pending_ids.items() if now_ms >= deadline_ms]:
            del self._pending_ids[member_id]
        syncs_are_over = self._awaits_syncs() and now_ms >= self._rebalance_deadline_ms
        expired = [
            member
            for member in self.members
            if (member.can_expire and now_ms >= member.deadline_ms) or (syncs_are_over and not member.has_synced)
        ]
        for member in expired:
            self._remove(member)
        self._after_leaving(now_ms, has_left=bool(expired))
        if self.state is GroupState.PREPARING_REBALANCE and now_ms >= self._rebalance_deadline_ms:
            self._end_wait_for_joins(now_ms)

    def _awaits_syncs(self) -> bool:
        """Not while all have asked and only the write of the leader's assignment is missing."""
        return self.state is GroupState.COMPLETING_REBALANCE and not all(member.has_synced for member in self.members)

    def _end_wait_for_joins(self, now_ms: int) -> None:
        initial = self._initial
        if initial is not None and initial.has_joined and initial.remaining_ms > 0:
            delay_ms = min(self._rules.initial_delay_ms, initial.remaining_ms)
            initial.remaining_ms -= delay_ms
            initial.has_joined = False
            self._rebalance_deadline_ms = now_ms + delay_ms
            return
        for member in [kept for kept in self.members if kept.join_token is None and kept.instance_id is None]:
            self._remove(member)
        if self.members and all(member.join_token is None for member in self.members):
            self._rebalance_deadline_ms = now_ms + self._rebalance_timeout_ms()  # static members may still come back
            return
        self._begin_generation(now_ms)

    # Rebalance.

    def _rebalance(self, now_ms: int) -> None:
        """Wait for everyone's join, unless that is going on already; go on at once if all are there."""
        if self.state is GroupState.COMPLETING_REBALANCE:
            self._drop_assignments(ErrorCode.rebalance_in_progress)
        if self.state is not GroupState.PREPARING_REBALANCE:
            timeout_ms = self._rebalance_timeout_ms()
            if self.state is GroupState.EMPTY and self._rules.initial_delay_ms > 0:
                delay_ms = min(self._rules.initial_delay_ms, timeout_ms)
                self._initial = _InitialDelay(timeout_ms - delay_ms, has_joined=False)
                timeout_ms = delay_ms
            self._enter(GroupState.PREPARING_REBALANCE)
            self._rebalance_deadline_ms = now_ms + timeout_ms
        self._begin_generation_if_all_joined(now_ms)

    def _begin_generation_if_all_joined(self, now_ms: int) -> None:
        if self.state is not GroupState.PREPARING_REBALANCE:
            return
        may_begin = self._initial is None and not self._pending_ids
        if not self.members or (may_begin and all(member.join_token is not None for member in self.members)):
            self._begin_generation(now_ms)

    def _begin_generation(self, now_ms: int) -> None:
        self._initial = None
        self.generation = 1 if self.generation == _GENERATION_MAX else self.generation + 1
        if not self.members:
            self.protocol_name = self.leader_id = None
            self._enter(GroupState.EMPTY)
            self._store(_take_no_step, is_assigned=True)
            return
        leader = self.members.get(self.leader_id)
        if leader is None or leader.join_token is None:
            self.leader_id = next(member.member_id for member in self.members if member.join_token is not None)
        self.protocol_name = self.members.select_protocol(self.leader_id)
        self._enter(GroupState.COMPLETING_REBALANCE)
        self._rebalance_deadline_ms = now_ms + self._rebalance_timeout_ms()
        for member in self.members:
            member.has_synced = False
            member.assignment = b""
        generation = self.generation

        def on_stored(error: ErrorCode, now_ms: int) -> None:
            if self.state is not GroupState.COMPLETING_REBALANCE or self.generation != generation:
                return  # another rebalance began meanwhile, and the joins wait for that one
            if error is ErrorCode.none:
                self._tell_generation(now_ms)
            else:
                self._refuse_joins(error, now_ms)

        self._store(on_stored, is_assigned=False)

    def _tell_generation(self, now_ms: int) -> None:
        self._told_generation = self.generation
        for member in self.members:
            token = member.take_join_token()
            if token is not None:
                member.is_new = False
                member.hear_of(now_ms)
                self._answer_join(member, token)

    def _refuse_joins(self, error: ErrorCode, now_ms: int) -> None:
        for member in list(self.members):
            token = member.take_join_token()
            if token is not None:
                self._refuse_join(token, error, member.member_id)
            if member.is_new:  # it never got in: let its client begin again
                self._remove(member)
        self._rebalance(now_ms)

    def _drop_assignments(self, error: ErrorCode) -> None:
        for member in self.members:
            member.assignment = b""
            token = member.take_sync_token()
            if token is not None:
                self._answer_sync(token, error)

    def _rebalance_timeout_ms(self) -> int:
        return max((member.rebalance_timeout_ms for member in self.members), default=0)

    def _enter(self, state: GroupState) -> None:
        self.state = state
        self.state_since_ms = self._rules.wall_clock_ms()

    # Effects.

    def _refuse_waiting(self, member: Member, error: ErrorCode) -> None:
        token = member.take_join_token()
        if token is not None:
            self._refuse_join(token, error, member.member_id)
        token = member.take_sync_token()
        if token is not None:
            self._answer_sync(token, error)

    def _refuse_join(self, token: object, error: ErrorCode, member_id: str) -> None:
        self.effects.append(JoinReply(token=token, result=JoinResult(error=error, member_id=member_id)))

    def _answer_join(self, member: Member, token: object) -> None:
        members = self.members.as_joined(self.protocol_name) if member.member_id == self.leader_id else ()
        self.effects.append(JoinReply(token=token, result=self._joined(member, self.leader_id, members)))

    def _answer_replacement(self, member: Member, token: object, leader_before: str | None, *, may_skip: bool) -> None:
        """No rebalance: a leader that can't be told to skip the assignment is told that its predecessor leads."""
        if member.member_id == self.leader_id and may_skip:
            result = self._joined(member, member.member_id, self.members.as_joined(self.protocol_name), skip=True)
        else:
            result = self._joined(member, leader_before, ())
        self.effects.append(JoinReply(token=token, result=result))

    def _joined(
        self, member: Member, leader_id: str | None, members: tuple[JoinedMember, ...], *, skip: bool = False
    ) -> JoinResult:
        return JoinResult(
            generation=self.generation,
            protocol_type=self.protocol_type,
            protocol_name=self.protocol_name,
            leader_id=leader_id or NO_MEMBER,
            member_id=member.member_id,
            members=members,
            skip_assignment=skip,
        )

    def _answer_sync(self, token: object, error: ErrorCode, assignment: bytes = b"") -> None:
        result = SyncResult(error=error)
        if error is ErrorCode.none:
            result = SyncResult(
                protocol_type=self.protocol_type, protocol_name=self.protocol_name, assignment=assignment
            )
        self.effects.append(SyncReply(token=token, result=result))

    def _store(self, on_stored: Callable[[ErrorCode, int], None], *, is_assigned: bool) -> None:
        self._store_count += 1
        self._stores[self._store_count] = on_stored
        stored = self.to_stored(is_assigned=is_assigned)
        self.effects.append(StoreGroup(number=self._store_count, group=stored))

    def stored(self, number: int, error: ErrorCode, now_ms: int) -> None:
        """The write that effect `StoreGroup` asked for is done, or failed with `error`."""
        self._stores.pop(number)(error, now_ms)


def _take_no_step(_error: ErrorCode, _now_ms: int) -> None:
    """Whether an empty group is written down changes nothing for it."""
