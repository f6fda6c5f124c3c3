"""The task that owns the writer's connection: what waits together is committed together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import structlog

from tidegate_edge.errors import EventLogClosed, EventLogFailed
from tidegate_edge.event_log.changes import Change
from tidegate_edge.event_log.committer import Blocked, Committed, Committer, DiskFull, Locked
from tidegate_edge.event_log.database import Database
from tidegate_edge.event_log.event import Event
from tidegate_edge.event_log.state import LogStats

GROUPS_WAITING_MAX: Final = 64
"""Groups that may wait to be appended; further callers wait before theirs is taken. The endpoint has one or two."""

EVENTS_PER_COMMIT_MAX: Final = 20_000
"""Events of one transaction, but for its last group: some 100 ms, so that a cut does not wait for longer."""

RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0
"""How long appends wait, at first and at most, before the log looks whether there is room again."""

MAINTENANCE_PAUSE_S: Final = 0.05
"""How long there must be nothing to do before pages are given back, and between two rounds of it."""

T = TypeVar("T")

log = structlog.get_logger()


class Writer:
    """Takes groups of events and changes, and commits them in order. `on_commit` is told of every commit."""

    def __init__(
        self,
        database: Database,
        committer: Committer,
        *,
        on_commit: Callable[[LogStats], None],
        on_failure: Callable[[EventLogFailed], None],
    ) -> None:
        self._database = database
        self._committer = committer
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._groups: deque[tuple[Sequence[Event], asyncio.Future[None]]] = deque()
        self._changes: deque[tuple[Change[Any], asyncio.Future[Any]]] = deque()
        self._slots = asyncio.Semaphore(GROUPS_WAITING_MAX)
        self._wake = asyncio.Event()
        self._closing = False
        self._failure: EventLogFailed | None = None
        self._blocked: Blocked = ""
        self._is_locked = False
        self._wal_is_pinned = False
        self._needs_maintenance = False
        self._retry_s = RETRY_FIRST_S
        self._task = asyncio.create_task(self._run(), name="event-log-writer")

    async def append(self, events: Sequence[Event]) -> None:
        """Return once the events are on disk. If the caller is cancelled they may be stored all the same.

        Raises:
            EventLogFailed: the log can't be written.
            EventLogClosed: it is closed, or was closed before there was room.
        """
        async with self._slots:
            await self._enqueue(self._groups, events)

    async def change(self, change: Change[T]) -> T:
        """Apply a change in the next transaction and return what it gives.

        Raises:
            CutConflict: as the change says.
            EventLogFailed: the log can't be written.
            EventLogClosed: it is closed.
        """
        result: T = await self._enqueue(self._changes, change)
        return result

    async def close(self) -> None:
        """Commit what waits, as far as there is room, and end the task."""
        self._closing = True
        self._wake.set()
        await asyncio.shield(self._task)

    async def _enqueue(self, queue: deque[Any], item: Any) -> Any:
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise EventLogClosed("the event log is closed")
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        queue.append((item, done))
        self._wake.set()
        return await done

    async def _run(self) -> None:
        try:
            while not (self._closing and not self._changes and (not self._groups or self._blocked)):
                await self._wait()
                is_retry = not self._closing  # blocked groups: is there room by now?
                while self._changes or (self._groups and (is_retry or not self._blocked)):
                    is_retry = False
                    await self._commit()
        except EventLogFailed as error:
            self._failure = error
            self._on_failure(error)
        finally:
            self._give_up(self._failure or EventLogClosed("the event log was closed before there was room"))

    async def _wait(self) -> None:
        """Until there is something new to do, or blocked groups are to be tried again; maintain the log meanwhile."""
        if self._closing:
            return
        is_retry = bool(self._blocked and self._groups)
        pause_s = self._retry_s if is_retry else MAINTENANCE_PAUSE_S if self._needs_maintenance else None
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            if is_retry:
                self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
            else:
                await self._maintain(is_idle=True)
        self._wake.clear()

    async def _commit(self) -> None:
        changes, self._changes = self._changes, deque()
        groups = []
        events = 0
        for group, _ in self._groups:
            groups.append(group)
            events += len(group)
            if events >= EVENTS_PER_COMMIT_MAX:
                break
        try:
            committed = await self._database.run(
                lambda _: self._committer.commit(groups, [change for change, _ in changes])
            )
        except DiskFull as error:
            self._changes.extendleft(reversed(changes))
            await self._without_space(error, has_changes=bool(changes), has_groups=bool(groups))
        except Locked as error:
            self._changes.extendleft(reversed(changes))
            if not self._is_locked:
                log.warning("event_log.locked", reason=str(error), hint="is the file open in a sqlite3 shell?")
            self._is_locked = True  # the busy timeout has passed: try again at once
            if self._closing:
                self._give_up(EventLogClosed("the event log was closed while another process held a lock on it"))
        except EventLogFailed:
            self._changes.extendleft(reversed(changes))
            raise
        else:
            self._is_locked = False
            if groups:
                self._note_blocked(committed.blocked)
            self._answer(committed, changes)
            if committed.needs_maintenance:
                await self._maintain(is_idle=bool(self._blocked))
            elif committed.blocked == "disk_full":
                await self._database.run(lambda _: self._committer.shrink())

    def _answer(self, committed: Committed, changes: deque[tuple[Change[Any], asyncio.Future[Any]]]) -> None:
        self._on_commit(committed.stats)
        for _ in range(committed.groups):
            _, done = self._groups.popleft()
            if not done.done():
                done.set_result(None)
        for (_, done), result in zip(changes, committed.results, strict=True):
            if done.done():
                continue
            if isinstance(result, Exception):
                done.set_exception(result)
            else:
                done.set_result(result)

    async def _without_space(self, error: DiskFull, *, has_changes: bool, has_groups: bool) -> None:
        """Changes are tried again without the groups, then with the reserve; groups wait."""
        self._note_blocked("disk_full", str(error))
        if self._closing:
            self._give_up(EventLogClosed("the event log was closed while the disk was full"))
        if not has_changes or self._closing:
            return
        if has_groups:
            groups, self._groups = self._groups, deque()
            try:
                await self._commit()
            finally:
                groups.extend(self._groups)
                self._groups = groups
        elif await self._database.run(lambda _: self._committer.make_space()):
            log.warning("event_log.reserve_released")
        else:
            await asyncio.sleep(self._retry_s)
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    async def _maintain(self, *, is_idle: bool) -> None:
        maintained = await self._database.run(lambda _: self._committer.maintain(is_idle=is_idle))
        self._needs_maintenance = maintained.needs_more
        if maintained.wal_bytes is not None:
            self._note_wal(maintained.wal_bytes)

    def _note_wal(self, wal_bytes: int) -> None:
        is_pinned = wal_bytes > self._committer.limits.wal_bytes_max
        if is_pinned and not self._wal_is_pinned:
            log.warning(
                "event_log.wal_pinned", wal_bytes=wal_bytes, hint="another process keeps a read transaction open"
            )
        self._wal_is_pinned = is_pinned

    def _note_blocked(self, blocked: Blocked, reason: str = "") -> None:
        if blocked == self._blocked:
            return
        if blocked:
            log.error("event_log.appends_wait", cause=blocked, reason=reason, hint=_HINTS[blocked])
        else:
            log.info("event_log.appends_resume")
            self._retry_s = RETRY_FIRST_S
        self._blocked = blocked

    def _give_up(self, error: Exception) -> None:
        for _, done in (*self._groups, *self._changes):
            if not done.done():
                done.set_exception(error)
        self._groups.clear()
        self._changes.clear()


_HINTS: Final = {
    "backlog_full": "devices get no acknowledgement until the uplink made room; see backlog_bytes_max and when_full",
    "disk_full": "devices get no acknowledgement until there is space again; see disk_free_bytes_min",
}
