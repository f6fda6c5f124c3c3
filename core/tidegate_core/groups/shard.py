"""One partition of `__consumer_offsets` at work while this node leads it: the asyncio shell around a `Coordinator`.

    LOADING --replayed--> ACTIVE --leads no more--> UNLOADED
        +----can't be read---> FAILED ----------------^

A shard serves one leadership, and is never loaded again. Whoever waits for an answer when it is unloaded is told
NOT_COORDINATOR: whether what they wrote stays is for the next coordinator, who reads it in the log or does not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import Enum, auto
from typing import Final

import structlog

from tidegate_core.groups import loader
from tidegate_core.groups.coordinator import Change, Coordinator, TopicPartition
from tidegate_core.groups.group import Group
from tidegate_core.groups.messages import (
    JoinReply,
    JoinRequest,
    JoinResult,
    LeavingMember,
    StoreGroup,
    SyncReply,
    SyncRequest,
    SyncResult,
)
from tidegate_core.groups.records import CommittedOffset, encode_group, encode_group_key
from tidegate_core.partition import Partition
from tidegate_core.protocol.error_codes import KafkaError, refusal_of
from tidegate_wire.identifiers import Offset
from tidegate_wire.kafka.messages import ErrorCode
from tidegate_wire.records import RecordBatchBuilder

_log = structlog.get_logger()

WRITE_RECORDS_MAX: Final = 1000
"""In one batch, and between two turns of everything else on the loop: some ten milliseconds."""

SWEPT_AT_ONCE: Final = 500
"""Offsets, or groups, looked through between two turns. Well below `WRITE_RECORDS_MAX`: what is found is written at
once, before anything else can be."""

LogRecord = tuple[bytes, bytes | None]
"""Key and value; None takes back what the key names."""

_COORDINATORS_WORDS: Final = {
    ErrorCode.not_leader_or_follower: ErrorCode.not_coordinator,
    ErrorCode.kafka_storage_error: ErrorCode.coordinator_not_available,
}
"""What a partition's error is called by its coordinator, so that clients look for another one or try again."""


class ShardState(Enum):
    """What becomes of a shard."""

    LOADING = auto()
    ACTIVE = auto()
    FAILED = auto()
    UNLOADED = auto()


class GroupShard:
    """Writes what its coordinator wants written, in order, and says when it is committed; keeps its time."""

    def __init__(self, partition: Partition, coordinator: Coordinator, wall_clock_ms: Callable[[], int]) -> None:
        self.partition = partition
        self.coordinator = coordinator
        self.state = ShardState.LOADING
        self._epoch = partition.leader_epoch
        self._wall_clock_ms = wall_clock_ms
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._writes: deque[tuple[Offset, Callable[[Exception | None], None]]] = deque()
        self._has_writes = asyncio.Event()
        self._committer = asyncio.create_task(self._follow_commits(), name=f"groups-{partition.index}")
        self._joins: dict[asyncio.Future[JoinResult], JoinRequest] = {}
        self._syncs: dict[asyncio.Future[SyncResult], SyncRequest] = {}

    async def load(self) -> None:
        """Replay the partition; the shard serves when this returns.

        Raises:
            GroupRecordError, BatchError: a record can't be read.
            PartitionError: the log can't, or this node leads it no more.
        """
        count = await loader.load(self.partition, self.coordinator, self.now_ms)
        assert self.state is ShardState.LOADING
        self.state = ShardState.ACTIVE
        self._set_timer()
        if count:
            groups = len(self.coordinator.groups)
            _log.info("groups_loaded", partition=self.partition.index, epoch=self._epoch, records=count, groups=groups)

    def fail(self) -> None:
        """The log can't be read: its groups are not available."""
        self.state = ShardState.FAILED

    def check_active(self) -> None:
        """Raise KafkaError unless the shard serves."""
        match self.state:
            case ShardState.ACTIVE:
                return
            case ShardState.LOADING:
                raise KafkaError(ErrorCode.coordinator_load_in_progress, "the group's records are being read")
            case ShardState.FAILED:
                raise KafkaError(ErrorCode.coordinator_not_available, "the group's records can't be read")
            case ShardState.UNLOADED:
                raise _moved()

    def unload(self) -> None:
        """This node leads the partition no more: nothing is served from now on, and nobody is left waiting."""
        self.state = ShardState.UNLOADED
        if self._timer is not None:
            self._timer.cancel()
        self._committer.cancel()
        writes, self._writes = self._writes, deque()
        for _, on_committed in writes:
            on_committed(_moved())
        for join, asked in self._joins.items():
            if not join.done():
                join.set_result(JoinResult(error=ErrorCode.not_coordinator, member_id=asked.member_id))
        for sync in self._syncs:
            if not sync.done():
                sync.set_result(SyncResult(error=ErrorCode.not_coordinator))

    async def ended(self) -> None:
        """Return when it is at rest, after it was unloaded."""
        await asyncio.gather(self._committer, return_exceptions=True)

    def now_ms(self) -> int:
        """The loop's clock, which coordinators count timeouts in."""
        return int(self._loop.time() * 1000)

    # Members.

    async def join(self, request: JoinRequest) -> JoinResult:
        """JoinGroup; returns when the next generation begins."""
        answer: asyncio.Future[JoinResult] = self._loop.create_future()
        self._joins[answer] = request
        try:
            self.coordinator.join(request, answer, self.now_ms())
            self._settle()
            return await answer
        finally:
            del self._joins[answer]

    async def sync(self, request: SyncRequest) -> SyncResult:
        """SyncGroup; returns when the leader's assignment is written down."""
        answer: asyncio.Future[SyncResult] = self._loop.create_future()
        self._syncs[answer] = request
        try:
            self.coordinator.sync(request, answer, self.now_ms())
            self._settle()
            return await answer
        finally:
            del self._syncs[answer]

    def heartbeat(self, group_id: str, member_id: str, instance_id: str | None, generation: int) -> ErrorCode:
        """Heartbeat."""
        return self.coordinator.heartbeat(group_id, member_id, instance_id, generation, self.now_ms())

    def leave(self, group_id: str, leaving: list[LeavingMember]) -> list[ErrorCode]:
        """LeaveGroup."""
        errors = self.coordinator.leave(group_id, leaving, self.now_ms())
        self._settle()
        return errors

    def check_commit(self, group_id: str, generation: int, member_id: str, instance_id: str | None) -> ErrorCode:
        """Whether an OffsetCommit may be written."""
        return self.coordinator.check_commit(group_id, generation, member_id, instance_id, self.now_ms())

    # Writing.

    async def write(self, changes: Sequence[Change]) -> None:
        """Write changes; when this returns they are committed and can be seen.

        Raises:
            KafkaError: they are not, or this node can't know: NOT_COORDINATOR where it leads the partition no more,
                COORDINATOR_NOT_AVAILABLE where the disk failed.
        """
        writes: list[asyncio.Future[None]] = []
        try:
            for start in range(0, len(changes), WRITE_RECORDS_MAX):
                if start:
                    await asyncio.sleep(0)
                writes.append(self._write(changes[start : start + WRITE_RECORDS_MAX]))
            await asyncio.gather(*writes)
        except Exception as error:
            for write in writes:
                write.cancel()
            if isinstance(error, KafkaError):
                raise
            raise KafkaError(_code_of(error), str(error)) from error

    def _write(self, changes: Sequence[Change]) -> asyncio.Future[None]:
        done: asyncio.Future[None] = self._loop.create_future()

        def on_committed(error: Exception | None) -> None:
            self.coordinator.end_write(changes, is_committed=error is None)
            if done.done():
                return  # whoever asked is gone
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        self._append([change.to_record() for change in changes], on_committed)
        self.coordinator.begin_write(changes)
        return done

    def _append(self, records: Iterable[LogRecord], on_committed: Callable[[Exception | None], None]) -> None:
        """Raises: PartitionError, KafkaError."""
        if self.state is ShardState.UNLOADED or self.partition.leader_epoch != self._epoch:
            raise _moved()
        now_ms = self._wall_clock_ms()
        builder = RecordBatchBuilder()
        for key, value in records:
            builder.append(now_ms, key, value)
        result = self.partition.append_as_leader(memoryview(bytearray(builder.build())), now_ms)
        self._writes.append((result.end_offset, on_committed))
        self._has_writes.set()

    async def _follow_commits(self) -> None:
        """One write after the other, in the log's order: memory changes in the order another node would replay."""
        while True:
            await self._has_writes.wait()
            self._has_writes.clear()
            while self._writes:
                end_offset, on_committed = self._writes[0]
                error = await _error_of(self.partition.committed(end_offset))
                self._writes.popleft()
                try:
                    on_committed(error)
                except Exception:  # our own mistake with one group: the others' writes go on
                    _log.exception("group_write_not_taken", partition=self.partition.index)

    def _settle(self) -> None:
        """Do what the coordinator wants done."""
        effects = self.coordinator.effects
        while effects:
            group, effect = effects.pop(0)
            match effect:
                case JoinReply(token=token, result=result) | SyncReply(token=token, result=result):
                    assert isinstance(token, asyncio.Future)
                    if not token.done():  # its connection may be gone
                        token.set_result(result)
                case StoreGroup():
                    assert group is not None
                    self._store(group, effect)
        self._set_timer()

    def _store(self, group: Group, effect: StoreGroup) -> None:
        def on_committed(error: Exception | None) -> None:
            if self.state is ShardState.UNLOADED:
                return  # its members are told that the coordinator moved
            code = ErrorCode.none
            if error is not None:
                code = _code_of(error)
                if code is not ErrorCode.not_coordinator:  # which is no failure: it is about to be unloaded
                    _log.error("group_not_stored", group=group.group_id, error=str(error))
            self.coordinator.stored(group, effect.number, code, self.now_ms())
            self._settle()

        record = encode_group_key(effect.group.group_id), encode_group(effect.group)
        try:
            self._append([record], on_committed)
        except Exception as error:  # whatever it is, the members have to be told
            self._loop.call_soon(on_committed, error)

    # Sweeping.

    async def expire(self) -> None:
        """Write down that offsets and groups whose time is over are gone.

        Raises:
            KafkaError: that can't be written now.
        """
        coordinator = self.coordinator
        count = await self._sweep(coordinator.offsets_expired)
        group_ids = list(coordinator.groups)
        for start in range(0, len(group_ids), SWEPT_AT_ONCE):
            changes = coordinator.groups_expired(group_ids[start : start + SWEPT_AT_ONCE])
            count += await self._write_some(changes)
        if count:
            _log.info("offsets_expired", partition=self.partition.index, records=count)

    async def forget_offsets(self, is_gone: Callable[[str, CommittedOffset], bool]) -> None:
        """Write down that committed offsets are gone for which `is_gone(topic, committed)` holds.

        Commits that are being written are waited for first, and looked at too.

        Raises:
            KafkaError: that can't be written now.
        """
        await self._all_written()
        coordinator = self.coordinator
        await self._sweep(lambda group_id, partitions: coordinator.offsets_gone(group_id, partitions, is_gone))

    async def _all_written(self) -> None:
        """Everything that was written before is committed, or failed."""
        if not self._writes:
            return
        done: asyncio.Future[None] = self._loop.create_future()

        def on_committed(_error: Exception | None) -> None:
            if not done.done():
                done.set_result(None)

        last_end_offset, _ = self._writes[-1]
        self._writes.append((last_end_offset, on_committed))
        await done

    async def _sweep(self, find: Callable[[str, list[TopicPartition]], list[Change]]) -> int:
        offsets = self.coordinator.offsets
        count = looked_at = 0
        changes: list[Change] = []
        for group_id in list(offsets):
            partitions = list(offsets.get(group_id, ()))
            for start in range(0, len(partitions), SWEPT_AT_ONCE):
                some = partitions[start : start + SWEPT_AT_ONCE]
                changes += find(group_id, some)
                looked_at += len(some)
                if looked_at >= SWEPT_AT_ONCE:
                    count += await self._write_some(changes)
                    looked_at, changes = 0, []
        return count + await self._write_some(changes)

    async def _write_some(self, changes: list[Change]) -> int:
        assert len(changes) <= WRITE_RECORDS_MAX
        if changes:
            await self.write(changes)
        else:
            await asyncio.sleep(0)
        return len(changes)

    # Time.

    def _set_timer(self) -> None:
        deadline_ms = self.coordinator.next_deadline_ms()
        if deadline_ms is None:
            return
        when = deadline_ms / 1000
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.coordinator.tick(self.now_ms())
        self._settle()


def _moved() -> KafkaError:
    return KafkaError(ErrorCode.not_coordinator, "another node keeps this group, or nobody does just now")


def _code_of(error: Exception) -> ErrorCode:
    code = refusal_of(error).code
    return _COORDINATORS_WORDS.get(code, code)


async def _error_of(awaitable: Awaitable[None]) -> Exception | None:
    try:
        await awaitable
    except Exception as error:  # handed to whoever waits for this write
        return error
    return None
