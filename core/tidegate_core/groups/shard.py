"""One partition of `__consumer_offsets` at work: the asyncio shell around a `Coordinator`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import structlog

from tidegate_core.groups.coordinator import Change, Coordinator
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
from tidegate_core.groups.records import encode_group, encode_group_key
from tidegate_core.partition import Partition
from tidegate_core.replay import replay
from tidegate_wire.identifiers import Offset
from tidegate_wire.kafka.messages import ErrorCode
from tidegate_wire.records import RecordBatchBuilder

_log = structlog.get_logger()

WRITE_RECORDS_MAX: Final = 10_000
"""In one batch: about a megabyte, far below what the topic takes, for the deletion of a topic that many groups read."""

LogRecord = tuple[bytes, bytes | None]
"""Key and value; None takes back what the key names."""


class GroupShard:
    """Writes what its coordinator wants written, in order, and says when it is committed; keeps its time."""

    def __init__(self, partition: Partition, coordinator: Coordinator, wall_clock_ms: Callable[[], int]) -> None:
        self.coordinator = coordinator
        self._partition = partition
        self._wall_clock_ms = wall_clock_ms
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._writes: deque[tuple[Offset, Callable[[Exception | None], None]]] = deque()
        self._has_writes = asyncio.Event()
        self._committer = asyncio.create_task(self._follow_commits(), name=f"groups-{partition.index}")

    async def load(self) -> None:
        """Replay the partition.

        Raises:
            GroupRecordError, BatchError: a record can't be read.
            PartitionError: the log can't.
        """
        await self._partition.committed(self._partition.log_end_offset)
        count = 0
        for record in replay(self._partition):
            assert record.key is not None
            self.coordinator.replay(record.key, record.value)
            count += 1
        self.coordinator.end_replay(self.now_ms())
        self._set_timer()
        if count:
            groups = len(self.coordinator.groups)
            _log.info("groups_loaded", partition=self._partition.index, records=count, groups=groups)

    async def close(self) -> None:
        """Stop; whoever still waits for an answer is cancelled by their connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._committer.cancel()
        await asyncio.gather(self._committer, return_exceptions=True)

    def now_ms(self) -> int:
        """The loop's clock, which coordinators count timeouts in."""
        return int(self._loop.time() * 1000)

    # Members.

    async def join(self, request: JoinRequest) -> JoinResult:
        """JoinGroup; returns when the next generation begins."""
        answer: asyncio.Future[JoinResult] = self._loop.create_future()
        self.coordinator.join(request, answer, self.now_ms())
        self._settle()
        return await answer

    async def sync(self, request: SyncRequest) -> SyncResult:
        """SyncGroup; returns when the leader's assignment is written down."""
        answer: asyncio.Future[SyncResult] = self._loop.create_future()
        self.coordinator.sync(request, answer, self.now_ms())
        self._settle()
        return await answer

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
            PartitionError: they are not; the log says which.
        """
        chunks = [changes[start : start + WRITE_RECORDS_MAX] for start in range(0, len(changes), WRITE_RECORDS_MAX)]
        await asyncio.gather(*[self._write(chunk) for chunk in chunks])

    def _write(self, changes: Sequence[Change]) -> asyncio.Future[None]:
        done: asyncio.Future[None] = self._loop.create_future()

        def on_committed(error: Exception | None) -> None:
            if error is None:
                self.coordinator.apply(changes)
            if done.done():
                return  # whoever asked is gone
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        self._append([change.to_record() for change in changes], on_committed)
        return done

    async def expire(self) -> None:
        """Write down that offsets and groups whose time is over are gone.

        Raises:
            PartitionError: that can't be written now.
        """
        changes = self.coordinator.expired()
        await self.write(changes)
        if changes:
            _log.info("offsets_expired", partition=self._partition.index, records=len(changes))

    def _append(self, records: Iterable[LogRecord], on_committed: Callable[[Exception | None], None]) -> None:
        """Raises: PartitionError."""
        now_ms = self._wall_clock_ms()
        builder = RecordBatchBuilder()
        for key, value in records:
            builder.append(now_ms, key, value)
        result = self._partition.append_as_leader(memoryview(bytearray(builder.build())), now_ms)
        self._writes.append((result.end_offset, on_committed))
        self._has_writes.set()

    async def _follow_commits(self) -> None:
        """One write after the other, in the log's order: memory changes in the order a restart would replay."""
        while True:
            await self._has_writes.wait()
            self._has_writes.clear()
            while self._writes:
                end_offset, on_committed = self._writes[0]
                error = await _error_of(self._partition.committed(end_offset))
                self._writes.popleft()
                on_committed(error)

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
            code = ErrorCode.none
            if error is not None:
                _log.error("group_not_stored", group=group.group_id, error=str(error))
                code = ErrorCode.coordinator_not_available
            self.coordinator.stored(group, effect.number, code, self.now_ms())
            self._settle()

        record = encode_group_key(effect.group.group_id), encode_group(effect.group)
        try:
            self._append([record], on_committed)
        except Exception as error:  # whatever it is, the members have to be told
            self._loop.call_soon(on_committed, error)

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


async def _error_of(awaitable: Awaitable[None]) -> Exception | None:
    try:
        await awaitable
    except Exception as error:  # handed to whoever waits for this write
        return error
    return None
