"""The groups and committed offsets that one partition of `__consumer_offsets` keeps, without I/O.

What changes a group's members goes through `Group` and leaves as effects. What changes offsets is checked first, then
written by the owner (`begin_write`), then told back here when it is committed (`end_write`), in the order of the log;
so memory never holds what another node that takes over would not find.

One coordinator serves one leadership of its partition: the next one begins with an empty one and the log.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from tidegate_core.groups.group import Group, GroupRules, GroupState
from tidegate_core.groups.messages import (
    NO_MEMBER,
    Effect,
    JoinReply,
    JoinRequest,
    JoinResult,
    LeavingMember,
    SyncReply,
    SyncRequest,
    SyncResult,
)
from tidegate_core.groups.records import (
    CommittedOffset,
    OffsetKey,
    decode_group,
    decode_key,
    decode_offset,
    encode_group_key,
    encode_offset,
    encode_offset_key,
)
from tidegate_wire.kafka.messages import ErrorCode

OFFSET_METADATA_BYTES_MAX: Final = 4096
"""Kafka's default (offset.metadata.max.bytes): a note of the client, kept in memory for as long as the offset."""

TopicPartition = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorLimits:
    """What a coordinator takes and how long it keeps it."""

    groups_max: int
    """Groups in one coordinator: each is memory, and any client can make one by asking."""
    session_timeout_ms_min: int
    session_timeout_ms_max: int
    offsets_retention_ms: int


@dataclass(frozen=True, slots=True)
class OffsetChange:
    """A committed offset is set, or (None) gone."""

    key: OffsetKey
    committed: CommittedOffset | None

    def to_record(self) -> tuple[bytes, bytes | None]:
        """Key and value as they stand in the log."""
        return encode_offset_key(self.key), None if self.committed is None else encode_offset(self.committed)


@dataclass(frozen=True, slots=True)
class GroupRemoval:
    """A group is gone, unless it has members again."""

    group_id: str

    def to_record(self) -> tuple[bytes, bytes | None]:
        """Key and value as they stand in the log."""
        return encode_group_key(self.group_id), None


Change = OffsetChange | GroupRemoval


class Coordinator:
    """Groups by id, offsets by group and partition. The owner empties `effects` after each call."""

    def __init__(self, rules: GroupRules, limits: CoordinatorLimits) -> None:
        self.groups: dict[str, Group] = {}
        self.offsets: dict[str, dict[TopicPartition, CommittedOffset]] = {}
        self.effects: list[tuple[Group | None, Effect]] = []
        self._rules = rules
        self._limits = limits
        self._replayed: dict[str, bytes] = {}
        """The newest record of each group; read only when all are there."""
        self._in_flight: dict[OffsetKey, int] = {}
        """Commits that are written and not committed yet: what stands in `offsets` is not the last word for these."""
        self._due: list[tuple[int, str]] = []
        """A heap of when which group needs a tick; entries may be early (heartbeats move deadlines on), never late."""
        self._due_ms: dict[str, int] = {}

    # From the log.

    def replay(self, key: bytes, value: bytes | None) -> None:
        """Take one record of the log, in order, before anything is served.

        Raises:
            GroupRecordError: it can't be read.
        """
        named = decode_key(key)
        if isinstance(named, OffsetKey):
            if value is None:
                self._forget_offset(named)
            else:
                self._set_offset(named, decode_offset(value))
        elif value is None:
            self._replayed.pop(named.group_id, None)
        else:
            self._replayed[named.group_id] = value

    def end_replay(self, now_ms: Callable[[], int]) -> Iterator[None]:
        """The whole log was replayed: the groups begin to live, one with each step.

        A member has its whole session timeout from then on: it may have been long without a coordinator.

        Raises:
            GroupRecordError: a group can't be read.
        """
        for group_id, value in self._replayed.items():
            group = Group.restore(decode_group(group_id, value), self._rules, now_ms())
            self.groups[group_id] = group
            self._after(group)
            yield
        self._replayed.clear()
        for group_id in self.offsets:
            if group_id not in self.groups:
                self.groups[group_id] = Group(group_id, self._rules)
                yield

    # Writing.

    def begin_write(self, changes: Iterable[Change]) -> None:
        """The records of these changes are written."""
        for change in changes:
            if isinstance(change, OffsetChange):
                self._in_flight[change.key] = self._in_flight.get(change.key, 0) + 1

    def end_write(self, changes: Iterable[Change], *, is_committed: bool) -> None:
        """The records of these changes are committed, or never will be as far as this coordinator knows."""
        for change in changes:
            if isinstance(change, OffsetChange):
                count = self._in_flight.pop(change.key) - 1
                if count:
                    self._in_flight[change.key] = count
            if is_committed:
                self._apply(change)

    def _apply(self, change: Change) -> None:
        if isinstance(change, GroupRemoval):
            self._remove(change.group_id)
        elif change.committed is None:
            self._forget_offset(change.key)
        else:
            self._set_offset(change.key, change.committed)
            if change.key.group_id not in self.groups:
                self.groups[change.key.group_id] = Group(change.key.group_id, self._rules)

    def _set_offset(self, key: OffsetKey, committed: CommittedOffset) -> None:
        of_group = self.offsets.get(key.group_id)
        if of_group is None:
            of_group = self.offsets[key.group_id] = {}
        of_group[key.topic, key.partition] = committed

    def _forget_offset(self, key: OffsetKey) -> None:
        of_group = self.offsets.get(key.group_id, {})
        of_group.pop((key.topic, key.partition), None)
        if not of_group:
            self.offsets.pop(key.group_id, None)

    def _remove(self, group_id: str) -> None:
        group = self.groups.get(group_id)
        if group is not None and group.is_idle and group_id not in self.offsets:
            del self.groups[group_id]
            self._due_ms.pop(group_id, None)

    # Members.

    def join(self, request: JoinRequest, token: object, now_ms: int) -> None:
        """JoinGroup; answered through `effects`."""
        error = self._check_join(request)
        if error is not ErrorCode.none:
            result = JoinResult(error=error, member_id=request.member_id)
            self.effects.append((None, JoinReply(token=token, result=result)))
            return
        group = self.groups.get(request.group_id)
        if group is None:
            group = self.groups[request.group_id] = Group(request.group_id, self._rules)
        group.join(request, token, now_ms)
        self._after(group)
        if group.generation == 0:
            self._remove(request.group_id)  # where it was made for this request, which was refused

    def _check_join(self, request: JoinRequest) -> ErrorCode:
        limits = self._limits
        if not limits.session_timeout_ms_min <= request.session_timeout_ms <= limits.session_timeout_ms_max:
            return ErrorCode.invalid_session_timeout
        if request.group_id not in self.groups:
            if request.member_id != NO_MEMBER:
                return ErrorCode.unknown_member_id
            if len(self.groups) >= limits.groups_max:
                return ErrorCode.policy_violation
        return ErrorCode.none

    def sync(self, request: SyncRequest, token: object, now_ms: int) -> None:
        """SyncGroup; answered through `effects`."""
        group = self.groups.get(request.group_id)
        if group is None:
            result = SyncResult(error=ErrorCode.unknown_member_id)
            self.effects.append((None, SyncReply(token=token, result=result)))
            return
        group.sync(request, token, now_ms)
        self._after(group)

    def heartbeat(
        self, group_id: str, member_id: str, instance_id: str | None, generation: int, now_ms: int
    ) -> ErrorCode:
        """Heartbeat."""
        group = self.groups.get(group_id)
        if group is None:
            return ErrorCode.unknown_member_id
        return group.heartbeat(member_id, instance_id, generation, now_ms)

    def leave(self, group_id: str, leaving: list[LeavingMember], now_ms: int) -> list[ErrorCode]:
        """LeaveGroup; one answer for each."""
        group = self.groups.get(group_id)
        if group is None:
            return [ErrorCode.unknown_member_id] * len(leaving)
        errors = group.leave(leaving, now_ms)
        self._after(group)
        return errors

    def stored(self, group: Group, number: int, error: ErrorCode, now_ms: int) -> None:
        """The write that a `StoreGroup` of this group asked for is done, or failed with `error`."""
        group.stored(number, error, now_ms)
        self._after(group)

    # Offsets.

    def check_commit(
        self, group_id: str, generation: int, member_id: str, instance_id: str | None, now_ms: int
    ) -> ErrorCode:
        """Whether a commit may be written. A group without members comes into being when it is committed."""
        group = self.groups.get(group_id)
        if group is None:
            if generation >= 0:
                return ErrorCode.illegal_generation
            if member_id != NO_MEMBER or instance_id is not None:
                return ErrorCode.unknown_member_id
            return ErrorCode.policy_violation if len(self.groups) >= self._limits.groups_max else ErrorCode.none
        return group.check_commit(generation, member_id, instance_id, now_ms)

    def committed(self, group_id: str) -> Mapping[TopicPartition, CommittedOffset]:
        """Everything the group committed."""
        return self.offsets.get(group_id, {})

    def delete_group(self, group_id: str) -> ErrorCode | list[Change]:
        """DeleteGroups: what to write, or why not."""
        group = self.groups.get(group_id)
        if group is None:
            return ErrorCode.group_id_not_found
        if group.state is not GroupState.EMPTY:
            return ErrorCode.non_empty_group
        return [*self._all_offsets_gone(group_id), GroupRemoval(group_id)]

    def delete_offsets(
        self, group_id: str, partitions: Iterable[TopicPartition]
    ) -> ErrorCode | tuple[list[Change], dict[TopicPartition, ErrorCode]]:
        """OffsetDelete (KIP-496): what to write and an answer for each partition; or why nothing can be deleted."""
        group = self.groups.get(group_id)
        if group is None:
            return ErrorCode.group_id_not_found
        if group.state is not GroupState.EMPTY and group.protocol_type != "consumer":
            return ErrorCode.non_empty_group
        changes: list[Change] = []
        answers: dict[TopicPartition, ErrorCode] = {}
        for topic, partition in partitions:
            if group.subscribes_to(topic):
                answers[topic, partition] = ErrorCode.group_subscribed_to_topic
                continue
            answers[topic, partition] = ErrorCode.none
            if (topic, partition) in self.offsets.get(group_id, {}):
                changes.append(OffsetChange(OffsetKey(group_id, topic, partition), None))
        return changes, answers

    def _all_offsets_gone(self, group_id: str) -> list[Change]:
        return [
            OffsetChange(OffsetKey(group_id, topic, partition), None)
            for topic, partition in self.offsets.get(group_id, {})
        ]

    # Time.

    def next_deadline_ms(self) -> int | None:
        """When `tick` has to be called at the latest."""
        return self._due[0][0] if self._due else None

    def tick(self, now_ms: int) -> None:
        """Tick the groups that are due."""
        while self._due and self._due[0][0] <= now_ms:
            due_ms, group_id = heapq.heappop(self._due)
            group = self.groups.get(group_id)
            if group is None or self._due_ms.get(group_id) != due_ms:
                continue
            del self._due_ms[group_id]
            group.tick(now_ms)
            self._after(group)
            if group.generation == 0:
                self._remove(group_id)  # nobody ever got in, and nothing of it was written

    # Sweeping: over some offsets at a time, since there may be very many.

    def offsets_gone(
        self, group_id: str, partitions: Iterable[TopicPartition], is_gone: Callable[[str, CommittedOffset], bool]
    ) -> list[Change]:
        """Take back those committed offsets for which `is_gone(topic, committed)` holds: what to write."""
        offsets = self.offsets.get(group_id, {})
        in_flight = self._in_flight  # a newer one is on its way
        return [
            OffsetChange(key, None)
            for topic, partition in partitions
            if (committed := offsets.get((topic, partition))) is not None
            and is_gone(topic, committed)
            and (key := OffsetKey(group_id, topic, partition)) not in in_flight
        ]

    def offsets_expired(self, group_id: str, partitions: Iterable[TopicPartition]) -> list[Change]:
        """Take back those committed offsets whose time is over (KIP-211): what to write.

        An offset is kept while its group has members that subscribe to its topic, and for the retention time after the
        group became empty; in a group that never had members, for the retention time after its commit.
        """
        group = self.groups[group_id]
        oldest_ms = self._oldest_ms()
        if group.state is GroupState.EMPTY and group.protocol_type is not None and group.state_since_ms > oldest_ms:
            return []
        return self.offsets_gone(group_id, partitions, partial(_is_expired, group, oldest_ms))

    def groups_expired(self, group_ids: Iterable[str]) -> list[Change]:
        """Remove those groups that have held nothing for the retention time: what to write."""
        oldest_ms = self._oldest_ms()
        return [
            GroupRemoval(group_id)
            for group_id in group_ids
            if (group := self.groups.get(group_id)) is not None
            and group.is_idle
            and group.state_since_ms <= oldest_ms
            and group_id not in self.offsets
        ]

    def _oldest_ms(self) -> int:
        return self._rules.wall_clock_ms() - self._limits.offsets_retention_ms

    def _after(self, group: Group) -> None:
        self.effects += [(group, effect) for effect in group.effects]
        group.effects.clear()
        deadline_ms = group.next_deadline_ms()
        if deadline_ms is None:
            return
        due_ms = self._due_ms.get(group.group_id)
        if due_ms is None or deadline_ms < due_ms:
            self._due_ms[group.group_id] = deadline_ms
            heapq.heappush(self._due, (deadline_ms, group.group_id))


def _is_expired(group: Group, oldest_ms: int, topic: str, committed: CommittedOffset) -> bool:
    if committed.commit_time_ms > oldest_ms:
        return False
    if group.state is GroupState.EMPTY:
        return True
    is_readable = group.state is GroupState.STABLE and group.protocol_type == "consumer"
    return is_readable and not group.subscribes_to(topic)
